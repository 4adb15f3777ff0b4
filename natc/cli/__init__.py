"""The command line: one file a verb; heavy imports happen inside the commands."""

from __future__ import annotations
