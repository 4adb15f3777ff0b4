"""Running the scripts of benchmarks/ on this CPU."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def benchmark(script: str, *words: str, libraries: Path) -> subprocess.CompletedProcess[str]:
    """Run a script with the kernels of one directory, on one thread."""
    return subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / script), *words],
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "NATC_LIB_PATH": str(libraries),
            "NATC_CACHE_DIR": str(libraries / "none"),
            "OMP_NUM_THREADS": "1",
        },
        capture_output=True,
        text=True,
        check=False,
    )
