"""The `natc` command: its verbs, and what becomes of their errors."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from natc import __version__
from natc.cli import bench, build, doctor, list_, package, quickstart, show, tune, verify
from natc.errors import ArgumentError, ArgumentTypeError, NatcError, SpecError, TargetError

BAD_INPUT = (SpecError, TargetError, ArgumentError, ArgumentTypeError)

app = typer.Typer(
    name="natc",
    help="Tune, build and run neighborhood attention kernels.",
    no_args_is_help=True,
    # An error that natc did not foresee is a bug: show it plainly, as Python does.
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("quickstart")(quickstart.quickstart)
app.command("tune")(tune.tune)
app.command("build")(build.build)
app.command("package")(package.package)
app.command("verify")(verify.verify)
app.command("list")(list_.list_)
app.command("show")(show.show)
app.command("bench")(bench.bench)
app.command("doctor")(doctor.doctor)


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
    """Run the command line in `sys.argv`; exits with 0, 1 (failed) or 2 (bad input)."""
    try:
        app(prog_name="natc")
    except NatcError as error:
        print(f"natc: error: {error}", file=sys.stderr)
        raise SystemExit(2 if isinstance(error, BAD_INPUT) else 1) from None


if __name__ == "__main__":
    main()
