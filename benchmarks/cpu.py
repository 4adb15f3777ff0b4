"""What natc does on this CPU: of its peak, beside torch's attention, and in a whole model.

Parts, each with its contestants in turn in one process, so that a slow moment of the machine is
everybody's: 7x7 attention with bias at NAT's four levels, natc alone and beside torch; natc's
gradients there; its forward at other head dims, windows, dtypes and maps; NAT beside timm's Swin-T
at batch 1 (`pip install timm`; left out without).

    python benchmarks/cpu.py --json > benchmarks/results/cpu_k7_float32.json

`natc build --kernel 7` comes first, or the first call builds the kernels. A time is the lower
quartile of many samples, since whatever else runs only ever adds; the median is there too.
Networks differ by less than moments of the machine do, so they are compared in each round as
well, one right after the other: `ratio` is a network's time to that of Swin-T, below 1 where it
is the faster one. Percent of peak counts useful multiply-adds: in a forward, two for each query,
key of its window and channel; in a backward, five. The peak is measured by `natc.bench.peak`
between the samples of each row.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

import natc
from natc import reference
from natc.bench import peak, peers
from natc.bench.times import NAT_LEVELS, BenchProblem, Contestant, Unavailable
from natc.checks.inputs import make_inputs
from natc.checks.tolerance import relative_errors
from natc.host import environment

KERNEL_SIZE = 7
# What NAT's levels do not show, one thing at a time: shape, kernel_size, dtype.
SHAPES: list[tuple[tuple[int, ...], int, str]] = [
    *(((1, 56, 56, 2, dim), 7, "float32") for dim in (8, 16, 24, 48, 64, 80, 96, 128)),
    *(((1, 56, 56, 2, 32), size, "float32") for size in (3, 5, 9, 11, 13)),
    *(((1, 56, 56, 2, 32), 7, dtype) for dtype in ("float16", "bfloat16", "float64")),
    *((shape, 7, "float32") for shape in ((8, 56, 56, 2, 32), (128, 7, 7, 16, 32))),
    *((shape, 7, "float32") for shape in ((1, 128, 128, 2, 32), (1, 256, 256, 2, 32))),
    *(((1, 4096, 2, 32), size, "float32") for size in (7, 21, 63)),
    *(((1, 16, 16, 16, 2, 32), size, "float32") for size in (3, 5)),
]
MIN_SAMPLES, MIN_SAMPLE_SECONDS = 9, 4e-3
MODELS = {"NAT-Mini": "nat_mini", "NAT-Tiny": "nat_tiny"}
SWIN = "swin_tiny_patch4_window7_224"

Calls = Mapping[str, Callable[[], Any]]


def main() -> None:
    """Run the parts that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--parts", default="alone,forward,backward,shapes,models", help="separated by commas"
    )
    parser.add_argument("--seconds", type=float, default=6.0, help="for each table's row")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    options = parser.parse_args()
    probe = peak.open_probe()
    found: dict[str, Any] = {
        "environment": environment.collect(),
        "threads": torch.get_num_threads(),
        "peak": peak.measure(),
    }
    for part in options.parts.split(","):
        found[part] = PARTS[part](probe, options.seconds)
        if not options.json:
            show(part, found[part])
    if options.json:
        json.dump(found, sys.stdout, indent=2, default=plain)
        print()


def alone(probe: peak.Probe, seconds: float) -> list[dict[str, Any]]:
    """Return rows of natc's forward at each level, with nothing else in the process."""
    return forward(probe, seconds, {"natc": peers.from_function(natc.na2d)})


def forward(
    probe: peak.Probe, seconds: float, contestants: Mapping[str, Contestant] | None = None
) -> list[dict[str, Any]]:
    """Return rows of natc's forward at each level, and its peers unless contestants are given."""
    contestants = contestants or {
        "natc": peers.from_function(natc.na2d),
        **peers.torch_peers(),
    }
    rows = []
    for shape in NAT_LEVELS:
        query, key, value, rpb = make_inputs(
            shape, kernel_size=(KERNEL_SIZE,) * 2, dtype=torch.float32, device="cpu", seed=0
        )
        assert rpb is not None
        inputs = BenchProblem(query, key, value, rpb, (KERNEL_SIZE,) * 2, (1, 1))
        expected = reference.neighborhood_attention(
            query.double(), key.double(), value.double(), KERNEL_SIZE, rpb=rpb.double()
        )
        calls, errors = prepared(contestants, inputs, expected)
        work = multiply_adds(shape)
        with torch.inference_mode():
            rows += timed(
                calls, seconds, probe, {"shape": shape}, errors, dict.fromkeys(calls, work)
            )
    return rows


