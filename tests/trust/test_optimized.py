"""The checks of files hold under `python -O`, which leaves out every `assert`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from support.fresh_process import with_natc

FILES = ("test_manifests.py", "test_damaged_records.py", "test_packages.py")


def test_damaged_files_are_refused_without_asserts() -> None:
    paths = [str(Path(__file__).with_name(name)) for name in FILES]
    done = subprocess.run(
        [
            sys.executable,
            "-O",
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            "-k",
            "damaged",
            *paths,
        ],
        env=with_natc(NATC_TESTS_FEWER_MUTATIONS="4"),
        capture_output=True,
        text=True,
        check=False,
        timeout=400,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "mutations" in done.stdout
