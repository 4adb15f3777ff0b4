"""Explains which library serves a kernel's calls, for `natc show` and `natc doctor`."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from natc import env, runtime
from natc.errors import LibraryError
from natc.operations import OPERATIONS, operations_of
from natc.spec import KernelSpec, compiles
from natc.store import workspace

if TYPE_CHECKING:
    from natc.runtime import Choice, Explanation, Facts, Library

# The ways to serve a call, in the order in which natc tries them.
LIBRARY, BUILD, REFERENCE, REFUSED = "library", "build", "reference", "refused"

# The sources of libraries, in the order in which natc looks, and a text if a source has none.
_SOURCES = {
    "named in the program": "nothing: natc.runtime.use() does it, in a program",
    env.NATC_LIB_PATH.name: "not set",
    "wheel": "none is installed",
    "cache": "",
    env.NATC_JIT.name: "off: libraries built by first calls are not used either",
    "natc": f"not used: {env.NATC_TRUSTED_KEYS.name} is set, and nobody signed them",
}
# Libraries of so many near kernels are named; more are only counted.
_NEAREST = 3


def account(explanation: Explanation) -> dict[str, Any]:
    """Return which way a spec's operation is served on a device and why, as values for JSON.

    `served_by` is library, build (by the first call), reference or refused; `places` are the
    directories of libraries in order, each with its candidates.
    """
    spec, facts, choice = explanation.spec, explanation.facts, explanation.choice
    return {
        "spec": spec.name,
        "device": facts.device,
        "machine": facts.machine.name if facts.machine else None,
        **_way(explanation),
        "code_for": choice.target.name if choice else None,
        "function": choice.function if choice else None,
        "places": _places(explanation),
        "not_built": explanation.not_built
        or (None if facts.machine else facts.problem.rstrip(".")),
        "command": explanation.command,
        "operations": [
            {
                **_way(runtime.explain(spec, facts, operation=name)),
                "family": OPERATIONS[name].family,
            }
            for name in operations_of(spec, kind=facts.machine.kind if facts.machine else None)
        ],
    }


def _way(explanation: Explanation) -> dict[str, Any]:
    """Return an operation, which way it is served, and why."""
    served_by, why = _served(explanation)
    return {
        "operation": explanation.operation,
        "served_by": served_by,
        "library": explanation.choice.library.path if explanation.choice else None,
        "why": why,
    }


def uses(library: Library, machine: dict[str, Facts]) -> list[dict[str, Any]]:
    """Return for each operation of a library whether calls here use it, and why not.

    machine: the facts of this machine, by kind of target.
    """
    rows = []
    facts = machine[library.manifest.target.kind]
    for name in library.manifest.entries:
        if name not in OPERATIONS:
            continue
        explanation = runtime.explain(library.spec, facts, operation=name)
        used = explanation.choice is not None and explanation.choice.library == library
        path = library.manifest_path
        # Passed over alone, or with its directory.
        reasons = (
            item.reason for item in explanation.rejections if item.path in (path, path.parent)
        )
        rows.append(
            {
                "operation": name,
                "device": facts.device,
                "used": used,
                "reason": None if used else next(reasons, None),
            }
        )
    return rows


def _served(explanation: Explanation) -> tuple[str, str]:
    """Return the way a call is served, and why as a clause."""
    facts, spec = explanation.facts, explanation.spec
    if explanation.choice is not None:
        problem = _problem(explanation.choice)
        if problem:
            return REFUSED, problem
        if explanation.choice.library.spec != spec:
            return (
                LIBRARY,
                f"the library of {explanation.choice.library.spec.name}, which computes the same",
            )
        code, machine = explanation.choice.target, facts.machine
        if code == machine:
            return LIBRARY, f"code for {code.name}, which is this machine"
        if machine is not None and code.runs_on(machine):
            return LIBRARY, f"code for {code.name}, which runs on {machine.name}"
        return LIBRARY, f"PTX for {code.name}, which the driver compiles for this GPU"
    if facts.machine is None:
        why = facts.problem.rstrip(".")
    elif not compiles(spec.dtype, facts.machine.kind):
        return REFERENCE, f"there are no {spec.dtype} kernels for {facts.machine.kind}, by design"
    elif explanation.not_built is None:
        return BUILD, "no library fits; the first call builds one, once"
    else:
        why = f"no library fits, and a call builds none: {explanation.not_built}"
    if env.NATC_STRICT.flag():
        return REFUSED, f"{why}; and {env.NATC_STRICT.name} forbids the reference"
    return REFERENCE, why


def _problem(choice: Choice) -> str | None:
    """Return why the library that a call would load is refused, or None."""
    here = runtime.this_machine()["llvm"].machine
    elsewhere = choice.target.kind == "llvm" and not (here and choice.target.runs_on(here))
    try:
        # A library for another processor cannot be loaded here, only verified.
        (runtime.verify if elsewhere else runtime.check)(choice.library)
    except LibraryError as error:
        return str(error).rstrip(".")
    return None


def _places(explanation: Explanation) -> list[dict[str, Any]]:
    places = workspace.library_places()
    rows: list[dict[str, Any]] = []
    for source, none in _SOURCES.items():
        here = [place for place in places if place.source.split()[0] == source.split()[0]]
        if not here and none:
            rows.append({"source": source, "path": None, "state": none, "candidates": []})
        for place in here:
            candidates = _candidates(explanation, place.path)
            state = "missing" if not place.path.is_dir() else None if candidates else "empty"
            rows.append(
                {
                    "source": place.source,
                    "path": place.path,
                    "state": state,
                    "candidates": candidates,
                }
            )
    return rows


def _candidates(explanation: Explanation, directory: Path) -> list[dict[str, Any]]:
    """Return the libraries in a directory and why each was passed over, the nearest first."""
    by_path = {library.manifest_path: library for library in runtime.kernels()}
    rows: list[dict[str, Any]] = []
    chosen = explanation.choice.library if explanation.choice is not None else None
    if chosen is not None and chosen.manifest_path.parent == directory:
        rows.append({"path": chosen.path, "chosen": True, "reason": None, "differs_in": []})
    for item in explanation.rejections:
        # A kernel with a bias may serve operations that read none: passed over, then chosen.
        if chosen is not None and item.path == chosen.manifest_path:
            continue
        if item.path.parent != directory and item.path != directory:
            continue
        library = by_path.get(item.path)
        differs = differences(library.spec, explanation.spec) if library else []
        path = library.path if library else item.path
        rows.append({"path": path, "chosen": False, "reason": item.reason, "differs_in": differs})
    return sorted(
        rows, key=lambda row: (not row["chosen"], len(row["differs_in"]), str(row["path"]))
    )


def differences(have: KernelSpec, wanted: KernelSpec) -> list[str]:
    """Return the fields in which a spec differs from the wanted spec, such as `dtype float32`."""
    texts, wanted_texts = _fields(have), _fields(wanted)
    return [f"{name} {text}" for name, text in texts.items() if text != wanted_texts[name]]


def _fields(spec: KernelSpec) -> dict[str, str]:
    return {
        "rank": str(spec.rank),
        "kernel_size": spec.kernel_text,
        "head_dim": str(spec.head_dim),
        "value_dim": "as head_dim" if spec.value_dim == spec.head_dim else str(spec.value_dim),
        "dtype": spec.dtype,
        "rpb": "yes" if spec.rpb else "no",
        "terms": ",".join(spec.terms) or "none",
    }


def place_lines(places: Iterable[dict[str, Any]]) -> list[str]:
    """Return lines for people from places and their candidates."""
    lines = []
    for place in places:
        where = place["path"] or "-"
        state = f" ({place['state']})" if place["state"] else ""
        lines.append(f"  {place['source']}: {where}{state}")
        other_kernels = 0
        for row in place["candidates"]:
            if row["chosen"]:
                lines.append(f"    chosen: {row['path'].name}")
            elif not row["differs_in"]:
                what = "everything" if row["path"] == place["path"] else row["path"].name
                lines.append(f"    passed over: {what}: {row['reason']}")
            elif other_kernels < _NEAREST:
                other_kernels += 1
                what = ", ".join(row["differs_in"])
                lines.append(f"    passed over: {row['path'].name}: another kernel ({what})")
            else:
                other_kernels += 1
        if other_kernels > _NEAREST:
            count = other_kernels - _NEAREST
            lines.append(f"    passed over: {count} libraries of other kernels")
    return lines


def use_lines(rows: Iterable[dict[str, Any]]) -> list[str]:
    """Return lines for people from `uses`: operations with the same result share a line."""
    by_text: dict[str, list[str]] = {}
    for row in rows:
        text = f"used on {row['device']}" if row["used"] else f"not used: {row['reason']}"
        by_text.setdefault(text, []).append(row["operation"])
    if len(by_text) == 1:
        return list(by_text)
    return [f"{text} ({', '.join(names)})" for text, names in by_text.items()]
