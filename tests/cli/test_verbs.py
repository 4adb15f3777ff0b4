"""What every verb does alike: help, JSON, text in pipes, exit codes, Ctrl-C, completion."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pty
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
import typer
from support.command_line import Natc, Result
from support.fresh_process import start_natc, with_natc
from support.library_files import library_of
from support.search_events import START, TRIALS, finish
from support.tiny_library import add_library
from support.written_files import write_library, write_schedule_and_log

import natc.tune as natc_tune
from natc.bench import results
from natc.cli.examples import EXAMPLES
from natc.cli.main import app
from natc.cli.options import Dtype
from natc.spec import DTYPES
from natc.store import schedules
from natc.tune.events import SearchFinished

pytestmark = pytest.mark.quick

VERBS = tuple(EXAMPLES)
SAVED = Path(__file__).parents[2] / "benchmarks" / "results" / "attention_k7_float32_cpu.json"

# Each verb with something to say: its words, its exit status, and words that must be whole.
CASES = {
    "list": (["list"], 0),
    "list, damaged": (["list"], 0),
    "doctor": (["doctor"], 0),
    "doctor, damaged": (["doctor"], 1),
    "doctor --why": (["doctor", "--why"], 0),
    "show": (["show", "--kernel", "7"], 0),
    "show, nothing": (["show", "--kernel", "9"], 1),
    "show FILE": (["show", "LIBRARY"], 0),
    "verify": (["verify", "DIRECTORY"], 0),
    "verify, damaged": (["verify", "DIRECTORY"], 1),
    "package --dry-run": (["package", "--from", "DIRECTORY", "--dry-run"], 0),
    "package": (["package", "--from", "DIRECTORY", "--output", "OUTPUT"], 0),
    "bench --from": (["bench", "--from", str(SAVED)], 0),
    "build": (["build", "--kernel", "5"], 0),
    "tune": (["tune", "--kernel", "7"], 0),
    "tune, stopped": (["tune", "--kernel", "7"], 130),
}
ESCAPE = "\x1b"
LINES = re.compile("[\u2500-\u257f]")


@pytest.fixture
def run(
    natc: Natc, place: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Natc:
    """Return a function that runs a case of CASES on a machine with a library and a schedule."""
    case = request.node.callspec.params["case"]
    words, code = CASES[case]
    # A path so long that a table would like to cut it.
    directory = place / ("libraries" * 12)
    monkeypatch.setenv("NATC_LIB_PATH", str(directory))
    library = library_of(add_library(directory))
    write_schedule_and_log()
    if "damaged" in case:
        library.write_bytes(b"other code")
        (directory / "damaged.json").write_text("{")
    if words[0] == "build":
        request.getfixturevalue("builder")
    if words[0] == "tune":
        monkeypatch.setattr("importlib.util.find_spec", lambda name: object())

        def search(spec: Any, target: Any, *, on_event: Any, **options: Any) -> SearchFinished:
            finished = finish(interrupted=code == 130)
            for event in (START, *TRIALS, finished):
                on_event(event)
            return finished

        # Not setattr, which would load the search, and TVM with it, to put it back later.
        monkeypatch.setitem(vars(natc_tune), "tune", search)
    stand_ins = {"LIBRARY": library, "DIRECTORY": directory, "OUTPUT": place / "dist"}
    filled = [str(stand_ins.get(word, word)) for word in words]

    def again(*more: str) -> Result:
        result = natc(*filled, *more)
        assert result.code == code, result
        return result

    return Natc(again)


@pytest.mark.parametrize("case", CASES)
def test_output_in_pipes(
    run: Natc, case: str, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What makes others color their output regardless, and a terminal that is not there.
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "40")
    _, out, err = run()
    for text in (out, err):
        assert ESCAPE not in text and not LINES.search(text)
    assert out.strip()
    if case == "list":
        row = rf"^{START.spec}  llvm-x86-64-v3 +2\.00x \(1\.90\.\.2\.10\) +2  \d{{4}}-\d\d-\d\d"
        assert re.search(row, out, flags=re.MULTILINE)
    # Nothing is folded: a path of more than 100 characters is on one line.
    long = str(place / ("libraries" * 12))
    if case.startswith(("list", "doctor", "show F", "verify", "package --dry-run")):
        assert long in out + err
    out = run("--json").out
    # A document that is followed by anything is refused.
    assert isinstance(json.loads(out), dict)
    assert ESCAPE not in out and "NaN" not in out


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_takes_json_and_has_help_with_examples(natc: Natc, verb: str) -> None:
    code, out, err = natc(verb, "--help")
    assert (code, err) == (0, "")
    assert "--json " in out and f"Examples:\n    natc {verb}" in out
    assert all(len(line) <= 80 for line in out.splitlines() if "natc " not in line)
    assert not LINES.search(out) and ESCAPE not in out
    assert natc(verb, "-h") == (code, out, err)


def test_the_help_of_all_names_every_verb_in_a_line(natc: Natc) -> None:
    code, out, _ = natc("--help")
    assert code == 0
    verbs = [
        line.split()[0] for line in out.splitlines() if re.match(r"  \w+ +[A-Z].*\w\.$", line)
    ]
    assert verbs == [command.name for command in app.registered_commands] == list(EXAMPLES)


@pytest.mark.parametrize("line", [line for lines in EXAMPLES.values() for line in lines])
def test_every_example_is_understood(line: str) -> None:
    _, verb, *words = shlex.split(line.split(" > ")[0])
    command = typer.main.get_command(app).commands[verb]  # type: ignore[attr-defined]
    context = command.make_context(verb, words)
    assert context.params.keys() >= {"json"}


@pytest.mark.parametrize("verb", VERBS)
def test_unknown_options_are_wrong_usage(natc: Natc, verb: str) -> None:
    code, out, err = natc(verb, "--dance")
    assert (code, out) == (2, "")
    assert f"Usage: natc {verb}" in err and "--dance" in err and not LINES.search(err)


def test_one_option_means_one_thing_everywhere() -> None:
    """Names of options, with their short forms, are the same wherever they occur."""
    seen: dict[str, set[tuple[str, ...]]] = {}
    group = typer.main.get_command(app)
    for command in group.commands.values():  # type: ignore[attr-defined]
        for parameter in command.params:
            names = tuple(sorted((*parameter.opts, *parameter.secondary_opts)))
            for name in names:
                seen.setdefault(name, set()).add(names)
    assert {name: forms for name, forms in seen.items() if len(forms) > 1} == {}


def test_ctrl_c_ends_with_a_sentence_and_130(natc: Natc, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(schedules, "list_schedules", stop)
    assert natc("list") == (130, "", "natc: stopped.\n")
    assert natc("doctor", "--json") == (130, "", "natc: stopped.\n")


def test_ctrl_c_during_an_import_stops(natc: Natc, monkeypatch: pytest.MonkeyPatch) -> None:
    def loading() -> None:
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            raise ImportError("cannot load module more than once per process") from None

    monkeypatch.setattr(schedules, "list_schedules", loading)
    before = signal.getsignal(signal.SIGINT)
    assert natc("list") == (130, "", "natc: stopped.\n")
    assert signal.getsignal(signal.SIGINT) is before

    def broken() -> None:
        raise ImportError("of another cause")

    monkeypatch.setattr(schedules, "list_schedules", broken)
    with pytest.raises(ImportError, match="of another cause"):
        natc("list")


@pytest.mark.parametrize("words", [["list"], ["list", "--json"], ["--help"]], ids=" ".join)
def test_a_closed_pipe_is_no_error(place: Path, words: list[str]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    process = start_natc(*words, cwd=place, stdout=writing)
    os.close(writing)
    _, err = process.communicate()
    # What sets help ends with 1 by itself.
    assert (process.returncode, err) == (1 if "--help" in words else 141, "")


def test_a_table_in_a_terminal_has_lines_and_escapes(place: Path) -> None:
    write_schedule_and_log()
    ours, theirs = pty.openpty()
    env = with_natc(TERM="xterm")
    process = start_natc("list", cwd=place, env=env, stdout=theirs, stderr=theirs)
    os.close(theirs)
    written = b""
    # At the end the terminal has no more writers.
    with contextlib.suppress(OSError):
        while data := os.read(ours, 65536):
            written += data
    os.close(ours)
    assert process.wait() == 0
    assert ESCAPE in written.decode() and LINES.search(written.decode())


class Terminal(io.StringIO):
    """A file that says that it is a terminal, and keeps its text."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def on_a_terminal(natc: Natc, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Return a function that returns natc's output on a terminal, by default of 80 columns."""

    def run(*words: str, **changes: str) -> str:
        for name in ("NO_COLOR", "FORCE_COLOR"):
            monkeypatch.delenv(name, raising=False)
        for name, value in {"TERM": "xterm", "COLUMNS": "80", **changes}.items():
            monkeypatch.setenv(name, value)
        terminal = Terminal()
        with contextlib.redirect_stdout(terminal), contextlib.redirect_stderr(terminal):
            assert natc(*words).code == 0
        return terminal.getvalue()

    return run


