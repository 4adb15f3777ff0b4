"""All gradients on a CPU in one sweep over the queries: five products for each pair.

A thread owns a part of the map: a band of rows of a dilation group, in one head of one entry of
the batch. It goes over the planes of queries of a map of rank 3; in each over strips of columns,
down the rows of each, in tiles of 2 x 2 queries. A map of rank 1 is one row, with tiles of 1 x 2.
For the tiles of these rows it computes probabilities and gradients of logits once, and with them
every gradient: of the queries, which are done then; of the bias, in a table; and of keys and
values, in a ring of rows that are complete when no further query reaches them. So nothing needs
atomics, and the order of every sum follows from sizes alone.
"""
