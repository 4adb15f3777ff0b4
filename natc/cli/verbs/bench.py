"""`natc bench`: times of natc's kernels beside the reference and torch's attention."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from natc.cli import options, output
from natc.cli.options import DtypeOption, HeadDimOption, JsonOption
from natc.errors import ArgumentError, NatcError, TargetError
from natc.store.files import write_atomically

if TYPE_CHECKING:
    from natc.bench.problem import BenchProblem
    from natc.bench.results import Ceilings, Results

KERNEL = "natc kernel"
# To spend on each ceiling, before the times and after them.
_CEILING_SECONDS = 0.3
Device = Literal["cpu", "cuda"]
_PEERS = {"reference": "reference", "sdpa": "torch SDPA", "flex": "torch FlexAttention"}


def bench(
    context: typer.Context,
    kernel: options.KernelOption = options.NAT_KERNEL,
    rank: options.RankOption = None,
    device: Annotated[Device, typer.Option("--device", help="Where to run.")] = "cpu",
    head_dim: HeadDimOption = options.DEFAULT_HEAD_DIM,
    value_dim: options.ValueDimOption = None,
    heads_kv: Annotated[
        int | None,
        typer.Option("--heads-kv", help="Heads of key and value.", show_default="as query has"),
    ] = None,
    dtype: DtypeOption = None,
    rpb: options.RpbOption = True,
    dilation: Annotated[
        str, typer.Option("--dilation", metavar="D", help="Dilation: 2, or 1x2x2 by axis.")
    ] = "1",
    stride: Annotated[
        str, typer.Option("--stride", metavar="S", help="Stride: 2, or 1x2x2 by axis.")
    ] = "1",
    causal: Annotated[
        bool, typer.Option("--causal", help="No query attends to a later key, on any axis.")
    ] = False,
    backward: Annotated[
        bool, typer.Option("--backward", help="Time forward and backward together.")
    ] = False,
    shape: options.ShapeOption = None,
    peers: Annotated[
        str, typer.Option("--peers", help=f"Some of {', '.join(_PEERS)}, by commas; or none.")
    ] = ",".join(_PEERS),
    seconds: Annotated[
        float, typer.Option("--seconds", min=0.01, help="Time to spend on each shape.")
    ] = 3.0,
    source: Annotated[
        Path | None,
        typer.Option(
            "--from", metavar="FILE", help="Show results that --json printed; time nothing."
        ),
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(
            "--plot", metavar="FILE", help="Draw shares of the roof and speed-ups: .svg or .png."
        ),
    ] = None,
    html: Annotated[
        Path | None,
        typer.Option("--html", metavar="FILE", help="Write a report that needs no network."),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Time kernels beside torch's attention; draw plots.

    Times natc's kernel, the reference, and torch's attention on the same inputs. The same run
    measures the largest rates of this machine, and says if the machine is busy. Exits with 1 if
    no kernel could be timed.
    """
    _check_outputs(plot, html)
    if source is not None:
        _refuse_measuring(context)
        from natc.bench import results as saved

        results = saved.read(source)
    else:
        kind = "cuda" if device == "cuda" else "llvm"
        spec = options.make_spec(
            kernel,
            kind=kind,
            rank=rank,
            head_dim=head_dim,
            dtype=dtype,
            rpb=rpb,
            value_dim=value_dim,
        )
        shapes = [options.parse_input(text, spec) for text in shape or ()]
        dilations = options.parse_per_axis("dilation", dilation, spec.rank)
        strides = options.parse_per_axis("stride", stride, spec.rank)
        names = _parse_peers(peers)
        _require_device(device)
        from natc.bench.problem import BenchProblem
        from natc.host.detect import parse_target
        from natc.tune.measure.workload import default_shapes

        target = parse_target(kind)
        problems = [
            BenchProblem.make(
                spec,
                sizes,
                heads_kv=heads_kv,
                dilation=dilations,
                stride=strides,
                is_causal=causal,
                backward=backward,
            )
            for sizes in shapes or default_shapes(spec, target)
        ]
        results = _measure(problems, names, device, seconds)

    if plot is not None:
        from natc.bench import plots

        write_atomically(plot, plots.draw(results, plots.format_of(plot)))
    if html is not None:
        from natc.cli.views import bench_html

        write_atomically(html, bench_html.render(results))
    if json:
        output.print_json(results)
    else:
        from natc.cli.views import times_table

        times_table.show(results)
        for path in filter(None, (plot, html)):
            output.stdout().print(f"wrote {path}")
    if source is None and not any(
        row.contestant == KERNEL and row.median_seconds for row in results.rows
    ):
        raise typer.Exit(1)


def _check_outputs(plot: Path | None, html: Path | None) -> None:
    """Refuse now what would fail after minutes of measuring."""
    if plot is None and html is None:
        return
    from natc.bench import plots

    if plot is not None:
        plots.format_of(plot)
    if html is not None and html.suffix.lower() not in (".html", ".htm"):
        raise ArgumentError(
            f"report {html} has the suffix {html.suffix or '(none)'}; it must be .html."
        )
    for path in filter(None, (plot, html)):
        output.require_writable(path)
    plots.require_matplotlib()


def _refuse_measuring(context: typer.Context) -> None:
    """Raise ArgumentError if the command line has an option that says what to measure."""
    allowed = ("source", "plot", "html", "json")
    for param in context.command.params:
        name = param.name or ""
        origin = context.get_parameter_source(name)
        if name not in allowed and origin is not None and origin.name == "COMMANDLINE":
            raise ArgumentError(
                f"--from shows results that are there; {param.opts[0]} goes with measuring. It "
                "takes --plot, --html and --json."
            )


def _parse_peers(text: str) -> list[str]:
    names = [] if text == "none" else text.split(",")
    for name in names:
        if name not in _PEERS:
            raise ArgumentError(
                f"--peers has {name!r}; it must be some of {', '.join(_PEERS)}, or none."
            )
    return names


def _require_device(device: Device) -> None:
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        raise TargetError(
            "--device is cuda, but torch sees no GPU on this machine. natc doctor shows whether "
            "there is one; --device cpu times this CPU."
        )


def _measure(
    problems: list[BenchProblem], names: list[str], device: Device, seconds: float
) -> Results:
    from natc.bench import peers, results, times
    from natc.cli.views import times_table

    load = results.load_average()
    dtype = problems[0].kernel.dtype
    before = _ceilings(device, dtype)
    rows = times.time_problems(
        problems,
        {KERNEL: peers.natc_kernels} | {_PEERS[name]: peers.PEERS[_PEERS[name]] for name in names},
        device=device,
        seconds=seconds,
        progress=times_table.progress(),
    )
    # Twice, because processors change their clock; the larger rates count.
    after = _ceilings(device, dtype) if before is not None else None
    return results.collect(
        rows,
        device,
        ceilings=(before, after) if before and after else (),
        load_average=load,
        command=shlex.join(["natc", *sys.argv[1:]]),
    )


def _ceilings(device: Device, dtype: str) -> Ceilings | None:
    """Return the largest rates of the machine; None, with a note, if they cannot be measured."""
    from natc.bench import ceilings

    try:
        return ceilings.measure(device, dtype, seconds=_CEILING_SECONDS)
    # torch raises RuntimeError if memory is short.
    except (NatcError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        output.stderr().print(f"note: no ceilings, hence no floors and no shares: {reason}")
        return None
