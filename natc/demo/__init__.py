"""What `natc quickstart` and `natc bench` show, as functions: a photograph, pictures, times."""

from __future__ import annotations
