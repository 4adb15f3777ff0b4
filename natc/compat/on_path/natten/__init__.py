"""Found where the directory above is on the path: processes that `python -m natc.compat` starts.

It puts natc's stand-in in its own place, or, where NATC_AS_NATTEN is off, NATTEN itself. The
directory is on no path unless put there, so that natc never hides NATTEN by itself.
"""

import importlib
import sys
from pathlib import Path

# This module, half imported, is not the one to stay.
sys.modules.pop(__name__)
_directory = str(Path(__file__).parents[1])
sys.path[:] = [entry for entry in sys.path if entry != _directory]
importlib.import_module("natc.compat").install_from_environment()
importlib.import_module(__name__)
