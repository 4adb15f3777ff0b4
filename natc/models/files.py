"""Checkpoints on disk and on the hub: read without running code, written in one step."""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from natc.errors import CheckpointError
from natc.models.variant import VARIANTS
from natc.store.files import write_atomically

_HF_FILES = ("model.safetensors", "pytorch_model.bin")


class Content(NamedTuple):
    """The content of a checkpoint, with the name of its file."""

    source: str
    content: Mapping[str, Any]
    config: Mapping[str, Any] | None
    """The config.json beside the weights, if any."""
    name: str
    """The name of the file, of the folder or on the hub: may say which network it is."""


def read(source: str | Path) -> Content:
    """Read a file, a folder of Transformers or timm, a published network's file, or a hub's model.

    Raises:
        CheckpointError: nothing has this name, or the file is damaged or holds code.
    """
    path = Path(source)
    name = str(source)
    if path.is_dir():
        return _read_folder(path, name)
    if path.is_file():
        return Content(name, _read_file(path), None, path.name)
    variant, _, data = name.partition(".")
    if variant in VARIANTS and (not data or data in VARIANTS[variant].weights):
        weights = VARIANTS[variant].weights
        url = weights[data or next(iter(weights))]
        try:
            content = torch.hub.load_state_dict_from_url(
                url, map_location="cpu", weights_only=True, progress=False
            )
        except OSError as error:
            raise CheckpointError(
                f"{name} cannot be downloaded from {url}: {error}. Download it elsewhere and "
                "name the file."
            ) from error
        return Content(url, content, None, url.rpartition("/")[2])
    if name.count("/") == 1 and not name.startswith((".", "/")) and not path.suffix:
        return _read_folder(_downloaded(name), name)
    raise CheckpointError(
        f"there is no file or folder {name}; the name of a published network "
        f"({', '.join(sorted(VARIANTS))}) or of a model on the hub (shi-labs/nat-mini-in1k-224) "
        "would do, too."
    )


def _downloaded(name: str) -> Path:
    """Download a model of the hub, and return its folder."""
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise CheckpointError(
            f"{name} is on the hub of Hugging Face, which needs huggingface_hub: "
            "pip install 'natc[timm]'."
        ) from error
    try:
        return Path(snapshot_download(name, allow_patterns=["config.json", *_HF_FILES]))
    except Exception as error:  # whatever the hub's client and its network raise
        raise CheckpointError(f"{name} cannot be downloaded from the hub: {error}") from error


def _read_folder(folder: Path, name: str) -> Content:
    """Read `config.json` and the weights beside it."""
    config_path = folder / "config.json"
    try:
        config = json.loads(config_path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{config_path} is missing or no JSON: {error}.") from error
    for file in _HF_FILES:
        if (folder / file).is_file():
            return Content(name, _read_file(folder / file), config, Path(name).name)
    raise CheckpointError(f"folder {folder} has neither {' nor '.join(_HF_FILES)}.")


def _read_file(path: Path) -> Mapping[str, Any]:
    """Return a file's content: tensors and plain values. A file with code is refused."""
    try:
        if path.suffix == ".safetensors":
            return _read_safetensors(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} is damaged, or holds more than weights, which could run code: "
            f"{_first_line(error)} If you trust its author, read it with torch.load(..., "
            "weights_only=False) and save its weights with torch.save."
        ) from error
    except (OSError, RuntimeError, EOFError, ValueError, zipfile.BadZipFile) as error:
        raise CheckpointError(
            f"{path} cannot be read, as if it had been cut off: {_first_line(error)} "
            "Download or write it again."
        ) from error
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, not weights by name.")
    return content


def _first_line(error: Exception) -> str:
    """Return the first line of an error's message, or its class if it has none."""
    lines = str(error).splitlines()
    return lines[0] if lines else type(error).__name__ + "."


def _read_safetensors(path: Path) -> Mapping[str, Any]:
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError as error:
        raise CheckpointError(f"{path} needs safetensors: pip install 'natc[timm]'.") from error
    try:
        return load_file(path)
    except SafetensorError as error:
        raise CheckpointError(
            f"{path} is damaged: {error}. Download or write it again."
        ) from error


def write_weights(path: Path, weights: Mapping[str, Tensor]) -> None:
    """Write weights to a `.safetensors` file, or else as `torch.save` does.

    A reader sees the old file or the whole new one.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    if path.suffix == ".safetensors":
        try:
            from safetensors.torch import save
        except ImportError as error:
            raise CheckpointError(
                f"{path} needs safetensors: pip install 'natc[timm]'."
            ) from error
        write_atomically(path, save(tensors, metadata={"format": "pt"}))
    else:
        buffer = io.BytesIO()
        torch.save(tensors, buffer)
        write_atomically(path, buffer.getvalue())


def write_folder(folder: Path, config: Mapping[str, Any], weights: Mapping[str, Tensor]) -> None:
    """Write `config.json` and `model.safetensors`, the weights first."""
    write_weights(folder / "model.safetensors", weights)
    write_atomically(folder / "config.json", json.dumps(config, indent=2) + "\n")
