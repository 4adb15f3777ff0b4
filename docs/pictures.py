"""Draws the pictures of the README and the pages: `python docs/pictures.py`.

Windows come from natc.window, times from benchmarks/results, and feature maps from running a
network: nothing in a picture is invented. A test draws the vector graphics again and compares them
with the files in docs/pictures. Needs the `demo` extra.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Rectangle

# The pictures of this checkout, whichever natc is installed.
sys.path.insert(0, str(Path(__file__).parents[1]))
from natc.window import taps

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "docs" / "pictures"
RESULTS = ROOT / "benchmarks" / "results"

INK, QUIET, LINE = "#1f2933", "#5f6b7a", "#c9d1da"
NATC, QUERY = "#3949ab", "#f4511e"
# Written into each file, so that the same program and data give the same bytes.
STYLE = {"svg.hashsalt": "natc", "svg.fonttype": "path", "font.family": "DejaVu Sans"}


def windows(path: Path) -> None:
    """Draw which pixels of a small map a query attends to: inside, at a corner, with dilation."""
    size = 20
    pixels = _photograph(size)
    examples = (
        ((10, 10), 1, "inside the map", "the window is centered"),
        ((2, 0), 1, "at a border", "it moves inwards, and keeps its size"),
        ((10, 10), 2, "with dilation 2", "every second pixel"),
    )
    figure = _figure(9.6, 3.95)
    for number, (query, dilation, title, subtitle) in enumerate(examples):
        axes = figure.add_axes((0.015 + 0.33 * number, 0.02, 0.31, 0.75))
        _map(axes, pixels, query, kernel_size=7, dilation=dilation)
        _heading(axes, title, subtitle)
    _title(figure, "Neighborhood attention: a query attends to the window of pixels around it")
    _save(figure, path)


def _map(
    axes: Axes, pixels: np.ndarray, query: tuple[int, int], *, kernel_size: int, dilation: int
) -> None:
    """Draw a map: the query with a thick frame, the pixels that it attends to in full color."""
    size = len(pixels)
    rows, columns = (taps(position, size, kernel_size, dilation) for position in query)
    colors = 1 - 0.35 * (1 - pixels)
    colors[np.ix_(rows, columns)] = pixels[np.ix_(rows, columns)]
    # Pixels stay pixels: the graphic holds them as a tiny image.
    axes.imshow(colors, interpolation="none", extent=(0, size, size, 0))
    edges = range(size + 1)
    axes.hlines(edges, 0, size, color="white", linewidth=0.8, zorder=0.5)
    axes.vlines(edges, 0, size, color="white", linewidth=0.8, zorder=0.5)
    for row in rows:
        for column in columns:
            _square(axes, row, column, fill=False, edgecolor=NATC, linewidth=1.6)
    _square(axes, *query, fill=False, edgecolor=QUERY, linewidth=4.5)
    axes.set(xlim=(-0.1, size + 0.1), ylim=(size + 0.1, -0.1), aspect="equal")
    axes.axis("off")


def _square(axes: Axes, row: int, column: int, **style: Any) -> None:
    axes.add_patch(Rectangle((column, row), 1, 1, clip_on=False, **style))


def path_to_a_library(path: Path) -> None:
    """Draw the steps from the name of a kernel to the call that runs it."""
    figure = _figure(9.6, 4.1)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, 100), ylim=(1.5, 44))
    axes.axis("off")
    _title(figure, "From a spec to a call")
    _band(axes, 23.6, "with the compiler, once: on any machine", "left", "#eef1fb")
    _band(axes, 2.4, "without the compiler: wherever PyTorch runs", "right", "#f1f6ee")
    upper = (
        ("spec", "7x7, heads of 32,\nfloat32, with bias"),
        ("definition", "the operation\nin TVM's language"),
        ("design space", "what may vary:\ntiles, vectors, threads"),
        ("search", "candidates, each\nchecked and timed"),
        ("schedule", "the winner's choices\nin a small file"),
    )
    lower = (
        ("library", "machine code (.so)\nand a manifest"),
        ("choice", "the library for this\ncall and processor"),
        ("operator", "natc.na2d(query,\nkey, value, 7)"),
        ("module, network", "natc.nn, NAT,\nyour own model"),
    )
    for boxes, bottom, width in ((upper, 25, 17.2), (lower, 3.9, 21.8)):
        step = (96.0 - width) / (len(boxes) - 1)
        for number, (name, text) in enumerate(boxes):
            x = 2 + number * step
            _box(axes, x, bottom, width, name, text)
            if number:
                _arrow(axes, (x - step + width, bottom + 4.5), (x, bottom + 4.5))
    # The last box above builds the first one below.
    axes.plot((89.4, 89.4, 12.9, 12.9), (25, 20.2, 20.2, 17), color=INK, linewidth=1.6)
    _arrow(axes, (12.9, 17.2), (12.9, 13.5))
    axes.text(
        51, 20.8, "natc build, or the first call", ha="center", color=INK, fontsize=12, va="bottom"
    )
    _save(figure, path)


def _band(axes: Axes, bottom: float, text: str, side: str, color: str) -> None:
    axes.add_patch(
        FancyBboxPatch((0.9, bottom), 98.2, 15.4, "round,pad=0,rounding_size=1.2", color=color)
    )
    x = 2 if side == "left" else 98
    axes.text(x, bottom + 13, text, color=QUIET, fontsize=12, va="center", ha=side)


def _box(axes: Axes, x: float, bottom: float, width: float, name: str, text: str) -> None:
    axes.add_patch(
        FancyBboxPatch(
            (x, bottom),
            width,
            9,
            "round,pad=0,rounding_size=0.8",
            facecolor="white",
            edgecolor=NATC,
            linewidth=1.4,
        )
    )
    middle = x + width / 2
    axes.text(
        middle, bottom + 7, name, ha="center", va="center", color=INK, fontsize=13, weight="bold"
    )
    axes.text(middle, bottom + 3, text, ha="center", va="center", color=INK, fontsize=10.5)


def _arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float]) -> None:
    axes.annotate("", end, start, arrowprops={"arrowstyle": "-|>", "color": INK, "linewidth": 1.6})


def times(path: Path) -> None:
    """Draw the times of natc and its peers on a CPU and on a GPU, from benchmarks/results."""
    figure = _figure(9.6, 4.9)
    panels = (
        ("attention_k7_float32_cpu.json", "two cores of an AMD EPYC", "float32, one image"),
        ("attention_k7_float16_h100.json", "NVIDIA H100", "float16, batch 128"),
    )
    for number, (file, title, subtitle) in enumerate(panels):
        rows = json.loads((RESULTS / file).read_text(encoding="utf-8"))["rows"]
        axes = figure.add_axes((0.125 + 0.45 * number, 0.115, 0.39, 0.66))
        _bars(axes, rows, labels=number == 0)
        _heading(axes, title, subtitle)
    handles = [
        Rectangle((0, 0), 1, 1, facecolor=color, label=name) for name, _, color in CONTESTANTS
    ]
    figure.legend(
        handles=handles,
        loc="lower center",
        ncols=4,
        frameon=False,
        fontsize=11.5,
        labelcolor=INK,
        handlelength=1.1,
        bbox_to_anchor=(0.5, -0.005),
    )
    _title(figure, "Milliseconds of a call: 7x7 attention with bias, logarithmic scale")
    _save(figure, path)


# How the picture names a contestant, how results do, its color.
CONTESTANTS = (
    ("natc", "natc kernel", NATC),
    ("masked SDPA", "torch SDPA", "#e0a13c"),
    ("FlexAttention, compiled", "torch FlexAttention", "#7aa6a1"),
    ("plain PyTorch", "reference", "#b7bfc9"),
)


def _bars(axes: Axes, rows: Sequence[dict[str, Any]], *, labels: bool) -> None:
    """Draw a group of bars for each map, largest on top, with a time at each bar's end."""
    seconds = {
        (tuple(row["problem"]["shape"]), row["contestant"]): row["median_seconds"] for row in rows
    }
    shapes = list(dict.fromkeys(shape for shape, _ in seconds))
    shortest = 1e3 * min(seconds.values())
    for group, shape in enumerate(shapes):
        for place, (_, contestant, color) in enumerate(CONTESTANTS):
            milliseconds = 1e3 * seconds[shape, contestant]
            y = group + 0.2 * (place - 1.5)
            axes.barh(y, milliseconds, height=0.19, color=color)
            axes.text(
                milliseconds * 1.12,
                y,
                _two_digits(milliseconds),
                va="center",
                color=INK if place == 0 else QUIET,
                fontsize=10.5,
                weight="bold" if place == 0 else "normal",
            )
    names = [f"{height} x {width}" for _, height, width, _, _ in shapes]
    axes.set_yticks(range(len(shapes)), names if labels else [""] * len(shapes), fontsize=12)
    axes.set_xscale("log")
    axes.set(xlim=(shortest / 2.2, 220 * shortest * 3.2), ylim=(len(shapes) - 0.45, -0.55))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.tick_params(colors=INK, length=0)
    axes.tick_params(axis="x", labelsize=10.5, colors=QUIET)
    axes.grid(axis="x", color=LINE, linewidth=0.6)
    axes.set_axisbelow(True)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _two_digits(number: float) -> str:
    """Return a positive number with two significant digits, such as 0.10 or 24."""
    text = f"{number:.2g}"
    return text + "0" if number < 1 and len(text.lstrip("0.")) == 1 else text


