"""Promises that no module keeps alone."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest
from support.fresh_process import run_fresh, start_natc

import natc

ROOT = Path(__file__).parent.parent.parent
PACKAGE = Path(natc.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))


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
    lengths = {path: path.read_text("utf-8").count("\n") for path in FILES}
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


# Steps that must load no heavy module, in one process; the lightest come first.
LIGHT = """
import importlib, os, pkgutil, sys
HEAVY = {"torch", "tvm", "tvm_ffi", "numpy", "matplotlib"}
loaded = {}
def step(name, *more):
    loaded[name] = sorted((HEAVY | set(more)) & set(sys.modules))
import natc.window
step("window")
from natc.cli.main import main
step("command line", "rich.table", "filelock")
from natc.host import gpu
gpu.driver = lambda: gpu.Driver(None, ())
def run(*words):
    sys.argv = ["natc", *words]
    try:
        main()
    except SystemExit:
        step(" ".join(words), *(["rich", "natc.runtime"] if "--help" in words else []))
run("build", "--help")
run("tune", "--kernel=7", "--target=cuda")
run("show", "--kernel=7", "--json")
import natc.package
for module in pkgutil.iter_modules(natc.package.__path__):
    importlib.import_module(f"natc.package.{module.name}")
step("package", "cryptography")
completing = {"COMP_WORDS": "natc build -k ", "COMP_CWORD": "3"}
os.environ |= {"_NATC_COMPLETE": "complete_bash", **completing}
run("completion")
print()
print(loaded)
"""


def test_what_needs_neither_torch_nor_tvm_loads_nothing_heavy(tmp_path: Path) -> None:
    out = run_fresh(LIGHT, NATC_WORKSPACE=str(tmp_path), NATC_CACHE_DIR=str(tmp_path))
    verbs = ("build --help", "tune --kernel=7 --target=cuda", "show --kernel=7 --json")
    steps = ("window", "command line", *verbs, "package", "completion")
    assert out.splitlines()[-1] == str({step: [] for step in steps})


def test_processes_run_the_tested_natc(tmp_path: Path) -> None:
    """The checkout's natc, even if another natc is installed."""
    program = "import natc; print(natc.__file__)"
    assert run_fresh(program) == f"{natc.__file__}\n"
    process = start_natc("--version", cwd=tmp_path)
    assert process.communicate(timeout=100) == (f"natc {natc.__version__}\n", "")


# A name has one meaning: natc defines no class twice and uses no file name three times.


# Classes of NATTEN, which `natc.compat` defines for each of NATTEN's interfaces.
NATTEN = {f"NeighborhoodAttention{rank}D" for rank in (1, 2, 3)}


def class_names(source: str) -> list[str]:
    return [node.name for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ClassDef)]


def test_no_class_name_is_defined_twice() -> None:
    places: dict[str, list[str]] = defaultdict(list)
    for path in FILES:
        for name in class_names(path.read_text(encoding="utf-8")):
            places[name].append(str(path.relative_to(PACKAGE)))
    twice = {name: where for name, where in places.items() if len(where) > 1}
    assert {name: twice[name] for name in twice.keys() - NATTEN} == {}


def test_no_file_name_stands_three_times() -> None:
    places: dict[str, list[str]] = defaultdict(list)
    for path in FILES:
        if path.name != "__init__.py":
            places[path.name].append(str(path.relative_to(PACKAGE)))
    assert {name: where for name, where in places.items() if len(where) > 2} == {}


def test_nested_classes_count() -> None:
    assert class_names("class A:\n    def f(self):\n        class A: ...\n") == ["A", "A"]
