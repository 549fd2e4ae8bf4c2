"""Small sets in every form that there is a reader for, of the same twelve images."""

import io
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

NAMES = ("top", "middle", "bottom")
COUNTS = {"train": 30, "test": 12}


def pixels(split: str) -> np.ndarray:
    """(n, 28, 28), grey: images of three classes, a bright square in another place for each."""
    random = np.random.default_rng(len(split))
    images = random.integers(0, 60, (COUNTS[split], 28, 28), dtype=np.uint8)
    for index, label in enumerate(labels(split)):
        images[index, 4 + 8 * label : 10 + 8 * label, 4:24] = 220
    return images


def labels(split: str) -> list[int]:
    """Of each image of `pixels`."""
    return [index % 3 for index in range(COUNTS[split])]


def png(image: np.ndarray) -> bytes:
    """An image as a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def idx(array: np.ndarray) -> bytes:
    """An array as an idx file."""
    array = np.asarray(array, dtype=np.uint8)
    return struct.pack(">HBB", 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def write_idx(folder: Path, opened=open, suffix: str = "") -> Path:
    """The four files of a folder in the manner of MNIST."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, prefix in (("train", "train"), ("test", "t10k")):
        for kind, array in (("images-idx3", pixels(split)), ("labels-idx1", labels(split))):
            with opened(folder / f"{prefix}-{kind}-ubyte{suffix}", "wb") as file:
                file.write(idx(array))
    return folder


def write_shards(
    folder: Path, split="train", per_shard=7, name="{split}-{number:06d}.tar", damaged=None, **others
) -> list[Path]:
    """Shards as WebDataset itself writes them, one image of them damaged if need be; returns the tar files."""
    webdataset = pytest.importorskip("webdataset")
    folder.mkdir(parents=True, exist_ok=True)
    images, shards = [png(image) for image in pixels(split)], []
    if damaged is not None:
        images[damaged] = images[damaged][:60]
    for number, first in enumerate(range(0, len(images), per_shard)):
        shards.append(folder / name.format(split=split, number=number))
        with webdataset.TarWriter(str(shards[-1])) as writer:
            for index in range(first, min(first + per_shard, len(images))):
                label = labels(split)[index]
                sample = {"png": images[index], "cls": str(label).encode()}
                writer.write({"__key__": f"{split}/{index:05d}", **sample, **{k: v(label) for k, v in others.items()}})
    return shards


def table(split: str, names=NAMES, **columns):
    """A table of Hugging Face's of the images as PNG files; further columns are a kind and the values."""
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=list(names))})
    features.update({name: kind for name, (kind, _) in columns.items()})
    cells = {"image": [{"bytes": png(image), "path": None} for image in pixels(split)], "label": labels(split)}
    return datasets.Dataset.from_dict(
        cells | {name: values for name, (_, values) in columns.items()}, features=features
    )
