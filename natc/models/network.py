"""What all networks share: the interface of timm's backbones, in plain PyTorch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from natc.errors import ArgumentError
from natc.models.layers import NORM_EPS, NATBlock
from natc.models.windows import set_kernel_size

PerAxis = int | tuple[int, int]


class Features(NamedTuple):
    """What `Network.forward_intermediates` returns."""

    final: Tensor
    """The last map, normalized: `[batch, height, width, channels]`, for `forward_head`."""
    maps: list[Tensor]
    """The maps asked for."""


class Network(nn.Module):
    """A stem, stages of blocks that each give a map, a norm and a linear classifier.

    A subclass sets the attributes below and implements `run_stage`. Maps are channels last.
    """

    output_fmt = "NHWC"
    final_reduction: int
    """How many times as high as the last map the image is."""
    first_conv: str
    """Name of the convolution that sees the image."""

    patch_embed: nn.Module
    norm: nn.Module
    head: nn.Module
    head_drop: nn.Module
    num_classes: int
    num_features: int
    head_hidden_size: int
    global_pool: str
    grad_checkpointing: bool
    feature_info: list[dict[str, Any]]
    checkpoint: Any = None
    """The `LoadReport` of `natc.models.load`; None for random weights."""

    @property
    def stages(self) -> nn.ModuleList:
        """The stages, in order; `feature_info` describes their maps."""
        raise NotImplementedError

    def run_stage(self, stage: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the stage's map of `x`, and the next stage's input."""
        raise NotImplementedError

    def _finish(
        self, *, num_classes: int, global_pool: str, drop_rate: float, num_features: int
    ) -> None:
        """Add norm and head, and initialize all linear layers; the end of each constructor."""
        self.num_features = self.head_hidden_size = num_features
        self.num_classes = num_classes
        self.grad_checkpointing = False
        self.global_pool = _checked_pool(global_pool)
        self.norm = nn.LayerNorm(num_features, eps=NORM_EPS)
        self.head_drop = nn.Dropout(drop_rate)
        self.head = _head(num_features, num_classes)
        self.apply(_initialize)

    def init_weights(self) -> None:
        """Initialize all weights at random, as a new network from the same seed has them.

        A network created on device meta needs this after `to_empty`.
        """
        for module in self.modules():
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()  # type: ignore[operator]
        self.apply(_initialize)

    def blocks(self) -> list[NATBlock]:
        """Return all attention blocks, in order."""
        return [module for module in self.modules() if isinstance(module, NATBlock)]

    def forward_features(self, image: Tensor) -> Tensor:
        """Return the last map after the final norm, `[batch, height, width, channels]`.

        `image` is `[batch, in_chans, height, width]`.
        """
        x = self.patch_embed(image)
        for stage in self.stages:
            x = self.run_stage(stage, x)[1]
        return self.norm(x)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Return logits `[batch, num_classes]` of the map that `forward_features` returns.

        With `pre_logits`, returns the mean over the map instead, `[batch, channels]`. Without
        classes that is also the result of `forward`. With `global_pool=""` nothing is averaged.
        """
        if self.global_pool:
            x = x.mean(dim=(1, 2))
        x = self.head_drop(x)
        return x if pre_logits else self.head(x)

    def forward(self, image: Tensor) -> Tensor:
        """Return logits `[batch, num_classes]` for `image` `[batch, in_chans, height, width]`."""
        return self.forward_head(self.forward_features(image))

    def forward_intermediates(
        self,
        image: Tensor,
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> Features | list[Tensor]:
        """Return the final map and the maps of the stages; only the latter on request.

        Args:
            image: `[batch, in_chans, height, width]`.
            indices: stages whose maps to return; negative ones count from the end. An int n
                means the last n stages, None all of them.
            norm: normalize the last stage's map, too.
            stop_early: with `intermediates_only`, do not run stages that no index needs.
            output_fmt: "NCHW" or "NHWC", the layout of the maps.
            intermediates_only: return the list of maps alone.

        Raises:
            ArgumentError: an index or a layout that does not exist.
        """
        if output_fmt not in {"NCHW", "NHWC"}:
            raise ArgumentError(f"output_fmt must be 'NCHW' or 'NHWC', not {output_fmt!r}.")
        wanted = self.stage_indices(indices)
        maps = []
        last = len(self.stages) - 1
        x = self.patch_embed(image)
        for index, stage in enumerate(self.stages):
            feature_map, x = self.run_stage(stage, x)
            if index in wanted:
                feature_map = self._map_of(feature_map, index, norm)
                maps.append(
                    feature_map.permute(0, 3, 1, 2) if output_fmt == "NCHW" else feature_map
                )
            if stop_early and intermediates_only and index == max(wanted):
                break
        if intermediates_only:
            return maps
        return Features(self.norm(x) if index == last else x, maps)

    def _map_of(self, feature_map: Tensor, index: int, norm: bool) -> Tensor:
        """Return a stage's map as `forward_intermediates` gives it."""
        return self.norm(feature_map) if norm and index == len(self.stages) - 1 else feature_map

    def stage_indices(self, indices: int | Sequence[int] | None) -> list[int]:
        """Return `indices` of `forward_intermediates` as indices from 0."""
        count = len(self.stages)
        if indices is None:
            return list(range(count))
        wanted = list(range(-indices, 0)) if isinstance(indices, int) else list(indices)
        if not wanted or not all(-count <= index < count for index in wanted):
            raise ArgumentError(
                f"indices must name stages from {-count} to {count - 1}, not {indices!r}."
            )
        return [index % count for index in wanted]

    def prune_intermediate_layers(
        self,
        indices: int | Sequence[int] = 1,
        prune_norm: bool = False,
        prune_head: bool = True,
    ) -> list[int]:
        """Remove what `forward_intermediates` with these indices does not need.

        Returns the indices from 0.
        """
        wanted = self.stage_indices(indices)
        end = max(wanted) + 1
        shorter = end < len(self.stages)
        del self.stages[end:]
        self._end_at_last_stage()
        if prune_norm or shorter:
            self.norm = nn.Identity()
        if shorter:
            self.num_features = self.head_hidden_size = self.feature_info[end - 1]["num_chs"]
        if prune_head or shorter:
            self.reset_classifier(0, "")
        return wanted

    def _end_at_last_stage(self) -> None:
        """Remove what leads from the last stage to a next one."""

    def get_classifier(self) -> nn.Module:
        """Return the last layer: a linear one, or `nn.Identity` without classes."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the head by a new one for `num_classes` classes; 0 means none.

        Args:
            num_classes: classes of the new head.
            global_pool: "avg" for the mean over the map, "" for no pooling; None keeps it.
        """
        like = next(self.parameters())
        head = _head(self.num_features, num_classes, device=like.device, dtype=like.dtype)
        if global_pool is not None:
            self.global_pool = _checked_pool(global_pool)
        self.num_classes = num_classes
        self.head = head
        self.head.apply(_initialize)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Choose whether training keeps each block's input only and recomputes the block."""
        for module in self.modules():
            if hasattr(module, "grad_checkpointing"):
                module.grad_checkpointing = enable  # type: ignore[assignment]

    def no_weight_decay(self) -> set[str]:
        """Return the names of parameters that published recipes do not decay: the biases rpb."""
        return {name for name, _ in self.named_parameters() if name.endswith("rpb")}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Return the patterns by which timm groups parameters, for learning rates by layer.

        A group is a block, or with `coarse` a stage.
        """
        raise NotImplementedError

    def set_input_size(
        self,
        img_size: PerAxis | None = None,
        kernel_size: PerAxis | None = None,
    ) -> None:
        """Adapt dilations, and optionally windows, to images of another size.

        Networks run on images of any size without this. DiNAT's dilated blocks reach over the
        whole map at the size they were made for. For another `img_size`, they get the dilation
        that does so again: the map's size divided by the window's, as for the published networks
        (8, 4, 2 at 224 and 13, 6, 3 at 384). Blocks whose dilation is 1 keep it.

        Args:
            img_size: height and width of images; None leaves dilations alone.
            kernel_size: new height and width of all windows; their biases are interpolated.
        """
        if kernel_size is not None:
            for block in self.blocks():
                set_kernel_size(block.attn, kernel_size)
        if img_size is None:
            return
        size = (img_size, img_size) if isinstance(img_size, int) else tuple(img_size)
        if len(size) != 2 or min(size) < 1:
            raise ArgumentError(f"img_size must be one or two positive ints, not {img_size!r}.")
        for stage, info in zip(self.stages, self.feature_info, strict=True):
            map_size = [-(-length // info["reduction"]) for length in size]
            for module in stage.modules():
                if isinstance(module, NATBlock) and module.is_dilated:
                    module.attn.dilation = tuple(
                        max(1, length // window)
                        for length, window in zip(map_size, module.attn.kernel_size, strict=True)
                    )


def run_block(block: nn.Module, x: Tensor, recompute: bool) -> Tensor:
    """Return block(x); with `recompute`, training keeps its input only and runs it again."""
    if recompute and block.training and torch.is_grad_enabled():
        return checkpoint(block, x, use_reentrant=False)
    return block(x)


def _head(num_features: int, num_classes: int, **place: Any) -> nn.Module:
    """Return a new classifier; place: device and dtype of its weights."""
    if num_classes < 0:
        raise ArgumentError(f"num_classes must be at least 0, not {num_classes}.")
    return nn.Linear(num_features, num_classes, **place) if num_classes else nn.Identity()


def _checked_pool(global_pool: str) -> str:
    if global_pool not in {"avg", ""}:
        raise ArgumentError(f"global_pool must be 'avg' or '', not {global_pool!r}.")
    return global_pool


def _initialize(module: nn.Module) -> None:
    """Initialize a linear layer at random; leave other modules alone."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
