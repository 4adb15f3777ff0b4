"""`python -m natc.compat [--natten RELEASE] script.py ...`: run a program on natc's NATTEN.

    python -m natc.compat train.py --epochs 300
    python -m natc.compat --natten 0.14.6 -m tools.train config.py
    torchrun --nproc-per-node 2 -m natc.compat train.py

The release is that of `--natten`, else of the variable NATC_AS_NATTEN, else 0.17.4 with names of
other releases. The variable and PYTHONPATH are set for processes that the program starts.
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
        SystemExit: with 2, the command line or the release is wrong; else as the program does.
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
        _refuse(f"{arguments[0]} is no script." if arguments else "There is nothing to run.")
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
    # As Python does it: a module is looked for from here, a script's imports from beside it.
    sys.path[0] = os.getcwd() if as_module else str(Path(arguments[0]).resolve().parent)
    _pass_on()
    if as_module:
        runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)
    else:
        runpy.run_path(arguments[0], run_name="__main__")


def _pass_on() -> None:
    """Let processes started from here find the stand-in: workers of a data loader, for one."""
    here = str(Path(__file__).parent / "on_path")
    # The path of this process is what multiprocessing gives to those that it spawns.
    sys.path.insert(1, here)
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([here, before] if before else [here])


def _refuse(message: str) -> None:
    print(f"{message}\n{_USAGE}", file=sys.stderr)
    raise SystemExit(2)


if __name__ == "__main__":
    main(sys.argv[1:])
