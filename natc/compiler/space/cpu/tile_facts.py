"""Facts about kernels of tiles that a search's model learns from, computed from their plans."""

from __future__ import annotations

from collections.abc import Mapping

from natc.compiler.cpu_tiles.plan import plan_for
from natc.host.detect import cache_bytes
from natc.spec import KernelSpec
from natc.targets import Target

_FLOAT_BYTES = 4


def facts(spec: KernelSpec, target: Target, decisions: Mapping[str, int]) -> dict[str, float]:
    """Return facts about a plan: shares of this machine's caches, sums in registers, useful lanes.

    panels: size of the panels of keys and values, divided by the L1 cache. scores: size of the
    scores of a row of tiles, divided by the L1 cache. scratch: size of a unit's memory, divided by
    the L2 cache. score_sums, value_sums: vectors of sums in registers at once. useful_scores: the
    share of the computed scores that lie in a query's window.
    """
    plan = plan_for(spec, decisions)
    layout = plan.layout()
    rows = plan.window[1]
    slots = plan.strip_queries * plan.tile_rows
    level_1, level_2 = (cache_bytes(level) / _FLOAT_BYTES for level in (1, 2))
    return {
        "panels": (layout["queries"] - layout["keys"]) / level_1,
        "scores": slots * plan.query_scores / level_1,
        "scratch": layout["end"] / level_2,
        "score_sums": plan.tile_rows * plan.tile_columns * plan.key_vectors,
        "value_sums": plan.sum_queries * plan.sum_vectors,
        "useful_scores": rows / (rows + plan.tile_rows - 1) * plan.useful_lanes,
    }
