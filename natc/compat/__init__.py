"""Interfaces of other packages, served by natc.

`natc.compat.install()` makes `import natten` give the interface of a NATTEN release, so that a
program written for NATTEN runs on natc unchanged. `python -m natc.compat script.py` does the same
for a script that is not to be touched. Nothing here imports torch until `natten` is imported.
"""

from __future__ import annotations

from natc.compat.natten.install import install, install_from_environment, uninstall

__all__ = ["install", "install_from_environment", "uninstall"]
