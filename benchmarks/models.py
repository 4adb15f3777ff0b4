"""Images a second of NAT beside ConvNeXt and Swin: `python benchmarks/models.py`.

Random weights, which do not change the time. The peers are timm's, in the memory format that suits
each: channels last for ConvNeXt. Inference is eager, or compiled by `torch.compile` in its default
mode; a step of training is eager, with gradients and AdamW. A NAT and its peers take turns in one
process, because they differ by less than the moments of a machine: a row of NAT has the ratio of
its time to each peer's, round by round. Attention of NAT runs on natc's libraries, or the row says
which command builds them. `--profile` adds the share of each kind of work in one eager pass.
"""

from __future__ import annotations

import argparse
import functools
import os
import sys
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

# Before natc is imported: a call runs on a library that is there, or fails.
os.environ.update({"NATC_STRICT": "1", "NATC_JIT": "off"})

import msgspec
import torch
from torch import Tensor, nn

from natc import models
from natc.bench import clocks
from natc.bench.times import Unavailable, first_line
from natc.cli import output
from natc.errors import NatcError
from natc.host import environment
from natc.store.files import write_atomically

MODES = ("eager", "compiled", "training")
# Each NAT, and peers with about as much work.
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument(
        "--models", default="nat_tiny,nat_base", help=f"some of {', '.join(GROUPS)}"
    )
    parser.add_argument("--peers", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--modes", default="eager,compiled", help=f"some of {', '.join(MODES)}")
    parser.add_argument("--batch", type=int, help="by default 256, on a CPU 1")
    parser.add_argument("--size", type=int, default=224, help="height and width of the images")
    parser.add_argument(
        "--dtype",
        choices=("float32", "float16", "bfloat16"),
        help="by default float16, on a CPU float32",
    )
    parser.add_argument("--seconds", type=float, default=6.0, help="for a NAT and its peers")
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--output", type=Path, help="write the JSON document to this file, too")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    options = parser.parse_args()
    names, modes = options.models.split(","), options.modes.split(",")
    on_gpu = options.device == "cuda"
    batch = (256 if on_gpu else 1) if options.batch is None else options.batch
    _check(parser, options, names, modes, batch)

    document: dict[str, Any] = {
        "device": options.device,
        "command": " ".join(["python", "benchmarks/models.py", *sys.argv[1:]]),
        "environment": environment.collect(),
        "timm": environment.version_of("timm"),
        "rows": [],
        "profiles": {},
    }
    images = torch.randn(batch, 3, options.size, options.size, generator=torch.Generator())
    dtype = options.dtype or ("float16" if on_gpu else "float32")
    images = images.to(options.device, getattr(torch, dtype))
    for name in names:
        networks = (name, *(GROUPS[name] if options.peers else ()))
        for mode in modes:
            rows = time_group(networks, images, mode, options.seconds)
            document["rows"] += rows
            for row in rows:
                print(line(row), file=sys.stderr, flush=True)
            if options.output:  # group by group: a run that is cut short leaves its results
                write_atomically(options.output, _json(document))
        if options.profile and document["rows"][-len(networks)]["images_per_second"]:
            network, inputs = open_network(name, images)
            call = functools.partial(network, inputs)
            with torch.inference_mode():
                document["profiles"][name] = profile(call, options.device)
    if options.output:
        write_atomically(options.output, _json(document))
    if options.json:
        print(_json(document), end="")
    else:
        show(document)
    own = [row for row in document["rows"] if row["network"] in GROUPS]
    if not any(row["images_per_second"] for row in own):
        raise SystemExit(f"no NAT was timed: {own[0]['note']}")


def _check(
    parser: argparse.ArgumentParser,
    options: argparse.Namespace,
    names: list[str],
    modes: list[str],
    batch: int,
) -> None:
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device is cuda, but torch sees no GPU on this machine; use cpu")
    for option, values, allowed in (
        ("--models", names, tuple(GROUPS)),
        ("--modes", modes, MODES),
    ):
        for value in values:
            if value not in allowed:
                parser.error(f"{option} has {value!r}; allowed are {', '.join(allowed)}")
    for option, number, least in (("--batch", batch, 1), ("--size", options.size, 32)):
        if number < least:
            parser.error(f"{option} is {number}; it must be {least} or more")


def _json(document: dict[str, Any]) -> str:
    data = msgspec.json.encode(document)
    return msgspec.json.format(data, indent=2).decode() + "\n"


def time_group(
    names: Sequence[str], images: Tensor, mode: str, seconds: float
) -> list[dict[str, Any]]:
    """Return a row for each network; they take turns.

    largest_difference: between logits in this mode and eager ones, relative to the largest logit;
    None for a step of training. ratio_to: for each other network that was timed, quartiles of the
    ratio of the times.
    """
    with torch.inference_mode(mode != "training"):
        return _time_group(names, images, mode, seconds)


def _time_group(
    names: Sequence[str], images: Tensor, mode: str, seconds: float
) -> list[dict[str, Any]]:
    rows: dict[str, dict[str, Any]] = {}
    calls: dict[str, Callable[[], Tensor]] = {}
    torch._dynamo.reset()
    for name in names:
        row = rows[name] = {
            "network": name,
            "mode": mode,
            "batch": images.shape[0],
            "size": images.shape[-1],
            "dtype": str(images.dtype).removeprefix("torch."),
            "images_per_second": None,
            "quartile_seconds": None,
            "largest_difference": None,
            "ratio_to": {},
            "note": "",
        }
        try:
            network, inputs = open_network(name, images)
            eager = network(inputs).detach().float()
            if not bool(eager.isfinite().all()):
                raise Unavailable("its logits are not finite")
            if mode == "training":
                calls[name] = training_step(network, inputs)
                continue
            call = _ready(network, inputs, mode)
            difference = (call().float() - eager).abs().max() / eager.abs().max()
            row["largest_difference"] = float(difference)
            if not difference.isfinite():
                raise Unavailable("its logits are not finite")
            calls[name] = call
        except NatcError as error:
            row["note"] = str(error)
        except torch.OutOfMemoryError:
            row["note"] = "out of memory"
    samples = clocks.interleave(calls, seconds)
    for name, times in samples.items():
        quartiles = clocks.quartiles(times)
        rows[name]["quartile_seconds"] = quartiles
        rows[name]["images_per_second"] = images.shape[0] / quartiles[1]
        rows[name]["ratio_to"] = {
            peer: ratios(times, samples[peer]) for peer in samples if peer != name
        }
    return list(rows.values())


def ratios(times: Sequence[float], peer_times: Sequence[float]) -> tuple[float, float, float]:
    """Return the quartiles of the ratio of times that were taken in the same rounds."""
    return clocks.quartiles([own / peer for own, peer in zip(times, peer_times, strict=True)])


def open_network(name: str, images: Tensor) -> tuple[nn.Module, Tensor]:
    """Return a network for inference, and the images in its memory format."""
    torch.manual_seed(0)
    if name in GROUPS:
        network = getattr(models, name)()
    else:
        try:
            import timm
        except ImportError:
            raise Unavailable("timm is not installed: pip install timm") from None
        size = {"img_size": images.shape[-1]} if "swin" in name else {}
        network = timm.create_model(name, **size)
    network = network.eval().to(images.device, images.dtype)
    if name.startswith(CHANNELS_LAST):
        last = torch.channels_last
        return network.to(memory_format=last), images.to(memory_format=last)
    return network, images


def training_step(network: nn.Module, images: Tensor) -> Callable[[], Tensor]:
    """Return a function that trains the network by one step on the images, all of one class."""
    network.train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-5, fused=True)
    classes = torch.zeros(len(images), dtype=torch.int64, device=images.device)

    def step() -> Tensor:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(network(images), classes)
        loss.backward()
        optimizer.step()
        return loss

    step()
    return step


