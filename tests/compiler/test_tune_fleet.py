"""Searches on a Ray cluster: several nodes on this machine, and some are killed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from support.fresh_process import start_natc, with_natc

from natc.errors import NatcError, TargetError
from natc.host import environment
from natc.host.detect import detect_host_cpu
from natc.spec import KernelSpec
from natc.store import workspace
from natc.store.manifest import file_sha256
from natc.store.records import Environment, SearchEnd, Trial, read_log
from natc.targets import Target
from natc.tune.events import Event, Note
from natc.tune.fleet.cluster import Cluster, connected, resource_of
from natc.tune.fleet.remote import FleetMeasurer
from natc.tune.measure.processes import JobError

ray = pytest.importorskip("ray", reason="the extra fleet is not installed")

SPEC = KernelSpec.parse("na2d_k3_d8_float32")
HOST = detect_host_cpu()
SHAPES = [(1, 8, 8, 1)]


class Nodes(NamedTuple):
    """A cluster, whose head neither builds nor times, and its nodes, which one test kills."""

    cluster: Any
    builder: Any
    bench: Any


BUILDER: dict[str, Any] = {"num_cpus": 1, "object_store_memory": 80 << 20}
BENCH: dict[str, Any] = {**BUILDER, "num_cpus": 0, "resources": {resource_of(HOST): 1}}


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    from ray.cluster_utils import Cluster as RayCluster

    # By default it takes Ray 15 s to find out that a node is dead.
    quick = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 500,
             "health_check_failure_threshold": 4}  # fmt: skip
    cluster = RayCluster(
        initialize_head=True, head_node_args={**BUILDER, "num_cpus": 0, "_system_config": quick}
    )
    logs = cluster.head_node.get_session_dir_path()
    yield Nodes(cluster, cluster.add_node(**BUILDER), cluster.add_node(**BENCH))
    cluster.shutdown()
    shutil.rmtree(logs)


@pytest.fixture(scope="module")
def cluster(nodes: Nodes) -> Iterator[Cluster]:
    with connected(nodes.cluster.address) as cluster:
        yield cluster


def measurer(cluster: Cluster, events: list[Event]) -> FleetMeasurer:
    return FleetMeasurer(cluster, SPEC, HOST, SHAPES, "forward", 0, events.append)


def test_a_cluster_without_the_target_is_told_how_to_get_it(
    cluster: Cluster, nodes: Nodes, place: Path
) -> None:
    with pytest.raises(TargetError) as raised:
        cluster.require(Target("cuda", "sm_90"))
    text = str(raised.value)
    assert "natc:cuda-sm_90" in text
    assert f"ray start --address={nodes.cluster.address} --num-gpus=1 --resources=" in text
    cluster.require(HOST)


def test_the_command_searches_on_the_cluster(nodes: Nodes, place: Path) -> None:
    process = start_natc(
        *("tune", "--kernel", "3", "--head-dim", "8", "--no-rpb", "--shape", "1x8x8x1"),
        *("--trials", "2", "--json", "--quiet", "--ray", nodes.cluster.address),
        env=with_natc(),
    )
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert json.loads(out)["trials"] == 2
    records, problems = read_log(workspace.log_path(SPEC, HOST))
    assert problems == []
    machines = {record.id for record in records if isinstance(record, Environment)}
    trials = [record for record in records if isinstance(record, Trial)]
    assert len(trials) >= 3 and all(trial.error is None for trial in trials)
    assert {trial.environment for trial in trials} == machines
    (end,) = [record for record in records if isinstance(record, SearchEnd)]
    assert (end.environment in machines, end.used_up, end.limit) == (True, False, None)


def test_nothing_is_lost_when_nodes_die(cluster: Cluster, nodes: Nodes) -> None:
    events: list[Event] = []
    with measurer(cluster, events) as machines:
        assert (machines.builders, machines.overlap) == (1, True)
        assert machines.machine.cpu == environment.collect().cpu
        default = machines.build({}).result()
        assert file_sha256(default.path) == default.sha256 and default.features
        assert len(machines.measure([default], 2)) == 2

        # All builds wait for the only builder, and the only bench is ours: both die.
        pending = [machines.build({"parallel": 1, "chains": chains}) for chains in (0, 1)]
        assert machines.build({"parallel": 1, "chains": 0}) is pending[0]
        nodes.cluster.remove_node(nodes.builder, allow_graceful=False)
        nodes.cluster.remove_node(nodes.bench, allow_graceful=False)
        nodes.cluster.add_node(**BUILDER)
        nodes.cluster.add_node(**BENCH)
        libraries = [default, *(library.result() for library in pending)]
        assert len({library.sha256 for library in libraries}) == 3
        rounds = machines.measure(libraries, 3)
        assert [len(times) for times in rounds] == [3, 3, 3]
        assert all(seconds > 0 for times in rounds for [seconds] in times)
    assert [type(event) for event in events] == [Note]
    assert "another node" in str(events[0])


def test_times_of_another_processor_are_not_mixed_in(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    with measurer(cluster, []) as machines:
        library = machines.build({}).result()
        assert machines.machine
        ray.kill(machines._bench)
        monkeypatch.setattr("natc.tune.fleet.remote._compare", lambda *_: False)
        with pytest.raises(NatcError, match="another processor"):
            machines.measure([library], 1)


def test_a_candidate_that_fails_is_no_fault_of_its_node(cluster: Cluster) -> None:
    with measurer(cluster, []) as machines:
        with pytest.raises(JobError, match="nonsense"):
            machines.build({"nonsense": 3}).result()
        library = machines.build({}).result()
        library.path.write_bytes(b"no library")
        broken = library._replace(sha256=file_sha256(library.path))
        with pytest.raises(JobError):
            machines.measure([broken], 1)
        damaged = library._replace(sha256="0" * 64)
        with pytest.raises(NatcError, match="damaged"):
            machines.measure([damaged], 1)


def test_a_device_serves_one_search_at_a_time(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    with measurer(cluster, []) as first:
        assert first.machine
        with monkeypatch.context() as patch, measurer(cluster, []) as second:
            patch.setattr("natc.tune.fleet.remote._PATIENCE", 3.0)
            with pytest.raises(NatcError, match="in use for 3 s"):
                assert second.machine
    with measurer(cluster, []) as third:
        assert third.machine
