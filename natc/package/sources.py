"""natc's source files: which modules a module imports, and copies of them in other packages."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from natc.errors import NatcError

PACKAGE = Path(__file__).resolve().parents[1]
_ROOT = "natc"


def modules_of(*entries: str, package: Path = PACKAGE) -> dict[str, Path]:
    """Return the modules of natc that `entries` import, directly or not: name -> file.

    Follows every import statement, also in functions, except under `if TYPE_CHECKING`. The
    packages that hold a module are included, except `natc` itself, which imports its parts by
    name when they are first used. package: natc's folder.
    """
    files: dict[str, Path] = {}
    names = list(entries)
    while names:
        name = names.pop()
        if name == _ROOT or name in files:
            continue
        file = _file(name, package)
        if file is None:
            raise NatcError(f"module {name} has no file in {package}.")
        files[name] = file
        names.append(name.rpartition(".")[0])
        for statement in _imports(ast.parse(file.read_bytes())):
            names += _modules(statement, package)
    return dict(sorted(files.items()))


def relative(name: str, file: Path) -> bytes:
    """Return a module's source with its imports of natc made relative, to run in any package.

    name: of the module. Raises NatcError for an import that cannot be made relative.
    """
    depth = name.count(".") + (file.name == "__init__.py")
    source = file.read_text(encoding="utf-8")
    lines = source.splitlines(keepends=True)
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import) and any(_is_ours(alias.name) for alias in node.names):
            raise NatcError(f"{file}:{node.lineno}: write this import as `from natc import ...`.")
        if isinstance(node, ast.ImportFrom) and _is_ours(node.module):
            line, start = lines[node.lineno - 1], node.col_offset
            tail = line[start:].removeprefix(f"from {_ROOT}").removeprefix(".")
            lines[node.lineno - 1] = f"{line[:start]}from {'.' * depth}{tail}"
    return "".join(lines).encode()


def _imports(tree: ast.AST) -> Iterator[ast.ImportFrom | ast.Import]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            yield node
        yield from _imports(node)


def _modules(statement: ast.ImportFrom | ast.Import, package: Path) -> list[str]:
    """Return the modules of natc that a statement imports."""
    names = [alias.name for alias in statement.names]
    if isinstance(statement, ast.Import):
        return [name for name in names if _is_ours(name)]
    if not _is_ours(statement.module):
        return []
    # A name imported from a package is a module in it, or else a name in its __init__.py.
    parts = [f"{statement.module}.{name}" for name in names]
    return [str(statement.module), *(part for part in parts if _file(part, package))]


def _is_ours(name: str | None) -> bool:
    return name is not None and name.partition(".")[0] == _ROOT


def _file(name: str, package: Path) -> Path | None:
    path = package.joinpath(*name.split(".")[1:])
    candidates = (path / "__init__.py", path.with_name(f"{path.name}.py"))
    return next((file for file in candidates if file.is_file()), None)
