"""Design spaces for the CUDA cores of NVIDIA GPUs."""
