"""A photograph that needs no network: it ships inside scikit-image's wheel."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from natc.errors import NatcError

# Mean and standard deviation of ImageNet's channels, with which NAT's weights are trained.
MEAN = (0.485, 0.456, 0.406)
STANDARD_DEVIATION = (0.229, 0.224, 0.225)

PHOTOGRAPH_CREDIT = "Photograph: Chelsea, by Stefan van der Walt (CC0), from scikit-image."


def photograph(size: int = 224) -> Tensor:
    """Return a photograph of a cat as a normalized float32 tensor `[1, 3, size, size]`.

    It is the central square of `skimage.data.chelsea()`, resized with antialiasing to `size`
    pixels, then normalized with ImageNet's mean and standard deviation. Raises NatcError if
    scikit-image is not installed.
    """
    try:
        from skimage import data
    except ImportError as error:
        raise NatcError(
            "The photograph comes from scikit-image, which is not installed: "
            "pip install 'natc[demo]'."
        ) from error
    pixels = torch.from_numpy(data.chelsea().copy()).permute(2, 0, 1).float() / 255.0
    side = min(pixels.shape[1:])
    row, column = (pixels.shape[1] - side) // 2, (pixels.shape[2] - side) // 2
    square = pixels[None, :, row : row + side, column : column + side]
    resized = functional.interpolate(
        square, size=(size, size), mode="bicubic", antialias=True, align_corners=False
    )
    return (resized.clamp(0.0, 1.0) - _channels(MEAN)) / _channels(STANDARD_DEVIATION)


def displayable(image: Tensor) -> Tensor:
    """Return pixels `[height, width, 3]` in 0..1 from a normalized `image` `[1, 3, h, w]`."""
    pixels = image.detach().cpu().float() * _channels(STANDARD_DEVIATION) + _channels(MEAN)
    return pixels.clamp(0.0, 1.0)[0].permute(1, 2, 0)


def _channels(values: tuple[float, float, float]) -> Tensor:
    return torch.tensor(values, device="cpu").view(1, 3, 1, 1)
