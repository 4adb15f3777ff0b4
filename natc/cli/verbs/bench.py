"""`natc bench`: times of the kernels this machine has beside the reference and torch's own."""

from __future__ import annotations

import enum
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from natc.cli import options, output
from natc.cli.options import DtypeOption, HeadDimOption, JsonOption
from natc.errors import ArgumentError, NatcError, TargetError
from natc.host import environment
from natc.spec import KernelSpec
from natc.store.files import write_atomically

if TYPE_CHECKING:
    from natc.bench.results import Ceilings, Results
    from natc.bench.times import BenchProblem, Contestant, Prepared

KERNEL = "natc kernel"
# Spent on each ceiling, before the times and after them.
_CEILING_SECONDS = 0.3


class Device(str, enum.Enum):
    """The devices as choices of an option."""

    cpu = "cpu"
    cuda = "cuda"


def bench(
    context: typer.Context,
    kernel: options.KernelOption = options.NAT_KERNEL,
    device: Annotated[Device, typer.Option("--device", help="Where to run.")] = Device.cpu,
    head_dim: HeadDimOption = options.DEFAULT_HEAD_DIM,
    dtype: DtypeOption = None,
    rpb: options.RpbOption = True,
    dilation: Annotated[int, typer.Option("--dilation", min=1, help="Dilation.")] = 1,
    shape: options.ShapeOption = None,
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
            "--plot", metavar="FILE", help="Draw a roofline and speed-ups: a .svg or .png."
        ),
    ] = None,
    html: Annotated[
        Path | None,
        typer.Option("--html", metavar="FILE", help="Write a report that needs no network."),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Time natc's kernel, the reference, and torch's attention on the same inputs.

    What the machine does at most is measured in the same run: the floor that times stand above.
    Exits with 1 where no kernel could be timed.
    """
    form = _check_outputs(plot, html)
    if source is not None:
        _refuse_others(context)
        from natc.bench import results

        found = results.with_floors(results.read(source))
    else:
        kind = "cuda" if device is Device.cuda else "llvm"
        spec = options.make_spec(
            kernel, kind=kind, rank=None, head_dim=head_dim, dtype=dtype, rpb=rpb
        )
        options.require_measured(spec, "bench")
        given = [options.parse_shape(text) for text in shape or ()]
        found = _measure(spec, device, dilation, given, seconds)

    if plot is not None and form is not None:
        from natc.bench import plots

        write_atomically(plot, plots.draw(found, form))
    if html is not None:
        from natc.cli.views import bench_html

        write_atomically(html, bench_html.render(found))
    if json:
        output.print_json(found)
    else:
        from natc.cli.views import times_table

        times_table.show(found.title, found.rows, found.ceilings)
        for written in filter(None, (plot, html)):
            output.stdout().print(f"wrote {written}")
    if source is None and not any(
        row.contestant == KERNEL and row.median_seconds for row in found.rows
    ):
        raise typer.Exit(1)


def _check_outputs(plot: Path | None, html: Path | None) -> str | None:
    """Return the format of the plot; refuses now what would fail after minutes of measuring."""
    if plot is None and html is None:
        return None
    from natc.bench import plots

    form = plots.format_of(plot) if plot is not None else None
    if html is not None and html.suffix.lower() not in (".html", ".htm"):
        raise ArgumentError(
            f"report {html} has the suffix {html.suffix or '(none)'}; it must be .html."
        )
    for path in filter(None, (plot, html)):
        output.require_writable(path)
    plots.require_matplotlib()
    return form


def _refuse_others(context: typer.Context) -> None:
    """Raise ArgumentError where an option was given that says what to measure."""
    allowed = ("source", "plot", "html", "json")
    for param in context.command.params:
        name = param.name or ""
        given = context.get_parameter_source(name)
        if name not in allowed and given is not None and given.name == "COMMANDLINE":
            raise ArgumentError(
                f"--from shows results that are there; {param.opts[0]} goes with measuring. It "
                "takes --plot, --html and --json."
            )


def _measure(
    spec: KernelSpec,
    device: Device,
    dilation: int,
    given: list[tuple[int, int, int, int]],
    seconds: float,
) -> Results:
    import torch

    from natc.bench import peers, results, times
    from natc.cli.views import times_table

    if device is Device.cuda and not torch.cuda.is_available():
        raise TargetError(
            "--device is cuda, but torch sees no GPU on this machine. natc doctor shows whether "
            "there is one; --device cpu times this CPU."
        )
    levels = given or [level[:4] for level in times.NAT_LEVELS]
    before = _ceilings(device, spec)
    rows = times.time_attention(
        [(*level, spec.head_dim) for level in levels],
        getattr(torch, spec.dtype),
        {KERNEL: kernel_contestant(spec, device.value), **peers.torch_peers()},
        kernel_size=(spec.kernel_size[0], spec.kernel_size[1]),
        dilation=dilation,
        rpb=spec.rpb,
        device=device.value,
        seconds=seconds,
        progress=times_table.progress(),
    )
    # Twice, because processors change their clock; the larger of both is what it could do.
    after = _ceilings(device, spec) if before is not None else None
    found = results.Results(
        spec=spec.name,
        device=device.value,
        dilation=dilation,
        environment=environment.collect(),
        rows=rows,
        ceilings=results.larger(before, after) if before and after else None,
        command=shlex.join(["natc", *sys.argv[1:]]),
    )
    return results.with_floors(found)


def _ceilings(device: Device, spec: KernelSpec) -> Ceilings | None:
    """Return what the machine does at most, or None, with a note, where that does not work."""
    from natc.bench import ceilings

    try:
        return ceilings.measure(device.value, spec.dtype, seconds=_CEILING_SECONDS)
    # Out of memory is an error of torch, which is a RuntimeError.
    except (NatcError, RuntimeError) as error:
        said = str(error).strip().splitlines()[0]
        output.stderr().print(f"note: no ceilings, hence no floors and no roofline: {said}")
        return None


def kernel_contestant(spec: KernelSpec, device: str) -> Contestant:
    """Return the contestant that calls `natc.na2d` where a kernel serves it, never the reference.

    spec: what the inputs need; device: a torch device's name. Where no kernel serves it, the
    contestant is unavailable and says which command builds one.
    """
    from natc import functional, runtime
    from natc.bench import peers
    from natc.bench.times import Unavailable

    explanation = runtime.explain(spec, device)
    if explanation.choice is None:
        message = "no kernel"
        if explanation.command:
            message += f"; build it: {explanation.command}"

        def unavailable(inputs: BenchProblem) -> Prepared:
            raise Unavailable(message)

        return unavailable
    return peers.from_function(functional.na2d, explanation.choice.target.name)
