"""Image files as people have them, read as a person would see them: upright, on white, grey or colour of 8 bits."""

from __future__ import annotations

import io
import os
import re
import stat
import struct
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, BinaryIO, NamedTuple, Protocol

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

_MODES = {1: "L", 3: "RGB"}
_GREY_MODES = ("1", "L", "LA", "La", "I", "I;16", "I;16B", "I;16L", "F")
_BYTES_PER_PIXEL = {1: 1, 3: 4}  # Pillow keeps a spare byte beside the three of a colour

_TURNS = {  # what turns an image upright, by its EXIF orientation
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

_SAYING_ORIENTATION = ("exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp")

# What Pillow raises at damage: those met when files of eleven formats were cut and changed at random, and their kin.
DAMAGE = (
    ArithmeticError,
    EOFError,
    LookupError,
    OSError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
    struct.error,
)


class UnreachableStoreError(Exception):
    """What holds images cannot be reached, which says nothing of an image: nobody may take it for one to leave out."""


class ImageStore(Protocol):
    """What holds images that are no files of their own."""

    def read(self, index: int) -> bytes:
        """The content of one, in a format that Pillow reads.

        Raises:
            UnreachableStoreError: If it lies elsewhere, and cannot be fetched.
        """

    def name(self, index: int) -> str:
        """How people are told of one."""


@dataclass(frozen=True, slots=True)
class StoredImage:
    """An image that is no file of its own: a row of a table, a member of an archive, a part of an array.

    What reads image files reads it, too.

    Args:
        store: What holds it.
        index: Which one it is.
    """

    store: ImageStore
    index: int

    def __str__(self) -> str:
        return self.store.name(self.index)

    @property
    def name(self) -> str:
        """The last part of what people are told of it."""
        return Path(str(self)).name

    def read_bytes(self) -> bytes:
        """Its content."""
        return self.store.read(self.index)

    def open(self, mode: str = "rb") -> BinaryIO:
        """Its content, as a file."""
        return io.BytesIO(self.read_bytes())


ImagePlace = Path | StoredImage


def read_image(
    path: str | ImagePlace | bytes,
    channels: int,
    *,
    at_least: int | None = None,
    formats: tuple[str, ...] | None = None,
) -> Image.Image:
    """An image file, decoded, turned upright as its EXIF data say, and converted to grey or colour, 8 bits each.

    Of several frames or pages, the first is read. Transparent pixels are shown on white, as on a page: the colour
    hidden under them is an accident, often black, on which black line art would vanish. (timm's dataset neither turns
    images nor heeds transparency; the resize and crop that follow are the same.) 16 bits are scaled to 8, and floating
    point numbers from 0 (black) to 1 (white); never by an image's own extremes, which would tear a set apart.

    Args:
        path: The file, or its content. That says of what kind it is, not the ending of its name.
        channels: 1 for grey, 3 for colour.
        at_least: A JPEG may be decoded to a half, a quarter or an eighth of its size, which is faster, as long as its
            shorter side keeps so many pixels; None: it is decoded in full, as timm does it.
        formats: The kinds to accept, by Pillow's names; None: all that Pillow reads.

    Raises:
        ValueError: If the file is not a readable image, has more than twice `PIL.Image.MAX_IMAGE_PIXELS` (179 million
            pixels together), or holds numbers of which nobody can say which is white.
        FileNotFoundError: If there is no such file.
    """
    with _opened(path, formats) as image:
        if at_least is not None and min(image.size) >= 2 * at_least:
            # A square box: the sides may be exchanged below. Pillow halves no further than to sides of at least that.
            image.draft(None, (at_least, at_least))
        return as_seen(image, channels)


def as_seen(image: Image.Image, channels: int) -> Image.Image:
    """An image that Pillow has opened, as `read_image` gives one of a file; the image itself stays as it is.

    Args:
        image: The image; it may be decoded already.
        channels: 1 for grey, 3 for colour.

    Raises:
        ValueError: If it holds numbers of which nobody can say which is white. Damage is raised as Pillow raises it,
            one of `DAMAGE`.
    """
    image.load()  # first, since PNG may hold EXIF data after the pixels, and TIFF turns itself
    turn = _TURNS.get(_orientation(image))
    converted = _convert(image, _MODES[channels])
    if turn is None:
        return converted
    upright = converted.transpose(turn)
    # What says how to turn it would have it turned again.
    upright.info = {name: value for name, value in upright.info.items() if name not in _SAYING_ORIENTATION}
    return upright


class ImageHeader(NamedTuple):
    """What an image file says of itself before its pixels.

    Args:
        size: Width and height in pixels, before the image is turned upright.
        is_grey: Whether it holds no colour.
    """

    size: tuple[int, int]
    is_grey: bool


def read_header(path: str | ImagePlace | bytes, *, formats: tuple[str, ...] | None = None) -> ImageHeader:
    """Size and kind of an image file, or of its content, without its pixels; `formats` as in `read_image`.

    Raises:
        ValueError: If the file is not a readable image, or too large.
        FileNotFoundError: If there is no such file.
    """
    with _opened(path, formats) as image:
        return ImageHeader(size=image.size, is_grey=image.mode in _GREY_MODES)


def decoded_bytes(path: str | ImagePlace, channels: int) -> int:
    """How much memory an image file takes when read with 1 or 3 channels; only its header is read.

    Raises:
        ValueError: If the file is not a readable image, or too large.
        FileNotFoundError: If there is no such file.
    """
    width, height = read_header(path).size
    return width * height * _BYTES_PER_PIXEL[channels]


class TooManyPixelsError(ValueError):
    """An image of more pixels than Pillow takes."""


class _NoFileError(OSError):
    """Something under a file's name that is none: opened, it may wait for ever."""


class _UnknownScaleError(ValueError):
    """An image whose numbers can be read, but not understood."""


class _KeptQuiet:
    """While any thread is inside, Pillow's warnings are not shown: of sizes below the limit, and of metadata.

    `warnings.catch_warnings` is not for threads: of two that overlap, the last to leave brings the other's filters
    back, for good.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._filter: Any = None

    def __enter__(self) -> None:
        with self._lock:
            if not self._inside:
                warnings.filterwarnings("ignore", module=r"PIL\.")
                self._filter = warnings.filters[0]
            self._inside += 1

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                # In place, and not the whole list: others may have changed it meanwhile.
                filters: Any = warnings.filters
                filters[:] = [each for each in filters if each is not self._filter]


_kept_quiet = _KeptQuiet()


@contextmanager
def _opened(path: str | ImagePlace | bytes, formats: tuple[str, ...] | None = None) -> Iterator[Image.Image]:
    """An image file, with its header read. What goes wrong until the end of the block is said with the file's name."""
    try:
        # Given a name, Pillow 13.0 maps raw TIFF into memory, and scrambles it where EXIF says a quarter turn.
        with _kept_quiet, _stream(path) as file, Image.open(file, formats=formats) as image:
            yield image
    except (*DAMAGE, Image.DecompressionBombError) as error:
        kind: type[Exception] = FileNotFoundError if isinstance(error, FileNotFoundError) else ValueError
        if isinstance(error, Image.DecompressionBombError):
            kind = TooManyPixelsError
        if isinstance(path, bytes):
            raise kind(f"the image {_complaint_of_content(path, error)}") from error
        raise kind(f"{path} {_complaint(as_place(path), error)}") from error


def as_place(path: str | ImagePlace) -> ImagePlace:
    """The same, with a path for a string."""
    return Path(path) if isinstance(path, str) else path


def _stream(path: str | ImagePlace | bytes) -> IO[bytes]:
    if isinstance(path, bytes):
        return io.BytesIO(path)
    place = as_place(path)
    if isinstance(place, Path):
        _check_opens(place)
    return place.open("rb")


def _check_opens(path: Path) -> None:
    """Raises an error for what would be waited for: a pipe that nobody may ever write into, a device, a socket."""
    try:
        mode = path.stat().st_mode
    except OSError:
        return  # opening it will say the same
    if stat.S_ISREG(mode) or stat.S_ISDIR(mode):
        return
    if stat.S_ISFIFO(mode) and not os.path.exists(os.path.realpath(path)):  # noqa: PTH110  # of what is no path
        return  # it has no name of its own: a shell has made it, which writes into it, as in `<(...)`
    kind = "a pipe" if stat.S_ISFIFO(mode) else "a socket" if stat.S_ISSOCK(mode) else "a device"
    raise _NoFileError(f"is {kind}, and no file: give the path of an image file, or remove it")


def _complaint_of_content(content: bytes, error: Exception) -> str:
    """What is wrong with the content of a file whose name is not known."""
    reason = " ".join(str(error).split()).rstrip(".")
    if isinstance(error, _UnknownScaleError):
        return reason
    if isinstance(error, Image.DecompressionBombError):
        return f"is too large ({reason}): shrink it"
    if isinstance(error, UnidentifiedImageError):  # whose message holds an address in memory
        return "is not an image, or of a kind that is not read here: convert it" if content else "is empty (0 bytes)"
    return f"is damaged ({reason})"


def _complaint(path: ImagePlace, error: Exception) -> str:
    """What is wrong with a file, and the way out, in one line."""
    reason = " ".join(str(error).split()).rstrip(".")
    if isinstance(error, (_NoFileError, _UnknownScaleError)):
        return reason
    if isinstance(error, FileNotFoundError):
        if isinstance(path, Path) and path.is_symlink():
            return f"is a link to {path.readlink()}, which does not exist: mend or remove the link"
        if re.match(r"\w\w+:/", str(path)):
            return "is an address, and no file: download it, and give the path of the file"
        return "does not exist: give the path of an image file"
    if isinstance(error, IsADirectoryError):
        return "is a folder: give the path of an image file"
    if isinstance(error, PermissionError):
        return "may not be read by you: have its permissions changed (chmod +r), or remove it"
    if isinstance(error, Image.DecompressionBombError):
        return f"is too large ({reason}): shrink or remove it, or, if you trust it, raise PIL.Image.MAX_IMAGE_PIXELS"
    if isinstance(error, UnidentifiedImageError):
        if (path.stat().st_size if isinstance(path, Path) else len(path.read_bytes())) == 0:
            return "is empty (0 bytes): replace or remove it"
        return "is not an image, or of a kind that Pillow cannot read: convert or remove it"
    return f"cannot be read as an image ({reason}): replace or remove it"


def _orientation(image: Image.Image) -> Any:
    try:
        return image.getexif().get(ExifTags.Base.Orientation)
    except DAMAGE:  # of the EXIF data alone: the pixels are as good as ever
        return None


def _convert(image: Image.Image, mode: str) -> Image.Image:
    if image.mode.startswith(("I", "F")):
        image = _to_8_bits(image)
    elif image.has_transparency_data:
        image = image.convert("LA") if image.mode == "La" else image  # the one way that Pillow has from there
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    elif image.mode == "LAB":  # which Pillow turns into colours, but not into greys
        image = image.convert("RGB")
    return image.convert(mode)


def _to_8_bits(image: Image.Image) -> Image.Image:
    """Grey values that Pillow would clip at 255, scaled. The scale is that of the format, the same for every image."""
    values = np.asarray(image)
    tags = getattr(image, "tag_v2", {})  # of TIFF, in which fewer bits may be used, and white may be 0
    if image.mode == "F":
        low, high = values.min(), values.max()
        if not (low >= 0 and high <= 1):  # not-a-numbers included, which are neither above nor below
            raise _UnknownScaleError(
                f"holds floating-point numbers from {low:g} to {high:g}, but black is 0 and white is 1: scale and clip"
                " them, or save the image with 8 or 16 bits"
            )
        levels = np.round(values * 255).astype(np.uint8)
    elif image.mode == "I" and image.format not in ("PNG", "PPM"):  # in these two, such numbers have 16 bits
        raise _UnknownScaleError(
            "holds whole numbers of 32 bits or with a sign, of which nobody can say which is white: save the image with"
            " 8 bits (white is 255) or 16 (white is 65535)"
        )
    else:
        white = 2 ** tags.get(ExifTags.Base.BitsPerSample, (16,))[0] - 1
        levels = ((values.astype(np.uint32) * 255 + white // 2) // white).astype(np.uint8)
    white_is_zero = tags.get(ExifTags.Base.PhotometricInterpretation) == 0  # minded by Pillow only up to 8 bits
    return Image.fromarray(255 - levels if white_is_zero else levels)
