"""What each module of a release holds: names, and which submodules `import natten` brings along.

In 0.17, `natten.na1d` to `natten.na3d` are submodules that hold a module each, in 0.20 they are
functions.
"""

from __future__ import annotations

from collections.abc import Iterable
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
)
from natc.compat.natten.releases import Release, release
from natc.errors import CompatError

_Names = dict[str, Any]


def interface(wanted: Release) -> dict[str, _Names]:
    """Return the names of every module of a release, by its full name, `natten` among them.

    `natten.__submodules__` lists those that importing the package imports.
    """
    number = wanted.number
    context.reset(kv_parallel=number >= (0, 20, 0))
    if number < (0, 15, 0):
        found = _of_014(wanted)
    elif number < (0, 17, 0):
        found = _of_015(wanted)
    elif number < (0, 20, 0):
        found = _of_017(wanted)
    else:
        found = _of_020(wanted)
    found[""] = {"__doc__": _doc(wanted), "__version__": wanted.version, **found[""]}
    if wanted.union:
        _join(found)
    return {f"natten.{name}" if name else "natten": names for name, names in found.items()}


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
    """Return submodules, named after `name`, that hold the module of one rank each."""
    return {
        name.format(rank): {
            each: module for each, module in modules.items() if module.rank == int(rank)
        }
        for rank in "123"
        if any(module.rank == int(rank) for module in modules.values())
    }


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
    if wanted.union:
        modules = _modules(modules_017.Union)
    else:
        late = wanted.number >= (0, 17, 4)
        modules = _modules(modules_017.UpTo0175 if late else modules_017.UpTo0173)
    functions = functions_017.functions(wanted)
    switches = context_017.functions_017(wanted)
    private = ("should_use_flex_attention", "should_force_flex_attention")
    public = {**modules, **{n: f for n, f in switches.items() if n not in private}}
    each = _one_each(modules, "na{}d")
    found = {
        "": {
            **public,
            "__all__": list(public),
            "__submodules__": ["context", "functional", "types", "utils", *each],
        },
        "context": {**switches, "MemoryUsagePreference": context.MemoryUsagePreference},
        "functional": functions,
        "flops": dict(flops.functions(wanted)),
        "types": helpers.aliases_of_types(),
        "utils": dict(helpers.UTILS),
        **each,
        **_one_each(modules, "natten{}d"),
    }
    if wanted.number >= (0, 17, 4):
        fused = {name: functions[name] for name in ("na1d", "na2d", "na3d")}
        found["experimental"] = fused
    return found


def _of_020(wanted: Release) -> dict[str, _Names]:
    first = wanted.number == (0, 20, 0)
    modules = _modules(modules_020.Of0200 if first else modules_020.Since0201)
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
            "__submodules__": ["context", "functional", "modules"],
        },
        "context": {**switches, "MemoryUsagePreference": context.MemoryUsagePreference},
        "functional": functions,
        "modules": modules,
    }


def _join(found: dict[str, _Names]) -> None:
    """Add to 0.17.4 what other releases had and it does not contradict."""
    functional = found["functional"]
    of_014 = functions_014.functions(release("0.14.6"))
    of_015 = functions_015.functions()
    of_021 = functions_020.functions(release("0.21"))
    _add(functional, of_014, (name for name in of_014 if name.endswith("Function")))
    _add(functional, of_015, (name for name in of_015 if name.endswith("_with_bias")))
    _add(functional, of_021, ("neighborhood_attention_generic", "attention", "merge_attentions"))
    _add(found[""], of_021, ("attention", "merge_attentions"))
    _add(found[""], context.FLEX_COMPILE, context.FLEX_COMPILE)


def _add(names: _Names, others: _Names, which: Iterable[str]) -> None:
    for name in which:
        if name in names:
            raise CompatError(f"{name} would mean two things")
        names[name] = others[name]
