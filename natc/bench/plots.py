"""Plots of a benchmark: a roofline, and how many times as long each contestant takes.

Equal results give equal bytes: no dates, and names within an SVG do not depend on chance.
"""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from natc.bench.results import Ceilings, ResultRow, Results, by_shape, work
from natc.errors import ArgumentError, NatcError
from natc.spec import KernelSpec
from natc.store.records import shape_key

FORMATS = ("svg", "png")
INK, QUIET, GRID = "#1f2933", "#6b7785", "#dfe3e8"
# Distinguishable with the common kinds of color blindness (Okabe and Ito, 2008).
_COLORS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9")
_MARKERS = "osD^v*"
_SIZE = (11.0, 4.6)
_STYLE = {
    "svg.hashsalt": "natc",
    "font.family": "DejaVu Sans",
    "font.size": 9.0,
    "axes.edgecolor": QUIET,
    "axes.labelcolor": INK,
    "xtick.color": QUIET,
    "ytick.color": QUIET,
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
    """Return the format that a file's name asks for, one of FORMATS; raises ArgumentError."""
    form = path.suffix.removeprefix(".").lower()
    if form not in FORMATS:
        raise ArgumentError(
            f"plot {path} has the suffix {path.suffix or '(none)'}; it must be "
            f"{' or '.join('.' + name for name in FORMATS)}."
        )
    return form


def draw(results: Results, form: str) -> bytes:
    """Return a file of a format with the roofline, where there are ceilings, and the bars.

    Raises NatcError without matplotlib, and where nothing was timed.
    """
    require_matplotlib()
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    if not any(row.median_seconds for row in results.rows):
        raise NatcError("nothing was timed, so there is nothing to draw.")
    # In a context, because a program that calls this has a style of its own.
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=_SIZE, dpi=130, facecolor="white", layout="constrained")
        FigureCanvasAgg(figure)
        if results.ceilings is None:
            _bars(figure.subplots(), results)
        else:
            left, right = figure.subplots(1, 2)
            _roofline(left, results, results.ceilings)
            _bars(right, results)
        figure.suptitle(
            results.title, color=INK, fontsize=11, fontweight="bold", x=0.01, ha="left"
        )
        _legend(figure, results)
        file = io.BytesIO()
        # Neither when it was drawn nor by which release.
        metadata = {"Date": None, "Creator": None} if form == "svg" else {"Software": None}
        figure.savefig(file, format=form, metadata=metadata)
    return file.getvalue()


def _legend(figure: Any, results: Results) -> None:
    """Name the contestants once for both panels, where they cover nothing."""
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], color=color, marker=marker, linestyle="none", label=name)
        for name, (color, marker) in _looks(results).items()
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False)


def _roofline(axes: Any, results: Results, ceilings: Ceilings) -> None:
    spec = KernelSpec.parse(results.spec)
    points: dict[str, list[tuple[float, float]]] = {}
    for row in results.rows:
        if row.median_seconds:
            done = work(spec, row.shape, results.dilation)
            point = (done.operations / done.bytes, done.operations / row.median_seconds / 1e9)
            points.setdefault(row.contestant, []).append(point)
    bandwidth = ceilings.bytes_per_second / 1e9
    intensities = [x for found in points.values() for x, _ in found]
    rates = {name: rate / 1e9 for name, rate in ceilings.operations_per_second.items()}
    ridges = [rate / bandwidth for rate in rates.values()]
    low, high = min([*intensities, *ridges]) / 3, max([*intensities, *ridges]) * 3
    top = min(max(rates.values(), default=high * bandwidth), high * bandwidth)
    axes.plot([low, top / bandwidth], [low * bandwidth, top], color=INK, linewidth=1.4)
    axes.annotate(
        f"memory {bandwidth:.3g} GB/s",
        (low, low * bandwidth),
        xytext=(14, -4),
        textcoords="offset points",
        va="top",
        color=INK,
    )
    for name, rate in rates.items():
        axes.plot([rate / bandwidth, high], [rate, rate], color=INK, linewidth=1.4)
        axes.annotate(
            f"{name} {rate:.3g} GFLOP/s",
            (high, rate),
            xytext=(0, 4),
            textcoords="offset points",
            ha="right",
            color=INK,
        )
    for name, (color, marker) in _looks(results).items():
        if name in points:
            x, y = zip(*sorted(points[name]), strict=True)
            axes.plot(x, y, marker, color=color, markersize=6)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter("")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_xlim(low, high)
    axes.grid(True, which="major", color=GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.set_xlabel("operations a byte (each tensor moved once)")
    axes.set_ylabel("useful GFLOP/s")
    axes.set_title("Roofline", color=INK, loc="left")


def _bars(axes: Any, results: Results) -> None:
    shapes = by_shape(results)
    first = _first(results)
    looks = _looks(results)
    timed = [name for name in looks if name != first]
    step = 0.8 / max(len(timed), 1)
    for place, name in enumerate(timed):
        color = looks[name][0]
        at, ratios, spans = [], [], []
        for number, rows in enumerate(shapes.values()):
            found = _ratios(rows.get(name), rows.get(first))
            if found is not None:
                low, median, high = found
                at.append(number + (place - (len(timed) - 1) / 2) * step)
                ratios.append(median)
                spans.append((median - low, high - median))
        axes.bar(
            at,
            ratios,
            step * 0.92,
            yerr=list(zip(*spans, strict=True)) if spans else None,
            color=color,
            ecolor=INK,
            error_kw={"linewidth": 0.8},
        )
        for x, ratio, (_, above) in zip(at, ratios, spans, strict=True):
            axes.annotate(
                f"{ratio:.3g}",
                (x, ratio + above),
                xytext=(0, 2),
                textcoords="offset points",
                ha="center",
                color=INK,
                fontsize=8,
            )
    axes.axhline(1.0, color=INK, linewidth=1.0)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
    # Room for the numbers over the bars.
    axes.margins(y=0.12)
    axes.set_xticks(range(len(shapes)), [shape_key(shape) for shape in shapes])
    axes.tick_params(axis="x", labelrotation=12 if len(shapes) > 3 else 0)
    axes.set_xlim(-0.5, len(shapes) - 0.5)
    axes.set_ylabel(f"time divided by that of {first}")
    axes.set_title(f"Speed-up of {first} (above 1: it is faster)", color=INK, loc="left")


def _first(results: Results) -> str:
    """Return the contestant to compare with: the first that was timed on every shape."""
    shapes = by_shape(results).values()
    names = dict.fromkeys(row.contestant for row in results.rows if row.median_seconds)
    for name in names:
        if all(name in rows and rows[name].median_seconds for rows in shapes):
            return name
    return next(iter(names))


def _looks(results: Results) -> dict[str, tuple[str, str]]:
    """Return a color and a marker for each contestant that was timed."""
    timed = dict.fromkeys(row.contestant for row in results.rows if row.median_seconds)
    return {
        name: (_COLORS[number % len(_COLORS)], _MARKERS[number % len(_MARKERS)])
        for number, name in enumerate(timed)
    }


def _ratios(row: ResultRow | None, base: ResultRow | None) -> Sequence[float] | None:
    """Return the ratio of times: of the lower quartile, the median and the upper quartile."""
    if row is None or base is None or not row.median_seconds or not base.median_seconds:
        return None
    low, high = row.quartile_seconds or (row.median_seconds, row.median_seconds)
    times = (min(low, row.median_seconds), row.median_seconds, max(high, row.median_seconds))
    return [seconds / base.median_seconds for seconds in times]
