"""What tests and benchmarks share: inputs with known flaws, tolerances, vectors of releases."""
