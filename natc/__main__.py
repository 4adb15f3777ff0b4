"""`python -m natc` is the `natc` command."""

from __future__ import annotations

from natc.cli.main import main

main()
