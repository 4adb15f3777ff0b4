"""Running the scripts of benchmarks/ on this CPU."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from support.fresh_process import with_natc

ROOT = Path(__file__).parents[2]


def benchmark(script: str, *words: str, libraries: Path) -> subprocess.CompletedProcess[str]:
    """Run a script with the kernels of one directory, on one thread."""
    variables = {"NATC_LIB_PATH": str(libraries), "NATC_CACHE_DIR": str(libraries / "none")}
    return subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / script), *words],
        env=with_natc(**variables, OMP_NUM_THREADS="1"),
        capture_output=True,
        text=True,
        check=False,
    )
