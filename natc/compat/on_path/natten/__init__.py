"""Replaces itself by natc's stand-in, or by NATTEN itself if NATC_AS_NATTEN is off.

`python -m natc.compat` puts the directory above on the path of the processes that it starts.
Nothing else does, so that an installed NATTEN is hidden only when this was asked for.
"""

import importlib
import sys
from pathlib import Path

# The import below must load another module under this name.
sys.modules.pop(__name__)
_directory = str(Path(__file__).parents[1])
sys.path[:] = [entry for entry in sys.path if entry != _directory]
importlib.import_module("natc.compat").install_from_environment()
importlib.import_module(__name__)
