"""Times natc's calls and their peers in turn with the peak of the CPU, on one and more threads."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from msgspec.structs import replace
from torch import Tensor

from natc import runtime
from natc.bench import clocks, peers, shares
from natc.bench.peak import Probe
from natc.bench.problem import BenchProblem, Case, Oracle
from natc.bench.shares import Quartiles, ShareRow
from natc.bench.times import Contestant, Unavailable, first_line
from natc.checks.tolerance import ELEMENT_FACTOR, RELATIVE_TOLERANCE
from natc.dispatch import fused_backward, fused_forward
from natc.dispatch.call import Options
from natc.runtime.load import load
from natc.targets import Target


@dataclass(frozen=True)
class Ready:
    """A call that is ready to be timed.

    results() returns the output and, for gradients, the gradients, in natc's layout. error:
    returns the largest relative error of results, if they are not neighborhood attention.
    """

    call: Callable[[], object]
    results: Callable[[], Sequence[Tensor]]
    note: str = ""
    error: Callable[[Sequence[Tensor]], float] | None = None


@dataclass(frozen=True)
class Machine:
    """The machine and the settings that calls are timed with.

    target: the target whose code runs. threads: numbers of threads to time with, 1 first. probe:
    measures the peak. bytes_per_second: number of threads -> bytes that they copy. real_time:
    let other programs wait while samples are taken.
    """

    target: Target
    threads: Sequence[int]
    probe: Probe
    bytes_per_second: Mapping[int, float]
    real_time: bool = False


def forward(case: Case) -> Ready:
    """Return a call of natc's function, as a program calls it."""
    return of_contestant(peers.natc_kernels)(case)


def forward_kernel(case: Case) -> Ready:
    """Return a call of the forward kernel alone, without allocation or look-up of the kernel."""
    import tvm_ffi

    problem, inputs = case.problem, case.inputs
    choice = runtime.explain(problem.kernel, inputs.query.device).choice
    if choice is None:
        raise Unavailable("no kernel")
    function = load(choice).function
    output = torch.empty_like(inputs.query)
    tensors = [tensor for tensor in (*inputs, output) if tensor is not None]
    arguments = (
        *(tvm_ffi.from_dlpack(tensor) for tensor in tensors),
        *_options(problem).scalars(problem.shape[1:-2]),
        problem.group,
    )

    def results() -> list[Tensor]:
        output.fill_(float("nan"))
        function(*arguments)
        return [output]

    return Ready(functools.partial(function, *arguments), results, choice.target.name)


def gradients(case: Case) -> Ready:
    """Return a call of torch.autograd.grad for all gradients, as a training step needs them."""
    prepared = peers.natc_kernels(case)
    output = prepared.attend()
    call = functools.partial(
        torch.autograd.grad, output, prepared.leaves, case.d_output, retain_graph=True
    )
    return Ready(call, lambda: [output, *call()], prepared.note)


def gradient_kernels(case: Case) -> Ready:
    """Return a call of the kernels that compute all gradients, without torch's autograd."""
    note = peers.natc_kernels(case).note
    if case.d_output is None:
        raise Unavailable("the problem has no gradient of the output")
    options, inputs = _options(case.problem), case.inputs
    with torch.no_grad():
        output, lse = fused_forward.run("forward_lse", *inputs, options)
    wanted = [True, True, True, inputs.rpb is not None]
    call = functools.partial(
        fused_backward.backward, case.d_output, None, *inputs, output, lse, wanted, options
    )
    return Ready(call, lambda: [output, *call()[: sum(wanted)]], note)


def of_contestant(contestant: Contestant) -> Callable[[Case], Ready]:
    """Return a function that makes a contestant of `natc.bench.times` ready."""

    def make(case: Case) -> Ready:
        prepared = contestant(case)
        return Ready(prepared.call, prepared.results, prepared.note, prepared.error)

    return make


def _options(problem: BenchProblem) -> Options:
    scale = problem.shape[-1] ** -0.5
    return Options(problem.kernel.kernel_size, scale=scale, **problem.options)


# natc's calls. Gradients need a case with a gradient of the output.
_FORWARDS = {shares.FORWARD_KERNEL: forward_kernel, shares.FORWARD: forward}
_GRADIENTS = {shares.GRADIENT_KERNELS: gradient_kernels, shares.GRADIENTS: gradients}


