"""A benchmark as one HTML file that needs no network: table, plot, environment, command."""

from __future__ import annotations

from typing import Any

import jinja2
import markupsafe
import msgspec

from natc.bench import plots
from natc.bench.results import Results
from natc.cli.output import seconds_text
from natc.cli.views import times_table

_TEMPLATE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>natc bench: {{ results.title }}</title><style>
body { font: 15px/1.5 system-ui, sans-serif; color: #1f2933; max-width: 72rem; margin: 2rem auto;
  padding: 0 1rem; }
h1 { font-size: 1.4rem; } h2 { font-size: 1.1rem; margin-top: 2rem; }
table { border-collapse: collapse; } .wide { overflow-x: auto; }
th, td { text-align: left; padding: .25rem .8rem .25rem 0; vertical-align: top; }
thead th { border-bottom: 1px solid #6b7785; } tr.first td { border-top: 1px solid #dfe3e8; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; }
svg { max-width: 100%; height: auto; } .busy { background: #fff3cd; padding: .6rem .8rem; }
pre { background: #f4f6f8; padding: .6rem .8rem; overflow-x: auto; }
</style></head><body>
<h1>natc bench</h1>
<p>{{ results.title }}</p>
{% for sentence in results.busy %}<p class="busy">busy machine: {{ sentence }}</p>{% endfor %}
<figure>{{ picture }}</figure>
<h2>Times</h2>
<div class="wide"><table><thead><tr><th>input</th><th>contestant</th>
{% for column in columns %}<th class="number">{{ column }}</th>{% endfor %}</tr></thead>
<tbody>{% for problem in results.problems %}{% for name, row in results.of(problem).items() %}
<tr{% if loop.first %} class="first"{% endif %}>
<td>{% if loop.first %}{{ results.label(problem) }}{% endif %}</td><td>{{ name }}</td>
{% for column in columns %}<td class="number">{{ cells(row)[column] }}</td>{% endfor %}</tr>
{% endfor %}{% endfor %}</tbody></table></div>
<ul>{% for line in explanations %}<li>{{ line }}</li>{% endfor %}</ul>
<h2>Command</h2>
<pre>{{ results.command or "not recorded" }}</pre>
<h2>Environment</h2>
<table>{% for name, value in environment.items() %}
<tr><td>{{ name }}</td><td>{{ value }}</td></tr>{% endfor %}</table>
</body></html>
"""
_COLUMNS = ("median", "device", "quartiles", "ratio", "floor", "peak", "error")


def render(results: Results) -> str:
    """Return the report; raises NatcError without matplotlib, and if nothing was timed."""
    svg = plots.draw(results, "svg").decode()
    template = jinja2.Environment(autoescape=True, trim_blocks=True).from_string(_TEMPLATE)
    has_device = any(row.device_seconds for row in results.rows)
    return template.render(
        results=results,
        # HTML allows the element alone, without the lines before it.
        picture=markupsafe.Markup(svg[svg.index("<svg") :]),
        columns=[name for name in _COLUMNS if has_device or name != "device"],
        cells=lambda row: (
            times_table.cells_of(row)
            | {"floor": seconds_text(row.floor_seconds) if row.floor_seconds else "-"}
        ),
        explanations=times_table.explanations(results),
        environment=_environment(results),
    )


def _environment(results: Results) -> dict[str, str]:
    facts: dict[str, Any] = msgspec.to_builtins(results.environment)
    texts = {}
    for name, value in facts.items():
        if name in ("type", "schema_version", "id") or value is None:
            continue
        if isinstance(value, dict):
            value = ", ".join(f"{key} {part}" for key, part in value.items() if part is not None)
        texts[name] = str(value)
    return texts
