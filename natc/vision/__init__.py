"""Training and evaluation of image classifiers; needs the extra `natc[vision]`."""

from __future__ import annotations
