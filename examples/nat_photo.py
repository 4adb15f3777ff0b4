"""NAT-Mini on a photograph: `python examples/nat_photo.py [PHOTO] [--weights FILE]`.

Without PHOTO it takes the cat that scikit-image ships. Without weights, which are a state dict of
the published NAT-Mini, the network is random and its classes mean nothing. Needs the `demo` extra.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor

import natc
from natc.demo.image import MEAN, STANDARD_DEVIATION, photograph


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("photo", type=Path, nargs="?", help="an image file")
    parser.add_argument("--weights", type=Path, help="a state dict of NAT-Mini")
    options = parser.parse_args()

    torch.manual_seed(0)
    model = natc.models.nat_mini().eval()
    if options.weights:
        model.load_state_dict(torch.load(options.weights, weights_only=True))
    image = read(options.photo) if options.photo else photograph()
    with torch.inference_mode():
        maps = model.forward_features(image)
        chances = model.forward_head(maps[-1]).softmax(-1)[0]
    for level, feature_map in enumerate(maps, 1):
        print(f"level {level}: {tuple(feature_map.shape)}")
    best = chances.topk(5)
    for chance, index in zip(best.values.tolist(), best.indices.tolist()):
        print(f"class {index}: {chance:.4f}" + ("" if options.weights else " (random weights)"))


def read(path: Path) -> Tensor:
    """Return an image file as a normalized tensor `[1, 3, 224, 224]`, squeezed to a square."""
    from skimage import color, io, transform

    pixels = io.imread(path)
    if pixels.ndim == 2:
        pixels = color.gray2rgb(pixels)
    square = transform.resize(pixels[..., :3], (224, 224), anti_aliasing=True)
    image = torch.from_numpy(square).float().permute(2, 0, 1)[None]
    mean, deviation = (torch.tensor(x).view(1, 3, 1, 1) for x in (MEAN, STANDARD_DEVIATION))
    return (image - mean) / deviation


if __name__ == "__main__":
    main()
