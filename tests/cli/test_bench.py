"""`natc bench`: ceilings, floors, plots and the report, from a run and from saved results."""

from __future__ import annotations

import html.parser
import itertools
import json
import math
import os
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace
from support.command_line import Natc
from support.neighbors import neighbors
from support.written_files import facts

from natc.bench import ceilings, plots, results, times
from natc.bench.problem import BenchProblem, Case, Work, work
from natc.bench.results import Ceilings, Results, Row
from natc.errors import NatcError
from natc.host import environment
from natc.spec import KernelSpec

pytestmark = pytest.mark.quick

SAVED = Path(__file__).parents[2] / "benchmarks" / "results" / "attention_k7_float32_cpu.json"
CEILINGS = Ceilings(
    bytes_per_second=10e9,
    operations_per_second={"float32, 2 threads": 100e9, "float32, 1 thread": 50e9},
    method="by hand",
)
measure_ceilings = ceilings.measure
PROBLEM = BenchProblem.make(KernelSpec.make(7, rpb=True), (1, 14, 14, 8))


@pytest.fixture(autouse=True)
def idle_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let nothing else run, and take the time of ceilings from CEILINGS."""
    monkeypatch.setattr(ceilings, "measure", lambda device, dtype, seconds: CEILINGS)
    monkeypatch.setattr(os, "getloadavg", lambda: (0.0, 0.0, 0.0))


def row(contestant: str, **fields: Any) -> Row:
    return Row(problem=PROBLEM, contestant=contestant, **fields)


def example(**changes: Any) -> Results:
    """Results of a kernel and a reference that takes twice as long, at one shape."""
    times: dict[str, Any] = {"ratio_to_first": 2.0, "max_error": 3e-7}
    fields: dict[str, Any] = {
        "device": "cpu",
        "environment": replace(facts(), cores=2),
        "rows": [
            row(
                "natc kernel",
                median_seconds=1e-3,
                quartile_seconds=(0.9e-3, 1.2e-3),
                ratio_to_first=1.0,
                max_error=1e-7,
                note="llvm-x86-64-v3",
            ),
            row("<reference>", median_seconds=2e-3, quartile_seconds=(1.9e-3, 2.2e-3), **times),
            row("absent", note="not & here"),
        ],
        "ceilings": CEILINGS,
        "load_average": 0.2,
        "command": "natc bench --kernel 7 --json",
    }
    return results.complete(Results(**(fields | changes)))


def save(path: Path, document: Results) -> str:
    path.write_text(results.write(document))
    return str(path)


def attended_pairs(case: BenchProblem) -> int:
    """Count the pairs of query and key by listing the keys of each query, axis by axis."""
    options = (case.kernel.kernel_size, case.dilation, case.stride, case.is_causal)
    axes = [neighbors(*axis) for axis in zip(case.shape[1:-2], *options, strict=True)]
    return math.prod([case.shape[0], case.shape[-2], *(sum(map(len, keys)) for keys in axes)])


@pytest.mark.parametrize(
    ("spec", "shape", "options"),
    [
        (KernelSpec.make(7, rpb=True), (128, 56, 56, 2), {}),
        (KernelSpec.make(7), (1, 5, 5, 1), {}),
        (KernelSpec.make(3), (1, 5, 5, 1), {"dilation": 2}),
        (KernelSpec.make(5, rank=1), (2, 40, 4), {"is_causal": True, "heads_kv": 2}),
        (KernelSpec.make((2, 3, 4), rank=3), (1, 4, 5, 6, 2), {"stride": (1, 2, 3)}),
    ],
    ids=str,
)
def test_the_share_of_the_peak_counts_the_pairs_that_attend(
    spec: KernelSpec, shape: tuple[int, ...], options: dict[str, Any]
) -> None:
    for backward in (False, True):
        case = BenchProblem.make(spec, shape, backward=backward, **options)
        # Two products forward and five backward, of 32 channels; a multiply-add is two.
        operations = attended_pairs(case) * (7 if backward else 2) * 32 * 2
        assert work(case).operations == operations
        rows = [Row(problem=case, contestant="natc kernel", median_seconds=0.5)]
        (timed,) = example(rows=rows).rows
        assert timed.share_of_peak == pytest.approx(operations / 0.5 / 100e9)
        rows = [replace(rows[0], device_seconds=0.25)]
        assert example(rows=rows).rows[0].share_of_peak == pytest.approx(operations / 25e9)


def test_bytes_are_those_of_each_tensor_once() -> None:
    spec = KernelSpec.make(7, dtype="float16", rpb=True, value_dim=16)
    case = Case.make(BenchProblem.make(spec, (2, 9, 8, 4), heads_kv=2, backward=True))
    query, key, value, rpb = case.inputs
    assert rpb is not None and case.d_output is not None
    forward = [query, key, value, case.d_output, rpb]  # the output has d_output's shape
    total = sum(tensor.numel() * tensor.element_size() for tensor in forward)
    assert work(replace(case.problem, backward=False)).bytes == total
    assert work(case.problem).bytes == 3 * total


def test_floors_are_the_longer_of_memory_and_arithmetic() -> None:
    least = Work(operations=200, bytes=30)
    for rate, seconds in ((100.0, 3.0), (50.0, 4.0)):
        rates = Ceilings(bytes_per_second=10.0, operations_per_second={"x": rate}, method="")
        assert results.floor(least, rates) == seconds
    only_memory = Ceilings(bytes_per_second=10.0, operations_per_second={}, method="")
    assert results.floor(least, only_memory) == 3.0


def test_the_larger_of_the_ceilings_counts() -> None:
    rates = {"float32, 2 threads": 1.0, "float32, 1 thread": 60e9}
    after = Ceilings(bytes_per_second=1.0, operations_per_second=rates, method="")
    larger = results.collect(example().rows, "cpu", ceilings=(CEILINGS, after)).ceilings
    assert larger is not None and larger.bytes_per_second == 10e9
    assert larger.operations_per_second == {"float32, 2 threads": 100e9, "float32, 1 thread": 60e9}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_this_cpus_ceilings_are_rates(dtype: str) -> None:
    rates = measure_ceilings("cpu", dtype, seconds=0.01)
    assert rates.bytes_per_second > 1e8
    assert all(name.startswith(dtype) for name in rates.operations_per_second)
    assert all(rate > 1e8 for rate in rates.operations_per_second.values())


WORDS = ("bench", "--kernel", "3", "--head-dim", "8", "--shape", "1x6x5x2", "--seconds", "0.01")
PEER = ("--peers", "reference")
LEVELS = ((56, 2), (28, 4), (14, 8), (7, 16))


def test_a_run_has_floors_and_its_command(natc: Natc) -> None:
    words = [*WORDS, *PEER]
    code, out, _ = natc(*words, "--json")
    assert code == 1  # no kernel was timed
    document = msgspec.json.decode(out, type=Results)
    assert document.command == "natc " + " ".join([*words, "--json"])
    assert document.load_average == 0
    case = BenchProblem.make(KernelSpec.make(3, head_dim=8, rpb=True), (1, 6, 5, 2))
    assert document.problems == [case]
    floor = results.floor(work(case), CEILINGS)
    assert {row.floor_seconds for row in document.rows} == {floor}
    out = natc(*words).out
    assert "10 GB/s, memory" in out and "by hand" in out


def problems(kernel: int | tuple[int, ...], *shapes: tuple[int, ...], **options: Any) -> Any:
    """Return problems of a kernel of float32 with a bias; options: of KernelSpec and the call."""
    fields = {"rank": len(shapes[0]) - 2, "rpb": True}
    fields |= {name: options.pop(name) for name in KernelSpec.__annotations__ if name in options}
    return [BenchProblem.make(KernelSpec.make(kernel, **fields), s, **options) for s in shapes]


# Words of the command line, and the problems that they stand for.
OPTIONS = [
    ("--kernel 5 --rank 1 --shape 2x9x2 --causal", problems(5, (2, 9, 2), is_causal=True)),
    (
        "--kernel 3x5 --shape 1x9x8x4 --dilation 2 --heads-kv 2",
        problems((3, 5), (1, 9, 8, 4), dilation=2, heads_kv=2),
    ),
    (
        "--kernel 3x3x3 --shape 1x4x5x6x2 --shape 2x3x3x3x1 --stride 1x2x3 --dilation 2x1x1"
        " --backward --no-rpb --head-dim 8 --value-dim 4 --dtype float64",
        problems(
            3, (1, 4, 5, 6, 2), (2, 3, 3, 3, 1), stride=(1, 2, 3), dilation=(2, 1, 1),
            backward=True, rpb=False, head_dim=8, value_dim=4, dtype="float64",
        ),
    ),
    # Every rank has maps of its own.
    ("--kernel 5 --rank 1", problems(5, (1, 3136, 2), (1, 784, 4), (1, 196, 8), (1, 49, 16))),
    ("--kernel 7", problems(7, *((1, s, s, h) for s, h in LEVELS))),
    ("--kernel 3x3x3", problems(3, *((1, 8, s, s, h) for s, h in LEVELS))),
]  # fmt: skip


@pytest.mark.parametrize(("words", "expected"), OPTIONS, ids=[words for words, _ in OPTIONS])
def test_options_make_problems(
    natc: Natc, monkeypatch: pytest.MonkeyPatch, words: str, expected: list[BenchProblem]
) -> None:
    def record(problems: list[BenchProblem], contestants: Any, **_: Any) -> list[Row]:
        return [
            Row(problem=case, contestant=n, median_seconds=1.0)
            for case in problems
            for n in contestants
        ]

    monkeypatch.setattr(times, "time_problems", record)
    code, out, _ = natc("bench", *words.split(), *PEER, "--json")
    assert code == 0 and msgspec.json.decode(out, type=Results).problems == expected


def test_a_machine_that_cannot_be_measured_has_no_floors(
    natc: Natc, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(device: str, dtype: str, seconds: float) -> Ceilings:
        raise RuntimeError("out of memory\nin two lines")

    monkeypatch.setattr(ceilings, "measure", refuse)
    code, out, err = natc(*WORDS, *PEER, "--json")
    document = json.loads(out)
    assert document["ceilings"] is document["rows"][0]["floor_seconds"] is None
    assert "out of memory" in err and "two lines" not in err


def test_a_busy_machine_is_said_to_be_busy(
    natc: Natc, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cores = environment.collect().cores
    monkeypatch.setattr(os, "getloadavg", lambda: (7.25 * cores, 0.0, 0.0))
    path = place / "r.json"
    for words in ([*WORDS, *PEER], ["bench", "--from", str(path)]):
        out = natc(*words, "--json").out
        document = msgspec.json.decode(out, type=Results)
        assert f"{7.25 * cores:.1f} on {cores} cores" in document.busy[0]
        path.write_text(out)
        assert f"busy machine: {document.busy[0]}" in natc(*words).out.splitlines()
    natc("bench", "--from", str(path), "--html", str(place / "x.html"))
    assert f"busy machine: {document.busy[0]}" in Page((place / "x.html").read_text()).texts


def test_samples_that_disagree_are_pointed_out(natc: Natc, place: Path) -> None:
    rows = example().rows
    assert example().busy == []
    noisy = example(rows=[rows[0], replace(rows[1], quartile_seconds=(1e-3, 3e-3)), rows[2]])
    (sentence,) = noisy.busy
    assert "1 of 2" in sentence and "<reference>" in sentence and "3.0 times" in sentence
    out = natc("bench", "--from", save(place / "r.json", noisy)).out
    medians = {line.split()[0]: "?" in line for line in out.splitlines() if " ms" in line}
    assert medians["<reference>"] and not medians["natc"]
    # A machine may have as many cores as it has programs.
    assert results.doubts(replace(example(), load_average=0.9)) == []
    assert len(results.doubts(replace(example(), load_average=1.1))) == 1


def test_saved_results_are_shown_drawn_and_printed_again(natc: Natc, place: Path) -> None:
    plot = place / "x.svg"
    code, out, err = natc("bench", "--from", str(SAVED), "--plot", str(plot))
    assert (code, err) == (0, "")
    assert "natc kernel" in out and f"wrote {plot}" in out
    ET.fromstring(plot.read_text())
    document = example()
    out = natc("bench", "--from", save(place / "r.json", document), "--json").out
    assert msgspec.json.decode(out, type=Results) == document


@pytest.mark.parametrize("form", plots.FORMATS)
def test_a_plot_depends_on_nothing_but_the_results(form: str) -> None:
    document = example()
    drawing = plots.draw(document, form)
    assert drawing == plots.draw(document, form)
    assert drawing.startswith(b"\x89PNG" if form == "png" else b"<?xml")
    if form == "svg":
        slower = [replace(document.rows[0], median_seconds=5e-3)]
        assert drawing != plots.draw(example(rows=slower), form)
        assert environment.now()[:4].encode() + b"-" not in drawing


def draw(document: Results, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return the figure of a plot, laid out."""
    from matplotlib.figure import Figure

    figures: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda self, *_, **__: figures.append(self))
    plots.draw(document, "png")
    (figure,) = figures
    figure.draw_without_rendering()
    return figure


