"""`natc doctor --coverage`: which feature is served by what, and what of it is built here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from natc.cli import output
from natc.operations import contents

if TYPE_CHECKING:
    from natc.checks.support import Cell


def show(*, json: bool) -> None:
    """Print the table of `natc.checks.support`, and the libraries of this machine, on stdout."""
    from natc.checks import support

    cells = support.table()
    installed = _installed(support.TARGETS)
    if json:
        output.print_json({"coverage": cells, "installed": installed})
        return
    by_feature: dict[str, list[Cell]] = {}
    for cell in cells:
        by_feature.setdefault(cell.feature, []).append(cell)
    table = output.table("what serves a call", "feature", *support.TARGETS, "operations")
    for feature, row in by_feature.items():
        words = [_word([cell for cell in row if cell.target == name]) for name in support.TARGETS]
        ran = dict.fromkeys(name for cell in row for name in cell.operations)
        table.add_row(feature, *words, " ".join(ran) or "-")
    console = output.stdout()
    console.print(table)
    console.print(
        "kernel: a kernel that natc compiles; composition: such kernels and operators of torch; "
        "reference: plain PyTorch, slow"
    )
    for name, found in installed.items():
        number = {0: "none", 1: "1 library"}.get(len(found), f"{len(found)} libraries")
        console.print(f"installed for {name}: {number}")
        for library in found:
            console.print(f"  {library['path']}: {', '.join(library['operations'])}")


def _word(cells: list[Cell]) -> str:
    """Return what serves all ranks, or what serves each."""
    words = [cell.served_by for cell in cells]
    if len(set(words)) == 1:
        return words[0]
    return ", ".join(f"{cell.rank}-D {cell.served_by}" for cell in cells)


def _installed(targets: tuple[str, ...]) -> dict[str, list[dict[str, Any]]]:
    from natc import runtime

    return {
        name: [
            {
                "path": library.path,
                "spec": library.spec.name,
                "operations": contents(library.spec, library.manifest.entries),
            }
            for library in runtime.kernels()
            if library.manifest.target.kind == name
        ]
        for name in targets
    }
