"""Images a second of NAT beside ConvNeXt and Swin: `python benchmarks/models.py`.

Inference with random weights, which decide nothing about time. Networks of others are timm's, in
the memory format that suits each: channels last for ConvNeXt. Eager, and compiled by
`torch.compile` in its default mode. Attention of NAT runs on natc's libraries, or the row says
which command builds them. `--profile` adds the share of each kind of work in one eager pass.
"""

from __future__ import annotations

import argparse
import functools
import os
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

# A call runs on a library that is there, or fails; before natc is imported.
os.environ.update({"NATC_STRICT": "1", "NATC_JIT": "off"})

import clocks
import documents
import torch
from torch import Tensor, nn

from natc import models
from natc.cli import output
from natc.errors import NatcError
from natc.host import environment

SCHEMA_VERSION = 1
MODES = ("eager", "compiled")
# Each NAT, and the networks of about its work that it is compared with.
GROUPS = {
    "nat_mini": ("swin_tiny_patch4_window7_224",),
    "nat_tiny": ("convnext_tiny", "swin_tiny_patch4_window7_224"),
    "nat_small": ("convnext_small", "swin_small_patch4_window7_224"),
    "nat_base": ("convnext_base", "swin_base_patch4_window7_224"),
}
CHANNELS_LAST = ("convnext",)
# Kinds of work, by the beginnings of the names of torch's operators.
PARTS = {
    "attention": ("natc::", "aten::_scaled_dot_product", "aten::_flash", "aten::_efficient"),
    "linear": ("aten::addmm", "aten::mm", "aten::bmm", "aten::linear"),
    "convolution": (
        "aten::cudnn_conv", "aten::_conv", "aten::conv", "aten::mkldnn_conv", "aten::_slow_conv",
    ),
    "normalization": ("aten::native_layer_norm", "aten::layer_norm", "aten::native_group_norm"),
    "activation": ("aten::gelu",),
    "copies": ("aten::copy_", "aten::clone", "aten::contiguous", "aten::cat", "aten::_to_copy"),
}  # fmt: skip


