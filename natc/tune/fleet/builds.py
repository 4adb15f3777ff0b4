"""Builds on the nodes of a cluster: waits for their results and keeps the libraries here."""

from __future__ import annotations

import time
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any

from natc.errors import NatcError
from natc.tune.fleet.cluster import Cluster
from natc.tune.fleet.jobs import Failure, SentLibrary, sha256_of
from natc.tune.measure.measurer import BuiltLibrary

# Seconds in which a cluster without builders gets one.
_PATIENCE = 120.0
_LOOK = 2.0  # seconds between looks at the cluster


class NodeBuild:
    """A candidate that a node of a cluster builds; a `PendingLibrary`."""

    def __init__(self, reference: Any, path: Path, cluster: Cluster) -> None:
        """reference: to the result of `jobs.build`. path: where the library is kept."""
        self._reference, self._path, self._cluster = reference, path, cluster
        self._library: BuiltLibrary | None = None
        self.cancelled = False

    def result(self) -> BuiltLibrary:
        """Wait for the library, and write it to this machine's disk.

        Raises JobError, TimeoutError or ChildProcessError if the build failed, CancelledError, and
        NatcError if no node can build.
        """
        import ray

        if self._library is None:
            if self.cancelled:
                raise CancelledError
            self._wait()
            try:
                built: SentLibrary = result_of(ray.get(self._reference))
            except ray.exceptions.TaskCancelledError:
                raise CancelledError from None
            except ray.exceptions.RayTaskError as error:
                raise NatcError(f"a node cannot build: {reason(error.cause)}") from None
            except ray.exceptions.RayError as error:
                raise ChildProcessError(reason(error)) from None
            if sha256_of(built.code) != built.sha256:
                raise NatcError("a library was damaged on its way from the node that built it.")
            self._path.write_bytes(built.code)
            self._library = BuiltLibrary(self._path, built.sha256, built.features)
        return self._library

    def cancel(self) -> None:
        """Do not build the candidate, unless it is built."""
        import ray

        if self._library is None:
            self.cancelled = True
            ray.cancel(self._reference, force=True)

    def _wait(self) -> None:
        """Wait until the build has ended; raise NatcError if no node is left to build."""
        import ray

        end: float | None = None
        while not ray.wait([self._reference], timeout=_LOOK)[0]:
            if any(node.builders for node in self._cluster.nodes()):
                end = None
                continue
            end = end or time.monotonic() + _PATIENCE
            if time.monotonic() >= end:
                raise NatcError(
                    "no node with a CPU to build on is left in the cluster. Everything measured "
                    "is kept; start a node, and run the same command again."
                )


def result_of(answer: Any) -> Any:
    """Return a job's result; raise the error of a Failure, NatcError if its node is at fault."""
    if not isinstance(answer, Failure):
        return answer
    if answer.unfit:
        raise NatcError(f"node {answer.unfit} cannot take part: {answer.error}")
    raise answer.error


def reason(error: BaseException) -> str:
    """Return the last line of an error's text, where Ray puts the reason."""
    return (str(error).strip().splitlines() or [type(error).__name__])[-1].strip()