def _ready(network: nn.Module, images: Tensor, mode: str) -> Callable[[], Tensor]:
    if mode == "eager":
        return lambda: network(images)
    compiled = torch.compile(network)
    try:
        compiled(images)
    except NatcError:
        raise
    except Exception as error:  # torch.compile fails with many types
        raise Unavailable(f"torch.compile failed: {first_line(error)}") from None
    return lambda: compiled(images)


def profile(call: Callable[[], object], device: str) -> dict[str, float]:
    """Return the share of each kind of work in the device's time of a call; they add up to 1."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    if device == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    call()
    with torch.profiler.profile(activities=activities) as events:
        call()
        if device == "cuda":
            torch.cuda.synchronize()
    kind = "self_device_time_total" if device == "cuda" else "self_cpu_time_total"
    times: dict[str, float] = defaultdict(float)
    for event in events.key_averages():
        # Kernels have rows of their own beside the operators that launched them.
        if "::" in event.key:
            times[part_of(event.key)] += getattr(event, kind)
    whole = sum(times.values()) or 1.0
    return {name: times[name] / whole for name in sorted(times, key=lambda name: -times[name])}


def part_of(operator: str) -> str:
    """Return the kind of work that an operator of torch does."""
    for part, starts in PARTS.items():
        if operator.startswith(starts):
            return part
    return "other"


def line(row: dict[str, Any]) -> str:
    """Return a row as a line of text."""
    rate = row["images_per_second"]
    text = f"{rate:.5g} images a second" if rate else row["note"]
    for peer, (low, median, high) in row["ratio_to"].items():
        text += f"; {median:.3f} times {peer} ({low:.3f} to {high:.3f})"
    return f"{row['network']}, {row['mode']}: {text}"


def show(document: dict[str, Any]) -> None:
    """Print the rows and profiles."""
    console = output.stdout()
    for row in document["rows"]:
        console.print(line(row))
    for name, parts in document["profiles"].items():
        shares = ", ".join(f"{part} {100 * share:.0f} %" for part, share in parts.items())
        console.print(f"{name}, eager: {shares}")


if __name__ == "__main__":
    main()
