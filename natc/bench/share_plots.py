"""A plot of the shares of a CPU's peak: a bar for each call, and the floor of each problem."""

from __future__ import annotations

import io
from typing import Any

from natc.bench import shares
from natc.bench.plots import GRID, INK, QUIET, STYLE, require_matplotlib
from natc.bench.shares import FORWARD, GRADIENTS, ShareRow, Shares
from natc.errors import NatcError

# The call, how the legend names it, its color.
_BARS = ((FORWARD, "forward", "#0072B2"), (GRADIENTS, "all gradients", "#E69F00"))
_WIDTH, _BAR_HEIGHT, _MARGINS = 9.6, 0.2, 1.6


def draw(document: Shares, form: str) -> bytes:
    """Return a plot of natc's calls on one thread as a file of a format, svg or png.

    Beside each bar stand the share with all threads and the time. Raises NatcError without
    matplotlib, and if no call of natc was timed.
    """
    require_matplotlib()
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    groups = shares.by_problem(document.rows)
    if not groups:
        raise NatcError("no call of natc was timed, so there is nothing to draw.")
    bars = sum(map(len, groups.values())) + 0.7 * len(groups)
    with matplotlib.rc_context(STYLE):
        size = (_WIDTH, _MARGINS + _BAR_HEIGHT * bars)
        figure = Figure(figsize=size, dpi=130, facecolor="white", layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots()
        place, ticks, labels = 0.0, [], []
        for problem, calls in groups.items():
            ticks.append(place + (len(calls) - 1) / 2)
            labels.append(shares.label(problem))
            for call in calls:
                _bar(axes, place, calls[call])
                place += 1
            place += 0.7
        _finish(axes, ticks, labels, place)
        _legend(figure)
        target = document.target.removeprefix("llvm-")
        busy = " (busy machine)" if document.busy else ""
        figure.suptitle(
            f"Share of the peak of one thread: {target} code on {document.environment.cpu}{busy}",
            **{"color": INK, "fontsize": 11, "fontweight": "bold", "x": 0.01, "ha": "left"},
        )
        file = io.BytesIO()
        metadata = {"Date": None} if form == "svg" else {"Software": None}
        figure.savefig(file, format=form, metadata=metadata)
    return file.getvalue()


def _bar(axes: Any, place: float, rows: list[ShareRow]) -> None:
    """Draw the share of one thread, with its quartiles, the floor, and the numbers in words."""
    on_one_thread = rows[0]
    low, _, high = on_one_thread.quartile_seconds or (1.0, 1.0, 1.0)
    share = 100 * (on_one_thread.share_of_peak or 0.0)
    color = next(color for call, _, color in _BARS if call == on_one_thread.call)
    axes.barh(place, share, 0.86, color=color)
    axes.plot([share * low / high, share], [place, place], color=INK, linewidth=0.8)
    floor = 100 * (on_one_thread.floor_seconds or low) / low
    roof = 100 * share / floor
    axes.plot([roof, roof], [place - 0.43, place + 0.43], color=INK, linewidth=1.2, zorder=4)
    time = f"{1e3 * low:.3g} ms"
    more = [f"{row.threads} threads {100 * (row.share_of_peak or 0.0):.0f}%" for row in rows[1:]]
    axes.annotate(
        ", ".join([f"{share:.0f}%, {time}", *more]),
        (share, place),
        xytext=(3, 0),
        textcoords="offset points",
        **{"va": "center", "color": INK, "fontsize": 7.5},
        bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5},
    )


def _finish(axes: Any, ticks: list[float], labels: list[str], end: float) -> None:
    axes.set_yticks(ticks, labels)
    axes.set_ylim(end - 1.0, -0.8)
    axes.set_xlim(0, 104)
    axes.set_xticks(range(0, 101, 10))
    axes.grid(True, axis="x", color=GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(axis="y", length=0, colors=INK)
    axes.tick_params(axis="x", colors=QUIET)
    axes.set_xlabel("percent of the peak, by the lower quartile of the time (line: the upper one)")


def _legend(figure: Any) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    handles: list[Any] = [Patch(color=color, label=name) for _, name, color in _BARS]
    handles.append(Line2D([], [], color=INK, linewidth=1.2, label="most that the floor allows"))
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False)
