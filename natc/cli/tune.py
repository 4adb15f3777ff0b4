"""`natc tune`: search for the fastest schedule of one kernel on one target."""

from __future__ import annotations

import shlex
import sys
from dataclasses import asdict
from typing import Annotated

import typer

from natc import gpu
from natc.cli import options, output, search
from natc.cli.options import DtypeOption, HeadDimOption, JsonOption, KernelOption, RankOption
from natc.errors import TargetError
from natc.targets import Target, detect_gpu, detect_host_cpu

# What candidates are checked and timed in; float64 is for checks, where speed does not matter.
_DTYPES = ("float32", "float16", "bfloat16")


def tune(
    kernel: KernelOption,
    target: options.TargetOption = "llvm",
    arch: options.ArchOption = None,
    head_dim: HeadDimOption = options.DEFAULT_HEAD_DIM,
    dtype: DtypeOption = None,
    rank: RankOption = None,
    rpb: options.RpbOption = True,
    minutes: Annotated[
        float, typer.Option("--minutes", min=0.05, help="Stop after this many minutes.")
    ] = 4.0,
    trials: Annotated[
        int | None, typer.Option("--trials", min=1, help="Stop after this many candidates.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of the search.")] = 0,
    shape: options.ShapeOption = None,
    json: JsonOption = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress.")] = False,
) -> None:
    """Search for the fastest forward schedule; the same command again goes on from there."""
    place = _measurable(target, arch, kernel)
    spec = options.make_spec(
        kernel, kind=place.kind, rank=rank, head_dim=head_dim, dtype=dtype, rpb=rpb
    )
    options.require_measured(spec, "tune", _DTYPES)
    shapes = [options.parse_shape(text) for text in shape] if shape else None
    options.require_compiler("tune")

    again = shlex.join(["natc", *sys.argv[1:]])
    try:
        finished = search.run(
            spec,
            place,
            shapes=shapes,
            trials=trials,
            minutes=minutes,
            seed=seed,
            show=not quiet,
        )
    except KeyboardInterrupt:
        print(f"natc: stopped. Everything measured is kept; go on with: {again}", file=sys.stderr)
        raise typer.Exit(search.INTERRUPTED) from None
    if json:
        speedup = search.speedup(finished)
        names = {"spec": spec.name, "target": place.name}
        output.print_json({**names, **asdict(finished), "speedup": speedup})
    else:
        search.report(finished, again)
    if finished.interrupted:
        raise typer.Exit(search.INTERRUPTED)


def _measurable(text: str, arch: str | None, kernel: str) -> Target:
    """Return the target, or raise TargetError where this machine cannot measure on it."""
    if text.split("-")[0] == "cuda" and not gpu.driver().gpus:
        # A wrong name is the first thing to say, and a right one belongs into the advice.
        named = Target.parse(text, arch or "sm_90" if text == "cuda" else arch)
        raise TargetError(
            "this machine has no NVIDIA GPU (or its driver does not answer), so nothing can be "
            "measured for cuda. Run this command on a machine with one and copy its schedules/ "
            "and tuning_logs/ here, or compile without tuning, which needs no GPU: "
            f"natc build --kernel {shlex.quote(kernel)} --target cuda --arch {named.arch}"
        )
    target = Target.parse(text, arch)
    machine = detect_gpu() if target.kind == "cuda" else detect_host_cpu()
    if not target.runs_on(machine):
        raise TargetError(
            f"code for {target.name} does not run on this machine, which is {machine.name}; "
            "tune on a machine that it runs on."
        )
    return target
