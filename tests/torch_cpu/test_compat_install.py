"""How `import natten` comes to give natc's stand-in, and when it does not."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import os
import subprocess
import sys
import types
from pathlib import Path

import pytest
from support.compat_releases import installed
from support.fresh_process import with_natc

import natc.compat
from natc.compat import __main__ as launcher
from natc.compat.natten.releases import RELEASES
from natc.errors import ArgumentError, CompatError

ROOT = Path(natc.compat.__file__).parents[2]


def run(*arguments: str, **environment: str) -> str:
    """Run Python in a fresh process that imports this checkout, and return its output."""
    done = subprocess.run(
        [sys.executable, *arguments],
        env=with_natc(**{"NATC_AS_NATTEN": "", **environment}),
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("version", RELEASES)
def test_the_version_stands_wherever_programs_read_it(version: str) -> None:
    with installed(version) as natten:
        assert natten.__version__ == version
        assert importlib.metadata.version("natten") == version
        assert importlib.metadata.metadata("natten")["Name"] == "natten"
        spec = importlib.util.find_spec("natten")
        assert spec is not None and spec.origin == "natc.compat"
        assert natten.functional is sys.modules["natten.functional"]


@pytest.mark.parametrize(
    ("requested", "version"),
    [
        (None, "0.17.4"),
        ("0.14", "0.14.6"),
        ("0.15", "0.15.1"),
        ("0.17", "0.17.5"),
        ("0.20", "0.20.1"),
        ("0.21", "0.21.7"),
        ("0.17.1+torch230cu121", "0.17.1"),
    ],
)
def test_versions_may_be_short_or_long(requested: str | None, version: str) -> None:
    with installed(requested) as natten:
        assert natten.__version__ == version


@pytest.mark.parametrize("version", ["0.16", "0.18.0", "1", "", "0.1", "main"])
def test_an_unknown_release_is_refused(version: str) -> None:
    with pytest.raises(ArgumentError, match="0.17.4"):
        natc.compat.install(version)
    assert importlib.util.find_spec("natten") is None


def test_natten_is_not_found_before_install_and_after_uninstall() -> None:
    assert importlib.util.find_spec("natten") is None
    natc.compat.uninstall()
    with installed():
        import natten.flops  # noqa: F401
    assert importlib.util.find_spec("natten") is None
    assert not any(name.partition(".")[0] == "natten" for name in sys.modules)
    with pytest.raises(importlib.metadata.PackageNotFoundError):
        importlib.metadata.version("natten")


def test_installing_again_replaces_the_interface() -> None:
    with installed("0.14.6") as old:
        natc.compat.install("0.21")
        import natten

        assert (old.__version__, natten.__version__) == ("0.14.6", "0.21.7")
        with pytest.raises(ImportError):
            from natten.functional import natten2dqkrpb  # noqa: F401
        assert callable(old.functional.natten2dqkrpb)


def test_modules_that_a_release_lacks_are_not_found() -> None:
    with installed("0.14.6"), pytest.raises(ModuleNotFoundError, match=r"natten\.context"):
        import natten.context
    with installed("0.21"), pytest.raises(ModuleNotFoundError, match=r"natten\.flops"):
        import natten.flops  # noqa: F401


ABSENT = ["autotuner", "backends", "profiler", "token_permute", "utils.testing"]


@pytest.mark.parametrize("name", ABSENT)
@pytest.mark.parametrize("version", ["0.21", None])
def test_an_absent_submodule_names_its_replacement(version: str | None, name: str) -> None:
    with installed(version):
        with pytest.raises(ImportError, match=rf"no natten\.{name}: .*"):
            importlib.import_module(f"natten.{name}")
        parent, _, child = f"natten.{name}".rpartition(".")
        with pytest.raises(ImportError, match=rf"no natten\.{name}: .*"):
            exec(f"from {parent} import {child}")
        assert f"natten.{name}" not in sys.modules


def test_an_imported_natten_is_not_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    real = types.ModuleType("natten")
    real.__version__ = "0.17.1"  # type: ignore[attr-defined]
    real.__file__ = "/somewhere/natten/__init__.py"
    monkeypatch.setitem(sys.modules, "natten", real)
    with pytest.raises(CompatError, match=r"natten 0\.17\.1 is already imported, from /somewhere"):
        natc.compat.install()
    natc.compat.uninstall()
    assert sys.modules["natten"] is real


def test_the_stand_in_comes_before_an_installed_natten(tmp_path: Path) -> None:
    (tmp_path / "natten").mkdir()
    (tmp_path / "natten" / "__init__.py").write_text("__version__ = 'real'")
    program = """
