"""The published networks: NAT, DiNAT, DiNAT_s and isotropic ones, in all their sizes.

Each function returns a network with random weights; `natc.models.load` adds published ones.
Depths, widths, MLP ratios, dilations, drop path and layer scale are as published for
classification. `options` are arguments of `NAT` or `Isotropic` that replace these,
such as `num_classes`, `in_chans`, `kernel_size` and `drop_path_rate`.
"""

from __future__ import annotations

from typing import Any, TypeVar

from natc.models.isotropic import GlobalAttention2D, Isotropic
from natc.models.nat import NAT, DiNATs
from natc.models.variant import variant

_N = TypeVar("_N", NAT, DiNATs)
_NAT = "https://shi-labs.com/projects/nat/checkpoints/CLS"
_DINAT = "https://shi-labs.com/projects/dinat/checkpoints"
_1K = f"{_DINAT}/imagenet1k"
_22K = f"{_DINAT}/imagenet22k"
_ISOTROPIC = f"{_DINAT}/isotropic"

_MINI, _TINY, _SMALL, _BASE, _LARGE = (
    {"embed_dim": 64, "depths": (3, 4, 6, 5), "num_heads": (2, 4, 8, 16), "mlp_ratio": 3},
    {"embed_dim": 64, "depths": (3, 4, 18, 5), "num_heads": (2, 4, 8, 16), "mlp_ratio": 3},
    {"embed_dim": 96, "depths": (3, 4, 18, 5), "num_heads": (3, 6, 12, 24), "mlp_ratio": 2},
    {"embed_dim": 128, "depths": (3, 4, 18, 5), "num_heads": (4, 8, 16, 32), "mlp_ratio": 2},
    {"embed_dim": 192, "depths": (3, 4, 18, 5), "num_heads": (6, 12, 24, 48), "mlp_ratio": 2},
)
_S_TINY, _S_SMALL, _S_BASE, _S_LARGE = (
    {"embed_dim": 96, "depths": (2, 2, 6, 2), "num_heads": (3, 6, 12, 24), "mlp_ratio": 4},
    {"embed_dim": 96, "depths": (2, 2, 18, 2), "num_heads": (3, 6, 12, 24), "mlp_ratio": 4},
    {"embed_dim": 128, "depths": (2, 2, 18, 2), "num_heads": (4, 8, 16, 32), "mlp_ratio": 4},
    {"embed_dim": 192, "depths": (2, 2, 18, 2), "num_heads": (6, 12, 24, 48), "mlp_ratio": 4},
)
_ISO_SMALL = {"embed_dim": 384, "depth": 12, "num_heads": 12, "drop_path_rate": 0.1}
_ISO_BASE = {"embed_dim": 768, "depth": 12, "num_heads": 24, "drop_path_rate": 0.4}


def _alternating(depths: tuple[int, ...], *dilations: int) -> list[list[int]]:
    """Return a dilation for each block: 1 and the level's in turn; 1 at the last level."""
    return [
        [dilation if block % 2 else 1 for block in range(depth)]
        for depth, dilation in zip(depths, (*dilations, 1), strict=True)
    ]


def _nat(size: dict[str, Any], options: dict[str, Any], **settings: Any) -> NAT:
    return NAT(**{**size, **settings, **options})


def _dilated(
    network: type[_N],
    size: dict[str, Any],
    options: dict[str, Any],
    *dilations: int,
    **settings: Any,
) -> _N:
    alternating = _alternating(size["depths"], *(dilations or (8, 4, 2)))
    return network(**{**size, "dilations": alternating, **settings, **options})


@variant(in1k=f"{_NAT}/nat_mini.pth")
def nat_mini(**options: Any) -> NAT:
    """Return NAT-Mini: 19,984,174 parameters, 2.7 G multiply-adds at 224."""
    return _nat(_MINI, options, drop_path_rate=0.2)


@variant(in1k=f"{_NAT}/nat_tiny.pth")
def nat_tiny(**options: Any) -> NAT:
    """Return NAT-Tiny: 27,901,582 parameters, 4.3 G multiply-adds at 224."""
    return _nat(_TINY, options, drop_path_rate=0.2)


@variant(in1k=f"{_NAT}/nat_small.pth")
def nat_small(**options: Any) -> NAT:
    """Return NAT-Small: 50,743,297 parameters, 7.8 G multiply-adds at 224."""
    return _nat(_SMALL, options, drop_path_rate=0.3, layer_scale=1e-5)


@variant(in1k=f"{_NAT}/nat_base.pth")
def nat_base(**options: Any) -> NAT:
    """Return NAT-Base: 89,769,652 parameters, 13.7 G multiply-adds at 224."""
    return _nat(_BASE, options, drop_path_rate=0.5, layer_scale=1e-5)


@variant(in1k=f"{_1K}/dinat_mini_in1k_224.pth")
def dinat_mini(**options: Any) -> NAT:
    """Return DiNAT-Mini: NAT-Mini with dilation in every other block."""
    return _dilated(NAT, _MINI, options, drop_path_rate=0.2)


@variant(in1k=f"{_1K}/dinat_tiny_in1k_224.pth")
def dinat_tiny(**options: Any) -> NAT:
    """Return DiNAT-Tiny: NAT-Tiny with dilation in every other block."""
    return _dilated(NAT, _TINY, options, drop_path_rate=0.2)


@variant(in1k=f"{_1K}/dinat_small_in1k_224.pth")
def dinat_small(**options: Any) -> NAT:
    """Return DiNAT-Small: 50,719,681 parameters; no layer scale."""
    return _dilated(NAT, _SMALL, options, drop_path_rate=0.3)


