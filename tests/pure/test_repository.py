"""Promises that no module keeps alone."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from support.fresh_process import run_fresh, start_natc

import natc

ROOT = Path(__file__).parent.parent.parent


def readme_command(name: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / ".ci" / "readme-command"), name]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("name", ["install", "test"])
def test_ci_runs_the_readmes_commands(name: str) -> None:
    done = readme_command(name)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    assert f"readme_command {name}" in (ROOT / ".ci" / "run").read_text()


def test_a_command_that_the_readme_lacks_stops_ci() -> None:
    done = readme_command("dance")
    assert done.returncode != 0
    assert "command: dance" in done.stderr


def test_no_module_grows_too_long() -> None:
    lengths = {path: path.read_text("utf-8").count("\n") for path in ROOT.glob("natc/**/*.py")}
    assert lengths and [path for path, length in lengths.items() if length > 500] == []


def test_the_compiler_extra_excludes_the_versions_that_crash() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    compiler = re.search(r"^compiler = \[\n(.*?)^\]", text, flags=re.MULTILINE | re.DOTALL)
    assert compiler
    assert '"apache-tvm==0.27.0.post1"' in compiler[1]
    assert '"apache-tvm-ffi>=0.1.14.post0,<0.1.15"' in compiler[1]


def test_the_wheel_ships_schedules_and_logs() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    for name in ("schedules", "tuning_logs"):
        assert f'"{name}" = "natc/_data/{name}"' in text
        assert (ROOT / name).is_dir()


# The command line starts at once because it loads none of these.
LIGHT = """
import natc.cli.main, sys
print(sorted({"torch", "tvm", "tvm_ffi", "rich.table", "filelock"} & set(sys.modules)))
"""


def test_the_command_line_loads_nothing_heavy() -> None:
    assert run_fresh(LIGHT) == "[]\n"


def test_processes_run_the_tested_natc(tmp_path: Path) -> None:
    """The checkout's natc, even if another natc is installed."""
    program = "import natc; print(natc.__file__)"
    assert run_fresh(program) == f"{natc.__file__}\n"
    process = start_natc("--version", cwd=tmp_path)
    assert process.communicate(timeout=100) == (f"natc {natc.__version__}\n", "")
