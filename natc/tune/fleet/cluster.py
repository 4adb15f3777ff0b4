"""A Ray cluster: connects to it, and says which of its nodes build and which have a target."""

from __future__ import annotations

import contextlib
import importlib.util
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any, NamedTuple

from natc.errors import ArgumentError, NatcError, TargetError
from natc.targets import Target

# Seconds after which a cluster that does not answer is given up. Ray itself would try for minutes
# and then end the process.
_ANSWER_LIMIT = 30.0
_PROBE = "import ray; ray.init(address={address!r}, logging_level='ERROR', log_to_driver=False)"


class Node(NamedTuple):
    """A node that is alive: its id, its address, and its resources by name."""

    id: str
    address: str
    resources: dict[str, float]

    @property
    def builders(self) -> int:
        """How many builds the node runs at once: one for each CPU."""
        return int(self.resources.get("CPU", 0))


class Cluster:
    """The nodes of the cluster that this process is connected to; they come and go."""

    def __init__(self, address: str) -> None:
        self.address = address

    def nodes(self) -> list[Node]:
        """Return the nodes that are alive."""
        import ray

        return [
            Node(node["NodeID"], node["NodeManagerAddress"], node["Resources"])
            for node in ray.nodes()
            if node["Alive"]
        ]

    def benches(self, target: Target) -> list[Node]:
        """Return the nodes that can time code for a target."""
        name = resource_of(target)
        return [
            node
            for node in self.nodes()
            if node.resources.get(name, 0) >= 1
            and (target.kind != "cuda" or node.resources.get("GPU", 0) >= 1)
        ]

    def require(self, target: Target) -> None:
        """Raise TargetError unless a node has the target; NatcError unless a node has a CPU."""
        if not self.benches(target):
            raise TargetError(
                f"no node of the Ray cluster at {self.address} has the resource "
                f"{resource_of(target)}, so nothing can be measured for {target.name}. Start a "
                f"node on a machine with that device: {start_command(target, self._join())}"
            )
        if not any(node.builders for node in self.nodes()):
            raise NatcError(
                f"no node of the Ray cluster at {self.address} has a CPU to build on. Start one: "
                f"ray start --address={self._join()}"
            )

    def _join(self) -> str:
        """Return the address that a new node joins at."""
        import ray

        return str(ray.get_runtime_context().gcs_address)


def resource_of(target: Target) -> str:
    """Return the resource of the nodes that time code for a target, such as natc:cuda-sm_90."""
    return f"natc:{target.name}"


def start_command(target: Target, address: str) -> str:
    """Return the command that starts a node which times code for a target."""
    # Builds would disturb the times of a CPU.
    own = "--num-gpus=1" if target.kind == "cuda" else "--num-cpus=0"
    return f"ray start --address={address} {own} --resources='{{\"{resource_of(target)}\": 1}}'"


def check_address(address: str) -> None:
    """Raise ArgumentError unless an address is `auto` or HOST:PORT.

    `auto` is the cluster that this machine is a node of.
    """
    if address != "auto" and not re.fullmatch(r"[^\s:/]+:\d{1,5}", address):
        raise ArgumentError(
            f"ray is {address!r}; it must be auto or HOST:PORT, the address that ray start shows."
        )


@contextlib.contextmanager
def connected(address: str) -> Iterator[Cluster]:
    """Connect this process to a cluster; at the end its jobs are stopped.

    address: see `check_address`. Raises NatcError without Ray, or if no cluster answers.
    """
    check_address(address)
    if importlib.util.find_spec("ray") is None:
        raise NatcError("--ray needs Ray, which is not installed: pip install 'natc[fleet]'.")
    problem = _problem(address)
    if problem:
        raise NatcError(
            f"no Ray cluster can be reached at {address}: {problem}. Start one on this machine "
            "with ray start --head, or make this machine a node of it with ray start "
            "--address=HOST:PORT."
        )
    import ray

    ours: Any = _OfThisThread(sys.stdout)
    with contextlib.redirect_stdout(ours):
        ray.init(address=address, logging_level="ERROR", log_to_driver=False)
        try:
            yield Cluster(address)
        finally:
            ray.shutdown()


class _OfThisThread:
    """A stream that only the current thread writes to.

    When a node dies, Ray prints a long report on stdout, in a thread of its own.
    """

    def __init__(self, stream: Any) -> None:
        self._stream, self._thread = stream, threading.get_ident()

    def write(self, text: str) -> int:
        """Write a text, or drop it if another thread does."""
        if threading.get_ident() == self._thread:
            self._stream.write(text)
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _problem(address: str) -> str:
    """Return why a process of this machine cannot connect to a cluster, or ""."""
    program = _PROBE.format(address=address)
    try:
        done: subprocess.CompletedProcess[Any] = subprocess.run(
            [sys.executable, "-c", program],
            capture_output=True,
            text=True,
            timeout=_ANSWER_LIMIT,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"it did not answer within {_ANSWER_LIMIT:.0f} s"
    if done.returncode == 0:
        return ""
    lines = done.stderr.strip().splitlines() or [f"a probe ended with {done.returncode}"]
    return lines[-1].rstrip(".")