def shares(path: Path) -> None:
    """Draw the shares of a CPU's peak that natc's calls reach, from benchmarks/results."""
    from natc.bench import share_plots
    from natc.bench.shares import read

    path.write_bytes(share_plots.draw(read(RESULTS / "cpu_x86-64-v4.json"), "svg"))


# The strategies of benchmarks/search.py: name, label, color.
STRATEGIES = (
    ("random", "random choice", "#9aa5b1"),
    ("MetaSchedule", "MetaSchedule", "#e0a13c"),
    ("model", "natc's model", NATC),
    ("model, taught", "natc's model, taught by another kernel", QUERY),
)


# Results of benchmarks/search.py, and the operation and kernel of each.
SEARCHED = (
    ("search_k7_d32.json", "forward, tiles"),
    ("search_k7_d32_gradients.json", "gradients, sweep"),
    ("search_k7_d12.json", "forward, small space"),
)


def searches(path: Path) -> None:
    """Draw how soon searches find fast candidates, from benchmarks/results."""
    figure = _figure(11.4, 4.4)
    names: dict[str, Any] = {}
    for number, (file, title) in enumerate(SEARCHED):
        results = json.loads((RESULTS / file).read_text(encoding="utf-8"))
        axes = figure.add_axes((0.055 + 0.325 * number, 0.125, 0.28, 0.55))
        longest = 1
        for name, label, color in STRATEGIES:
            if name not in results["strategies"]:
                continue
            curves = np.array(results["strategies"][name]["curves"])
            longest = curves.shape[1]
            measured = np.arange(1, longest + 1)
            for curve in curves:
                axes.step(measured, curve, where="post", color=color, linewidth=0.7, alpha=0.35)
            (names[label],) = axes.step(
                measured, np.median(curves, axis=0), where="post", color=color, linewidth=2.4
            )
        axes.set(xlim=(1, longest), ylim=(0.997, 1.25))
        axes.yaxis.set_major_formatter("{x:.2f}")
        axes.tick_params(colors=QUIET, length=0, labelsize=10.5)
        axes.grid(color=LINE, linewidth=0.6)
        axes.set_axisbelow(True)
        for spine in axes.spines.values():
            spine.set_visible(False)
        axes.set_xlabel("candidates measured", color=INK, fontsize=11.5)
        count = results["candidates"]
        axes.set_title(f"{title}: {count} candidates", color=INK, fontsize=11.5, loc="left")
    place = {"loc": "upper right", "bbox_to_anchor": (0.99, 0.85), "ncol": len(names)}
    figure.legend(names.values(), names.keys(), frameon=False, labelcolor=INK, **place)
    subtitle = "time over the best candidate's; thick: median of five seeds"
    figure.text(0.015, 0.885, subtitle, color=QUIET, fontsize=11.5, va="top")
    _title(figure, "Best candidate found against candidates measured")
    _save(figure, path)


