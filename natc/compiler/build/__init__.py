"""From a spec and a schedule to a library that needs no compiler to run."""

from natc.compiler.build.library import build_library

__all__ = ["build_library"]
