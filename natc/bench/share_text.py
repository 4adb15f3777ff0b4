"""Shares of a CPU's peak as Markdown, for pages."""

from __future__ import annotations

from natc.bench import shares
from natc.bench.shares import NetworkRow, ShareRow, Shares


def markdown(document: Shares) -> str:
    """Return a document as Markdown: shares of the peak, peers, networks."""
    cpu = document.environment
    what = f"`{document.target.removeprefix('llvm-')}` code on {cpu.cores} cores of {cpu.cpu}."
    lines = [" ".join([what, *(f"Busy machine: {sentence}" for sentence in document.busy)]), ""]
    counts = list(dict.fromkeys(row.threads for row in document.rows))
    calls = (shares.FORWARD, shares.GRADIENTS)
    heads = [f"{call}, {count} thread{'s' * (count > 1)}" for call in calls for count in counts]
    lines += _head("share of the peak", *heads)
    for each, own in shares.by_problem(document.rows).items():
        cells = [_share(row) for call in calls for row in own.get(call, ())]
        lines.append(_line(shares.label(each), *cells))
    peers = [row for row in document.rows if "peers" in row.sections]
    names = list(dict.fromkeys(row.call for row in peers))
    if peers:
        lines += ["", *_head(f"time on {counts[-1]} threads", *names)]
    for each in dict.fromkeys(row.problem for row in peers):
        times = {
            row.call: row for row in peers if (row.problem, row.threads) == (each, counts[-1])
        }
        cells = [_time(times[name]) if name in times else "" for name in names]
        lines.append(_line(shares.label(each), *cells))
    if document.networks:
        lines += ["", *(f"- {of_network(network)}" for network in document.networks)]
    return "\n".join([*lines, ""])


def _head(*columns: str) -> list[str]:
    return [_line(*columns), "|" + "---|" * len(columns)]


def _line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _share(row: ShareRow) -> str:
    """Return a row's share of the peak, its time and the floor."""
    low, *_ = row.quartile_seconds or (0.0,)
    share = 100 * (row.share_of_peak or 0.0)
    return f"{share:.0f}%, {1e3 * low:.3g} ms (floor {1e3 * (row.floor_seconds or 0.0):.2g})"


def _time(row: ShareRow) -> str:
    """Return a row's time, and its ratio to natc's, or why there is none."""
    if row.quartile_seconds is None:
        return row.note
    text = f"{1e3 * row.quartile_seconds[0]:.3g} ms"
    return f"{text}, {row.ratio[1]:.2g}x" if row.ratio else text


def of_network(network: NetworkRow) -> str:
    """Return a row of a network as a line of text."""
    rate = network.images_per_second
    text = f"{rate:.3g} images a second" if rate else network.note
    parts = [f"{network.network}, {network.mode}, batch {network.batch}: {text}"]
    for peer, (low, median, high) in network.ratio_to.items():
        parts.append(f"{median:.3f} times {peer} ({low:.3f} to {high:.3f})")
    return "; ".join(parts)
