"""Small sets in every form that there is a reader for, of the same twelve images."""

import io
import struct
from pathlib import Path

import numpy as np
from PIL import Image

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