@variant(in1k=f"{_1K}/dinat_base_in1k_224.pth")
def dinat_base(**options: Any) -> NAT:
    """Return DiNAT-Base: NAT-Base with dilation in every other block."""
    return _dilated(NAT, _BASE, options, drop_path_rate=0.5, layer_scale=1e-5)


@variant(
    in22k_in1k=f"{_1K}/dinat_large_in22k_in1k_224.pth", in22k=f"{_22K}/dinat_large_in22k_224.pth"
)
def dinat_large(**options: Any) -> NAT:
    """Return DiNAT-Large: 200,943,514 parameters, 30.6 G multiply-adds at 224."""
    return _dilated(NAT, _LARGE, options, drop_path_rate=0.35)


@variant(img_size=384, in22k_in1k=f"{_1K}/dinat_large_in22k_in1k_384.pth")
def dinat_large_384(**options: Any) -> NAT:
    """Return DiNAT-Large for images of 384: dilations 13, 6 and 3."""
    return _dilated(NAT, _LARGE, options, 13, 6, 3, drop_path_rate=0.35)


@variant(img_size=384, in22k_in1k=f"{_1K}/dinat_large_in22k_in1k_384_11x11.pth")
def dinat_large_384_11x11(**options: Any) -> NAT:
    """Return DiNAT-Large for images of 384 with windows of 11: dilations 8, 4 and 2."""
    return _dilated(NAT, _LARGE, options, kernel_size=11, drop_path_rate=0.35)


@variant(in1k=f"{_1K}/dinat_s_tiny_in1k_224.pth")
def dinat_s_tiny(**options: Any) -> DiNATs:
    """Return DiNAT_s-Tiny: 28,288,354 parameters, 4.5 G multiply-adds at 224."""
    return _dilated(DiNATs, _S_TINY, options, drop_path_rate=0.2)


@variant(in1k=f"{_1K}/dinat_s_small_in1k_224.pth")
def dinat_s_small(**options: Any) -> DiNATs:
    """Return DiNAT_s-Small: 49,606,258 parameters, 8.7 G multiply-adds at 224."""
    return _dilated(DiNATs, _S_SMALL, options, drop_path_rate=0.3)


@variant(in1k=f"{_1K}/dinat_s_base_in1k_224.pth")
def dinat_s_base(**options: Any) -> DiNATs:
    """Return DiNAT_s-Base: 87,768,224 parameters, 15.4 G multiply-adds at 224."""
    return _dilated(DiNATs, _S_BASE, options, drop_path_rate=0.5)


@variant(
    in22k_in1k=f"{_1K}/dinat_s_large_in1k_224.pth", in22k=f"{_22K}/dinat_s_large_in22k_224.pth"
)
def dinat_s_large(**options: Any) -> DiNATs:
    """Return DiNAT_s-Large: 196,532,476 parameters, 34.5 G multiply-adds at 224."""
    return _dilated(DiNATs, _S_LARGE, options, drop_path_rate=0.35)


@variant(img_size=384, in22k_in1k=f"{_1K}/dinat_s_large_in1k_384.pth")
def dinat_s_large_384(**options: Any) -> DiNATs:
    """Return DiNAT_s-Large for images of 384: dilations 13, 6 and 3."""
    return _dilated(DiNATs, _S_LARGE, options, 13, 6, 3, drop_path_rate=0.35)


@variant(in1k=f"{_ISOTROPIC}/nat_isotropic_small_in1k_224.pth")
def nat_isotropic_small(**options: Any) -> Isotropic:
    """Return the isotropic NAT, Small: 21,999,736 parameters, 4.3 G multiply-adds at 224."""
    return Isotropic(**{**_ISO_SMALL, **options})


@variant(in1k=f"{_ISOTROPIC}/nat_isotropic_base_in1k_224.pth")
def nat_isotropic_base(**options: Any) -> Isotropic:
    """Return the isotropic NAT, Base: 86,465,800 parameters, 16.9 G multiply-adds at 224."""
    return Isotropic(**{**_ISO_BASE, **options})


@variant(in1k=f"{_ISOTROPIC}/dinat_isotropic_small_in1k_224.pth")
def dinat_isotropic_small(**options: Any) -> Isotropic:
    """Return the isotropic DiNAT, Small: dilation 2 in every other block."""
    return Isotropic(**{**_ISO_SMALL, "dilations": [1, 2] * 6, **options})


@variant(in1k=f"{_ISOTROPIC}/dinat_isotropic_base_in1k_224.pth")
def dinat_isotropic_base(**options: Any) -> Isotropic:
    """Return the isotropic DiNAT, Base: dilation 2 in every other block."""
    return Isotropic(**{**_ISO_BASE, "dilations": [1, 2] * 6, **options})


@variant(in1k=f"{_ISOTROPIC}/vitrpb_small_in1k_224.pth")
def vitrpb_small(**options: Any) -> Isotropic:
    """Return ViT-Small with relative positional bias: each token attends to all 14x14."""
    return Isotropic(**{**_ISO_SMALL, **_GLOBAL, **options})


@variant(in1k=f"{_ISOTROPIC}/vitrpb_base_in1k_224.pth")
def vitrpb_base(**options: Any) -> Isotropic:
    """Return ViT-Base with relative positional bias: each token attends to all 14x14."""
    return Isotropic(**{**_ISO_BASE, **_GLOBAL, **options})


_GLOBAL = {"kernel_size": 14, "attention": GlobalAttention2D}
