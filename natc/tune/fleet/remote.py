"""Builds candidates on the nodes of a cluster, and times them on a node with the target."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

from natc.errors import NatcError
from natc.host import environment
from natc.spec import KernelSpec
from natc.store.records import Environment
from natc.store.temporary import temporary_directory
from natc.targets import Target
from natc.tune import events
from natc.tune.fleet import jobs
from natc.tune.fleet.builds import NodeBuild, reason, result_of
from natc.tune.fleet.cluster import Cluster, resource_of
from natc.tune.history import Key, key_of, same_machine
from natc.tune.measure.measurer import BuiltLibrary, Times
from natc.tune.measure.workload import Shape

# Seconds in which a node that died is replaced, or a device that is in use becomes free.
_PATIENCE = 120.0
_LOOK = 2.0  # seconds between looks at the cluster
# Seconds of one job on a bench: the process there ends its own jobs before.
_JOB_LIMIT = 600.0
# How often Ray repeats a build whose node died.
_RETRIES = 8
# A candidate that so many nodes did not survive is not tried on another one.
_LOST = 3
_CLOSING = 10.0


class FleetMeasurer:
    """Builds and times the candidates of one kernel on a cluster; a `Measurer`.

    A context manager; leaving it stops the jobs and frees the device. machine: the node that
    times, as a record. When that node dies, an equal one takes over.
    """

    def __init__(
        self,
        cluster: Cluster,
        spec: KernelSpec,
        target: Target,
        shapes: Sequence[Shape],
        operation: str,
        seed: int,
        tell: Callable[[events.Event], None],
    ) -> None:
        self._cluster, self._target, self._seed, self._tell = cluster, target, seed, tell
        self._problem = (spec.name, target.name)
        self._shapes, self._operation = list(shapes), operation
        self._versions = environment.versions()
        self._stack = ExitStack()
        self._directory = self._stack.enter_context(temporary_directory("tune"))
        self._pending: dict[Key, NodeBuild] = {}
        self._files = 0
        self._bench: Any = None
        self._machine: Environment | None = None

    def __enter__(self) -> FleetMeasurer:
        return self

    def __exit__(self, *_: object) -> None:
        import ray

        try:
            for library in self._pending.values():
                library.cancel()
            if self._bench is not None:
                # A bench that is only killed would leave its files.
                with contextlib.suppress(ray.exceptions.RayError):
                    ray.get(self._bench.close.remote(), timeout=_CLOSING)
            self._drop_bench()
        finally:
            self._stack.close()

    @property
    def builders(self) -> int:
        """How many builds the cluster runs at once."""
        return max(1, sum(node.builders for node in self._cluster.nodes()))

    @property
    def overlap(self) -> bool:
        """Whether builds leave times alone: on GPUs, and if no node both builds and times."""
        benches = self._cluster.benches(self._target)
        return self._target.kind == "cuda" or not any(node.builders for node in benches)

    @property
    def machine(self) -> Environment:
        """The node that times. Raises NatcError if the cluster has none for us."""
        self._ready_bench()
        if self._machine is None:
            raise NatcError("the node that times sent no record of itself.")
        return self._machine

    def build(self, decisions: Mapping[str, int], *, may_spill: bool = False) -> NodeBuild:
        """Start building a candidate, unless it was built before."""
        import ray

        if self._bench is not None and not self._pending:
            self._bench.start.remote()
        key = key_of({**decisions, "": may_spill})
        pending = self._pending.get(key)
        if pending is None or pending.cancelled:
            job = ray.remote(jobs.build).options(num_cpus=1, max_retries=_RETRIES)
            arguments = (*self._problem, dict(decisions), self._operation, may_spill)
            reference = job.remote(self._versions, *arguments)
            path = self._directory / f"candidate_{self._files:04}.so"
            self._files += 1
            pending = self._pending[key] = NodeBuild(reference, path, self._cluster)
        return pending

    def measure(self, libraries: Sequence[BuiltLibrary], turns: int) -> Times:
        """Check the results of libraries, then time them in alternation, on one node.

        If the node dies meanwhile, an equal one does the work again. Raises JobError, TimeoutError
        or ChildProcessError if a library fails, NatcError if there is no equal node.
        """
        import ray

        sent = [(library.sha256, library.path.read_bytes()) for library in libraries]
        for _ in range(_LOST):
            self._ready_bench()
            answer = self._bench.measure.remote(sent, turns)
            try:
                return result_of(ray.get(answer, timeout=_JOB_LIMIT))
            except ray.exceptions.RayError as error:
                self._drop_bench()
                text = f"the node that times was lost ({type(error).__name__})"
                self._tell(events.Note(f"{text}; its work is done again on another node."))
        raise ChildProcessError(f"{_LOST} nodes were lost while they timed it")

    def _ready_bench(self) -> None:
        """Occupy a device, unless one is; wait for it if need be."""
        import ray

        end = time.monotonic() + _PATIENCE
        while self._bench is None:
            bench = ray.remote(jobs.Bench).options(
                num_cpus=0,
                num_gpus=1 if self._target.kind == "cuda" else 0,
                resources={resource_of(self._target): 1},
            )
            self._bench = bench.remote(*self._problem, self._shapes, self._operation)
            answer = self._bench.machine.remote(self._versions, self._seed)
            try:
                self._wait(answer, end)
                machine: Environment = result_of(ray.get(answer))
            except ray.exceptions.RayError as error:
                self._drop_bench()
                if time.monotonic() >= end:
                    raise NatcError(f"no node could start to time: {reason(error)}") from None
                time.sleep(_LOOK)
                continue
            except BaseException:
                self._drop_bench()
                raise
            if self._machine is not None and not _compare(machine, self._machine):
                self._drop_bench()
                raise NatcError(
                    f"the node that timed was lost, and the next node has another processor "
                    f"({machine.cpu}, {machine.cores} cores) or other versions, so its times do "
                    "not compare. Everything measured is kept; the same command starts over on "
                    "that node."
                )
            self._machine = machine

    def _wait(self, answer: Any, end: float) -> None:
        """Wait until a new bench answers; raise if its device does not become free."""
        import ray

        while not ray.wait([answer], timeout=_LOOK)[0]:
            if time.monotonic() < end:
                continue
            name = resource_of(self._target)
            if not self._cluster.benches(self._target):
                raise NatcError(
                    f"no node with the resource {name} is left in the cluster. Everything "
                    "measured is kept; start a node with it, and run the same command again."
                )
            raise NatcError(
                f"all nodes with the resource {name} have been in use for {_PATIENCE:.0f} s. "
                "Everything measured is kept; run the same command again when one is free."
            )

    def _drop_bench(self) -> None:
        import ray

        if self._bench is not None:
            ray.kill(self._bench)
            self._bench = None


def _compare(a: Environment, b: Environment) -> bool:
    """Return whether times of two nodes compare: processor, cores, GPU and versions are equal."""
    return same_machine(a, b) and a.versions == b.versions
