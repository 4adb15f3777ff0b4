"""A benchmark as one HTML file that needs nothing else: table, plots, environment, command."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

import msgspec

from natc.bench import plots
from natc.bench.results import Results, by_shape
from natc.cli.output import seconds_text
from natc.store.records import shape_key

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1f2933; max-width: 72rem; margin: 2rem auto;
  padding: 0 1rem; }
h1 { font-size: 1.4rem; } h2 { font-size: 1.1rem; margin-top: 2rem; }
table { border-collapse: collapse; } .wide { overflow-x: auto; }
th, td { text-align: left; padding: .25rem .8rem .25rem 0; vertical-align: top; }
thead th { border-bottom: 1px solid #6b7785; } tr.first td { border-top: 1px solid #dfe3e8; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; }
.quiet, footer { color: #6b7785; } svg { max-width: 100%; height: auto; }
pre { background: #f4f6f8; padding: .6rem .8rem; overflow-x: auto; }
"""
_COLUMNS = ("input", "contestant", "median", "quartiles", "ratio", "floor", "times floor", "error")
_NUMBERS = frozenset(_COLUMNS[2:])


def render(results: Results) -> str:
    """Return the report; raises NatcError without matplotlib and where nothing was timed."""
    svg = plots.draw(results, "svg").decode()
    # From the element on: what is before it has no place within HTML.
    picture = svg[svg.index("<svg") :]
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>natc bench: {escape(results.title)}</title><style>{_STYLE}</style></head><body>",
        "<h1>natc bench</h1>",
        f"<p>{escape(results.title)}</p>",
        f"<figure>{picture}</figure>",
        "<h2>Times</h2>",
        f'<div class="wide">{_times(results)}</div>',
        "<p class=quiet>median of many calls as a program makes them, host work included; "
        "quartiles: 25th and 75th percentile; ratio: time divided by the first line's; floor: "
        "the longer of moving each tensor once and computing what the result needs, at the "
        "ceilings below; error: the largest, relative to the reference in float64.</p>",
        _notes(results),
        "<h2>Ceilings</h2>",
        _ceilings(results),
        "<h2>Command</h2>",
        f"<pre>{escape(results.command or 'not recorded')}</pre>",
        "<h2>Environment</h2>",
        _table(("", ""), _environment(results)),
        "</body></html>",
    ]
    return "\n".join(filter(None, parts)) + "\n"


def _times(results: Results) -> str:
    rows, firsts = [], []
    for shape, found in by_shape(results).items():
        for number, (name, row) in enumerate(found.items()):
            median, bottom = row.median_seconds, row.floor_seconds
            spread = " .. ".join(map(seconds_text, row.quartile_seconds or ())) or "-"
            firsts.append(number == 0)
            rows.append(
                (
                    shape_key(shape) if number == 0 else "",
                    name,
                    seconds_text(median) if median else "-",
                    spread,
                    f"{row.ratio_to_first:.2f}" if row.ratio_to_first else "-",
                    seconds_text(bottom) if bottom else "-",
                    f"{median / bottom:.2f}" if median and bottom else "-",
                    f"{row.max_error:.1e}" if row.max_error is not None else "-",
                )
            )
    return _table(_COLUMNS, rows, firsts)


def _notes(results: Results) -> str:
    notes = dict.fromkeys(f"{row.contestant}: {row.note}" for row in results.rows if row.note)
    return f"<ul>{''.join(f'<li>{escape(note)}</li>' for note in notes)}</ul>" if notes else ""


def _ceilings(results: Results) -> str:
    ceilings = results.ceilings
    if ceilings is None:
        return "<p>not measured</p>"
    rows = [("memory, read and written", f"{ceilings.bytes_per_second / 1e9:.4g} GB/s")]
    at_least = "at least " if ceilings.lower_bound else ""
    for name, rate in ceilings.operations_per_second.items():
        rows.append((name, f"{at_least}{rate / 1e9:.4g} GFLOP/s"))
    rows.append(("measured by", ceilings.method))
    return _table(("", ""), rows)


def _environment(results: Results) -> Iterable[tuple[str, str]]:
    facts: dict[str, Any] = msgspec.to_builtins(results.environment)
    for name, value in facts.items():
        if name in ("type", "schema_version", "id") or value is None:
            continue
        if isinstance(value, dict):
            value = ", ".join(
                f"{key} {found}" for key, found in value.items() if found is not None
            )
        yield name, str(value)


def _table(
    columns: Sequence[str], rows: Iterable[Sequence[str]], firsts: Sequence[bool] = ()
) -> str:
    """Return a table; firsts: which rows begin a group."""

    def cell(tag: str, column: str, text: str) -> str:
        number = ' class="number"' if column in _NUMBERS else ""
        return f"<{tag}{number}>{escape(text)}</{tag}>"

    head = "".join(cell("th", column, column) for column in columns)
    lines = [f"<thead><tr>{head}</tr></thead>" if any(columns) else "", "<tbody>"]
    for number, row in enumerate(rows):
        first = ' class="first"' if number < len(firsts) and firsts[number] else ""
        cells = "".join(
            cell("td", column, text) for column, text in zip(columns, row, strict=True)
        )
        lines.append(f"<tr{first}>{cells}</tr>")
    return "\n".join(["<table>", *filter(None, lines), "</tbody></table>"])