def test_a_terminal_has_colors_unless_they_are_unwanted(on_a_terminal: Callable[..., str]) -> None:
    colors = re.compile(r"\x1b\[[0-9;]*3[0-7]m")
    assert colors.search(on_a_terminal("doctor"))
    assert not colors.search(on_a_terminal("doctor", NO_COLOR="1"))


@pytest.mark.parametrize("columns", [40, 60, 80])
def test_tables_break_no_word(on_a_terminal: Callable[..., str], columns: int) -> None:
    text = on_a_terminal("bench", "--from", str(SAVED), COLUMNS=str(columns), NO_COLOR="1")
    table = re.sub(r"\x1b\[[0-9;]*m", "", text.partition("ratio: time divided")[0])
    assert all(len(line.rstrip()) <= columns for line in table.splitlines())
    cells = [*results.read(SAVED).of(results.read(SAVED).problems[0]), "1x56x56x2x32", "526 us"]
    for word in " ".join(cells).split():
        assert re.search(rf"(?<!\S){re.escape(word)}(?!\S)", table), word
    # No value is folded at 80 columns.
    row = r"torch FlexAttention +[\d.]+ [um]s +[\d.]+ [um]s \.\. [\d.]+ [um]s"
    assert columns < 80 or re.search(row, table)


def complete(natc: Natc, monkeypatch: pytest.MonkeyPatch, line: str) -> list[str]:
    """Return the completions of the last word of a line."""
    monkeypatch.setenv("_NATC_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", line)
    monkeypatch.setenv("COMP_CWORD", str(line.count(" ")))
    code, out, _ = natc()
    assert code == 0
    return out.split()


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("natc sh", ["show"]),
        ("natc build --target llvm-a", ["llvm-aarch64"]),
        ("natc tune --arch sm_12", ["sm_120"]),
        ("natc build --arch sm_80,sm_9", ["sm_80,sm_90"]),
        ("natc package --arch sm_80,sm_80", []),
        ("natc show --dtype bf", ["bfloat16"]),
        ("natc package --dtype float16,bf", ["float16,bfloat16"]),
        ("natc build --operations forward,", ["forward,backward", "forward,unfused"]),
        ("natc show --operation d_", ["d_query", "d_key", "d_value", "d_rpb"]),
        ("natc bench --device c", ["cpu", "cuda"]),
    ],
)
def test_shells_complete_values(
    natc: Natc, monkeypatch: pytest.MonkeyPatch, line: str, words: list[str]
) -> None:
    assert complete(natc, monkeypatch, line) == words


