"""Interfaces of other packages, served by natc.

`natc.compat.install()` makes `import natten` import natc's stand-in, so that a program written
for NATTEN runs on natc unchanged. `python -m natc.compat script.py` does it without a change to
the script. `natc.compat.get_kernel` replaces the NATTEN that programs load from the Hugging Face
hub. Importing this module does not import torch.
"""

from __future__ import annotations

from natc.compat.natten.hub import get_kernel
from natc.compat.natten.install import install, install_from_environment, uninstall

__all__ = ["get_kernel", "install", "install_from_environment", "uninstall"]
