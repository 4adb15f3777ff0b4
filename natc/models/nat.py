"""NAT, the Neighborhood Attention Transformer (Hassani et al., CVPR 2023), and its sizes.

Depths, widths, MLP ratios, drop path and layer scale are as published for the classification
models; their state dicts load with `strict=True`.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from natc.errors import ArgumentError
from natc.models.layers import NORM_EPS, ConvDownsampler, ConvTokenizer, NATBlock


class NATLevel(nn.Module):
    """The blocks of one resolution, and the downsampler to the next (None at the last)."""

    def __init__(self, blocks: list[NATBlock], downsample: ConvDownsampler | None) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.downsample = downsample

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the feature map `[batch, height, width, dim]` and the next level's input."""
        for block in self.blocks:
            x = block(x)
        return x, x if self.downsample is None else self.downsample(x)


class NAT(nn.Module):
    """A four-level image classifier whose attention is neighborhood attention.

    Level `i` works on maps of height and width `ceil(size / 2**(i+2))` with
    `embed_dim * 2**i` channels. New weights are random: linear layers and `rpb` from a
    truncated normal of standard deviation 0.02, LayerNorm at 1 and 0, convolutions as torch
    initializes them.

    Args:
        embed_dim: channels of the first level; even.
        depths: number of blocks of each level.
        num_heads: number of heads of each level.
        mlp_ratio: hidden width of each MLP, as a multiple of the level's channels.
        num_classes: length of the logits; 0 returns the pooled features instead.
        in_chans: channels of the image.
        kernel_size: window height and width in keys, at least 1; one int or a pair.
        dilations: for each level, the dilation of each of its blocks; None means 1 (NAT),
            other values make it a DiNAT.
        drop_path_rate: drop path of the last block, in [0, 1); earlier ones rise linearly
            from 0.
        layer_scale: start value of the blocks' `gamma1` and `gamma2`; None means none.
        qkv_bias: bias in the query, key and value projections.
        rel_pos_bias: learned relative positional bias in every attention.
        pad_small_maps: see `natc.nn.NeighborhoodAttention2D`. True is how the published models
            behave; it makes no difference where every map is at least
            `kernel_size * dilation` on each axis, such as 224 x 224 images with a window of 7.

    Raises:
        ArgumentError: a sequence of the wrong length or a value that is not allowed.
    """

    def __init__(
        self,
        embed_dim: int,
        depths: Sequence[int],
        num_heads: Sequence[int],
        *,
        mlp_ratio: float,
        num_classes: int = 1000,
        in_chans: int = 3,
        kernel_size: int | tuple[int, int] = 7,
        dilations: Sequence[Sequence[int | tuple[int, int]]] | None = None,
        drop_path_rate: float = 0.0,
        layer_scale: float | None = None,
        qkv_bias: bool = True,
        rel_pos_bias: bool = True,
        pad_small_maps: bool = True,
    ) -> None:
        super().__init__()
        if embed_dim < 2 or embed_dim % 2:
            raise ArgumentError(f"embed_dim must be even and positive, not {embed_dim}.")
        if not depths or len(depths) != len(num_heads):
            raise ArgumentError(
                f"depths and num_heads must name the same levels, not {list(depths)} and "
                f"{list(num_heads)}."
            )
        if dilations is None:
            dilations = [[1] * depth for depth in depths]
        if [len(level) for level in dilations] != list(depths):
            raise ArgumentError(
                f"dilations must hold one dilation a block, in lists of lengths {list(depths)}, "
                f"not {dilations!r}."
            )
        if num_classes < 0:
            raise ArgumentError(f"num_classes must be at least 0, not {num_classes}.")
        self.num_classes = num_classes
        self.num_features = embed_dim * 2 ** (len(depths) - 1)
        self.patch_embed = ConvTokenizer(in_chans, embed_dim)
        total = sum(depths)
        rates = iter(drop_path_rate * index / max(total - 1, 1) for index in range(total))
        self.levels = nn.ModuleList()
        for index, (level_dilations, heads) in enumerate(zip(dilations, num_heads, strict=True)):
            dim = embed_dim * 2**index
            blocks = [
                NATBlock(
                    dim,
                    heads,
                    kernel_size=kernel_size,
                    dilation=dilation,
                    mlp_ratio=mlp_ratio,
                    qkv_bias=qkv_bias,
                    rel_pos_bias=rel_pos_bias,
                    drop_path=next(rates),
                    layer_scale=layer_scale,
                    pad_small_maps=pad_small_maps,
                )
                for dilation in level_dilations
            ]
            last = index == len(depths) - 1
            self.levels.append(NATLevel(blocks, None if last else ConvDownsampler(dim)))
        self.norm = nn.LayerNorm(self.num_features, eps=NORM_EPS)
        self.head = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()
        self.apply(_initialize)

    def init_weights(self) -> None:
        """Initialize all weights at random, as a new network from the same seed has them.

        A network created on device meta needs this after `to_empty`.
        """
        for module in self.modules():
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()  # type: ignore[operator]
        self.apply(_initialize)

    def forward_features(self, image: Tensor) -> list[Tensor]:
        """Return each level's feature map `[batch, height, width, channels]`, finest first.

        `image` is `[batch, in_chans, height, width]`. A map is taken after the level's last
        block, before its downsampler and before any final normalization.
        """
        x = self.patch_embed(image)
        maps = []
        for level in self.levels:
            feature_map, x = level(x)
            maps.append(feature_map)
        return maps

    def forward_head(self, feature_map: Tensor) -> Tensor:
        """Return logits `[batch, num_classes]` of the last map `[batch, h, w, channels]`."""
        return self.head(self.norm(feature_map).mean(dim=(1, 2)))

    def forward(self, image: Tensor) -> Tensor:
        """Return logits `[batch, num_classes]` for `image` `[batch, in_chans, height, width]`."""
        return self.forward_head(self.forward_features(image)[-1])