def test_shells_complete_tuned_kernels(natc: Natc, monkeypatch: pytest.MonkeyPatch) -> None:
    path, _ = write_schedule_and_log()
    path.with_name("na2d_k17x5_d32_float32.json").write_text("{}")
    path.with_name("dance.json").write_text("{}")
    assert complete(natc, monkeypatch, "natc build --kernel 1") == ["11", "13", "17x5"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shells_have_completion(natc: Natc, monkeypatch: pytest.MonkeyPatch, shell: str) -> None:
    monkeypatch.setenv("_NATC_COMPLETE", f"source_{shell}")
    code, out, _ = natc()
    assert code == 0 and "_NATC_COMPLETE" in out


def test_the_choices_of_dtype_are_those_of_kernels() -> None:
    assert get_args(Dtype) == DTYPES


def test_show_refuses_a_library_without_code_as_a_call_does(natc: Natc) -> None:
    library, _ = write_library()
    code, out, _ = natc("show", "--kernel", "7")
    assert code == 1
    assert "nothing: the call raises" in out and str(library) in out


def test_ctrl_c_inside_an_exec_ends_python_m_natc_with_130(tmp_path: Path) -> None:
    # A dataclass calls exec while its module is imported; Ctrl-C may come then.
    (tmp_path / "stopped.py").write_text(
        "import signal, sys\n"
        "from natc.cli import main\n"
        "def stop(*_):\n"
        "    exec('signal.raise_signal(signal.SIGINT)')\n"
        "main.TyperGroup.invoke = stop\n"
        "sys.argv = ['natc', 'list']\n"
        "main.main()\n"
    )
    path = os.pathsep.join([str(tmp_path), with_natc()["PYTHONPATH"]])
    process = subprocess.run(
        [sys.executable, "-m", "stopped"],
        env=with_natc(PYTHONPATH=path),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (process.returncode, process.stderr) == (130, "natc: stopped.\n")


def test_convert(natc: Natc, tmp_path: Path) -> None:
    from natc import models

    model = models.nat_mini(num_classes=2)
    models.save(model, tmp_path / "nat_mini_mine.pth")
    words = ("convert", str(tmp_path / "nat_mini_mine.pth"), str(tmp_path / "new.pth"))
    code, out, _ = natc(*words, "--to", "official")
    assert code == 0 and "nat_mini, official layout" in out and "new.pth" in out
    assert models.load(tmp_path / "new.pth", variant="nat_mini").num_classes == 2
    report = json.loads(natc(*words, "--to", "official", "--json").out)
    assert (report["network"], report["to"], report["new"]) == ("nat_mini", "official", [])
    code, out, err = natc("convert", str(tmp_path / "absent.pth"), "new.pth", "--to", "official")
    assert (code, out) == (1, "") and "absent.pth" in err
    assert natc(*words, "--to", "official", "--variant", "nat_huge").code == 2


def test_verbs_for_images_name_the_extra(natc: Natc, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for words in (("train", "a.yaml"), ("eval", "runs/a"), ("predict", "a.png", "--model", "a")):
        assert "pip install 'natc[vision]'" in natc.refused(*words, code=1)
