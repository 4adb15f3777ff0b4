"""NAT (Hassani et al., CVPR 2023), DiNAT and DiNAT_s (Hassani and Shi, 2022)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from natc.errors import ArgumentError
from natc.models.layers import (
    NORM_EPS,
    ConvDownsampler,
    ConvTokenizer,
    NATBlock,
    PatchEmbedding,
    PatchMerging,
)
from natc.models.network import Network, PerAxis, run_block


class NATLevel(nn.Module):
    """The blocks of one resolution, and the downsampler to the next (None at the last)."""

    def __init__(self, blocks: list[NATBlock], downsample: nn.Module | None) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.downsample = downsample
        self.grad_checkpointing = False

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the feature map `[batch, height, width, dim]` and the next level's input."""
        for block in self.blocks:
            x = run_block(block, x, self.grad_checkpointing)
        return x, x if self.downsample is None else self.downsample(x)


class NAT(Network):
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
        drop_rate: dropout before the classifier.
        layer_scale: start value of the blocks' `gamma1` and `gamma2`; None means none.
        qkv_bias: bias in the query, key and value projections.
        rel_pos_bias: learned relative positional bias in every attention.
        pad_small_maps: see `natc.nn.NeighborhoodAttention2D`. True is how the published models
            behave; it makes no difference where every map is at least
            `kernel_size * dilation` on each axis, such as 224 x 224 images with a window of 7.
        global_pool: "avg" averages the last map before the classifier; "" does not.
        map_norms: a LayerNorm `norm0`, `norm1`, ... for each level's map instead of the final
            norm, as backbones for detection and segmentation have; needs `num_classes=0`.

    Raises:
        ArgumentError: a sequence of the wrong length or a value that is not allowed.
    """

    final_reduction = 32
    first_conv = "patch_embed.proj.0"
    # A subclass has other ones.
    _levels = "levels"
    _stem: type[nn.Module] = ConvTokenizer
    _downsampler: type[nn.Module] = ConvDownsampler

    def __init__(
        self,
        embed_dim: int,
        depths: Sequence[int],
        num_heads: Sequence[int],
        *,
        mlp_ratio: float,
        num_classes: int = 1000,
        in_chans: int = 3,
        kernel_size: PerAxis = 7,
        dilations: Sequence[Sequence[PerAxis]] | None = None,
        drop_path_rate: float = 0.0,
        drop_rate: float = 0.0,
        layer_scale: float | None = None,
        qkv_bias: bool = True,
        rel_pos_bias: bool = True,
        pad_small_maps: bool = True,
        global_pool: str = "avg",
        map_norms: bool = False,
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
        if map_norms and num_classes:
            raise ArgumentError(f"map_norms needs num_classes=0, not {num_classes}.")
        self.patch_embed = self._stem(in_chans, embed_dim)
        total = sum(depths)
        rates = iter(drop_path_rate * index / max(total - 1, 1) for index in range(total))
        levels = nn.ModuleList()
        self.feature_info = []
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
            levels.append(NATLevel(blocks, None if last else self._downsampler(dim)))
            self.feature_info.append(
                {"num_chs": dim, "reduction": 4 * 2**index, "module": f"{self._levels}.{index}"}
            )
        self.add_module(self._levels, levels)
        self._finish(
            num_classes=num_classes,
            global_pool=global_pool,
            drop_rate=drop_rate,
            num_features=embed_dim * 2 ** (len(depths) - 1),
        )
        self.map_norms = map_norms
        if map_norms:
            self.norm = nn.Identity()
            for index, info in enumerate(self.feature_info):
                self.add_module(f"norm{index}", nn.LayerNorm(info["num_chs"], eps=NORM_EPS))

    @property
    def stages(self) -> nn.ModuleList:
        """The levels."""
        return self._modules[self._levels]  # type: ignore[return-value]

    def run_stage(self, stage: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the level's map `[batch, height, width, dim]` and the next level's input."""
        return stage(x)

    def _map_of(self, feature_map: Tensor, index: int, norm: bool) -> Tensor:
        if self.map_norms:
            return self._modules[f"norm{index}"](feature_map)  # type: ignore[misc]
        return super()._map_of(feature_map, index, norm)

    def _end_at_last_stage(self) -> None:
        self.stages[-1].downsample = None  # type: ignore[assignment]

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Return the patterns by which timm groups parameters: a group is a block or a level."""
        level = rf"^{self._levels}\.(\d+)"
        fine = [
            (rf"{level}\.blocks\.(\d+)", None),
            # After the level's blocks.
            (rf"{level}\.downsample", (99998,)),
        ]
        return {
            "stem": r"^patch_embed",
            "blocks": [*([(level, None)] if coarse else fine), (r"^norm", (99999,))],
        }


class DiNATs(NAT):
    """DiNAT_s: the levels of a Swin Transformer, with (dilated) neighborhood attention.

    A NAT whose stem is a linear layer on patches of 4x4, and whose downsamplers are linear layers
    on patches of 2x2. Arguments as for `NAT`.
    """

    first_conv = "patch_embed.proj"
    _levels = "layers"
    _stem = PatchEmbedding
    _downsampler = PatchMerging
