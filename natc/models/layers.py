"""The building blocks of the networks: stems, downsamplers, MLP, drop path and attention block."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from natc.errors import ArgumentError
from natc.nn import NeighborhoodAttention2D

NORM_EPS = 1e-5

# Whether torch.export traces this call. Before torch 2.7, torch.compile is not told apart.
_is_exporting = getattr(torch.compiler, "is_exporting", torch.compiler.is_compiling)


class DropPath(nn.Module):
    """Stochastic depth (Huang et al., 2016): drops a residual branch for whole samples.

    Args:
        probability: chance in [0, 1) that one sample of the batch loses the branch while
            training; the samples that keep it are divided by `1 - probability`.
    """

    def __init__(self, probability: float) -> None:
        super().__init__()
        if not 0.0 <= probability < 1.0:
            raise ArgumentError(f"drop path must be in [0, 1), not {probability!r}.")
        self.probability = float(probability)

    def forward(self, x: Tensor) -> Tensor:
        """Return `x` `[batch, ...]` with dropped samples set to zero; unchanged in eval."""
        if not self.training or self.probability == 0.0:
            return x
        keep = 1.0 - self.probability
        mask = x.new_empty((x.shape[0],) + (1,) * (x.dim() - 1)).bernoulli_(keep)
        return x * (mask / keep)

    def extra_repr(self) -> str:
        """Return the setting that `print(module)` shows."""
        return f"probability={self.probability:g}"


class ConvTokenizer(nn.Module):
    """The stem: two 3x3 convolutions of stride 2, then LayerNorm.

    Maps an image `[batch, in_chans, height, width]` to tokens
    `[batch, ceil(height/4), ceil(width/4), embed_dim]`.
    """

    def __init__(self, in_chans: int, embed_dim: int) -> None:
        super().__init__()
        half = embed_dim // 2
        self.proj = nn.Sequential(
            nn.Conv2d(in_chans, half, kernel_size=3, stride=2, padding=1),
            nn.Conv2d(half, embed_dim, kernel_size=3, stride=2, padding=1),
        )
        self.norm = nn.LayerNorm(embed_dim, eps=NORM_EPS)

    def forward(self, image: Tensor) -> Tensor:
        """Return the tokens, channels last."""
        if image.device.type == "cpu":
            # In this layout the convolutions take a third of the time, and tokens need no copy.
            image = image.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
        return _normalized(self.proj(image).permute(0, 2, 3, 1), self.norm)


class DownsamplingConv2d(nn.Conv2d):
    """A 3x3 convolution of stride 2 that doubles the channels, without bias."""

    def __init__(self, dim: int) -> None:
        super().__init__(dim, 2 * dim, kernel_size=3, stride=2, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return the convolution of x `[batch, dim, height, width]`."""
        if not self._is_mostly_weight(x):
            return super().forward(x)
        padded = nn.functional.pad(x.permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1))
        windows = padded.unfold(1, 3, 2).unfold(2, 3, 2)  # [batch, height, width, dim, 3, 3]
        product = nn.functional.linear(windows.flatten(-3), self.weight.flatten(1))
        return product.permute(0, 3, 1, 2)

    def _is_mostly_weight(self, x: Tensor) -> bool:
        """Return whether to compute the product of matrices: inference on a CPU with a small x.

        oneDNN would copy the weight twice in each call, the second time into memory that the
        system clears first. For a 14x14 map of 256 channels, that takes longer than the product.
        """
        if x.device.type != "cpu" or self.training or _is_exporting():
            return False  # an exported program must not depend on the size that it was traced with
        return 16 * x.numel() < self.weight.numel()


