"""The search for fast schedules."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from natc.tune.search.engine import tune

__all__ = ["tune"]


def __getattr__(name: str) -> Any:
    # Events are watched by code that has no compiler; the engine needs one.
    if name == "tune":
        from natc.tune.search.interrupts import deferred

        # While the compiler loads, Ctrl-C can be lost.
        with deferred():
            from natc.tune.search.engine import tune

        return tune
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
