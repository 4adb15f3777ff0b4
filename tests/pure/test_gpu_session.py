"""The session on a rented GPU: each step has its limit and its log, and none stops the next."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from support.loaded_file import load_file

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu_session.py"


@pytest.fixture(scope="module")
def session() -> ModuleType:
    return load_file(SCRIPT, SCRIPT.stem)


def summary(logs: Path) -> dict[str, dict[str, Any]]:
    return {step["name"]: step for step in json.loads((logs / "summary.json").read_text())}


def test_a_step_that_fails_or_hangs_does_not_stop_the_next(
    session: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # Of 100 s, as long as the hanging step has; it started another program.
    hangs = "echo begun; sleep 600 & echo $! > child; sleep 600"
    steps = [
        session.Step("tests", ["sh", "-c", "echo first; echo bad >&2; exit 3"]),
        session.Step("memory", ["sh", "-c", f"cd {tmp_path}; {hangs}"]),
        session.Step("sanitizer", ["true"], skip="is not installed"),
        session.Step("curve", ["no-such-program"]),
        session.Step("attention", ["sh", "-c", "echo '{}'; echo told >&2"], output="results.json"),
    ]
    assert session.run(steps, tmp_path / "logs", 25.0) == 1
    ends = summary(tmp_path / "logs")
    states = [end["state"] for end in ends.values()]
    assert states == ["failed", "late", "skipped", "failed", "passed"]
    assert list(ends) == [step.name for step in steps]
    assert ends["tests"]["last_line"] == "bad"
    assert ends["sanitizer"]["last_line"] == "is not installed"
    assert ends["memory"]["last_line"] == "begun"
    assert "no-such-program" in ends["curve"]["last_line"]
    assert (tmp_path / "logs" / "0_tests.log").read_text() == "first\nbad\n"
    assert (tmp_path / "logs" / "results.json").read_text() == "{}\n"
    assert (tmp_path / "logs" / "4_attention.log").read_text() == "told\n"
    assert "not well: tests, memory, curve" in capsys.readouterr().out
    child = int((tmp_path / "child").read_text())
    assert not alive(child)


def alive(process: int) -> bool:
    """Return whether a process runs; a zombie does not."""
    try:
        state = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return False
    return state not in "ZX"


def test_every_step_has_a_share_and_existing_files(session: ModuleType, tmp_path: Path) -> None:
    steps = session.steps(tmp_path, tmp_path / "rounds", 600.0)
    assert [step.name for step in steps] == list(session.SHARES)
    assert sum(session.SHARES.values()) == pytest.approx(1.0)
    root = SCRIPT.parents[1]
    for step in steps:
        for word in step.command:
            if word.startswith(str(root)) and not word.startswith(str(tmp_path)):
                assert Path(word).exists() or word == sys.executable
    assert session.steps(tmp_path, None, 600.0)[-1].skip == "there is no --rounds"
    assert session.run([session.Step("tests", ["true"])], tmp_path / "logs", 60.0) == 0


@pytest.mark.parametrize(
    "words, part",
    [
        (["--only", "tests,nothing"], "--only has 'nothing'; allowed are tests, sanitizer"),
        (["--minutes", "0"], "--minutes is 0.0; it must be above 0"),
        (["--rounds", "/no/such/place"], "--rounds is /no/such/place, which is not a directory"),
    ],
    ids=["only", "minutes", "rounds"],
)
def test_wrong_options_are_named(
    session: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    part: str,
) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu_session.py", str(tmp_path / "logs"), *words])
    monkeypatch.setattr(os, "environ", dict(os.environ))
    with pytest.raises(SystemExit) as ended:
        session.main()
    assert ended.value.code == 2 and part in capsys.readouterr().err
    assert not (tmp_path / "logs").exists()
