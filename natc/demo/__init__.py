"""The photograph, the pictures and the comparison of `natc quickstart`, as functions."""

from __future__ import annotations
