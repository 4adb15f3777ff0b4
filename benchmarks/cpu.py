"""How near natc comes to this CPU's peak, on one thread and on all: `python benchmarks/cpu.py`.

Builds the kernels that are missing, then times natc's calls, the multiply-adds that the CPU
reaches in registers, and torch's attention in turn. A call that cannot be timed has a row, and a
section without its peer a sentence, that say why. With `--target x86-64-v3` a machine with AVX-512
runs AVX2 code, natc's and torch's.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from natc.errors import NatcError
from natc.host import detect, environment
from natc.spec import KernelSpec
from natc.store.files import write_atomically
from natc.targets import LLVM_ARCHS, Target

if TYPE_CHECKING:
    from natc.bench.problem import BenchProblem
    from natc.bench.shares import Shares

LEVELS = ((56, 2), (28, 4), (14, 8), (7, 16))
# Torch and its libraries as on a CPU without AVX-512.
AVX2 = {
    "ATEN_CPU_CAPABILITY": "avx2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "MKL_ENABLE_INSTRUCTIONS": "AVX2",
}
SWIN = "swin_tiny_patch4_window7_224"
HERE = Path(__file__).resolve().parent
MARKS = ("<!-- cpu: written by benchmarks/cpu.py --readme -->", "<!-- end of cpu -->")


@dataclass(frozen=True)
class Plan:
    """A problem to time: the calls, each with the sections of its rows; peers take turns alone."""

    problem: BenchProblem
    with_peers: bool
    calls: dict[str, list[str]] = field(default_factory=dict)


def problem(
    shape: Sequence[int],
    kernel: int = 7,
    head_dim: int = 32,
    dtype: str = "float32",
    *,
    rpb: bool = True,
    dilation: int = 1,
) -> BenchProblem:
    """Return a problem; shape: batch, one size for each axis, heads."""
    from natc.bench.problem import BenchProblem

    spec = KernelSpec.make(kernel, rank=len(shape) - 2, head_dim=head_dim, dtype=dtype, rpb=rpb)
    return BenchProblem.make(spec, shape, dilation=dilation)


def levels(*calls: str, rpb: bool = True) -> list[tuple[BenchProblem, tuple[str, ...]]]:
    """Return NAT's four levels with some calls."""
    return [(problem((1, side, side, heads), rpb=rpb), calls) for side, heads in LEVELS]


def alone() -> list[tuple[BenchProblem, tuple[str, ...]]]:
    return levels("forward kernel", "gradient kernels")


def forward() -> list[tuple[BenchProblem, tuple[str, ...]]]:
    return levels("forward")


def backward() -> list[tuple[BenchProblem, tuple[str, ...]]]:
    return levels("gradients")


def threads() -> list[tuple[BenchProblem, tuple[str, ...]]]:
    both = ("forward", "gradients")
    return [*levels(*both), (problem((1, 128, 128, 2)), both)]


def shapes() -> list[tuple[BenchProblem, tuple[str, ...]]]:
    map_ = (1, 56, 56, 2)
    problems = [
        *(problem(map_, kernel) for kernel in (3, 5, 9, 11, 13)),
        *(problem(map_, head_dim=head_dim) for head_dim in (8, 16, 64, 128)),
        problem((1, 4096, 2)),
        *(problem((1, 16, 16, 16, 2), kernel) for kernel in (3, 5)),
        problem(map_, dtype="bfloat16"),
        problem(map_, dilation=4),
        problem((1, 256, 256, 1)),
    ]
    return [(each, ("forward", "gradients")) for each in problems]


def against_peers() -> list[tuple[BenchProblem, tuple[str, ...]]]:
    biased = ("forward", "torch SDPA", "torch FlexAttention", "reference")
    return [
        *levels(*biased),
        *levels("forward", "torch SDPA", "torch SDPA, every key", rpb=False),
    ]


