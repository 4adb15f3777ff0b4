"""Plots of a benchmark: how near each contestant comes to the machine's roof, and the speed-ups.

Equal results give equal bytes: no dates, and no random names within an SVG.
"""

from __future__ import annotations

import importlib.util
import io
import math
from pathlib import Path
from typing import Any

from natc.bench.problem import BenchProblem, work
from natc.bench.results import Results, Row, floor
from natc.errors import ArgumentError, NatcError

FORMATS = ("svg", "png")
INK, QUIET, GRID = "#1f2933", "#6b7785", "#dfe3e8"
# Distinguishable with the common kinds of color blindness (Okabe and Ito, 2008).
_COLORS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9")
_WIDTH, _BAR_HEIGHT, _MARGINS = 11.0, 0.19, 1.9
STYLE = {
    "svg.hashsalt": "natc",
    "font.family": "DejaVu Sans",
    "font.size": 9.0,
    "axes.edgecolor": QUIET,
    "axes.labelcolor": INK,
    "xtick.color": QUIET,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def require_matplotlib() -> None:
    """Raise NatcError, with the command that helps, unless matplotlib is installed."""
    if importlib.util.find_spec("matplotlib") is None:
        raise NatcError(
            "plots are drawn with matplotlib, which is not installed: pip install 'natc[demo]'."
        )


def format_of(path: Path) -> str:
    """Return the format in FORMATS that a file's suffix names; raises ArgumentError."""
    form = path.suffix.removeprefix(".").lower()
    if form not in FORMATS:
        raise ArgumentError(
            f"plot {path} has the suffix {path.suffix or '(none)'}; it must be "
            f"{' or '.join('.' + name for name in FORMATS)}."
        )
    return form


def draw(results: Results, form: str) -> bytes:
    """Return a plot as a file of a format.

    The bars at the left are shares of the roof (times, if there are no ceilings), those at the
    right speed-ups. Raises NatcError without matplotlib, and if nothing was timed.
    """
    require_matplotlib()
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(row.contestant for row in results.rows if row.seconds))
    if not names:
        raise NatcError("nothing was timed, so there is nothing to draw.")
    groups = [
        [row for row in results.of(problem).values() if row.seconds]
        for problem in results.problems
    ]
    bars = sum(map(len, groups)) + len(groups)
    colors = {name: _COLORS[number % len(_COLORS)] for number, name in enumerate(names)}
    # In a context, because a program that calls this has a style of its own.
    with matplotlib.rc_context(STYLE):
        size = (_WIDTH, _MARGINS + _BAR_HEIGHT * max(bars, 8))
        figure = Figure(figsize=size, dpi=130, facecolor="white", layout="constrained")
        FigureCanvasAgg(figure)
        shares, speedups = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
        _shares(shares, results, groups, colors)
        _speedups(speedups, results, groups, colors, _first(results))
        _label_groups(shares, results, groups)
        figure.suptitle(
            results.title + (" (busy machine)" if results.busy else ""),
            **{"color": INK, "fontsize": 11, "fontweight": "bold", "x": 0.01, "ha": "left"},
        )
        _legend(figure, colors)
        file = io.BytesIO()
        # No date and no release of matplotlib.
        metadata = {"Date": None, "Creator": None} if form == "svg" else {"Software": None}
        figure.savefig(file, format=form, metadata=metadata)
    return file.getvalue()


def _places(groups: list[list[Row]]) -> list[tuple[float, Row]]:
    """Return each row with its place on the vertical axis; problems are one place apart."""
    places, number = [], 0.0
    for rows in groups:
        for row in rows:
            places.append((number, row))
            number += 1
        number += 1
    return places


