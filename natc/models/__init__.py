"""Models whose attention runs on natc's kernels."""

from __future__ import annotations

from natc.models.checkpoint import convert, load, save
from natc.models.isotropic import Isotropic
from natc.models.nat import NAT, DiNATs
from natc.models.network import Network
from natc.models.variant import VARIANTS, Variant
from natc.models.variants import (
    dinat_base,
    dinat_isotropic_base,
    dinat_isotropic_small,
    dinat_large,
    dinat_large_384,
    dinat_large_384_11x11,
    dinat_mini,
    dinat_s_base,
    dinat_s_large,
    dinat_s_large_384,
    dinat_s_small,
    dinat_s_tiny,
    dinat_small,
    dinat_tiny,
    nat_base,
    nat_isotropic_base,
    nat_isotropic_small,
    nat_mini,
    nat_small,
    nat_tiny,
    vitrpb_base,
    vitrpb_small,
)
from natc.models.when_imported import when_imported


def _register_with_timm() -> None:
    from natc.models import timm_models  # noqa: F401


when_imported("timm", _register_with_timm)

__all__ = [
    "NAT",
    "VARIANTS",
    "DiNATs",
    "Isotropic",
    "Network",
    "Variant",
    "convert",
    "dinat_base",
    "dinat_isotropic_base",
    "dinat_isotropic_small",
    "dinat_large",
    "dinat_large_384",
    "dinat_large_384_11x11",
    "dinat_mini",
    "dinat_s_base",
    "dinat_s_large",
    "dinat_s_large_384",
    "dinat_s_small",
    "dinat_s_tiny",
    "dinat_small",
    "dinat_tiny",
    "load",
    "nat_base",
    "nat_isotropic_base",
    "nat_isotropic_small",
    "nat_mini",
    "nat_small",
    "nat_tiny",
    "save",
    "vitrpb_base",
    "vitrpb_small",
]
