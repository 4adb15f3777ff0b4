"""Times natc's kernels and their peers on one clock, with the machine's ceilings beside them."""