SECTIONS: dict[str, Callable[[], list[tuple[BenchProblem, tuple[str, ...]]]]] = {
    "alone": alone,
    "forward": forward,
    "backward": backward,
    "threads": threads,
    "shapes": shapes,
    "peers": against_peers,
    "models": list,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--section",
        action="append",
        choices=tuple(SECTIONS),
        help="may be repeated; by default all",
    )
    parser.add_argument(
        "--target", choices=LLVM_ARCHS, help="whose code to run; by default this machine's"
    )
    parser.add_argument("--seconds", type=float, default=2.0, help="for each problem")
    parser.add_argument(
        "--real-time",
        action="store_true",
        help="other programs wait while samples are taken, but for networks; needs root",
    )
    parser.add_argument(
        "--libraries", type=Path, help="use the libraries of this directory, and build none"
    )
    parser.add_argument("--output", type=Path, help="write the document here, part by part")
    parser.add_argument("--json", action="store_true", help="print the document")
    parser.add_argument("--plot", type=Path, help="draw the shares: .svg or .png")
    parser.add_argument(
        "--from", dest="source", type=Path, help="show what --json printed, and time nothing"
    )
    parser.add_argument(
        "--readme", action="store_true", help="write saved results into README.md, time nothing"
    )
    options = parser.parse_args()
    if options.readme:
        return update_readme()
    if options.source:
        from natc.bench import shares

        document = shares.read(options.source)
    else:
        document = measure(options, begin(options.target))
    if options.plot:
        from natc.bench import plots, share_plots

        form = plots.format_of(options.plot)
        write_atomically(options.plot, share_plots.draw(document, form))
    if options.json:
        from natc.bench import shares

        print(shares.write(document), end="")
    else:
        show(document)


def begin(arch: str | None) -> Target:
    """Return the target to measure; before torch is imported, limit it to the target's vectors.

    Raises TargetError if its code does not run here.
    """
    host = detect.detect_host_cpu()
    target = Target("llvm", arch) if arch else host
    detect.require_runs_here(target, "name another with --target")
    if target != host and target.arch == "x86-64-v3":
        os.environ.update(AVX2)
    # Everything is built beforehand, and a missing kernel fails.
    os.environ.update({"NATC_STRICT": "1", "NATC_JIT": "off"})
    return target


def measure(options: argparse.Namespace, target: Target) -> Shares:
    """Measure the sections, and return the document; it is written after each part."""
    from rivals import full_sdpa

    from natc.bench import clocks, peak, peers, results, share_times, shares
    from natc.bench.times import Contestant

    begin, load = time.monotonic(), results.load_average()
    sections = options.section or list(SECTIONS)
    missing: list[str] = []
    plans = plan(sections)
    libraries = options.libraries
    os.environ["NATC_LIB_PATH"] = str(libraries) if libraries else build(plans, target, missing)

    import torch

    probe = peak.open_probe("float32", target)
    counts = sorted({1, torch.get_num_threads()})
    with clocks.real_time(options.real_time):
        copies = {count: max(probe.copies(count) for _ in range(8)) for count in counts}
    machine = share_times.Machine(target, counts, probe, copies, options.real_time)
    contestants: dict[str, Contestant] = {**peers.PEERS, "torch SDPA, every key": full_sdpa}
    rows: list[shares.ShareRow] = []
    networks: list[shares.NetworkRow] = []

    def document() -> Shares:
        here = environment.collect()
        return shares.Shares(
            target=target.name,
            environment=here,
            peak_method=probe.method,
            peak_is_lower_bound=probe.lower_bound,
            bytes_per_second=copies,
            load_average=load,
            command=" ".join(["python", "benchmarks/cpu.py", *sys.argv[1:]]),
            seconds=round(time.monotonic() - begin, 1),
            rows=rows,
            networks=networks,
            missing=missing,
            busy=shares.doubts(rows, load, here.cores),
        )

    def keep() -> None:
        if options.output:  # part by part: a run that is cut short leaves its results
            write_atomically(options.output, shares.write(document()))

    for each in plans:
        say(f"timing {', '.join(each.calls)} at {shares.label(each.problem)}")
        rows += share_times.time_problem(
            each.problem, each.calls, machine, seconds=options.seconds, contestants=contestants
        )
        keep()
    if "models" in sections:
        for modes in (("eager", 1), ("compiled", 1), ("training", 8)):
            say(f"timing networks, {modes[0]}")
            networks += time_networks(*modes, missing)
            keep()
    if not rows and not networks:
        raise SystemExit(f"nothing was timed: {' '.join(missing)}")
    return document()


