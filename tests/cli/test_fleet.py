"""Messages of `natc tune --ray` without a cluster, and about nodes that cannot take part."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import threading
from typing import Any

import pytest
from support.command_line import Natc

from natc.errors import NatcError
from natc.host import environment
from natc.host.detect import detect_host_cpu
from natc.targets import Target
from natc.tune.fleet import cluster, jobs
from natc.tune.fleet.builds import result_of

pytestmark = pytest.mark.quick

HOST = detect_host_cpu().name


@pytest.fixture(autouse=True)
def compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("natc.cli.options.require_compiler", lambda verb: None)


def test_without_ray_the_extra_is_named(natc: Natc, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    error = natc.refused("tune", "--set", "nat", "--ray", "auto", code=1)
    assert "pip install 'natc[fleet]'" in error


def test_an_address_without_a_cluster(natc: Natc, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray", reason="the extra fleet is not installed")
    monkeypatch.setattr(cluster, "_ANSWER_LIMIT", 2.0)
    error = natc.refused("tune", "--kernel", "7", "--ray", "127.0.0.1:9", code=1)
    assert "127.0.0.1:9: it did not answer within 2 s" in error and "ray start --head" in error


def test_what_ray_prints_from_its_threads_does_not_reach_stdout() -> None:
    stream = io.StringIO()
    ours: Any = cluster._OfThisThread(stream)
    with contextlib.redirect_stdout(ours):
        print("{}")
        thread = threading.Thread(target=print, args=("a node died",))
        thread.start()
        thread.join()
    assert stream.getvalue() == "{}\n"


def test_a_node_for_the_target_is_started_with_its_resource() -> None:
    assert cluster.start_command(Target("cuda", "sm_90"), "h:1") == (
        "ray start --address=h:1 --num-gpus=1 --resources='{\"natc:cuda-sm_90\": 1}'"
    )
    assert "--num-cpus=0" in cluster.start_command(Target.parse(HOST), "h:1")


def test_a_node_with_another_natc_is_named() -> None:
    versions = {**environment.versions(), "natc": "7.0"}
    failure = jobs.build(versions, "na2d_k3_d8_float32", HOST, {}, "forward", False)
    with pytest.raises(NatcError, match=r"cannot take part: natc .* instead of 7\.0"):
        result_of(failure)


def test_a_node_that_cannot_run_the_target_is_named() -> None:
    foreign = "llvm-aarch64" if "x86" in HOST else "llvm-x86-64-v3"
    bench = jobs.Bench("na2d_k3_d8_float32", foreign, [(1, 8, 8, 1)], "forward")
    try:
        with pytest.raises(NatcError, match=f"cannot take part: code for {foreign} does not run"):
            result_of(bench.machine(environment.versions(), 0))
    finally:
        bench.close()
