"""What this machine is and has: its CPU, GPUs, compilers and installed versions."""
