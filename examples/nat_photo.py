"""Run NAT-Mini on a photograph: `python examples/nat_photo.py [PHOTO] [--weights FILE]`.

Without PHOTO it takes the cat that scikit-image ships. `--weights` names a state dict of the
published NAT-Mini; without it the network is random and its classes mean nothing. `--picture FILE`
draws the photograph beside the feature maps. Needs the `demo` extra.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor

import natc
from natc.demo.image import MEAN, STANDARD_DEVIATION, photograph
from natc.demo.pictures import feature_picture

SIZE = 224
# The published networks were evaluated on the center of images whose shorter side was this long.
SHORTER_SIDE = 256


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("photo", type=Path, nargs="?", help="an image file")
    parser.add_argument("--weights", type=Path, help="a state dict of NAT-Mini")
    parser.add_argument("--picture", type=Path, help="write the feature maps as a PNG file")
    options = parser.parse_args()

    torch.manual_seed(0)
    model = natc.models.nat_mini().eval()
    if options.weights:
        model.load_state_dict(torch.load(options.weights, weights_only=True))
    image = read(options.photo) if options.photo else photograph()
    with torch.inference_mode():
        final, maps = model.forward_intermediates(image, output_fmt="NHWC")
        probabilities = model.forward_head(final).softmax(-1)[0]
    for level, feature_map in enumerate(maps, 1):
        print(f"level {level}: {tuple(feature_map.shape)}")
    best = probabilities.topk(5)
    for probability, index in zip(best.values.tolist(), best.indices.tolist()):
        note = "" if options.weights else " (random weights)"
        print(f"class {index}: {probability:.4f}{note}")
    if options.picture:
        feature_picture(image, maps, options.picture, pretrained=options.weights is not None)
        print(f"picture: {options.picture}")


def read(path: Path) -> Tensor:
    """Return the center of an image file as a normalized tensor `[1, 3, 224, 224]`."""
    from skimage import color, io, transform

    pixels = io.imread(path)
    if pixels.ndim == 2:
        pixels = color.gray2rgb(pixels)
    height, width = (
        round(side * SHORTER_SIDE / min(pixels.shape[:2])) for side in pixels.shape[:2]
    )
    resized = transform.resize(pixels[..., :3], (height, width), anti_aliasing=True)
    row, column = (height - SIZE) // 2, (width - SIZE) // 2
    square = resized[row : row + SIZE, column : column + SIZE]
    image = torch.from_numpy(square).float().permute(2, 0, 1)[None]
    mean, deviation = (torch.tensor(x).view(1, 3, 1, 1) for x in (MEAN, STANDARD_DEVIATION))
    return (image - mean) / deviation


if __name__ == "__main__":
    main()
