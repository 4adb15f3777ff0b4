"""Predicts a CUDA kernel's time without a GPU: reads its machine code, executes it and counts.

`disassembly` reads the machine code, `machine` executes a block of it on tensors of zeros and
counts, `work` collects the counts of a launch, `timing` turns them into a time. Only
`candidates` and `launches` import TVM.
"""
