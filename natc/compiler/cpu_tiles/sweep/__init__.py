"""All gradients on a CPU in one sweep over the queries: five products for each pair.

A thread owns a part of the map: a band of rows of a dilation group, in one head of one entry of
the batch. It goes over strips of columns, down the rows of each, in tiles of 2 x 2 queries. For
the tiles of two rows it computes probabilities and gradients of logits once, and with them every
gradient: of the queries, which are done then; of the bias, in a table; and of keys and values, in
a ring of rows that are complete when no further query reaches them. So nothing needs atomics, and
the order of every sum follows from sizes alone.
"""
