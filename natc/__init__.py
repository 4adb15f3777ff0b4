"""natc: a compiler and runtime for neighborhood attention.

`natc.neighborhood_attention` computes it, `natc.functional` its two halves, `natc.nn` holds
modules, `natc.models` networks, `natc.runtime` the libraries of compiled kernels. Everything is
imported when it is first used, so that the command line starts at once and a machine that only
runs kernels needs no compiler.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from natc.env import NATC_AS_NATTEN
from natc.version import __version__

if TYPE_CHECKING:
    from natc import compat, functional, models, nn, ops, reference, runtime
    from natc.functional import na1d, na2d, na3d, neighborhood_attention
    from natc.functional.merge import merge_attentions
    from natc.ops import NatcFallbackWarning, force_reference

__all__ = [
    "NatcFallbackWarning",
    "__version__",
    "compat",
    "force_reference",
    "functional",
    "merge_attentions",
    "models",
    "na1d",
    "na2d",
    "na3d",
    "neighborhood_attention",
    "nn",
    "ops",
    "reference",
    "runtime",
]

_MODULES = frozenset(("compat", "functional", "models", "nn", "ops", "reference", "runtime"))
_ATTRIBUTES = {
    "merge_attentions": "natc.functional.merge",
    "na1d": "natc.functional",
    "na2d": "natc.functional",
    "na3d": "natc.functional",
    "neighborhood_attention": "natc.functional",
    "NatcFallbackWarning": "natc.ops",
    "force_reference": "natc.ops",
}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"natc.{name}")
    if name in _ATTRIBUTES:
        value = getattr(importlib.import_module(_ATTRIBUTES[name]), name)
        # Kept, so that only the first use comes through here.
        globals()[name] = value
        return value
    raise AttributeError(f"module 'natc' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


# NATTEN's name is taken before anything else can import it.
if NATC_AS_NATTEN.get():
    importlib.import_module("natc.compat").install_from_environment()