def test_bars_are_shares_of_the_roof_and_speedups(monkeypatch: pytest.MonkeyPatch) -> None:
    shares, speedups = draw(example(), monkeypatch).axes
    floor = results.floor(work(PROBLEM), CEILINGS)
    widths = [patch.get_width() for patch in shares.patches]
    assert widths == pytest.approx([100 * floor / 1e-3, 100 * floor / 2e-3])
    assert [patch.get_x() + patch.get_width() for patch in speedups.patches] == [2.0]
    assert "roof: arithmetic" in shares.get_yticklabels()[0].get_text()
    assert "100 GFLOP/s, 10 GB/s" in shares.get_title(loc="left")
    assert speedups.get_title(loc="left") == "Speed-up of natc kernel (above 1: it is faster)"
    # Without ceilings, bars are milliseconds.
    shares, _ = draw(example(ceilings=None), monkeypatch).axes
    assert [patch.get_width() for patch in shares.patches] == pytest.approx([1.0, 2.0])


def test_no_label_hides_another_and_every_axis_has_ticks(monkeypatch: pytest.MonkeyPatch) -> None:
    for document in (example(), results.read(SAVED)):
        figure = draw(document, monkeypatch)
        renderer = figure.canvas.get_renderer()
        for axes in figure.axes:
            boxes = [text.get_window_extent(renderer) for text in axes.texts]
            assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))
            low, high = axes.get_xlim()
            assert sum(low <= tick <= high for tick in axes.get_xticks()) >= 2
            # Every bar and its label lie within the panel.
            assert all(axes.bbox.x0 <= box.x0 and box.x1 <= axes.bbox.x1 for box in boxes)