def plan(sections: Sequence[str]) -> list[Plan]:
    """Return what to time: each problem once, but for peers, with the calls of all sections."""
    plans: dict[tuple[BenchProblem, bool], Plan] = {}
    for section in sections:
        for each, names in SECTIONS[section]():
            key = (each, section == "peers")
            calls = plans.setdefault(key, Plan(*key)).calls
            for name in names:
                calls.setdefault(name, []).append(section)
    return list(plans.values())


def build(plans: Sequence[Plan], target: Target, missing: list[str]) -> str:
    """Build the kernels of the problems, and of NAT; return their directories, as a search path.

    Libraries are kept, and built again when the code that makes them changes.
    """
    from natc.package import jobs

    specs = dict.fromkeys([problem((1, 7, 7, 1)).kernel, *(each.problem.kernel for each in plans)])
    tools = jobs.tool_versions("llvm")
    wanted = jobs.jobs(list(specs), "llvm", [target.arch], ("forward", "backward"))
    todo = [job for job in wanted if jobs.built(job, tools) is None]
    say(f"building {len(todo)} of {len(wanted)} kernels")
    try:
        for job, _ in jobs.build_all(todo, tools, detect.cores()):
            say(f"built {job.name}")
    except NatcError as error:
        missing.append(f"kernels are missing: {error}")
    return os.pathsep.join(str(jobs.directory_of(job, tools)) for job in wanted)


def time_networks(mode: str, batch: int, missing: list[str]) -> list[Any]:
    """Return a row for NAT-Tiny and for timm's Swin-T, which take turns."""
    import models
    import msgspec
    import torch

    from natc.bench.shares import NetworkRow

    images = torch.randn(batch, 3, 224, 224)
    rows = models.time_group(("nat_tiny", SWIN), images, mode, 8.0)
    missing += [f"{row['network']}, {mode}: {row['note']}" for row in rows if row["note"]]
    return [msgspec.convert(row, NetworkRow) for row in rows]


def show(document: Shares) -> None:
    """Print a table of the rows, and the networks."""
    from natc.bench import share_text, shares
    from natc.cli import output
    from natc.cli.output import seconds_text

    console = output.stdout()
    numbers = ("threads", "time", "floor", "peak", "error", "ratio", "speedup")
    table = output.table(
        f"{document.target} on {document.environment.cpu}", "call", *numbers, right=numbers
    )
    problem = None
    for row in document.rows:
        if row.problem != problem:
            problem = row.problem
            table.add_section()
            table.add_row(shares.label(problem))
        if row.quartile_seconds is None:
            table.add_row(f"  {row.call}: {row.note}")
            continue
        table.add_row(
            f"  {row.call}",
            str(row.threads),
            seconds_text(row.quartile_seconds[0]),
            seconds_text(row.floor_seconds or 0.0),
            f"{100 * (row.share_of_peak or 0.0):.1f}%",
            f"{row.max_error:.0e}",
            f"{row.ratio[1]:.2f}" if row.ratio else "-",
            f"{row.speedup[1]:.2f}" if row.speedup else "-",
        )
    output.print_table(table)
    console.print(
        "time: the lower quartile of a call; peak: its useful operations as a share of the "
        f"{document.peak_method}, in the same turns; ratio: to natc's forward; speedup: of the "
        "threads against one."
    )
    for network in document.networks:
        console.print(share_text.of_network(network))
    for sentence in (*document.missing, *document.busy):
        console.print(f"note: {sentence}")


def update_readme() -> None:
    """Write the tables of all saved results into benchmarks/README.md, between its marks."""
    from natc.bench import share_text, shares

    path = HERE / "README.md"
    text = path.read_text(encoding="utf-8")
    before, _, end = text.partition(MARKS[0])
    after = end.partition(MARKS[1])[2]
    tables = "\n".join(
        share_text.markdown(shares.read(file))
        for file in sorted((HERE / "results").glob("cpu_*.json"))
    )
    write_atomically(path, f"{before}{MARKS[0]}\n{tables}{MARKS[1]}{after}")


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
