"""``python -m scalablevit.sample --count 6``: prints the paths of some images of different classes, one a line."""

import argparse
import sys

from scalablevit.sample import sample_images


def main() -> None:
    """Prints as many paths as asked for."""
    parser = argparse.ArgumentParser(prog="python -m scalablevit.sample", description=__doc__)
    parser.add_argument("--count", type=int, default=6, help="how many images (default: %(default)s)")
    parser.add_argument("--split", choices=("train", "val"), default="val", help="from where (default: %(default)s)")
    arguments = parser.parse_args()
    try:
        images = sample_images(arguments.count, arguments.split)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    sys.stdout.writelines(f"{path}\n" for path in images)


if __name__ == "__main__":
    main()
