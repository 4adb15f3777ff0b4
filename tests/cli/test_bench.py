"""`natc bench`: ceilings, floors, plots and the report, from a run and from saved results."""

from __future__ import annotations

import html.parser
import json
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
from support.command_line import Natc

from natc.bench import ceilings, peers, plots, results
from natc.bench.results import Ceilings, ResultRow, Results, work
from natc.errors import NatcError
from natc.host import environment
from natc.spec import KernelSpec

SAVED = Path(__file__).parents[2] / "benchmarks" / "results" / "attention_k7_float32_cpu.json"
CEILINGS = Ceilings(
    bytes_per_second=10e9,
    operations_per_second={"float32, 2 threads": 100e9, "float32, 1 thread": 50e9},
    method="by hand",
)
SHAPE = (1, 14, 14, 8, 32)


def made(**changes: Any) -> Results:
    """Results of a kernel and a reference that takes twice as long, at one shape."""
    rows = [
        ResultRow("natc kernel", SHAPE, 1e-3, 1.0, 1e-7, (0.9e-3, 1.2e-3), "llvm-x86-64-v3"),
        ResultRow("<reference>", SHAPE, 2e-3, 2.0, 3e-7, (1.9e-3, 2.2e-3)),
        ResultRow("absent", SHAPE, None, None, None, None, "not & here"),
    ]
    fields: dict[str, Any] = {
        "spec": "na2d_k7_d32_float32_rpb",
        "device": "cpu",
        "dilation": 1,
        "environment": environment.collect(),
        "rows": rows,
        "ceilings": CEILINGS,
        "command": "natc bench --kernel 7 --json",
    }
    return results.with_floors(Results(**(fields | changes)))


def saved(path: Path, found: Results) -> str:
    path.write_bytes(msgspec.json.encode(found))
    return str(path)


def test_work_is_what_the_definition_needs() -> None:
    spec = KernelSpec.make(7, dtype="float16", rpb=True)
    # 802,816 queries of 49 keys, 32 channels of key and 32 of value, a multiply-add is two.
    done = work(spec, (128, 56, 56, 2, 32))
    assert done.operations == 802_816 * 49 * 64 * 2
    assert done.bytes == 4 * 802_816 * 32 * 2 + 2 * 13 * 13 * 4
    # Every query attends to a map that is smaller than the window.
    assert work(KernelSpec.make(7), (1, 5, 5, 1, 32)).operations == 25 * 25 * 64 * 2
    # Groups of three and of two members on each axis: 3 * 3 + 2 * 2 pairs.
    assert work(KernelSpec.make(3), (1, 5, 5, 1, 32), dilation=2).operations == 13 * 13 * 64 * 2


def test_floors_are_the_longer_of_memory_and_arithmetic() -> None:
    done = results.Work(operations=200, bytes=30)
    for rate, seconds in ((100.0, 3.0), (50.0, 4.0)):
        found = Ceilings(bytes_per_second=10.0, operations_per_second={"x": rate}, method="")
        assert results.floor(done, found) == seconds
    only_memory = Ceilings(bytes_per_second=10.0, operations_per_second={}, method="")
    assert results.floor(done, only_memory) == 3.0
    larger = results.larger(
        CEILINGS,
        Ceilings(
            bytes_per_second=1.0, operations_per_second={"float32, 1 thread": 60e9}, method=""
        ),
    )
    assert larger.bytes_per_second == 10e9
    assert larger.operations_per_second == {"float32, 2 threads": 100e9, "float32, 1 thread": 60e9}


def test_this_cpus_ceilings_are_rates() -> None:
    found = ceilings.measure("cpu", "float32", seconds=0.01)
    assert found.bytes_per_second > 1e8
    assert all(rate > 1e8 for rate in found.operations_per_second.values())
    assert ceilings.measure("cpu", "float64", seconds=0.01).operations_per_second == {}


