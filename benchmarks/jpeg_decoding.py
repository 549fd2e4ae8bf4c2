"""What it brings, and what it costs, to decode JPEGs for training at a part of their size.

    python benchmarks/jpeg_decoding.py                      # twelve drawn images of 2000 x 1500 pixels
    python benchmarks/jpeg_decoding.py --images FOLDER      # JPEGs of your own

Reads each image in full and as training does, cuts out the same random parts, resized to 224 pixels, and prints images
per second, and how far the pixels of the parts are from each other (PSNR, in dB; above 40 dB nobody sees it).
"""

from __future__ import annotations

import argparse
import math
import tempfile
import time
from pathlib import Path
from statistics import mean

import numpy as np
from PIL import Image, ImageFilter

from scalablevit.classification.augmentation import cut_out
from scalablevit.classification.preparation import side_needed
from scalablevit.images import read_image
from scalablevit.preprocessing import Preprocessing


def draw_images(folder: Path, count: int, width: int, height: int) -> list[Path]:
    """JPEGs with structure of all sizes, about as many bytes as a camera makes."""
    paths = []
    for seed in range(count):
        random = np.random.default_rng(seed)
        image = Image.new("RGB", (width, height))
        for scale in (4, 16, 64, 256):
            coarse = random.integers(0, 256, (max(height // scale, 2), max(width // scale, 2), 3), dtype=np.uint8)
            layer = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
            image = Image.blend(image, layer, 0.5)
        paths.append(folder / f"{seed}.jpg")
        image.filter(ImageFilter.GaussianBlur(1)).save(paths[-1], quality=90)
    return paths


def rate(paths: list[Path], at_least: int | None, rounds: int) -> float:
    """Images per second, the best of the rounds."""
    best = math.inf
    for _ in range(rounds):
        started = time.perf_counter()
        for path in paths:
            read_image(path, 3, at_least=at_least)
        best = min(best, time.perf_counter() - started)
    return len(paths) / best


def likeness(paths: list[Path], at_least: int, area: float) -> float:
    """PSNR of the parts that training would cut out, in dB."""
    preprocessing = Preprocessing(size=(224, 224))
    found = []
    for index, path in enumerate(paths):
        # The same part, in fractions of the image: the draws of a box depend on its size, so the part is named here.
        full, part = read_image(path, 3), read_image(path, 3, at_least=at_least)
        fraction = math.sqrt(np.random.default_rng(index).uniform(area, 1.0))
        pixels = [_centre(image, fraction, preprocessing) for image in (full, part)]
        error = np.mean((pixels[0] - pixels[1]) ** 2)
        found.append(10 * math.log10(255**2 / max(error, 1e-9)))
    return mean(found)


def _centre(image: Image.Image, fraction: float, preprocessing: Preprocessing) -> np.ndarray:
    width, height = image.width * fraction, image.height * fraction
    left, top = (image.width - width) / 2, (image.height - height) / 2
    box = (left, top, left + width, top + height)
    resized = image.resize(preprocessing.size[::-1], Image.Resampling.BICUBIC, box=box)
    return np.asarray(resized, dtype=np.float64)


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path)
    parser.add_argument("--count", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        paths = sorted(options.images.glob("*.jp*g")) if options.images else None
        paths = paths or draw_images(Path(scratch), options.count, 2000, 1500)
        full = rate(paths, None, options.rounds)
        print(f"{len(paths)} images; in full: {full:.1f} images/s on one core")
        random = np.random.default_rng(0)
        started = time.perf_counter()
        for path in paths:
            cut_out(read_image(path, 3), Preprocessing(size=(224, 224)), 0.35, random)
        print(f"with cutting out and resizing: {len(paths) / (time.perf_counter() - started):.1f} images/s")
        for area in (0.35, 0.08):
            at_least = side_needed((224, 224), "resize", area)
            fast = rate(paths, at_least, options.rounds)
            print(
                f"smallest area {area}: shorter side of at least {at_least}: {fast:.1f} images/s, {fast / full:.2f}"
                f" times as many; parts {likeness(paths, at_least, area):.1f} dB"
            )


if __name__ == "__main__":
    main()
