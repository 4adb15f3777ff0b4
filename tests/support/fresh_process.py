"""Programs in a Python process of their own, in which nothing is loaded yet."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import natc

# As if the compiler were not installed: an import of it fails.
NO_COMPILER = "import sys\nsys.modules.update(dict.fromkeys(('tvm', 'xgboost')))\n"


def with_natc(**changes: str) -> dict[str, str]:
    """Return variables with which a process finds the natc that is tested, installed or not."""
    return {**os.environ, "PYTHONPATH": str(Path(natc.__file__).parents[1]), **changes}


def run_fresh(program: str, *arguments: str, **variables: str) -> str:
    """Run a program that imports natc and return its stdout; fail with its stderr.

    arguments: of the program. variables: for its environment, besides this process's own.
    """
    with tempfile.TemporaryDirectory(prefix="natc-program-") as folder:
        # A file, which processes that it spawns can import; in a folder without a natc.
        path = Path(folder) / "program.py"
        path.write_text(program)
        done = subprocess.run(
            [sys.executable, "-W", "ignore", str(path), *arguments],
            cwd=folder,
            env=with_natc(**variables),
            capture_output=True,
            text=True,
            check=False,
            timeout=400,
        )
    assert done.returncode == 0, done.stderr
    return done.stdout


def start_natc(*words: str, **options: Any) -> subprocess.Popen[str]:
    """Start `natc`, whose output the caller reads. options: of the process, such as `env`."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    command = [sys.executable, "-m", "natc", *words]
    return subprocess.Popen(command, text=True, **{"env": with_natc(), **pipes, **options})
