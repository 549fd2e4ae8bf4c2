"""A tiny data set that a network learns within seconds, and a run on it."""

import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from scalablevit.classification.training import train

torch.set_num_threads(1)  # of small tensors one thread is faster than many, and test processes share the cores

TINY = {"epochs": 2, "batch_size": 16, "seed": 3, "accelerator": "cpu", "padding": 1}
CHOSEN = (
    "size",
    "model",
    "channels",
    "learning_rate",
    "warmup_epochs",
    "random_crop",
    "workers",
)  # what TINY leaves out


def make(folder, *names):
    """Files in a folder: images by the ending .png, no images by others."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".png":
            Image.new("L", (8, 8), len(name)).save(path)
        else:
            path.write_text("no image")
    return folder


def write_images(folder, count, seed, mode="L", side=None):
    """`count` noisy images in each of three class folders: bright above, bright below, dark; 12x8 pixels, or square."""
    random = np.random.default_rng(seed)
    height, width = (side, side) if side else (12, 8)
    half = height // 2
    for name, rows in (("above", slice(0, half)), ("below", slice(half, height)), ("dark", slice(0, 0))):
        (folder / name).mkdir(parents=True)
        for index in range(count):
            pixels = random.integers(0, 80, (height, width), dtype=np.uint8)
            pixels[rows] += 150
            Image.fromarray(pixels).convert(mode).save(folder / name / f"{index:03}.png")


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """A data set of 48 images to train on and 18 to validate with, in grey; not to be changed."""
    folder = tmp_path_factory.mktemp("data")
    write_images(folder / "train", 16, seed=0)
    write_images(folder / "val", 6, seed=1)
    return folder


@pytest.fixture(scope="session")
def run(data, tmp_path_factory):
    """The result of a run of two epochs on `data`; not to be changed."""
    return train(data, tmp_path_factory.mktemp("runs") / "run", **TINY)


@pytest.fixture
def own_run(run, tmp_path):
    """The folder of that run, copied, so that it may be changed."""
    return shutil.copytree(run.run, tmp_path / "own")
