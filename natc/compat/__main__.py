"""`python -m natc.compat [--natten RELEASE] script.py ...`: run a program on natc's NATTEN.

    python -m natc.compat train.py --epochs 300
    python -m natc.compat --natten 0.14.6 -m tools.train config.py
    torchrun --nproc-per-node 2 -m natc.compat train.py

`--natten` names the release, else the variable NATC_AS_NATTEN does; without either, the program
gets the union of all releases. The variable and PYTHONPATH are set for processes that the program
starts.
"""

from __future__ import annotations

import os
import runpy
import sys
from pathlib import Path

import natc.compat
from natc.compat.natten.install import install_from_environment
from natc.env import NATC_AS_NATTEN
from natc.errors import NatcError

_USAGE = "usage: python -m natc.compat [--natten RELEASE] (script.py | -m module) [argument ...]"


def main(arguments: list[str]) -> None:
    """Install the interface and run a script or module as `__main__`, with its own arguments.

    Raises:
        SystemExit: with code 2 if the command line or the release is wrong; else the program's.
    """
    if arguments[:1] in (["-h"], ["--help"]):
        print(__doc__)
        return
    version = None
    if arguments and arguments[0].startswith("--natten="):
        arguments = [*arguments[0].split("=", 1), *arguments[1:]]
    if arguments[:1] == ["--natten"]:
        if len(arguments) < 2:
            _refuse("--natten needs a release, such as 0.14.6.")
        version, arguments = arguments[1], arguments[2:]
    as_module = arguments[:1] == ["-m"]
    if as_module:
        arguments = arguments[1:]
    if not arguments or arguments[0].startswith("-"):
        _refuse(f"{arguments[0]} is not a script." if arguments else "There is nothing to run.")
    if not as_module and not Path(arguments[0]).exists():
        _refuse(f"There is no file {arguments[0]}.")
    try:
        if version is None and NATC_AS_NATTEN.get():
            install_from_environment()
        else:
            natc.compat.install(version)
            NATC_AS_NATTEN.set(version or "1")
    except NatcError as error:
        _refuse(str(error))
    sys.argv = arguments
    # As Python does: `-m` searches the current directory, a script the directory it lies in.
    sys.path[0] = os.getcwd() if as_module else str(Path(arguments[0]).resolve().parent)
    _pass_on()
    if as_module:
        runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)
    else:
        runpy.run_path(arguments[0], run_name="__main__")


def _pass_on() -> None:
    """Let processes started by the program, such as data loader workers, find the stand-in."""
    here = str(Path(__file__).parent / "on_path")
    # multiprocessing passes the sys.path of this process on to the processes that it spawns.
    sys.path.insert(1, here)
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([here, before] if before else [here])


def _refuse(message: str) -> None:
    print(f"{message}\n{_USAGE}", file=sys.stderr)
    raise SystemExit(2)


if __name__ == "__main__":
    main(sys.argv[1:])
