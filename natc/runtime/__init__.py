"""Finding, verifying, choosing and loading compiled kernels; never imports the compiler."""

from __future__ import annotations

from natc.runtime.cleanup import Leftover, leftovers, prune
from natc.runtime.facts import Facts, facts_of, this_machine
from natc.runtime.jit import mode as jit_mode
from natc.runtime.jit import unavailable as jit_unavailable
from natc.runtime.load import Kernel, check, verify
from natc.runtime.registry import Explanation, clear, explain, kernels, problems, use
from natc.runtime.scan import Library, Rejection
from natc.runtime.select import Choice, select

__all__ = [
    "Choice",
    "Explanation",
    "Facts",
    "Kernel",
    "Leftover",
    "Library",
    "Rejection",
    "check",
    "clear",
    "explain",
    "facts_of",
    "jit_mode",
    "jit_unavailable",
    "kernels",
    "leftovers",
    "problems",
    "prune",
    "select",
    "this_machine",
    "use",
    "verify",
]
