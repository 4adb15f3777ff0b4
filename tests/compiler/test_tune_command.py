"""`natc tune` as a user runs it, and as it ends when it is stopped or killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.fresh_process import start_natc, with_natc

from natc.host.detect import detect_host_cpu
from natc.spec import KernelSpec
from natc.store import schedules, workspace
from natc.store.records import Trial, read_log

SPEC = KernelSpec.parse("na2d_k3_d8_float32")
COMMAND = (
    *("tune", "--kernel", "3", "--head-dim", "8", "--no-rpb", "--shape", "1x8x8x1"),
    *("--minutes", "5"),
)
Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    directory = tmp_path / "scratch"
    directory.mkdir()
    return directory


@pytest.fixture
def start(scratch: Path) -> Iterator[Start]:
    """Start `natc` in a session of its own, as a terminal does; none outlives the test."""
    started = []

    def run(*words: str) -> subprocess.Popen[str]:
        process = start_natc(*words, env=with_natc(TMPDIR=str(scratch)), start_new_session=True)
        started.append(process)
        return process

    yield run
    for process in started:
        if process.poll() is None:
            process.kill()
            process.wait()


def trials() -> list[Trial]:
    records, problems = read_log(workspace.log_path(SPEC, detect_host_cpu()))
    assert problems == []
    return [record for record in records if isinstance(record, Trial)]


def wait_for(happened: Callable[[], Any], process: subprocess.Popen[str] | None = None) -> None:
    end = time.monotonic() + 120
    while not happened():
        assert time.monotonic() < end, "it took too long"
        assert process is None or process.poll() is None, process.communicate()
        time.sleep(0.02)


def using(scratch: Path) -> list[str]:
    """Return the processes that have the test's temporary directory in their environment."""
    processes = []
    for directory in Path("/proc").iterdir():
        if not directory.name.isdigit():
            continue
        try:
            environment = (directory / "environ").read_bytes()
        except OSError:
            continue
        if str(scratch).encode() in environment:
            processes.append((directory / "cmdline").read_bytes().decode(errors="replace"))
    return processes


def test_a_search_prints_one_json_document_and_leaves_nothing_behind(
    start: Start, scratch: Path
) -> None:
    process = start(*COMMAND, "--trials", "2", "--json", "--quiet")
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0
    # Whatever else this machine does.
    assert all(line.startswith("note: this machine is busy") for line in err.splitlines())
    document = json.loads(out)
    assert document["spec"] == SPEC.name and document["trials"] == 2
    assert document["outcome"] in ("saved", "not faster", "undecided")
    assert (document["schedule_path"] is None) == (document["outcome"] != "saved")
    if document["schedule_path"]:
        saved = schedules.read_schedule(Path(document["schedule_path"]))
        assert saved.measured.gain is not None
        assert saved.measured.gain.low == pytest.approx(document["gain"]["low"], rel=1e-3)
        assert list(saved.measured.seconds) == ["1x8x8x1x8"]
    assert list(scratch.iterdir()) == [] and using(scratch) == []


def test_a_killed_search_keeps_what_it_measured_and_the_same_command_goes_on(
    start: Start, scratch: Path
) -> None:
    killed = start(*COMMAND)
    wait_for(lambda: len(trials()) >= 3, killed)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    kept = trials()
    assert len(kept) >= 3 and not workspace.schedule_path(SPEC, detect_host_cpu()).exists()
    wait_for(lambda: not list(scratch.iterdir()) and not using(scratch))

    stopped = start(*COMMAND)
    wait_for(lambda: len(trials()) >= len(kept) + 3, stopped)
    os.killpg(stopped.pid, signal.SIGINT)
    out, err = stopped.communicate(timeout=60)
    assert stopped.returncode == 130 and "Traceback" not in err
    assert f"best of {len(kept)} earlier trials" in err
    assert out.startswith("stopped: ")
    assert f"go on with: natc {' '.join(COMMAND)}" in out
    # Only the default is measured again, for comparison.
    records = trials()
    assert [trial.trial for trial in records] == list(range(len(records)))
    decided = [tuple(trial.decisions.items()) for trial in records]
    assert len(set(decided)) == len(decided) - 1
    assert all(trial.error is None for trial in records)
    # Nothing was compared, so nothing is proven.
    assert not workspace.schedule_path(SPEC, detect_host_cpu()).exists()
    assert list(scratch.iterdir()) == [] and using(scratch) == []


def test_ctrl_c_during_preparation_leaves_nothing(start: Start, scratch: Path) -> None:
    process = start(*COMMAND)
    wait_for(lambda: workspace.log_path(SPEC, detect_host_cpu()).exists(), process)
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (130, "")
    assert "Traceback" not in err
    assert f"go on with: natc {' '.join(COMMAND)}" in err
    assert list(scratch.iterdir()) == [] and using(scratch) == []
