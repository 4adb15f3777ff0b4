"""Peak memory of forward and backward, fused beside unfused: `python benchmarks/memory.py`.

It counts memory on top of the inputs: output, gradients and intermediate tensors. On a GPU,
torch's allocator knows the peak. On a CPU each case runs in a process of its own, and Linux knows
the largest resident size, so that scratch memory of natc's kernels, which torch does not allocate,
counts too; malloc is told to return every block of 64 KiB to the system.

Every case runs on compiled kernels, or fails with the command that builds them.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import natc
from natc.cli import output
from natc.errors import NatcError
from natc.host import environment

# Blocks of this size or larger do not stay in malloc's pools.
MALLOC = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
# A call runs on a library that is there, or fails.
KERNELS_ONLY = {"NATC_STRICT": "1", "NATC_JIT": "off"}
# These cases show that memory is proportional to tokens.
SCAN_MAPS, SCAN_KERNELS = (28, 56, 112), (3, 7, 13)


VARIANTS = ("fused", "unfused")
DIMENSIONS = ("batch", "map", "heads", "head_dim", "kernel", "dtype", "rpb", "device")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--map", type=int, default=56, help="height and width")
    parser.add_argument("--heads", type=int, default=2)
    parser.add_argument("--head-dim", type=int, default=32)
    parser.add_argument("--kernel", type=int, default=7)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--rpb", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument(
        "--scan",
        action=argparse.BooleanOptionalAction,
        default=True,
        help=f"also kernel sizes {SCAN_KERNELS} on maps of {SCAN_MAPS}",
    )
    parser.add_argument("--scan-batch", type=int, default=16, help="batch of the scan")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        try:
            print(resident(json.loads(options.case)))
        except NatcError as error:
            raise SystemExit(f"{error}") from None
        return
    problem = {name: getattr(options, name) for name in DIMENSIONS}
    cases = [problem]
    if options.scan:
        cases += [
            {**problem, "batch": options.scan_batch, "kernel": kernel, "map": size}
            for kernel in SCAN_KERNELS
            for size in SCAN_MAPS
        ]
    rows = [measure({**case, "variant": variant}) for case in cases for variant in VARIANTS]
    if options.json:
        output.print_json({"environment": environment.collect(), "rows": rows})
    else:
        show(rows)


def measure(case: dict[str, Any]) -> dict[str, Any]:
    """Return a case with its bytes: at the peak, of its results, and for each token."""
    if case["device"] == "cuda":
        peak = allocated(case)
    else:
        done = subprocess.run(
            [sys.executable, __file__, "--case", json.dumps(case)],
            env={**os.environ, **MALLOC, **KERNELS_ONLY},
            stdout=subprocess.PIPE,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            # The process has printed the reason.
            raise SystemExit(done.returncode)
        peak = int(done.stdout)
    tokens = case["batch"] * case["map"] ** 2
    element = getattr(torch, case["dtype"]).itemsize
    return {
        **case,
        "peak_bytes": peak,
        # Every variant returns the output and the gradients of query, key and value.
        "result_bytes": 4 * tokens * case["heads"] * case["head_dim"] * element,
        "tokens": tokens,
        "peak_bytes_per_token": peak / tokens,
    }


def allocated(case: dict[str, Any]) -> int:
    """Return the bytes at the peak on a GPU, on top of the inputs."""
    os.environ.update(KERNELS_ONLY)
    run(inputs({**case, "batch": 1}), case)
    tensors = inputs(case)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run(tensors, case)
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def resident(case: dict[str, Any]) -> int:
    """Return the bytes at the peak in this process, on top of the inputs."""
    # Libraries, threads and autograd start once, and do not belong to a step.
    run(inputs({**case, "batch": 1, "map": 2 * case["kernel"]}), case)
    tensors = inputs(case)
    # Linux resets the peak; see proc(5).
    Path("/proc/self/clear_refs").write_text("5")
    before = status("VmRSS")
    run(tensors, case)
    return status("VmHWM") - before


def status(name: str) -> int:
    """Return a size in /proc/self/status, in bytes."""
    text = Path("/proc/self/status").read_text()
    match = re.search(rf"^{name}:\s+(\d+) kB$", text, re.MULTILINE)
    if match is None:
        raise SystemExit(f"/proc/self/status has no {name}; memory on a CPU needs Linux.")
    return 1024 * int(match[1])


def inputs(case: dict[str, Any]) -> list[Tensor]:
    """Return query, key, value, the gradient of the output and, if wanted, a bias."""
    space, heads, head_dim = (case["map"],) * 2, case["heads"], case["head_dim"]
    shape = (case["batch"], *space, heads, head_dim)
    if case["variant"] == "unfused":
        shape = (case["batch"], heads, *space, head_dim)
    place = {"dtype": getattr(torch, case["dtype"]), "device": case["device"]}
    # Not zeros: pages that were never written take no memory.
    tensors = [torch.full(shape, 0.1, **place) for _ in range(4)]
    if case["rpb"]:
        tensors.append(
            torch.full((heads, *[2 * case["kernel"] - 1] * 2), 0.1, device=case["device"])
        )
    return [tensor.requires_grad_(number != 3) for number, tensor in enumerate(tensors)]


def run(tensors: list[Tensor], case: dict[str, Any]) -> list[Tensor]:
    """Go forward and backward once; return the output and the gradients."""
    query, key, value, d_output, *bias = tensors
    rpb = bias[0] if bias else None
    size = case["kernel"]
    if case["variant"] == "fused":
        result = natc.na2d(query, key, value, size, rpb=rpb)
    else:
        scaled = query * case["head_dim"] ** -0.5
        attn = natc.functional.na2d_qk(scaled, key, size, rpb=rpb).softmax(-1)
        result = natc.functional.na2d_av(attn, value, size)
    gradients = torch.autograd.grad(result, [query, key, value, *bias], d_output)
    return [result.detach(), *gradients]


def show(rows: list[dict[str, Any]]) -> None:
    """Print the rows as a table."""
    columns = ("variant", "K", "batch", "map", "peak", "results", "bytes per token")
    table = output.table("memory of forward and backward on top of the inputs", *columns)
    for row in rows:
        table.add_row(
            row["variant"],
            str(row["kernel"]),
            str(row["batch"]),
            f"{row['map']}x{row['map']}",
            f"{row['peak_bytes'] / 2**20:.1f} MiB",
            f"{row['result_bytes'] / 2**20:.1f} MiB",
            f"{row['peak_bytes_per_token']:.0f}",
        )
    output.print_table(table)


if __name__ == "__main__":
    main()
