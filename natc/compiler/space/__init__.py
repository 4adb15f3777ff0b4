"""Design spaces: the ways to schedule a kernel on a kind of target."""

from natc.compiler.space.decisions import Decisions, combinations, read_decisions
from natc.compiler.space.enumeration import all_decisions
from natc.compiler.space.registry import DesignSpace, space_for

__all__ = [
    "Decisions",
    "DesignSpace",
    "all_decisions",
    "combinations",
    "read_decisions",
    "space_for",
]
