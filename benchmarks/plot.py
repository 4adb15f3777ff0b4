"""Draws what `attention.py` measured: `python benchmarks/plot.py RESULT.json PLOT.svg`.

Of `--suite curve`, device time against the side of the map; of others, how many times as long as
the floor each contestant takes, problem by problem. Equal results give equal bytes.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

SCHEMA_VERSION = 1
_COLORS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("result", type=Path)
    parser.add_argument("plot", type=Path, help="file to write, .svg or .png")
    given = parser.parse_args()
    try:
        document = json.loads(given.result.read_text())
        found = document["schema_version"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        parser.error(f"{given.result} is no result of attention.py: {error}")
    if found != SCHEMA_VERSION:
        parser.error(f"{given.result} has version {found}; this script draws {SCHEMA_VERSION}")
    if given.plot.suffix not in (".svg", ".png"):
        parser.error(f"{given.plot} must end in .svg or .png")
    draw(document, given.plot)


def draw(document: dict[str, Any], path: Path) -> None:
    """Draw a document of `attention.py` into a file."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    style = {"svg.hashsalt": "natc", "font.family": "DejaVu Sans", "font.size": 9.0}
    with matplotlib.rc_context(style):
        curve = document["suite"] == "curve"
        passes = sorted({row["pass"] for row in document["rows"]})
        size = (7.5, 4.2) if curve else (11.0, 4.0 * len(passes))
        figure, axes = pyplot.subplots(
            1 if curve else len(passes), 1, figsize=size, squeeze=False, layout="constrained"
        )
        for axis, pass_ in zip(axes[:, 0], passes):
            rows = [row for row in document["rows"] if row["pass"] == pass_]
            _curve(axis, rows) if curve else _bars(axis, rows)
            axis.set_title(pass_.replace("_", " and "), loc="left")
            axis.legend(frameon=False)
            axis.spines[["top", "right"]].set_visible(False)
        metadata: dict[str, Any] = {"Date": None} if path.suffix == ".svg" else {"Software": None}
        figure.savefig(path, metadata=metadata, dpi=150)
        pyplot.close(figure)


def microseconds(row: dict[str, Any]) -> float | None:
    """Return a row's median, of the device where there is one; None if it was not timed."""
    found = row["device"] or row["call"]
    return float(found["median_us"]) if found else None


def ratios(rows: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Return for each contestant and problem how many times as long as the floor it takes."""
    found: dict[str, dict[str, float]] = {}
    for row in rows:
        time = microseconds(row)
        if time is not None:
            found.setdefault(row["contestant"], {})[label(row)] = time / row["floor_us"]
    return found


def label(row: dict[str, Any]) -> str:
    """Return the name of a row's problem."""
    text = f"{row['batch']}x{row['height']}x{row['width']}x{row['heads']}x{row['head_dim']}\n"
    text += f"K={row['kernel']}" + (f", dilation {row['dilation']}" if row["dilation"] > 1 else "")
    return text + f" {row['dtype']}" + (" with bias" if row["rpb"] else "")


def _bars(axis: Any, rows: list[dict[str, Any]]) -> None:
    found = ratios(rows)
    problems = list(dict.fromkeys(map(label, rows)))
    width = 0.8 / max(len(found), 1)
    for number, (name, times) in enumerate(found.items()):
        at = [i + (number - (len(found) - 1) / 2) * width for i in range(len(problems))]
        heights = [times.get(problem, 0.0) for problem in problems]
        axis.bar(at, heights, width, label=name, color=_COLORS[number % len(_COLORS)])
    axis.axhline(1.0, color="#1f2933", linewidth=0.8)
    axis.set_yscale("log")
    axis.set_ylabel("times the floor")
    axis.set_xticks(range(len(problems)), problems, fontsize=6)


def _curve(axis: Any, rows: list[dict[str, Any]]) -> None:
    names = list(dict.fromkeys(row["contestant"] for row in rows))
    for number, name in enumerate(names):
        own = [row for row in rows if row["contestant"] == name and microseconds(row) is not None]
        # Batches differ: what compares is the time of an image.
        times = [(row["height"], (microseconds(row) or 0.0) / row["batch"]) for row in own]
        color = _COLORS[number % len(_COLORS)]
        axis.plot(*zip(*sorted(times)), marker="o", label=name, color=color) if times else None
    floors = sorted({(row["height"], row["floor_us"] / row["batch"]) for row in rows})
    axis.plot(*zip(*floors), linestyle=":", color="#6b7785", label="floor")
    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.set_xlabel("side of the map")
    axis.set_ylabel("microseconds for an image")


if __name__ == "__main__":
    main()