def _measured_and_predicted(results: dict[str, Any]) -> list[tuple[float, float]]:
    return [(each["measured_us"], each["predicted_us"]) for each in results["points"]]


def gpu_model(path: Path) -> None:
    """Draw predicted against measured times of candidates on an H100, from benchmarks/results."""
    results = json.loads((RESULTS / "gpu_model_sm_90.json").read_text(encoding="utf-8"))
    figure = _figure(7.2, 6.0)
    axes = figure.add_axes((0.11, 0.1, 0.86, 0.74))
    colors = dict(zip(("latency", "L1", "issue", "memory"), (NATC, QUERY, "#43a047", INK)))
    for limiter, color in colors.items():
        points = [each for each in results["points"] if each["limiter"] == limiter]
        if points:
            measured = [each["measured_us"] for each in points]
            predicted = [each["predicted_us"] for each in points]
            label = f"limited by {limiter} (predicted)"
            axes.plot(measured, predicted, "o", color=color, markersize=4, alpha=0.7, label=label)
    ends = (600, 9000)
    axes.plot(ends, ends, color=QUIET, linewidth=1)
    low, high = ([share * end for end in ends] for share in (0.75, 1.25))
    label = "within 25% of the measured time"
    axes.fill_between(ends, low, high, color=LINE, alpha=0.5, linewidth=0, label=label)
    x, y = max((m / p, (m, p)) for m, p in _measured_and_predicted(results))[1]
    note = "8x16 queries, two lanes each"
    axes.annotate(note, (x, y), (7, -3), textcoords="offset points", color=QUIET, fontsize=10.5)
    axes.set(xscale="log", yscale="log", xlim=ends, ylim=ends)
    axes.set_xticks((1000, 2000, 5000), ("1000", "2000", "5000"))
    axes.set_yticks((1000, 2000, 5000), ("1000", "2000", "5000"))
    axes.minorticks_off()
    axes.tick_params(colors=QUIET, length=0, labelsize=10.5)
    axes.grid(color=LINE, linewidth=0.6)
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.set_xlabel("measured, microseconds", color=INK, fontsize=11.5)
    axes.set_ylabel("predicted, microseconds", color=INK, fontsize=11.5)
    axes.legend(frameon=False, fontsize=11, labelcolor=INK)
    subtitle = f"{len(results['points'])} candidates, each predicted without its own tile's times"
    figure.text(0.015, 0.9, subtitle, color=QUIET, fontsize=11.5, va="top")
    _title(figure, "Forward of 7x7 on CUDA cores, H100")
    _save(figure, path)


