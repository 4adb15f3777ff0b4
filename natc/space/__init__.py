"""Design spaces: what may vary in how a kernel is computed, by kind of target."""

from natc.space.decisions import Decisions, combinations, read_decisions
from natc.space.registry import Space, space_for

__all__ = ["Decisions", "Space", "combinations", "read_decisions", "space_for"]