import importlib.util, natc.compat
natc.compat.install("0.14.6")
print(importlib.util.find_spec("natten").origin)
natc.compat.uninstall()
import natten
print(natten.__version__)
"""
    path = os.pathsep.join((str(tmp_path), str(ROOT)))
    assert run("-c", program, PYTHONPATH=path) == "natc.compat\nreal\n"


def test_installing_imports_no_torch() -> None:
    program = """
import sys
import natc.compat
natc.compat.install()
import importlib.metadata, json, email
print(importlib.metadata.version("natten"), "torch" in sys.modules)
"""
    assert run("-c", program) == "0.17.4 False\n"


# The version is read without importing natten, which would import torch.
SHOW = """import sys, importlib.metadata
print(importlib.metadata.version("natten"), *sys.argv)
"""


def test_a_script_sees_its_own_arguments_and_directory(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(f"import beside\n{SHOW}print(__name__, __file__ == sys.argv[0])\n")
    (tmp_path / "beside.py").write_text("")
    out = run("-m", "natc.compat", str(script), "--epochs", "3")
    assert out == f"0.17.4 {script} --epochs 3\n__main__ True\n"
    out = run("-m", "natc.compat", "--natten", "0.14.6", str(script))
    assert out.startswith(f"0.14.6 {script}\n")
    out = run("-m", "natc.compat", str(script), NATC_AS_NATTEN="0.21")
    assert out.startswith(f"0.21.7 {script}\n")
    out = run("-m", "natc.compat", "--natten", "0.15", str(script), NATC_AS_NATTEN="0.21")
    assert out.startswith(f"0.15.1 {script}\n")


def test_a_module_is_run_from_the_current_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tools").mkdir()
    (tmp_path / "tools" / "show.py").write_text(SHOW)
    monkeypatch.chdir(tmp_path)
    out = run("-m", "natc.compat", "--natten", "0.20", "-m", "tools.show", "x")
    assert out == f"0.20.1 {tmp_path / 'tools' / 'show.py'} x\n"


def test_processes_that_the_program_starts_import_the_stand_in(tmp_path: Path) -> None:
    """They have a folder on their path in which `import natten` installs it."""
    script = tmp_path / "train.py"
    script.write_text(
        """
import importlib.util, multiprocessing, subprocess, sys

def say():
    print(importlib.util.find_spec("natten").origin, flush=True)

if __name__ == "__main__":
    child = multiprocessing.get_context("spawn").Process(target=say)
    child.start()
    child.join()
    show = "import natten, natten.flops; print(natten.__version__)"
    print(subprocess.run([sys.executable, "-c", show], capture_output=True, text=True).stdout)
"""
    )
    out = run("-m", "natc.compat", "--natten", "0.14.5", str(script))
    origin, version = out.split()
    # Of this checkout or of an installed natc.
    assert origin.endswith("/natc/compat/on_path/natten/__init__.py") and version == "0.14.5"


def test_importing_natc_follows_the_variable() -> None:
    program = """
import importlib.metadata, natc
print(importlib.metadata.version("natten"), natc.compat.__name__)
"""
    assert run("-c", program, NATC_AS_NATTEN="0.15") == "0.15.1 natc.compat\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "There is nothing to run."),
        (["--natten"], "--natten needs a release"),
        (["--natten", "9.9", "x.py"], "There is no file x.py."),
        (["--natten", "9.9", "-m", "this"], "version is '9.9'"),
        (["--natten=9.9", "-m", "this"], "version is '9.9'"),
        (["--version", "1", "x.py"], "--version is not a script."),
    ],
)
def test_a_wrong_command_line_is_refused(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        launcher.main(arguments)
    assert stop.value.code == 2
    errors = capsys.readouterr().err
    assert message in errors and "usage: python -m natc.compat" in errors


def test_the_launcher_has_a_help_text() -> None:
    assert "train.py --epochs 300" in run("-m", "natc.compat", "--help")


@pytest.mark.parametrize("value", ["0", "off", "", "False"])
def test_the_variable_switches_the_stand_in_off(
    monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv("NATC_AS_NATTEN", value)
    natc.compat.install_from_environment()
    assert importlib.util.find_spec("natten") is None


@pytest.mark.parametrize(
    ("value", "version"), [("1", "0.17.4"), ("on", "0.17.4"), ("0.15", "0.15.1")]
)
def test_the_variable_names_a_release(
    monkeypatch: pytest.MonkeyPatch, value: str, version: str
) -> None:
    monkeypatch.setenv("NATC_AS_NATTEN", value)
    natc.compat.install_from_environment()
    try:
        assert importlib.metadata.version("natten") == version
    finally:
        natc.compat.uninstall()


def test_a_wrong_value_of_the_variable_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NATC_AS_NATTEN", "newest")
    with pytest.raises(ArgumentError, match="NATC_AS_NATTEN: version is 'newest'"):
        natc.compat.install_from_environment()