def _shares(axes: Any, results: Results, groups: list[list[Row]], colors: dict[str, str]) -> None:
    """Draw how large a part of the time the roof allows; without ceilings, the times."""
    ceilings = results.ceilings
    values = []
    for place, row in _places(groups):
        # Only rows that were timed are in a group; a device's own time has no quartiles.
        seconds = row.seconds or math.nan
        times = (seconds, *(row.quartile_seconds or () if not row.device_seconds else ()))
        bars = [100 * (row.floor_seconds or 0) / t if ceilings else 1e3 * t for t in times]
        values += bars
        axes.barh(place, bars[0], 0.86, color=colors[row.contestant])
        axes.plot([min(bars), max(bars)], [place, place], color=INK, linewidth=0.8)
        share = f", {bars[0]:.2g}%" if ceilings else ""
        time = f"{seconds:.3g} s" if seconds >= 1 else f"{1e3 * seconds:.3g} ms"
        _annotate(axes, time + share, max(bars), place)
    if ceilings is None:
        _log_axis(axes, values, "milliseconds", "Times, with quartiles")
        return
    axes.axvline(100, color=INK, linewidth=1.0)
    peak = f"{ceilings.peak / 1e9:.3g} GFLOP/s, " if ceilings.peak else ""
    title = f"Share of the roof ({peak}{ceilings.bytes_per_second / 1e9:.3g} GB/s)"
    _log_axis(axes, [*values, 100.0], "percent of the roof, with quartiles", title)


def _speedups(
    axes: Any, results: Results, groups: list[list[Row]], colors: dict[str, str], first: str
) -> None:
    """Draw how many times as long as the first contestant the others take."""
    values = [1.0]
    for place, row in _places(groups):
        base = results.of(row.problem).get(first)
        if row.contestant == first or base is None or not base.seconds or not row.seconds:
            continue
        ratio = row.seconds / base.seconds
        values.append(ratio)
        axes.barh(place, ratio - 1, 0.86, left=1.0, color=colors[row.contestant])
        _annotate(axes, f"{ratio:.3g}", max(ratio, 1.0), place)
    axes.axvline(1.0, color=INK, linewidth=1.0)
    title = f"Speed-up of {first} (above 1: it is faster)"
    _log_axis(axes, values, f"time divided by the time of {first}", title)
    axes.tick_params(axis="y", length=0)


def _annotate(axes: Any, text: str, value: float, place: float) -> None:
    axes.annotate(
        text,
        (value, place),
        xytext=(3, 0),
        textcoords="offset points",
        **{"va": "center", "color": INK, "fontsize": 7.5},
        bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5},
    )


def _log_axis(axes: Any, values: list[float], label: str, title: str) -> None:
    """Use a log scale with ticks at 1, 2 and 5 of each decade, and room for labels of bars."""
    low, high = min(values) / 1.5, max(values) * 1.5
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    steps = (1, 2, 5) if high / low < 1e3 else (1,)
    ticks = [step * 10.0**decade for decade in range(first, last + 1) for step in steps]
    axes.set_xscale("log")
    axes.set_xticks([tick for tick in ticks if low <= tick <= high], minor=False)
    axes.set_xticks([], minor=True)
    axes.set_xlim(low, high * (high / low) ** 0.25)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.grid(True, axis="x", which="major", color=GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.set_xlabel(label)
    axes.set_title(title, color=INK, loc="left", fontsize=10)


def _label_groups(axes: Any, results: Results, groups: list[list[Row]]) -> None:
    """Name each problem beside the middle of its bars, with its roof."""
    ticks, labels, number = [], [], 0.0
    for problem, rows in zip(results.problems, groups, strict=True):
        ticks.append(number + (len(rows) - 1) / 2)
        labels.append(results.label(problem) + _roof(results, problem))
        number += len(rows) + 1
    axes.set_yticks(ticks, labels)
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(number - 1.3, -0.7)


def _roof(results: Results, problem: BenchProblem) -> str:
    ceilings = results.ceilings
    if ceilings is None:
        return ""
    least = work(problem)
    seconds = floor(least, ceilings)
    kind = "memory" if seconds == least.bytes / ceilings.bytes_per_second else "arithmetic"
    return f"\nroof: {kind}, {1e3 * seconds:.3g} ms"


def _legend(figure: Any, colors: dict[str, str]) -> None:
    """Name the contestants once for both panels, below them."""
    from matplotlib.patches import Patch

    handles = [Patch(color=color, label=name) for name, color in colors.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False)


def _first(results: Results) -> str:
    """Return the contestant to compare with: the first that was timed on every problem."""
    names = dict.fromkeys(row.contestant for row in results.rows if row.seconds)
    for name in names:
        rows = [results.of(problem).get(name) for problem in results.problems]
        if all(row is not None and row.seconds for row in rows):
            return name
    return next(iter(names))