def feature_maps(path: Path) -> None:
    """Draw a photograph and the feature maps of a NAT-Mini with random weights."""
    import torch

    import natc
    from natc.demo.image import photograph
    from natc.demo.pictures import feature_picture

    torch.manual_seed(0)
    model, image = natc.models.nat_mini().eval(), photograph()
    with torch.inference_mode():
        maps = model.forward_intermediates(image, output_fmt="NHWC", intermediates_only=True)
        feature_picture(image, maps, path)


def _photograph(size: int) -> np.ndarray:
    """Return the photograph of the quickstart as `[size, size, 3]` in 0..1."""
    from natc.demo.image import displayable, photograph

    return np.round(displayable(photograph(size)).numpy(), 3)


def _figure(width: float, height: float) -> Figure:
    # On a white ground, so that it can be read in dark pages, too.
    return Figure(figsize=(width, height), facecolor="white")


def _title(figure: Figure, text: str) -> None:
    figure.text(0.015, 0.985, text, color=INK, fontsize=14.5, weight="bold", va="top")


def _heading(axes: Axes, title: str, subtitle: str) -> None:
    axes.text(0, 1.105, title, transform=axes.transAxes, color=INK, fontsize=13.5, va="bottom")
    axes.text(0, 1.02, subtitle, transform=axes.transAxes, color=QUIET, fontsize=11.5, va="bottom")


def _save(figure: Figure, path: Path) -> None:
    with matplotlib.rc_context(STYLE):
        figure.savefig(path, format="svg", metadata={"Date": None})


PICTURES: dict[str, Callable[[Path], None]] = {
    "windows.svg": windows,
    "path.svg": path_to_a_library,
    "times.svg": times,
    "shares.svg": shares,
    "searches.svg": searches,
    "gpu-model.svg": gpu_model,
    "feature-maps.png": feature_maps,
}


def main() -> None:
    """Write the pictures named on the command line, by default all."""
    parser = argparse.ArgumentParser(description="Draw the pictures of the documentation.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(PICTURES))
    for name in parser.parse_args().names or PICTURES:
        PICTURES[name](FOLDER / name)


if __name__ == "__main__":
    main()
