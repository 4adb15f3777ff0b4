"""`natc quickstart`: tune, build, time, keep the faster kernel, run a network on a photograph."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from natc.cli import options, output
from natc.cli.views import search
from natc.cli.views.kept import DEFAULT, TUNED, SavedSchedule, Speedup, compare, keep
from natc.cli.views.network import run_network
from natc.errors import LibraryError, NatcError
from natc.host import detect, environment
from natc.host.detect import detect_host_cpu
from natc.operations import FAMILIES
from natc.spec import KernelSpec
from natc.store import files, workspace
from natc.store.temporary import temporary_directory
from natc.targets import Target

if TYPE_CHECKING:
    from natc.bench.results import Results
    from natc.bench.times import Contestant

SECONDS_A_SHAPE = 4.0


def quickstart(
    minutes: Annotated[
        float, typer.Option("--minutes", min=0.05, help="Time to spend on tuning.")
    ] = 1.5,
    directory: Annotated[
        Path, typer.Option("--output", "-o", help="Where the picture is written.")
    ] = Path("natc-quickstart"),
    wait: options.WaitOption = None,
    json: options.JsonOption = False,
) -> None:
    """Tune, build and run a kernel here, step by step.

    The kernel is for this CPU, and NAT-Mini runs on a photograph with it. Every step is checked;
    exits with 1 if a result is wrong. Run it again to continue the search.
    """
    options.require_compiler("tune")
    files.wait_at_most(wait)
    _require_demo()
    target = detect_host_cpu()
    spec = options.make_spec(
        options.NAT_KERNEL,
        kind=target.kind,
        rank=2,
        head_dim=options.DEFAULT_HEAD_DIM,
        dtype=None,
        rpb=True,
    )
    # Now, not after minutes of tuning.
    files.make_directory(directory)
    if not files.writable(directory):
        raise NatcError(f"directory {directory} is not writable; name another with --output.")

    # One document on stdout, and nothing else.
    console = output.stderr() if json else output.stdout()

    def step(number: int, text: str) -> None:
        console.print(f"[{number}/4] {text}", style="bold")

    from natc.cli.views.progress import watch
    from natc.tune import tune

    schedule = SavedSchedule(workspace.schedule_path(spec, target))
    step(1, f"tune {spec.name} for {target.name} ({detect.cpu_model()}), {minutes:g} min")
    with watch(show=True) as on_event:
        finished = tune(spec, target, minutes=minutes, on_event=on_event)
    if finished.interrupted:
        raise KeyboardInterrupt
    console.print(search.summary(finished))
    if finished.schedule_path is None:
        # The next steps work on a slow or busy machine, too.
        console.print(f"For more time: natc quickstart --minutes {2 * minutes:g}")
    step(2, "build the tuned kernel and the default one, and time them beside their peers")
    with temporary_directory("quickstart") as scratch:
        times, comparison = _compare(spec, target, scratch)
    if not json:
        from natc.cli.views import times_table

        times_table.show(times)
    kept = keep(comparison, schedule, saved=finished.schedule_path is not None)
    step(3, "keep the faster kernel")
    console.print(kept.message)
    _install(spec, target, default=kept.kernel == DEFAULT)
    step(4, "run NAT-Mini on a photograph, on the kernels and on the reference")
    network = run_network(spec, directory, seconds=SECONDS_A_SHAPE, console=console)
    if json:
        output.print_json(
            {
                "spec": spec.name,
                "target": target.name,
                "environment": environment.collect(),
                "search": asdict(finished),
                "times": times,
                "kept": {
                    "kernel": kept.kernel,
                    "message": kept.message,
                    "comparison": comparison._asdict() if comparison else None,
                },
                "network": network,
            }
        )
        return
    console.print(f"picture: {network['picture'].absolute()}")


def _require_demo() -> None:
    from importlib.util import find_spec

    missing = [name for name in ("skimage", "matplotlib") if find_spec(name) is None]
    if missing:
        raise NatcError(
            f"natc quickstart needs {' and '.join(missing)}: pip install 'natc[compiler,demo]'."
        )


def _compare(spec: KernelSpec, target: Target, scratch: Path) -> tuple[Results, Speedup | None]:
    """Return times of the default kernel, of the tuned one, and of peers, and which is faster.

    The comparison is None if the schedule in use gives the default kernel.
    """
    from natc.compiler.build import build_library
    from natc.store.manifest import load_manifest

    manifests = []
    for name in (DEFAULT, TUNED):
        place = scratch / name.split()[0]
        path = build_library(spec, target, place, families=("forward",), untuned=name == DEFAULT)
        manifests.append(load_manifest(path))
    # The same code has the same hash.
    names = [DEFAULT] if manifests[0].sha256 == manifests[1].sha256 else [DEFAULT, TUNED]
    kernels = {name: _contestant(spec, scratch / name.split()[0]) for name in names}
    times = _time(spec, target, kernels)
    return times, compare(times) if TUNED in kernels else None


def _install(spec: KernelSpec, target: Target, *, default: bool) -> None:
    """Build the kernel for programs on this machine: with the default decisions if asked.

    A library that also holds gradients keeps the schedules of those.
    """
    from natc import runtime
    from natc.compiler.build import build_library

    where = workspace.library_dir()
    # Both variants: the next call in Python may well have no bias.
    for variant in (spec, replace(spec, rpb=False)):
        families = families_to_build(variant, target, where)
        build_library(
            variant, target, where, families=families,
            untuned=default and families == ("forward",),
            on_note=output.stderr().print,
        )  # fmt: skip
    runtime.clear()


def families_to_build(spec: KernelSpec, target: Target, directory: Path) -> tuple[str, ...]:
    """Return the families of operations to build: the forward, and all in the current library.

    The quickstart runs only the forward, but must not remove gradients from a library that was
    built for training.
    """
    from natc import runtime
    from natc.runtime.commands import families_of

    held = {
        family
        for library in runtime.kernels()
        if (library.spec, library.targets) == (spec, [target])
        and library.manifest_path.parent == directory
        for family in families_of(library)
    }
    return tuple(family for family in FAMILIES if family in held | {"forward"})


def _contestant(spec: KernelSpec, directory: Path) -> Contestant:
    """Return the kernel in a directory, even if another directory has one."""
    import torch

    from natc import runtime
    from natc.bench import peers
    from natc.runtime.facts import device_facts
    from natc.runtime.load import load
    from natc.runtime.scan import scan

    facts = device_facts(torch.device("cpu"))
    choice, rejections = runtime.select(scan([directory]).libraries, spec, facts)
    if choice is None:
        raise LibraryError(f"the library just built in {directory} is not usable: {rejections}.")
    return peers.from_kernel(load(choice).function)


def _time(spec: KernelSpec, target: Target, kernels: dict[str, Contestant]) -> Results:
    from natc.bench import peers, results, times
    from natc.bench.problem import BenchProblem
    from natc.cli.views import times_table
    from natc.tune.measure.workload import default_shapes

    rows = times.time_problems(
        [BenchProblem.make(spec, shape) for shape in default_shapes(spec, target)],
        {**kernels, **peers.PEERS},
        seconds=SECONDS_A_SHAPE,
        progress=times_table.progress(),
    )
    return results.collect(rows, "cpu")
