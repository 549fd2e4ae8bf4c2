"""A tiny data set that a network learns within seconds, and a run on it."""

import numpy as np
import pytest
import torch
from PIL import Image

from scalablevit.classification.training import train

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


@pytest.fixture(autouse=True, scope="package")
def one_thread():
    # These networks are so small that threads wait for each other longer than they work, most of all on a busy machine.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def write_images(folder, count, seed, mode="L"):
    """`count` noisy images of 12x8 pixels in each of three class folders: bright above, bright below, dark."""
    random = np.random.default_rng(seed)
    for name, rows in (("above", slice(0, 6)), ("below", slice(6, 12)), ("dark", slice(0, 0))):
        (folder / name).mkdir(parents=True)
        for index in range(count):
            pixels = random.integers(0, 80, (12, 8), dtype=np.uint8)
            pixels[rows] += 150
            Image.fromarray(pixels).convert(mode).save(folder / name / f"{index:03}.png")


@pytest.fixture(scope="package")
def data(tmp_path_factory):
    """A data set of 48 images to train on and 18 to validate with, in grey."""
    folder = tmp_path_factory.mktemp("data")
    write_images(folder / "train", 16, seed=0)
    write_images(folder / "val", 6, seed=1)
    return folder


@pytest.fixture(scope="package")
def run(data, tmp_path_factory):
    """The result of a run of two epochs on `data`; not to be changed."""
    return train(data, tmp_path_factory.mktemp("runs") / "run", **TINY)
