"""Finding, verifying, choosing and loading compiled kernels; never imports the compiler."""

from __future__ import annotations

from natc.runtime.facts import Facts
from natc.runtime.load import Kernel, verify
from natc.runtime.places import use
from natc.runtime.registry import Explanation, clear, explain, kernels, problems
from natc.runtime.search import Library, Rejection
from natc.runtime.select import Choice, select

__all__ = [
    "Choice",
    "Explanation",
    "Facts",
    "Kernel",
    "Library",
    "Rejection",
    "clear",
    "explain",
    "kernels",
    "problems",
    "select",
    "use",
    "verify",
]
