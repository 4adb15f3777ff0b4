"""Isotropic networks (Hassani and Shi, 2022): all blocks work on one map, as in a ViT."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from natc.errors import ArgumentError
from natc.models.layers import NATBlock, PatchEmbedding
from natc.models.network import Network, PerAxis, run_block
from natc.nn import NeighborhoodAttention2D


class Isotropic(Network):
    """An image classifier whose blocks all have the same width and the same map.

    The map's height and width are `ceil(size / patch_size)`; every block gives a feature map.

    Args:
        embed_dim: channels.
        depth: number of blocks.
        num_heads: heads of each block.
        patch_size: height and width of the patches that become tokens.
        mlp_ratio: hidden width of each MLP, as a multiple of `embed_dim`.
        num_classes: length of the logits; 0 returns the pooled features instead.
        in_chans: channels of the image.
        kernel_size: window height and width in keys, at least 1; one int or a pair.
        dilations: the dilation of each block; None means 1 (NAT).
        drop_path_rate: drop path of the last block, in [0, 1); earlier ones rise linearly
            from 0.
        drop_rate: dropout before the classifier.
        qkv_bias: bias in the query, key and value projections.
        rel_pos_bias: learned relative positional bias in every attention.
        pad_small_maps: see `natc.nn.NeighborhoodAttention2D`.
        global_pool: "avg" averages the last map before the classifier; "" does not.
        attention: class of the blocks' attention.

    Raises:
        ArgumentError: a sequence of the wrong length or a value that is not allowed.
    """

    final_reduction = 16
    first_conv = "patch_embed.proj"

    def __init__(
        self,
        embed_dim: int,
        depth: int,
        num_heads: int,
        *,
        patch_size: int = 16,
        mlp_ratio: float = 4.0,
        num_classes: int = 1000,
        in_chans: int = 3,
        kernel_size: PerAxis = 7,
        dilations: Sequence[PerAxis] | None = None,
        drop_path_rate: float = 0.0,
        drop_rate: float = 0.0,
        qkv_bias: bool = True,
        rel_pos_bias: bool = True,
        pad_small_maps: bool = True,
        global_pool: str = "avg",
        attention: type[NeighborhoodAttention2D] = NeighborhoodAttention2D,
    ) -> None:
        super().__init__()
        if depth < 1:
            raise ArgumentError(f"depth must be at least 1, not {depth}.")
        if dilations is None:
            dilations = [1] * depth
        if len(dilations) != depth:
            raise ArgumentError(f"dilations must hold {depth} dilations, not {dilations!r}.")
        self.patch_embed = PatchEmbedding(in_chans, embed_dim, patch_size)
        self.layers = nn.ModuleList(
            NATBlock(
                embed_dim,
                num_heads,
                kernel_size=kernel_size,
                dilation=dilation,
                mlp_ratio=mlp_ratio,
                qkv_bias=qkv_bias,
                rel_pos_bias=rel_pos_bias,
                drop_path=drop_path_rate * index / max(depth - 1, 1),
                layer_scale=None,
                pad_small_maps=pad_small_maps,
                attention=attention,
            )
            for index, dilation in enumerate(dilations)
        )
        self.feature_info = [
            {"num_chs": embed_dim, "reduction": patch_size, "module": f"layers.{index}"}
            for index in range(depth)
        ]
        self._finish(
            num_classes=num_classes,
            global_pool=global_pool,
            drop_rate=drop_rate,
            num_features=embed_dim,
        )

    @property
    def stages(self) -> nn.ModuleList:
        """The blocks."""
        return self.layers

    def run_stage(self, stage: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the block's map `[batch, height, width, embed_dim]`, twice."""
        x = run_block(stage, x, self.grad_checkpointing)
        return x, x

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Return the patterns by which timm groups parameters: a group is a block."""
        return {
            "stem": r"^patch_embed",
            "blocks": [(r"^layers\.(\d+)", None), (r"^norm", (99999,))],
        }


class GlobalAttention2D(NeighborhoodAttention2D):
    """Attention of all tokens to all: a window as large as the map that it was made for.

    The published networks (ViT with relative positional bias) also keep the index of each pair
    of tokens in the bias. It is a buffer here, so that their state dicts load; the kernels compute
    it themselves. On larger maps this is neighborhood attention.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        rows, columns = self.kernel_size
        row = torch.arange(rows).repeat_interleave(columns)
        column = torch.arange(columns).repeat(rows)
        row_offsets = row[None, :] - row[:, None] + rows - 1
        column_offsets = column[None, :] - column[:, None] + columns - 1
        self.register_buffer(
            "relative_position_index", row_offsets * (2 * columns - 1) + column_offsets
        )
