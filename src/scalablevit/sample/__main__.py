"""``python -m scalablevit.sample --count 6``: prints the paths of some images of different classes, one a line.

With ``--copy FOLDER`` they are copied into a folder of class folders, to try things on.
"""

import argparse
import shutil
import sys
from pathlib import Path

from scalablevit.sample import sample_images


def main() -> None:
    """Prints as many paths as asked for, or copies the images."""
    parser = argparse.ArgumentParser(prog="python -m scalablevit.sample", description=__doc__)
    parser.add_argument("--count", type=int, default=6, help="how many images (default: %(default)s)")
    parser.add_argument("--split", choices=("train", "val"), default="val", help="from where (default: %(default)s)")
    parser.add_argument("--copy", type=Path, metavar="FOLDER", help="copy them to FOLDER/<class>/ instead")
    arguments = parser.parse_args()
    if arguments.copy is not None and arguments.copy.exists():
        parser.error(f"{arguments.copy} exists: name a folder that does not")
    try:
        images = sample_images(arguments.count, arguments.split)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    if arguments.copy is None:
        sys.stdout.writelines(f"{path}\n" for path in images)
        return
    for path in images:
        folder = arguments.copy / path.parent.name
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, folder)


if __name__ == "__main__":
    main()
