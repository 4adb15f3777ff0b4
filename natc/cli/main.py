"""The `natc` command: its verbs, its exit codes, and Ctrl-C."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from natc.cli import output
from natc.cli.examples import epilog
from natc.cli.verbs import (
    bench,
    build,
    convert,
    doctor,
    eval_,
    list_,
    measure,
    package,
    predict,
    quickstart,
    show,
    train,
    tune,
    verify,
)
from natc.cli.views.search import INTERRUPTED
from natc.errors import ArgumentError, ArgumentTypeError, NatcError, SpecError, TargetError
from natc.version import __version__

# What happens to programs that write to stdout and to the disk.
_NO_BUGS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO, errno.EBADF)
BAD_INPUT = (SpecError, TargetError, ArgumentError, ArgumentTypeError)


class Verbs(TyperGroup):
    """The verbs; Ctrl-C stops any of them."""

    def invoke(self, ctx: Any) -> Any:
        """Run the verb of the command line."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            print("natc: stopped.", file=sys.stderr)
            raise typer.Exit(INTERRUPTED) from None


app = typer.Typer(
    name="natc",
    help="Tune, build and run neighborhood attention kernels.",
    cls=Verbs,
    no_args_is_help=True,
    # An error that natc did not foresee is a bug: show it plainly, as Python does.
    pretty_exceptions_enable=False,
    # Plain help: rich's columns leave little room on a terminal of 80, and take time to load.
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Every verb exits with 0; with 1 if its work failed or found a problem; with 2 for "
    "wrong usage; with 130 if it was stopped. natc VERB --help has examples.",
)
# The first sentence of a verb's docstring is its line in `natc --help`: it fits into 80 columns.
for _name, _function in (
    ("quickstart", quickstart.quickstart),
    ("tune", tune.tune),
    ("measure", measure.measure),
    ("build", build.build),
    ("package", package.package),
    ("verify", verify.verify),
    ("list", list_.list_),
    ("show", show.show),
    ("bench", bench.bench),
    ("convert", convert.convert),
    ("train", train.train),
    ("eval", eval_.eval_),
    ("predict", predict.predict),
    ("doctor", doctor.doctor),
):
    app.command(_name, epilog=epilog(_name))(_function)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"natc {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run the command line in `sys.argv`.

    Exits with 0, 1 (failed, or found a problem), 2 (wrong usage), 130 (stopped with Ctrl-C) or
    141 (the reader of its output is gone).
    """
    with _watched() as was_stopped:
        try:
            output.prepare()
            app(prog_name="natc")
        except Exception as error:
            # Compiled code, such as numpy while it loads, may turn Ctrl-C into any error.
            if was_stopped():
                print("natc: stopped.", file=sys.stderr)
                raise SystemExit(INTERRUPTED) from None
            if not isinstance(error, NatcError):
                if isinstance(error, OSError) and error.errno in _NO_BUGS:
                    output.give_up(error)
                if not isinstance(error, FileNotFoundError) or _is_somewhere():
                    raise
                error = NatcError("the current directory does not exist any more; cd to another.")
            print(f"natc: error: {error}", file=sys.stderr)
            raise SystemExit(2 if isinstance(error, BAD_INPUT) else 1) from None
        finally:
            output.flush()


def _is_somewhere() -> bool:
    try:
        os.getcwd()
    except FileNotFoundError:
        return False
    return True


@contextlib.contextmanager
def _watched() -> Iterator[Callable[[], bool]]:
    """Yield a function that returns whether Ctrl-C was pressed since."""
    pressed = False

    def note(number: int, frame: Any) -> None:
        nonlocal pressed
        pressed = True
        signal.default_int_handler(number, frame)

    usual = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    # A program that starts natc may have disabled Ctrl-C; only the main thread handles signals.
    usual = usual and threading.current_thread() is threading.main_thread()
    if usual:
        signal.signal(signal.SIGINT, note)
    try:
        yield lambda: pressed
    finally:
        if usual:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        if pressed:
            # If Ctrl-C interrupted an exec(), for example while a dataclass was created, Python
            # remembers it and would end `python -m natc` by the signal, even if the exception was
            # caught. Another exec() makes it forget.
            exec("")


if __name__ == "__main__":
    main()
