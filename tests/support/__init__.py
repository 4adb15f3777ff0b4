"""What the tests share: helpers, doubles of kernels, and oracles that share no code with natc."""
