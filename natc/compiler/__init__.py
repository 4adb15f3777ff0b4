"""The compiler: definitions, design spaces, tensor-core kernels and builds.

Only this room and `natc.tune.search` import TVM.
"""
