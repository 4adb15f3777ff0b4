"""From a spec and a schedule to a library that needs no compiler to run."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from natc.compiler.build.library import build_library

__all__ = ["build_library"]


def __getattr__(name: str) -> Any:
    # Imported late: modules of this package that only run a C compiler do not need TVM.
    if name == "build_library":
        from natc.compiler.build.library import build_library

        return build_library
    raise AttributeError(f"module 'natc.compiler.build' has no attribute {name!r}")
