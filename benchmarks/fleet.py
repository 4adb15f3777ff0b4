"""How builds scale on a Ray cluster: `python benchmarks/fleet.py`.

It builds candidates of one kernel, first one at a time and then as many at once as the cluster has
CPUs, in turn, and prints the efficiency: how many times as fast, divided by the number of CPUs.
Without an address it starts a cluster of nodes with one CPU each on this machine. With --pause,
nodes wait instead of compiling: then nodes may outnumber the cores, and what remains is the time
that Ray takes to hand out builds and to return libraries.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import time
from collections.abc import Iterator
from typing import Any

from natc.cli import output
from natc.errors import NatcError
from natc.host import environment
from natc.host.detect import detect_host_cpu
from natc.spec import KernelSpec
from natc.targets import Target
from natc.tune.fleet import jobs
from natc.tune.fleet.cluster import Cluster, connected
from natc.tune.fleet.remote import FleetMeasurer
from natc.tune.search.model import Model

EMPTY = bytes(60_000)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ray", metavar="ADDRESS", help="by default, nodes on this machine")
    parser.add_argument("--nodes", type=int, default=2, help="without --ray: how many")
    parser.add_argument("--spec", default="na2d_k7_d32_float32_rpb")
    parser.add_argument("--candidates", type=int, default=24, help="built in each turn")
    parser.add_argument("--turns", type=int, default=3, help="the median counts")
    parser.add_argument("--pause", type=float, metavar="SECONDS", help="in place of each build")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    options = parser.parse_args()
    if options.pause is not None:
        jobs.build = pauses(options.pause)
    spec, target = KernelSpec.parse(options.spec), detect_host_cpu()
    candidates = Model(spec, target, "forward", batch=options.candidates, seed=0).propose()
    with contextlib.ExitStack() as stack:
        try:
            address = options.ray or stack.enter_context(local_cluster(options.nodes))
            cluster = stack.enter_context(connected(address))
        except NatcError as error:
            raise SystemExit(f"{error}") from None
        document = measure(cluster, spec, target, candidates, options.turns)
    if options.json:
        output.print_json({"environment": environment.collect(), **document})
        return
    print(f"{len(candidates)} candidates of {spec.name} for {target.name}")
    for row in document["rows"]:
        print(
            f"{row['at_once']} at once: {row['seconds']:.1f} s, "
            f"{row['at_once'] * row['seconds'] / len(candidates):.2f} s for each candidate and CPU"
        )
    print(f"efficiency on {document['cpus']} CPUs: {document['efficiency']:.2f}")


def pauses(seconds: float) -> Any:
    """Return a build that pauses, and then returns an empty library of the usual size."""

    def paused(*_: Any) -> jobs.SentLibrary:
        time.sleep(seconds)
        return jobs.SentLibrary(EMPTY, jobs.sha256_of(EMPTY), {})

    return paused


@contextlib.contextmanager
def local_cluster(nodes: int) -> Iterator[str]:
    """Start a cluster of nodes that build one candidate at a time, and yield its address."""
    from ray.cluster_utils import Cluster as Nodes

    small = {"object_store_memory": 80 << 20}
    started = Nodes(initialize_head=True, head_node_args={"num_cpus": 0, **small})
    try:
        for _ in range(nodes):
            started.add_node(num_cpus=1, **small)
        yield started.address
    finally:
        started.shutdown()


def measure(
    cluster: Cluster, spec: KernelSpec, target: Target, candidates: list[Any], turns: int
) -> dict[str, Any]:
    """Return the seconds of building all candidates, one at a time and on all CPUs at once."""
    cpus = sum(node.builders for node in cluster.nodes())
    seconds: dict[int, list[float]] = {1: [], cpus: []}
    # The first builds start the processes on every node, and are not counted.
    build(cluster, spec, target, candidates, cpus)
    for _ in range(turns):
        for at_once, samples in seconds.items():
            samples.append(build(cluster, spec, target, candidates, at_once))
    medians = {at_once: statistics.median(samples) for at_once, samples in seconds.items()}
    return {
        "candidates": len(candidates),
        "cpus": cpus,
        "rows": [
            {"at_once": at_once, "seconds": medians[at_once], "samples": samples}
            for at_once, samples in seconds.items()
        ],
        "efficiency": medians[1] / medians[cpus] / cpus,
    }


def build(
    cluster: Cluster, spec: KernelSpec, target: Target, candidates: list[Any], at_once: int
) -> float:
    """Return the seconds of building candidates on a cluster, so many at once."""
    with FleetMeasurer(cluster, spec, target, [], "forward", 0, lambda _: None) as measurer:
        start = time.perf_counter()
        # As in a search, the cluster has a queue of builds, unless one at a time is wanted.
        libraries = []
        for decisions in candidates:
            library = measurer.build(decisions, may_spill=True)
            libraries.append(library)
            if at_once == 1:
                library.result()
        assert all(library.result().path.stat().st_size for library in libraries)
        return time.perf_counter() - start


if __name__ == "__main__":
    main()