def _initialize(module: nn.Module) -> None:
    """Initialize a linear layer at random; leave other modules alone."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def nat_mini(
    *,
    num_classes: int = 1000,
    in_chans: int = 3,
    kernel_size: int | tuple[int, int] = 7,
    drop_path_rate: float = 0.2,
) -> NAT:
    """Return NAT-Mini with random weights: 19,984,174 parameters, 2.7 G multiply-adds at 224."""
    return NAT(
        64,
        (3, 4, 6, 5),
        (2, 4, 8, 16),
        mlp_ratio=3,
        num_classes=num_classes,
        in_chans=in_chans,
        kernel_size=kernel_size,
        drop_path_rate=drop_path_rate,
    )


def nat_tiny(
    *,
    num_classes: int = 1000,
    in_chans: int = 3,
    kernel_size: int | tuple[int, int] = 7,
    drop_path_rate: float = 0.2,
) -> NAT:
    """Return NAT-Tiny with random weights: 27,901,582 parameters, 4.3 G multiply-adds at 224."""
    return NAT(
        64,
        (3, 4, 18, 5),
        (2, 4, 8, 16),
        mlp_ratio=3,
        num_classes=num_classes,
        in_chans=in_chans,
        kernel_size=kernel_size,
        drop_path_rate=drop_path_rate,
    )


def nat_small(
    *,
    num_classes: int = 1000,
    in_chans: int = 3,
    kernel_size: int | tuple[int, int] = 7,
    drop_path_rate: float = 0.3,
) -> NAT:
    """Return NAT-Small with random weights: 50,743,297 parameters, 7.8 G multiply-adds at 224."""
    return NAT(
        96,
        (3, 4, 18, 5),
        (3, 6, 12, 24),
        mlp_ratio=2,
        num_classes=num_classes,
        in_chans=in_chans,
        kernel_size=kernel_size,
        drop_path_rate=drop_path_rate,
        layer_scale=1e-5,
    )


def nat_base(
    *,
    num_classes: int = 1000,
    in_chans: int = 3,
    kernel_size: int | tuple[int, int] = 7,
    drop_path_rate: float = 0.5,
) -> NAT:
    """Return NAT-Base with random weights: 89,769,652 parameters, 13.7 G multiply-adds at 224."""
    return NAT(
        128,
        (3, 4, 18, 5),
        (4, 8, 16, 32),
        mlp_ratio=2,
        num_classes=num_classes,
        in_chans=in_chans,
        kernel_size=kernel_size,
        drop_path_rate=drop_path_rate,
        layer_scale=1e-5,
    )
