"""Prediction on a folder of many images, beside the slower of its two parts alone: decoding, and the network.

    python benchmarks/prediction.py RUN --images 10000 --json benchmarks/results/prediction.json

The folder is made in a temporary place: photographs of 500 x 375 pixels as JPEG, of smooth random content, or with
`--kind small` PNG files of 28 x 28. The three take turns on parts of it; peak memory is that of processes of their own,
after a tenth of the images and after all.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from scalablevit import Predictor
from scalablevit.benchmarking.comparison import machine
from scalablevit.images import read_image

SIZES = {"photos": (500, 375, ".jpg"), "small": (28, 28, ".png")}


def make_images(folder: Path, count: int, kind: str) -> list[Path]:
    """Images of smooth random content, whose files are as large as those of photographs."""
    width, height, suffix = SIZES[kind]
    random, paths = np.random.default_rng(0), []
    for index in range(count):
        rough = random.integers(0, 256, (height // 7 or 1, width // 7 or 1, 3), dtype=np.uint8)
        image = Image.fromarray(rough).resize((width, height), Image.Resampling.BICUBIC)
        paths.append(folder / f"{index:06d}{suffix}")
        image.save(paths[-1], quality=90)
    return paths


def rate_of(work: Callable[[], Any], count: int) -> float:
    """Images per second."""
    started = time.perf_counter()
    work()
    return count / (time.perf_counter() - started)


def measure(predictor: Predictor, paths: list[Path], rounds: int) -> dict[str, float]:
    """Medians of images per second, of the three in turn, each on its own part of the images in each round."""
    share = len(paths) // rounds
    found: dict[str, list[float]] = {"decoding": [], "network": [], "prediction": []}
    preprocessing, size = predictor.preprocessing, predictor.batch_size
    batch = torch.stack([preprocessing.load(path) for path in paths[:size]])
    predictor.predict_pixels(batch)

    def decode(part: list[Path]) -> None:
        with ThreadPoolExecutor(predictor.workers) as pool:
            for _ in pool.map(lambda path: preprocessing.to_pixels(read_image(path, preprocessing.channels)), part):
                pass

    def compute(count: int) -> None:
        for _ in range(count):
            predictor.predict_pixels(batch)

    for index in range(rounds):
        part = paths[index * share : (index + 1) * share]
        batches = max(share // size // 4, 1)
        found["decoding"].append(rate_of(lambda part=part: decode(part), len(part)))
        found["network"].append(rate_of(lambda count=batches: compute(count), batches * size))
        found["prediction"].append(rate_of(lambda part=part: predictor.predict_all(part), len(part)))
    return {name: statistics.median(rates) for name, rates in found.items()}


def peak_memory_mb(run: str, folder: Path, count: int, batch_size: int) -> float:
    """Of a process of its own that predicts the first images of a folder and keeps no results."""
    code = (
        "import itertools, resource, sys\n"
        "from pathlib import Path\n"
        "from scalablevit import Predictor\n"
        "run, folder, count, size = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])\n"
        "for _ in Predictor(run, batch_size=size).stream(itertools.islice(sorted(folder.iterdir()), count)): pass\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)\n"
    )
    command = [sys.executable, "-c", code, run, str(folder), str(count), str(batch_size)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--kind", choices=list(SIZES), default="photos")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--workers", type=int)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        paths = make_images(Path(name), options.images, options.kind)
        predictor = Predictor(options.run, batch_size=options.batch_size, workers=options.workers, device="cpu")
        rates = measure(predictor, paths, options.rounds)
        counts = (max(options.images // 10, 1), options.images)
        memory = {
            str(count): round(peak_memory_mb(options.run, Path(name), count, options.batch_size)) for count in counts
        }
    slower = min(rates["decoding"], rates["network"])
    result = {
        "command": " ".join(["python", "benchmarks/prediction.py", *sys.argv[1:]]),
        "machine": {**machine(), "pillow": Image.__version__},
        "workers": predictor.workers,
        "images_per_second": {key: round(value, 1) for key, value in rates.items()},
        "of_the_slower_part": round(rates["prediction"] / slower, 3),
        "peak_memory_mb": memory,
    }
    print(json.dumps(result, indent=1))
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
