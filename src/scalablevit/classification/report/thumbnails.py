"""Small versions of the images that the report shows."""

from __future__ import annotations

import base64
import io
import warnings

from PIL import Image

from scalablevit.images import ImagePlace, read_image

SIDE = 192  # pixels, of the longer side; pages show it at about half that, for screens with dense pixels


def read_thumbnail(path: ImagePlace) -> Image.Image | None:
    """The image, no larger than `SIDE`, in colour; None if it cannot be read, or has gone since it was evaluated."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what is odd about the file was said when it was evaluated
            image = read_image(path, 3)
    except (OSError, ValueError):
        return None
    image.thumbnail((SIDE, SIDE))
    return image


def is_tiny(image: Image.Image) -> bool:
    """Whether the image has so few pixels that it is better enlarged in squares than blurred."""
    return max(image.size) <= SIDE // 2


def fill_square(image: Image.Image, side: int, background: str) -> Image.Image:
    """The image in the middle of a square, as large as it fits."""
    scale = side / max(image.size)
    size = (max(round(image.width * scale), 1), max(round(image.height * scale), 1))
    how = Image.Resampling.NEAREST if is_tiny(image) else Image.Resampling.BICUBIC
    square = Image.new("RGB", (side, side), background)
    square.paste(image.resize(size, how), ((side - size[0]) // 2, (side - size[1]) // 2))
    return square


def image_uri(image: Image.Image) -> str:
    """The image as a data URI: tiny ones exactly, others as JPEG."""
    buffer = io.BytesIO()
    if is_tiny(image):
        image.save(buffer, "PNG", optimize=True)
        return data_uri(buffer.getvalue(), "image/png")
    image.save(buffer, "JPEG", quality=82, optimize=True)
    return data_uri(buffer.getvalue(), "image/jpeg")


def data_uri(content: bytes, kind: str = "image/png") -> str:
    """A file's content as a URI, so that a page needs no other file."""
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"
