"""The contents of each module of `natten` by release, and the submodules that it imports.

In 0.17, `natten.na1d` to `natten.na3d` are submodules that hold one class each; since 0.20 they
are functions.
"""

from __future__ import annotations

from typing import Any

from natc.compat.natten import (
    context,
    context_017,
    flops,
    functions_014,
    functions_015,
    functions_017,
    functions_020,
    helpers,
    modules_014,
    modules_015,
    modules_017,
    modules_020,
    tiles,
    union,
)
from natc.compat.natten.releases import Release

_Names = dict[str, Any]


def interface(wanted: Release) -> dict[str, _Names]:
    """Return the names of every module of a release, by the full name of the module.

    A module's `__submodules__` lists the submodules that it imports.
    """
    modules = _of_release(wanted)
    if wanted.union:
        union.join(modules, _of_release)
        top = modules[""]
        top["__all__"] = [name for name in top if not name.startswith("_")]
        top["__submodules__"].append("modules")
    modules[""] |= {"__doc__": _doc(wanted), "__version__": wanted.version}
    return {f"natten.{name}" if name else "natten": names for name, names in modules.items()}


def _of_release(wanted: Release) -> dict[str, _Names]:
    """Return the names of every module of a release, by the module's name inside `natten`."""
    if wanted.number < (0, 15, 0):
        return _of_014(wanted)
    if wanted.number < (0, 17, 0):
        return _of_015(wanted)
    return _of_017(wanted) if wanted.number < (0, 20, 0) else _of_020(wanted)


def _doc(wanted: Release) -> str:
    more = ", with names of other releases" if wanted.union else ""
    return f"The interface of NATTEN {wanted.version}{more}, served by natc."


def _modules(of_release: type) -> _Names:
    return {
        name: each
        for name, each in vars(of_release).items()
        if name.startswith("NeighborhoodAttention")
    }


def _one_each(modules: _Names, name: str) -> dict[str, _Names]:
    """Return submodules `name.format(rank)`, each with the classes of that rank."""
    submodules: dict[str, _Names] = {}
    for each, module in modules.items():
        submodules.setdefault(name.format(module.rank), {})[each] = module
    return submodules


def _of_014(wanted: Release) -> dict[str, _Names]:
    early = wanted.number <= (0, 14, 4)
    modules = _modules(modules_014.UpTo0144 if early else modules_014.UpTo0146)
    shims = _one_each(modules, "natten{}d")
    return {
        "": {**modules, "__submodules__": ["functional", *shims]},
        "functional": functions_014.functions(wanted),
        "flops": dict(flops.functions(wanted)),
        **shims,
    }


def _of_015(wanted: Release) -> dict[str, _Names]:
    modules = _modules(modules_015.UpTo0151)
    shims = _one_each(modules, "natten{}d")
    gpu = context_017.functions_015()
    public = {**modules, **gpu}
    return {
        "": {**public, "__all__": list(public), "__submodules__": ["functional", *shims]},
        "functional": {**functions_015.functions(), **gpu},
        "flops": dict(flops.functions(wanted)),
        **shims,
    }


def _of_017(wanted: Release) -> dict[str, _Names]:
    classes = {(0, 17, 4): modules_017.Of0174, (0, 17, 5): modules_017.Of0175}
    of_release = union.Union if wanted.union else classes.get(wanted.number, modules_017.UpTo0173)
    modules = _modules(of_release)
    functions = functions_017.functions(wanted)
    switches = context_017.functions_017(wanted)
    private = ("should_use_flex_attention", "should_force_flex_attention")
    public = {**modules, **{n: f for n, f in switches.items() if n not in private}}
    each = _one_each(modules, "na{}d")
    names = {
        "": {
            **public,
            "__all__": list(public),
            "__submodules__": ["context", "functional", "types", "utils", *each],
        },
        "context": {**switches, "MemoryUsagePreference": context.MemoryUsagePreference},
        "functional": functions,
        "flops": dict(flops.functions(wanted)),
        "types": helpers.aliases_of_types(wanted),
        **helpers.utils(wanted),
        **each,
        **_one_each(modules, "natten{}d"),
    }
    if wanted.number >= (0, 17, 4):
        fused = {name: functions[name] for name in ("na1d", "na2d", "na3d")}
        names["experimental"] = fused
    return names


def _of_020(wanted: Release) -> dict[str, _Names]:
    first = wanted.number == (0, 20, 0)
    modules = _modules(modules_020.Of0200 if first else modules_020.Since0201)
    if wanted.union:
        modules = _modules(union.Union)
    functions = functions_020.functions(wanted)
    switches = {**context.COMMON, **context.FLEX_COMPILE}
    at_top = ("na1d", "na2d", "na3d", "attention", "merge_attentions")
    public = {
        **modules,
        **switches,
        **tiles.functions(wanted),
        **{name: functions[name] for name in at_top},
        "HAS_LIBNATTEN": True,
    }
    return {
        "": {
            **public,
            "__all__": ["__version__", *public],
            "__submodules__": ["context", "functional", "modules", "types", "utils"],
        },
        "context": {**switches, "MemoryUsagePreference": context.MemoryUsagePreference},
        "functional": functions,
        "modules": modules,
        "types": helpers.aliases_of_types(wanted),
        **helpers.utils(wanted),
    }