def test_a_run_has_floors_and_its_command(natc: Natc, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "torch_peers", lambda: {"reference": peers.reference_contestant})
    monkeypatch.setattr(ceilings, "measure", lambda device, dtype, seconds: CEILINGS)
    words = ["bench", "--kernel", "3", "--head-dim", "8", "--shape", "1x6x5x2"]
    words += ["--seconds", "0.01"]
    code, out, _ = natc(*words, "--json")
    assert code == 1  # no kernel was timed
    found = msgspec.json.decode(out, type=Results)
    assert found.command == "natc " + " ".join([*words, "--json"])
    floor = results.floor(work(KernelSpec.make(3, rpb=True), (1, 6, 5, 2, 8)), CEILINGS)
    # The bytes of the spec that ran: head dim 8, with bias.
    assert {row.floor_seconds for row in found.rows} == {floor}
    out = natc(*words).out
    assert "10 GB/s, memory" in out and "by hand" in out
    assert [line.split()[0] for line in out.splitlines() if "floor" in line] == ["floor", "floor:"]


def test_a_machine_that_cannot_be_measured_has_no_floors(
    natc: Natc, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(device: str, dtype: str, seconds: float) -> Ceilings:
        raise RuntimeError("out of memory\nin two lines")

    monkeypatch.setattr(peers, "torch_peers", lambda: {"reference": peers.reference_contestant})
    monkeypatch.setattr(ceilings, "measure", refuse)
    words = ["bench", "-k", "3", "--head-dim", "8", "--shape", "1x6x5x2", "--seconds", "0.01"]
    code, out, err = natc(*words, "--json")
    found = json.loads(out)
    assert found["ceilings"] is None and found["rows"][0]["floor_seconds"] is None
    assert "note: no ceilings, hence no floors and no roofline: out of memory" in err


def test_saved_results_of_an_older_release_are_shown(natc: Natc, place: Path) -> None:
    plot = place / "x.svg"
    code, out, err = natc("bench", "--from", str(SAVED), "--plot", str(plot))
    assert (code, err) == (0, "")
    assert "natc kernel" in out and f"wrote {plot}" in out
    text = plot.read_text()
    again = place / "y.svg"
    natc("bench", "--from", str(SAVED), "--plot", str(again))
    assert again.read_text() == text
    ET.fromstring(text)


def test_what_was_saved_is_printed_again(natc: Natc, place: Path) -> None:
    found = made()
    path = saved(place / "r.json", found)
    out = natc("bench", "--from", path, "--json").out
    assert msgspec.json.decode(out, type=Results) == found


@pytest.mark.parametrize("form", plots.FORMATS)
def test_a_plot_depends_on_nothing_but_the_results(form: str) -> None:
    found = made()
    one = plots.draw(found, form)
    assert one == plots.draw(found, form)
    assert one.startswith(b"\x89PNG" if form == "png" else b"<?xml")
    assert one != plots.draw(made(rows=[replace(found.rows[0], median_seconds=5e-3)]), form)
    if form == "svg":
        assert environment.now()[:4].encode() + b"-" not in one


def drawn(found: Results, monkeypatch: pytest.MonkeyPatch) -> tuple[list[str], list[float]]:
    """Return the texts and the heights of the bars of a plot."""
    from matplotlib.figure import Figure

    figures: list[Figure] = []
    save = Figure.savefig
    monkeypatch.setattr(
        Figure, "savefig", lambda self, *a, **k: (figures.append(self), save(self, *a, **k))[1]
    )
    plots.draw(found, "svg")
    (figure,) = figures
    texts = [text.get_text() for axes in figure.axes for text in axes.texts]
    texts += [axes.get_title(loc="left") for axes in figure.axes]
    bars = [patch.get_height() for axes in figure.axes for patch in axes.patches]
    return texts, bars


def test_the_bars_and_the_roofs_say_what_the_results_say(monkeypatch: pytest.MonkeyPatch) -> None:
    texts, bars = drawn(made(), monkeypatch)
    assert bars == [2.0]
    assert {"2", "memory 10 GB/s", "float32, 2 threads 100 GFLOP/s"} <= set(texts)
    assert "Speed-up of natc kernel (above 1: it is faster)" in texts
    assert "Roofline" not in drawn(made(ceilings=None), monkeypatch)[0]


def test_without_a_kernel_the_others_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = made().rows
    rows[0] = replace(rows[0], median_seconds=None, ratio_to_first=None)
    rows[2] = replace(rows[2], median_seconds=1e-3)
    texts, bars = drawn(made(rows=rows), monkeypatch)
    assert bars == [0.5]
    assert "Speed-up of <reference> (above 1: it is faster)" in texts
    nothing = [replace(row, median_seconds=None) for row in rows]
    with pytest.raises(NatcError, match="nothing was timed"):
        plots.draw(made(rows=nothing), "svg")


class Page(html.parser.HTMLParser):
    """Collects a page's text, tags, and what its attributes refer to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.texts: list[str] = []
        self.tags: list[str] = []
        self.links: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [v or "" for k, v in attrs if k in ("src", "href", "xlink:href", "srcset")]

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.texts.append(data.strip())


def test_the_report_needs_no_network_and_holds_everything(natc: Natc, place: Path) -> None:
    path = place / "report.html"
    found = made()
    code, out, _ = natc("bench", "--from", saved(place / "r.json", found), "--html", str(path))
    assert code == 0 and f"wrote {path}" in out
    text = path.read_text()
    page = Page(text)
    assert "svg" in page.tags and not {"script", "link", "img", "iframe"} & set(page.tags)
    assert page.links and all(link.startswith("#") for link in page.links)
    assert "@import" not in text and "url(http" not in text
    at = page.texts.index("natc kernel")
    assert page.texts[at - 1] == "1x14x14x8x32"
    floor = results.floor(work(KernelSpec.make(7, rpb=True), SHAPE), CEILINGS)
    assert page.texts[at + 1 : at + 7] == [
        "1 ms", "900 us .. 1.2 ms", "1.00", f"{floor * 1e6:.3g} us", f"{1e-3 / floor:.2f}",
        "1.0e-07",
    ]  # fmt: skip
    assert "<reference>" in page.texts and "absent: not & here" in page.texts
    assert found.command in page.texts and "10 GB/s" in page.texts
    assert found.environment.os in page.texts
    assert list(place.glob(".*")) == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--plot", "x.pdf"], "plot x.pdf has the suffix .pdf; it must be .svg or .png"),
        (["--plot", "x"], "the suffix (none)"),
        (["--html", "x.txt"], "report x.txt has the suffix .txt; it must be .html"),
        (["--from", "absent.json"], "results absent.json cannot be read"),
        (["--from", str(SAVED), "--kernel", "7"], "--kernel goes with measuring"),
        (["--from", str(SAVED), "--no-rpb"], "--rpb goes with measuring"),
    ],
    ids=lambda value: " ".join(value).split("/")[0] if isinstance(value, list) else "",
)
def test_outputs_are_refused_before_anything_runs(
    natc: Natc, monkeypatch: pytest.MonkeyPatch, words: list[str], said: str
) -> None:
    from natc.bench import times

    monkeypatch.setattr(times, "time_attention", lambda *a, **k: pytest.fail("it ran"))
    code, out, err = natc("bench", *words)
    assert (code, out) == (2, "")
    assert said in err and err.count("\n") == 1


@pytest.mark.parametrize(
    "text",
    ["", "{}", "[1]", '{"spec": "na2d_k7_d32_float32"}', "\xff"],
    ids=["empty", "no fields", "a list", "a field", "no text"],
)
def test_results_that_are_none_are_refused(natc: Natc, place: Path, text: str) -> None:
    path = place / "x.json"
    path.write_bytes(text.encode("latin-1"))
    code, out, err = natc("bench", "--from", str(path))
    assert (code, out) == (2, "")
    assert f"file {path} is not what natc bench --json prints" in err


@pytest.mark.parametrize(
    "changes",
    [{"rows": []}, {"spec": "na1d_k7_d32_float32"}, {"spec": "dance"}, {"dilation": 0}],
    ids=lambda changes: next(iter(changes)),
)
def test_results_with_wrong_values_are_refused(
    natc: Natc, place: Path, changes: dict[str, Any]
) -> None:
    document = msgspec.to_builtins(made()) | changes
    path = place / "x.json"
    path.write_text(json.dumps(document))
    assert natc("bench", "--from", str(path)).code == 2


def test_a_directory_that_cannot_be_written_is_found_out_early(natc: Natc, place: Path) -> None:
    (place / "file").touch()
    for option, name in (("--plot", "x.svg"), ("--html", "x.html")):
        code, out, err = natc("bench", option, str(place / "file" / name))
        assert (code, out) == (1, "") and "not writable" in err


def test_without_matplotlib_the_extra_is_named(
    natc: Natc, monkeypatch: pytest.MonkeyPatch, place: Path
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    code, out, err = natc("bench", "--plot", str(place / "x.svg"))
    assert (code, out) == (1, "")
    assert "pip install 'natc[demo]'" in err and err.count("\n") == 1
