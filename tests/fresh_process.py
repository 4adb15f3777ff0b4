"""Programs in a Python process of their own, in which nothing is loaded yet."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
# As if the compiler were not installed: an import of it fails.
NO_COMPILER = "import sys\nsys.modules.update(dict.fromkeys(('tvm', 'xgboost')))\n"


def run_fresh(program: str, *arguments: str, **environment: str) -> str:
    """Run a program that imports natc and return what it printed; fail with what it said.

    arguments: of the program. environment: variables, besides those of this process.
    """
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program, *arguments],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=400,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