def test_without_a_kernel_the_peers_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = example().rows
    rows[0] = replace(rows[0], median_seconds=None)
    rows[2] = replace(rows[2], median_seconds=1e-3)
    right = draw(example(rows=rows), monkeypatch).axes[1]
    ends = [patch.get_x() + patch.get_width() for patch in right.patches]
    assert ends == [0.5]
    assert "Speed-up of <reference>" in right.get_title(loc="left")
    nothing = [replace(row, median_seconds=None) for row in rows]
    with pytest.raises(NatcError, match="nothing was timed"):
        plots.draw(example(rows=nothing), "svg")


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
    document = example()
    code, out, _ = natc("bench", "--from", save(place / "r.json", document), "--html", str(path))
    assert code == 0 and f"wrote {path}" in out
    text = path.read_text()
    page = Page(text)
    assert "svg" in page.tags and not {"script", "link", "img", "iframe"} & set(page.tags)
    assert page.links and all(link.startswith("#") for link in page.links)
    assert "@import" not in text and "url(http" not in text
    at = page.texts.index("natc kernel")
    assert page.texts[at - 1] == "1x14x14x8x32"
    floor = results.floor(work(PROBLEM), CEILINGS)
    share = work(PROBLEM).operations / 1e-3 / 100e9
    assert page.texts[at + 1 : at + 7] == [
        "1 ms", "900 us .. 1.2 ms", "1.00", f"{floor * 1e6:.3g} us", f"{100 * share:.2g}%",
        "1.0e-07",
    ]  # fmt: skip
    assert "<reference>" in page.texts and "absent: not & here" in page.texts
    assert document.command in page.texts and "10 GB/s" in " ".join(page.texts)
    assert document.environment.os in page.texts
    assert list(place.glob(".*")) == []


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{}",
        b"[1]",
        b'{"device": "cpu"}',
        b"\xff",
        {"rows": []},
        {"spec": "na1d_k7_d32_float32"},
        {"spec": "dance"},
        {"dilation": [0, 1]},
        {"median_seconds": 0.0},
    ],
    ids=str,
)
def test_files_that_are_no_results_are_refused(
    natc: Natc, place: Path, content: bytes | dict[str, Any]
) -> None:
    """As well as results with wrong values of these fields."""
    if isinstance(content, dict):
        document = msgspec.to_builtins(example())
        for target in (document, document["rows"][0], document["rows"][0]["problem"]):
            target |= {name: value for name, value in content.items() if name in target}
        content = json.dumps(document).encode()
    path = place / "x.json"
    path.write_bytes(content)
    error = natc.refused("bench", "--from", str(path))
    assert f"file {path} is not what natc bench --json prints" in error
