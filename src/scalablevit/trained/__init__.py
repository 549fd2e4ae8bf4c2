"""Trained models that come with the package, each a folder by `save_model` with a model card, known by a name."""

from __future__ import annotations

from pathlib import Path

TRAINED_MODELS = {
    "fashion": "nano on Fashion-MNIST: ten kinds of clothes, grey, 28 pixels",
}


def model_folder(path: str | Path) -> Path:
    """The folder that a user means: a path, or the name of a trained model, unless there is a model at that path."""
    folder = Path(path)
    is_name = not isinstance(path, Path) and path in TRAINED_MODELS
    if not is_name or folder.is_file() or any((folder / name).is_file() for name in ("config.json", "config.yaml")):
        return folder
    return Path(__file__).parent / str(path)