class ConvDownsampler(nn.Module):
    """Between levels: a convolution that halves the map and doubles its channels, then LayerNorm.

    Maps `[batch, height, width, dim]` to `[batch, ceil(height/2), ceil(width/2), 2*dim]`.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.reduction = DownsamplingConv2d(dim)
        self.norm = nn.LayerNorm(2 * dim, eps=NORM_EPS)

    def forward(self, x: Tensor) -> Tensor:
        """Return the smaller map, channels last."""
        reduced = self.reduction(x.permute(0, 3, 1, 2))
        return _normalized(reduced.permute(0, 2, 3, 1), self.norm)


class PatchEmbedding(nn.Module):
    """The stem of DiNAT_s and isotropic networks: a linear layer on patches, then LayerNorm.

    Maps an image `[batch, in_chans, height, width]` to tokens
    `[batch, ceil(height/patch_size), ceil(width/patch_size), embed_dim]`. Zeros fill patches that
    stick out at the right and bottom.
    """

    def __init__(self, in_chans: int, embed_dim: int, patch_size: int = 4) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.proj = nn.Conv2d(in_chans, embed_dim, kernel_size=patch_size, stride=patch_size)
        self.norm = nn.LayerNorm(embed_dim, eps=NORM_EPS)

    def forward(self, image: Tensor) -> Tensor:
        """Return the tokens, channels last."""
        height, width = image.shape[-2:]
        below, right = -height % self.patch_size, -width % self.patch_size
        if below or right:
            image = nn.functional.pad(image, (0, right, 0, below))
        return _normalized(self.proj(image).permute(0, 2, 3, 1), self.norm)


class PatchMerging(nn.Module):
    """Between levels of DiNAT_s: LayerNorm and a linear layer on patches of 2x2 tokens.

    Maps `[batch, height, width, dim]` to `[batch, ceil(height/2), ceil(width/2), 2*dim]`. Zeros
    fill patches that stick out.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)
        self.norm = nn.LayerNorm(4 * dim, eps=NORM_EPS)

    def forward(self, x: Tensor) -> Tensor:
        """Return the smaller map, channels last."""
        height, width = x.shape[1:3]
        if height % 2 or width % 2:
            x = nn.functional.pad(x, (0, 0, 0, width % 2, 0, height % 2))
        # A patch's tokens go down its columns, as in the published weights.
        patches = x.unflatten(2, (-1, 2)).unflatten(1, (-1, 2)).permute(0, 1, 3, 4, 2, 5)
        return self.reduction(self.norm(patches.flatten(3)))


class Mlp(nn.Module):
    """Two linear layers with a GELU between, on the last axis of `[..., dim]`."""

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Return fc2(gelu(fc1(x))), in the shape of x."""
        return self.fc2(self.act(self.fc1(x)))


class NATBlock(nn.Module):
    """One pre-norm block: neighborhood attention and an MLP, each with a residual.

    Input and output are `[batch, height, width, dim]`. With `layer_scale`, each branch is
    multiplied by a learned vector (`gamma1`, `gamma2`, both `[dim]`) that starts there.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        kernel_size: int | tuple[int, int],
        dilation: int | tuple[int, int],
        mlp_ratio: float,
        qkv_bias: bool,
        rel_pos_bias: bool,
        drop_path: float,
        layer_scale: float | None,
        pad_small_maps: bool,
        attention: type[NeighborhoodAttention2D] = NeighborhoodAttention2D,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=NORM_EPS)
        self.attn = attention(
            dim,
            num_heads,
            kernel_size,
            dilation=dilation,
            rel_pos_bias=rel_pos_bias,
            qkv_bias=qkv_bias,
            pad_small_maps=pad_small_maps,
        )
        # Whether `Network.set_input_size` may change the dilation.
        self.is_dilated = max(self.attn.dilation) > 1
        self.norm2 = nn.LayerNorm(dim, eps=NORM_EPS)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))
        self.drop_path = DropPath(drop_path)
        self.layer_scale = layer_scale
        self.gamma1: nn.Parameter | None
        self.gamma2: nn.Parameter | None
        if layer_scale is None:
            self.register_parameter("gamma1", None)
            self.register_parameter("gamma2", None)
        else:
            self.gamma1 = nn.Parameter(torch.empty(dim))
            self.gamma2 = nn.Parameter(torch.empty(dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set `gamma1` and `gamma2` to `layer_scale`; layers have their own `reset_parameters`."""
        for gamma in (self.gamma1, self.gamma2):
            if gamma is not None and self.layer_scale is not None:
                nn.init.constant_(gamma, self.layer_scale)

    def forward(self, x: Tensor) -> Tensor:
        """Return x plus its attention, plus the MLP of that sum, in the shape of x."""
        # One axis for all tokens: torch.compile may store sums of maps with rows innermost, and
        # then transpose them in every step.
        tokens = x.flatten(0, 2)
        attended = self.attn(self.norm1(tokens).view(x.shape))
        tokens = tokens + self._branch(attended, self.gamma1)
        processed = self.mlp(self.norm2(tokens)).view(x.shape)
        return (tokens + self._branch(processed, self.gamma2)).view(x.shape)

    def _branch(self, x: Tensor, gamma: Tensor | None) -> Tensor:
        """Return x times gamma, with drop path, as tokens `[batch*height*width, dim]`."""
        return self.drop_path(x if gamma is None else gamma * x).flatten(0, 2)


def _normalized(x: Tensor, norm: nn.LayerNorm) -> Tensor:
    """Return norm(x)."""
    return norm(x.flatten(0, 2)).view(x.shape)  # one axis for all tokens, as in a block