def time_problem(
    problem: BenchProblem,
    calls: Mapping[str, Sequence[str]],
    machine: Machine,
    *,
    seconds: float,
    contestants: Mapping[str, Contestant] | None = None,
) -> list[ShareRow]:
    """Check calls of one problem against the reference, and time them in turn with the peak.

    calls: name of a call -> the sections of its rows. A name is a call of natc (see
    `natc.bench.shares`) or a contestant. seconds: to spend on samples, all calls together.
    A call that cannot be timed has rows that say why.
    """
    before = torch.get_num_threads()
    try:
        return _time(problem, calls, machine, seconds, contestants or {})
    finally:
        torch.set_num_threads(before)


def _time(
    problem: BenchProblem,
    calls: Mapping[str, Sequence[str]],
    machine: Machine,
    seconds: float,
    contestants: Mapping[str, Contestant],
) -> list[ShareRow]:
    torch.set_num_threads(max(machine.threads))
    with_gradients = any(name in _GRADIENTS for name in calls)
    case = Case.make(replace(problem, backward=with_gradients))
    oracle = Oracle(case)
    samplers: dict[tuple[str, int], Callable[[], float]] = {
        ("", threads): functools.partial(_peak, machine.probe, threads)
        for threads in machine.threads
    }
    notes: dict[str, tuple[str, float | None]] = {}
    for name in calls:
        try:
            ready, notes[name] = _checked(name, case, oracle, machine.target, contestants)
        # torch refuses a problem with many types.
        except Exception as error:
            expected = isinstance(error, Unavailable)
            notes[name] = (str(error) if expected else f"failed: {first_line(error)}", None)
            continue
        for threads in machine.threads:
            samplers[name, threads] = _sampler(ready.call, threads, name in _GRADIENTS)
    with clocks.real_time(machine.real_time):
        samples = clocks.in_turn(samplers, seconds)
    return [
        _row(problem, name, threads, calls[name], notes[name], samples, machine)
        for name in calls
        for threads in machine.threads
    ]


def _checked(
    name: str,
    case: Case,
    oracle: Oracle,
    target: Target,
    contestants: Mapping[str, Contestant],
) -> tuple[Ready, tuple[str, float]]:
    """Return a call, with its note and its error; raise Unavailable if it must not be timed."""
    make = _FORWARDS.get(name) or _GRADIENTS.get(name) or of_contestant(contestants[name])
    if name not in _GRADIENTS:
        case = Case(replace(case.problem, backward=False), case.inputs, None)
    with torch.inference_mode(name not in _GRADIENTS):
        ready = make(case)
        if name not in contestants and ready.note != target.name:
            raise Unavailable(f"its kernel is for {ready.note}, not for {target.name}")
        error = (ready.error or oracle.error)(ready.results())
    allowed = ELEMENT_FACTOR * RELATIVE_TOLERANCE[case.problem.dtype]
    if not error <= allowed:
        raise Unavailable(f"wrong result (error {error:g}, allowed {allowed:g}), not timed")
    return ready, (ready.note, error)


def _peak(probe: Probe, threads: int) -> float:
    return 2 * probe.multiply_adds(threads)


@contextlib.contextmanager
def _mode(threads: int, gradients: bool) -> Iterator[None]:
    """Use a number of threads; a call without gradients runs as inference does."""
    torch.set_num_threads(threads)
    with torch.inference_mode(not gradients):
        yield


def _sampler(call: Callable[[], object], threads: int, gradients: bool) -> Callable[[], float]:
    """Return a function that times a call with a number of threads."""
    with _mode(threads, gradients):
        sample = clocks.sampler(call)

    def in_its_mode() -> float:
        with _mode(threads, gradients):
            return sample()

    return in_its_mode


def _row(
    problem: BenchProblem,
    name: str,
    threads: int,
    sections: Sequence[str],
    note: tuple[str, float | None],
    samples: Mapping[tuple[str, int], Sequence[float]],
    machine: Machine,
) -> ShareRow:
    row = ShareRow(
        sections=list(sections), problem=problem, call=name, threads=threads, note=note[0]
    )
    times = samples.get((name, threads))
    if times is None:
        return row
    own = samples.get((shares.FORWARD, threads))
    is_peer = name not in _FORWARDS and name not in _GRADIENTS
    row = replace(
        row,
        quartile_seconds=clocks.quartiles(times),
        samples=len(times),
        max_error=note[1],
        # Other programs only ever slow the probe down.
        peak=clocks.quartiles(samples["", threads])[2],
        ratio=_ratios(times, own) if is_peer and own else None,
        speedup=_ratios(samples[name, 1], times) if threads > 1 else None,
    )
    return shares.complete(row, machine.bytes_per_second[threads])


def _ratios(times: Sequence[float], base_times: Sequence[float]) -> Quartiles:
    """Return the quartiles of the ratio of times that were taken in the same turns."""
    return clocks.quartiles([time / base for time, base in zip(times, base_times, strict=True)])
