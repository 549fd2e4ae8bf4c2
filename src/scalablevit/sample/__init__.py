"""The embedded images: 7000 of Fashion-MNIST, 28x28 grey, in folders train/<class> and val/<class>.

6000 to train on and 1000 to validate with, of ten classes (Xiao et al., arXiv:1708.07747; licence in LICENSE.txt).
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import zipfile
from pathlib import Path

ARCHIVE = Path(__file__).with_name("fashion-mnist-sample.zip")


def sample_folder() -> Path:
    """The folder with the sample's train/ and val/, unpacked into the user's cache on first use.

    The cache is ``$XDG_CACHE_HOME`` or ``~/.cache``. The folder appears as a whole or not at all, so that several
    processes may call this at once.

    Raises:
        OSError: If the cache cannot be written to.
    """
    digest = hashlib.sha256(ARCHIVE.read_bytes()).hexdigest()
    folder = _cache() / f"sample-{digest[:16]}"
    if not folder.is_dir():
        _unpack(folder)
    return folder


def sample_images(count: int, split: str = "val") -> list[Path]:
    """`count` images of the sample, of as many different classes as there are: one of each, then a second, and so on.

    Raises:
        ValueError: If `count` is not from 1 to the number of images.
    """
    classes = sorted(folder for folder in (sample_folder() / split).iterdir() if folder.is_dir())
    columns = [sorted(folder.iterdir()) for folder in classes]
    total = sum(map(len, columns))
    if not 1 <= count <= total:
        raise ValueError(f"count is {count}; it must be from 1 to {total}, the number of images in {split}/")
    rows = range(max(map(len, columns)))
    return [column[row] for row in rows for column in columns if row < len(column)][:count]


def _cache() -> Path:
    chosen = os.environ.get("XDG_CACHE_HOME", "")
    # The specification says that a relative path there is to be ignored.
    root = Path(chosen) if Path(chosen).is_absolute() else Path.home() / ".cache"
    return root / "scalablevit"


def _unpack(folder: Path) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        with zipfile.ZipFile(ARCHIVE) as archive:
            archive.extractall(temporary)
        temporary.chmod(0o755)  # mkdtemp makes folders that nobody else can read
        temporary.rename(folder)
    except OSError:
        if not folder.is_dir():  # else another process was first, and its folder is as good
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
