"""A model of a CUDA kernel's time that needs no GPU: machine code, what it executes, how long.

`disassembly` reads the machine code, `machine` executes a block of it on tensors of zeros and
counts, `work` collects the counts of a launch, `timing` turns them into a time. Only
`candidates` and `launches` import TVM.
"""
