"""`natc bench`: times of the kernels this machine has beside the reference and torch's own."""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Annotated

import typer

from natc import environment
from natc.cli import options, output
from natc.cli.options import DtypeOption, HeadDimOption, JsonOption
from natc.errors import TargetError
from natc.spec import KernelSpec

if TYPE_CHECKING:
    from natc.demo.times import Contestant, Inputs, Prepared

KERNEL = "natc kernel"


class Device(str, enum.Enum):
    """The devices as choices of an option."""

    cpu = "cpu"
    cuda = "cuda"


def bench(
    kernel: options.KernelOption = options.NAT_KERNEL,
    device: Annotated[Device, typer.Option("--device", help="Where to run.")] = Device.cpu,
    head_dim: HeadDimOption = options.DEFAULT_HEAD_DIM,
    dtype: DtypeOption = None,
    rpb: Annotated[
        bool, typer.Option("--rpb/--no-rpb", help="With a relative positional bias.")
    ] = True,
    dilation: Annotated[int, typer.Option("--dilation", min=1, help="Dilation.")] = 1,
    shape: options.ShapeOption = None,
    seconds: Annotated[
        float, typer.Option("--seconds", min=0.01, help="Time to spend on each shape.")
    ] = 3.0,
    json: JsonOption = False,
) -> None:
    """Time natc's kernel, the reference, and torch's attention on the same inputs."""
    kind = "cuda" if device is Device.cuda else "llvm"
    spec = options.make_spec(kernel, kind=kind, rank=None, head_dim=head_dim, dtype=dtype, rpb=rpb)
    options.require_measured(spec, "bench")
    given = [options.parse_shape(text) for text in shape or ()]

    import torch

    from natc.cli import times_table
    from natc.demo import peers, times

    if device is Device.cuda and not torch.cuda.is_available():
        raise TargetError("--device is cuda, but torch sees no GPU on this machine; use cpu.")
    levels = given or [level[:4] for level in times.NAT_LEVELS]
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
    if json:
        document = {
            "spec": spec.name,
            "device": device.value,
            "dilation": dilation,
            "environment": environment.collect(),
            "rows": rows,
        }
        output.print_json(document)
        return
    title = f"{spec.name}, dilation {dilation}, on {environment.cpu_model()}"
    if device is Device.cuda:
        title = f"{spec.name}, dilation {dilation}, on {torch.cuda.get_device_name()}"
    times_table.show(title, rows)


def kernel_contestant(spec: KernelSpec, device: str) -> Contestant:
    """Return the contestant that calls `natc.na2d` where a kernel serves it, never the reference.

    spec: what the inputs need; device: a torch device's name. Where no kernel serves it, the
    contestant is unavailable and says which command builds one.
    """
    from natc import functional, runtime
    from natc.demo import peers
    from natc.demo.times import Unavailable

    explanation = runtime.explain(spec, device)
    if explanation.choice is None:
        message = "no kernel"
        if explanation.command:
            message += f"; build it: {explanation.command}"

        def unavailable(inputs: Inputs) -> Prepared:
            raise Unavailable(message)

        return unavailable
    return peers.from_function(functional.na2d, explanation.choice.target.name)
