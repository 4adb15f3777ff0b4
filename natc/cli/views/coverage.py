"""`natc doctor --coverage`: how natc supports each feature, and what of it is installed here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from natc.cli import output
from natc.operations import contents

if TYPE_CHECKING:
    from natc.checks.support import Cell

_LEGEND = """
supported: what natc can compile. kernel: kernels alone; composition: kernels and operators of
  torch; reference: no kernel, plain PyTorch, slow; refused: the call raises an error.
installed: ranks for which this machine has, and runs, such kernels of some kernel_size."""


def show(*, json: bool) -> None:
    """Print the table of `natc.checks.support`, and the libraries of this machine, on stdout."""
    from natc.checks import support

    cells = support.table()
    libraries = _libraries(support.TARGETS)
    if json:
        output.print_json({"coverage": cells, "libraries": libraries})
        return
    rows: dict[str, dict[str, list[Cell]]] = {}
    for cell in cells:
        rows.setdefault(cell.feature, {}).setdefault(cell.target, []).append(cell)
    table = output.table(
        "",
        "feature",
        *(f"supported\n{target}" for target in support.TARGETS),
        *(f"installed\n{target}" for target in support.TARGETS),
    )
    for feature, row in rows.items():
        columns = [row[target] for target in support.TARGETS]
        table.add_row(feature, *map(_supported, columns), *map(_installed, columns))
    console = output.stdout()
    console.print(table)
    console.print(_LEGEND)
    for target, here in libraries.items():
        number = {0: "none", 1: "1 library"}.get(len(here), f"{len(here)} libraries")
        console.print(f"for {target}: {number}")
        for library in here:
            console.print(f"  {library['path']}: {', '.join(library['operations'])}")


def _supported(cells: list[Cell]) -> str:
    """Return the word for all ranks, or a word for each."""
    words = [cell.supported for cell in cells]
    if len(set(words)) == 1:
        return words[0]
    return ", ".join(f"{cell.rank}-D {cell.supported}" for cell in cells)


def _installed(cells: list[Cell]) -> str:
    """Return the ranks that are installed, or "-"."""
    return " ".join(f"{cell.rank}-D" for cell in cells if cell.installed) or "-"


def _libraries(targets: tuple[str, ...]) -> dict[str, list[dict[str, Any]]]:
    from natc import runtime

    return {
        target: [
            {
                "path": library.path,
                "spec": library.spec.name,
                "operations": contents(library.spec, library.manifest.entries),
            }
            for library in runtime.kernels()
            if library.manifest.target.kind == target
        ]
        for target in targets
    }