def backward(probe: peak.Probe, seconds: float) -> list[dict[str, Any]]:
    """Return rows of natc's and the reference's gradients of all inputs at each level."""
    rows = []
    for shape in NAT_LEVELS:
        inputs = make_inputs(
            shape, kernel_size=(KERNEL_SIZE,) * 2, dtype=torch.float32, device="cpu", seed=0
        )
        d_output = torch.randn(shape, generator=torch.Generator().manual_seed(1))

        def gradients(
            function: Callable[..., Any],
            dtype: torch.dtype,
            inputs: tuple[Any, ...] = inputs,
            d_output: torch.Tensor = d_output,
        ) -> Callable[[], Any]:
            leaves = [t.to(dtype).requires_grad_() for t in inputs]
            output = function(*leaves[:3], KERNEL_SIZE, rpb=leaves[3])
            given = d_output.to(dtype)
            return lambda: torch.autograd.grad(output, leaves, given, retain_graph=True)

        expected = gradients(reference.neighborhood_attention, torch.float64)()
        calls = {
            "natc": gradients(natc.na2d, torch.float32),
            "reference": gradients(reference.neighborhood_attention, torch.float32),
        }
        errors = {
            name: max(relative_errors(g, e).largest for g, e in zip(call(), expected))
            for name, call in calls.items()
        }
        # The logits and the weights' gradients, and three sums, each once.
        work = dict.fromkeys(calls, 5 * multiply_adds(shape) // 2)
        with torch.enable_grad():
            rows += timed(calls, seconds, probe, {"shape": shape}, errors, work)
    return rows


def models(probe: peak.Probe, seconds: float) -> list[dict[str, Any]]:
    """Return rows of whole networks at batch 1, eager and compiled; weights are random."""
    image = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    networks = {name: getattr(natc.models, made)().eval() for name, made in MODELS.items()}
    try:
        import timm  # type: ignore[import-not-found,unused-ignore]

        networks["Swin-T"] = timm.create_model(SWIN).eval()
    except ImportError:
        print("timm is not installed: no Swin-T", file=sys.stderr)
    rows = []
    for mode in ("eager", "compiled"):
        torch._dynamo.reset()
        calls, errors = {}, {}
        for name, network in networks.items():
            run = network if mode == "eager" else torch.compile(network)
            calls[name] = lambda run=run: run(image)
            with torch.inference_mode():
                found = calls[name]()
                if name in MODELS:
                    with natc.force_reference():
                        errors[name] = relative_errors(found, network(image).double()).largest
                elif mode == "compiled":
                    errors[name] = relative_errors(found, network(image).double()).largest
        with torch.inference_mode():
            rows += timed(calls, 3 * seconds, probe, {"mode": mode}, errors, {}, ratio_to="Swin-T")
    return rows


def shapes(probe: peak.Probe, seconds: float) -> list[dict[str, Any]]:
    """Return rows of natc's forward with bias at other head dims, windows, dtypes and maps."""
    rows = []
    for shape, size, name in SHAPES:
        dtype = getattr(torch, name)
        sizes = (size,) * (len(shape) - 3)
        inputs = make_inputs(shape, kernel_size=sizes, dtype=dtype, device="cpu", seed=0)
        query, key, value, rpb = inputs

        def call(inputs: Any = inputs, size: int = size) -> Any:
            return natc.neighborhood_attention(*inputs[:3], size, rpb=inputs[3])

        assert rpb is not None
        expected: Any = reference.neighborhood_attention(
            query.double(), key.double(), value.double(), size, rpb=rpb.double()
        )
        about = {"shape": shape, "kernel_size": size, "dtype": name}
        with torch.inference_mode():
            errors = {"natc": relative_errors(call(), expected).largest}
            work = {"natc": multiply_adds(shape, size)}
            rows += timed({"natc": call}, seconds / 4, probe, about, errors, work)
    return rows


PARTS = {
    "alone": alone,
    "forward": forward,
    "backward": backward,
    "shapes": shapes,
    "models": models,
}


def prepared(
    contestants: Mapping[str, Contestant], inputs: BenchProblem, expected: Any
) -> tuple[dict[str, Callable[[], Any]], dict[str, float]]:
    """Return the contestants that run here, and the largest error of each."""
    calls, errors = {}, {}
    for name, contestant in contestants.items():
        try:
            with torch.inference_mode():
                call = contestant(inputs).call
                errors[name] = relative_errors(call(), expected).largest
        except Unavailable as error:
            print(f"{name}: {error}", file=sys.stderr)
            continue
        calls[name] = call
    return calls, errors


def timed(
    calls: Calls,
    seconds: float,
    probe: peak.Probe,
    about: Mapping[str, Any],
    errors: Mapping[str, float],
    work: Mapping[str, int],
    ratio_to: str = "",
) -> list[dict[str, Any]]:
    """Return a row for each call; the probe is sampled in turn with them.

    ratio_to: the call, if it is one of these, to whose samples those of the others are compared.
    """
    threads = torch.get_num_threads()
    samples: dict[str, list[float]] = {name: [] for name in calls}
    rates: list[float] = []
    names = list(calls)
    repeats = {
        name: max(1, round(MIN_SAMPLE_SECONDS / sample(call, 1))) for name, call in calls.items()
    }
    start = time.perf_counter()
    while time.perf_counter() - start < seconds or len(rates) < MIN_SAMPLES:
        # Another one goes first each time, so that no one always follows the same neighbor.
        names.append(names.pop(0))
        rates.append(probe.multiply_adds(threads))
        for name in names:
            samples[name].append(sample(calls[name], repeats[name]))
    most = statistics.quantiles(rates, n=4)[2]
    rows = []
    for name, taken in samples.items():
        quarter, median, _ = statistics.quantiles(taken, n=4)
        row = {
            **about,
            "contestant": name,
            "seconds": quarter,
            "median_seconds": median,
            "fastest_seconds": min(taken),
            "samples": len(taken),
            "error": errors.get(name),
        }
        if name in work:
            row |= {
                "multiply_adds": work[name],
                "peak_multiply_adds_per_second": most,
                "of_peak": work[name] / quarter / most,
            }
        if ratio_to in samples and name != ratio_to:
            row["ratio"] = compared(taken, samples[ratio_to])
        rows.append(row)
    return rows


def compared(taken: Sequence[float], others: Sequence[float]) -> dict[str, float]:
    """Return quartiles of the ratio of two contestants' times, round by round."""
    ratios = [mine / theirs for mine, theirs in zip(taken, others, strict=True)]
    low, median, high = statistics.quantiles(ratios, n=4)
    ahead = sum(ratio < 1 for ratio in ratios) / len(ratios)
    return {"median": median, "low": low, "high": high, "rounds_ahead": ahead}


def sample(call: Callable[[], Any], repeats: int) -> float:
    """Return seconds of one of several calls, after as many that are not timed.

    Those refill the caches, and let the threads of the previous contestant go to sleep.
    """
    for _ in range(repeats):
        call()
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - start) / repeats


def multiply_adds(shape: Sequence[int], kernel_size: int = KERNEL_SIZE) -> int:
    """Return those of the two products of a forward."""
    return 2 * math.prod(shape) * kernel_size ** (len(shape) - 3)


def show(part: str, rows: list[dict[str, Any]]) -> None:
    """Print rows for people."""
    print(part)
    for row in rows:
        about = row.get("mode") or "x".join(map(str, row["shape"]))
        if "kernel_size" in row:
            about += f" K={row['kernel_size']} {row['dtype']}"
        of_peak = f"{row['of_peak']:6.1%}" if "of_peak" in row else ""
        error = "" if row["error"] is None else f"error {row['error']:.1e}"
        if ratio := row.get("ratio"):
            error += f" ratio {ratio['median']:.3f} ({ratio['low']:.3f} to {ratio['high']:.3f})"
        print(
            f"  {about:16} {row['contestant']:22} {row['seconds'] * 1e3:9.3f} ms "
            f"(median {row['median_seconds'] * 1e3:9.3f}) {of_peak} {error}"
        )


def plain(value: Any) -> Any:
    """Return a value as JSON has it."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    import msgspec

    return msgspec.to_builtins(value)


if __name__ == "__main__":
    main()