class Unavailable(Exception):
    """A network that cannot run here, and why."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument(
        "--models", default="nat_tiny,nat_base", help=f"some of {', '.join(GROUPS)}"
    )
    parser.add_argument("--peers", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--modes", default=",".join(MODES))
    parser.add_argument("--batch", type=int, default=None, help="by default 256, on a CPU 1")
    parser.add_argument("--size", type=int, default=224, help="height and width of the images")
    parser.add_argument("--dtype", default=None, help="by default float16, on a CPU float32")
    parser.add_argument("--samples", type=int, default=clocks.SAMPLES)
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--output", type=Path, help="write the JSON document to this file, too")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    given = parser.parse_args()
    names, modes = given.models.split(","), given.modes.split(",")
    on_gpu = given.device == "cuda"
    dtype = given.dtype or ("float16" if on_gpu else "float32")
    batch = given.batch or (256 if on_gpu else 1)
    _check(parser, given, names, modes, dtype)

    document: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "device": given.device,
        "command": " ".join(["python", "benchmarks/models.py", *sys.argv[1:]]),
        "environment": environment.collect(),
        "versions": {"torch": torch.__version__, "timm": environment.version_of("timm")},
        "rows": [],
        "profiles": {},
    }
    networks = list(names)
    if given.peers:
        networks += [peer for name in names for peer in GROUPS[name]]
    images = torch.randn(batch, 3, given.size, given.size, generator=torch.Generator())
    images = images.to(given.device, getattr(torch, dtype))
    with torch.inference_mode():
        for name in dict.fromkeys(networks):
            for row in rows(name, images, modes, given.samples):
                document["rows"].append(row)
                print(line(row), file=sys.stderr, flush=True)
                if given.output:
                    documents.write(given.output, document)
            if given.profile and document["rows"][-1]["images_per_second"]:
                network, own = open_network(name, images)
                document["profiles"][name] = profile(functools.partial(network, own), given.device)
    if given.output:
        documents.write(given.output, document)
    if given.json:
        output.print_json(document)
    else:
        show(document)
    own_rows = [row for row in document["rows"] if row["network"] in GROUPS]
    if not any(row["images_per_second"] for row in own_rows):
        raise SystemExit(f"no NAT was timed: {own_rows[0]['note']}")


def _check(
    parser: argparse.ArgumentParser,
    given: argparse.Namespace,
    names: list[str],
    modes: list[str],
    dtype: str,
) -> None:
    if given.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device is cuda, but torch sees no GPU on this machine; use cpu")
    for option, found, allowed in (
        ("--models", names, tuple(GROUPS)),
        ("--modes", modes, MODES),
        ("--dtype", [dtype], ("float32", "float16", "bfloat16")),
    ):
        wrong = [name for name in found if name not in allowed]
        if wrong:
            parser.error(f"{option} has {wrong[0]!r}; allowed are {', '.join(allowed)}")
    for option, number, least in (
        ("--batch", 1 if given.batch is None else given.batch, 1),
        ("--size", given.size, 32),
        ("--samples", given.samples, 2),
    ):
        if number < least:
            parser.error(f"{option} is {number}; it must be {least} or more")


def rows(name: str, images: Tensor, modes: list[str], samples: int) -> Iterator[dict[str, Any]]:
    """Yield a row of a network for each mode.

    largest_difference: of logits, compiled from eager, as a share of the largest logit.
    """
    logits: Tensor | None = None
    for mode in modes:
        row: dict[str, Any] = {
            "network": name,
            "mode": mode,
            "batch": images.shape[0],
            "size": images.shape[-1],
            "dtype": str(images.dtype).removeprefix("torch."),
            "images_per_second": None,
            "time": None,
            "largest_difference": None,
            "note": "",
        }
        try:
            network, own = open_network(name, images)
            called = _ready(network, own, mode)
            found = called().float()
            if not bool(found.isfinite().all()):
                raise Unavailable("its logits are not finite")
            if logits is not None:
                difference = (found - logits).abs().max() / logits.abs().max()
                row["largest_difference"] = float(difference)
            logits = found
            row["time"] = clocks.call_time(called, images.device.type, samples)
            row["images_per_second"] = images.shape[0] / (1e-6 * row["time"]["median_us"])
        except (Unavailable, NatcError) as error:
            row["note"] = str(error)
        except torch.OutOfMemoryError:
            row["note"] = "out of memory"
        yield row


def open_network(name: str, images: Tensor) -> tuple[nn.Module, Tensor]:
    """Return a network for inference and the images as it takes them."""
    torch.manual_seed(0)
    if name in GROUPS:
        network = getattr(models, name)()
    else:
        try:
            import timm
        except ImportError:
            raise Unavailable("timm is not installed: pip install timm") from None
        network = (
            timm.create_model(name, img_size=images.shape[-1])
            if "swin" in name
            else (timm.create_model(name))
        )
    network = network.eval().to(images.device, images.dtype)
    if name.startswith(CHANNELS_LAST):
        last = torch.channels_last
        return network.to(memory_format=last), images.to(memory_format=last)
    return network, images


def _ready(network: nn.Module, images: Tensor, mode: str) -> Callable[[], Tensor]:
    if mode == "eager":
        return lambda: network(images)
    torch._dynamo.reset()
    compiled = torch.compile(network)
    try:
        compiled(images)
    except NatcError:
        raise
    except Exception as error:  # torch.compile fails with many types; every one means "cannot"
        reason = f"{type(error).__name__}: {str(error).strip()}".splitlines()[0][:200]
        raise Unavailable(f"torch.compile failed: {reason}") from None
    return lambda: compiled(images)


def profile(call: Callable[[], object], device: str) -> dict[str, float]:
    """Return the share of each kind of work in the device's time of a call; they add up to 1."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    if device == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    call()
    with torch.profiler.profile(activities=activities) as found:
        call()
        if device == "cuda":
            torch.cuda.synchronize()
    kind = "self_device_time_total" if device == "cuda" else "self_cpu_time_total"
    times: dict[str, float] = defaultdict(float)
    for event in found.key_averages():
        # Kernels have rows of their own beside the operators that launched them.
        if "::" in event.key:
            times[part_of(event.key)] += getattr(event, kind)
    whole = sum(times.values()) or 1.0
    return {name: times[name] / whole for name in sorted(times, key=lambda name: -times[name])}


def part_of(operator: str) -> str:
    """Return the kind of work that an operator of torch is."""
    for part, starts in PARTS.items():
        if operator.startswith(starts):
            return part
    return "other"


def line(row: dict[str, Any]) -> str:
    """Return a row as a line of text."""
    rate = row["images_per_second"]
    return f"{row['network']}, {row['mode']}: " + (
        f"{rate:.5g} images a second" if rate else row["note"]
    )


def show(document: dict[str, Any]) -> None:
    """Print the rows and profiles as tables."""
    columns = ("network", "mode", "batch", "size", "dtype", "images a second", "quartiles", "note")
    table = output.table("inference", *columns, right=columns[2:4] + columns[5:7])
    for row in document["rows"]:
        rate, quartiles = "-", "-"
        if row["time"]:
            rate = f"{row['images_per_second']:.5g}"
            slow, fast = (
                row["batch"] / (1e-6 * us) for us in reversed(row["time"]["quartiles_us"])
            )
            quartiles = f"{slow:.5g} to {fast:.5g}"
        names = (row["network"], row["mode"], str(row["batch"]), str(row["size"]), row["dtype"])
        table.add_row(*names, rate, quartiles, row["note"])
    console = output.stdout()
    console.print(table)
    for name, parts in document["profiles"].items():
        shares = ", ".join(f"{part} {100 * share:.0f} %" for part, share in parts.items())
        console.print(f"{name}, eager: {shares}")


if __name__ == "__main__":
    main()
