"""Says whether other programs keep this machine busy."""

from __future__ import annotations

import os

from natc.host import detect

# A machine is busy if other programs want more than this share of its cores.
_BUSY = 0.5


def load_note() -> list[str]:
    """Return a sentence if this machine is busy, before anything of ours runs."""
    load, cores = os.getloadavg()[0], detect.cores()
    if load <= _BUSY * cores:
        return []
    return [
        f"this machine is busy: its load average is {load:.1f}, and it has {cores} cores. Times "
        "will be noisy, so a search needs longer, and can prove only large gains."
    ]
