"""Time natc's kernel beside the reference and torch's attention at NAT's four levels.

Run from the checkout: `python benchmarks/attention_cpu.py --json times.json`. The natc row runs
whatever library natc finds; without one it is left out, and the first line says so.
"""

from __future__ import annotations

import argparse
import json
import platform
from dataclasses import asdict
from pathlib import Path

import torch

from natc import functional, runtime
from natc.demo.peers import from_function, torch_peers
from natc.demo.times import NAT_LEVELS, Contestant, Row, time_attention
from natc.spec import KernelSpec


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kernel", type=int, default=7, help="window size (default 7)")
    parser.add_argument("--dilation", type=int, default=1)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--dtype", choices=("float32", "float16", "bfloat16"), default="float32")
    parser.add_argument("--no-rpb", action="store_true", help="without positional bias")
    parser.add_argument("--seconds", type=float, default=3.0, help="samples, per level")
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    options = parser.parse_args()

    contestants: dict[str, Contestant] = {}
    spec = KernelSpec(2, (options.kernel,) * 2, 32, options.dtype, not options.no_rpb)
    found = runtime.explain(spec)
    if found.choice is None:
        print(f"natc is not timed: {found}")
    else:
        contestants["natc"] = from_function(functional.na2d)
    contestants |= torch_peers()
    rows = time_attention(
        [(options.batch, *shape[1:]) for shape in NAT_LEVELS],
        getattr(torch, options.dtype),
        contestants,
        kernel_size=options.kernel,
        dilation=options.dilation,
        rpb=not options.no_rpb,
        seconds=options.seconds,
        progress=lambda text: print(f"  {text} ...", flush=True),
    )
    print(
        f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}, "
        f"K={options.kernel}, dilation {options.dilation}"
    )
    for row in rows:
        print(line(row))
    if options.json:
        options.json.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")


def line(row: Row) -> str:
    """Return one row as text: shape, contestant, median with quartiles, ratio, error, note."""
    shape = "x".join(str(n) for n in row.shape)
    if row.median_seconds is None or row.quartile_seconds is None:
        timing = "-"
    else:
        low, high = (1e3 * t for t in row.quartile_seconds)
        timing = f"{1e3 * row.median_seconds:9.3f} ms ({low:.3f} to {high:.3f})"
    ratio = "" if row.ratio_to_first is None else f"{row.ratio_to_first:7.2f}x"
    error = "" if row.max_error is None else f"error {row.max_error:.1e}"
    return f"{shape:<16}{row.contestant:<22}{timing:<36}{ratio:<10}{error:<16}{row.note}"


if __name__ == "__main__":
    main()
