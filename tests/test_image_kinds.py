"""Image files of every kind that folders hold: each is made by Pillow or byte by byte, and its pixels are checked."""

import struct
import zlib

import numpy as np
import PIL
import pytest
from PIL import Image

from scalablevit.images import decoded_bytes, read_header, read_image
from scalablevit.preprocessing import Preprocessing

ORIENTATION = 0x0112
OLD_PILLOW = pytest.mark.skipif(
    int(PIL.__version__.split(".")[0]) < 13, reason="Pillow before 13 cannot read such TIFFs"
)
# What each orientation, as EXIF defines it, means for [[1, 2, 3], [4, 5, 6]], by hand.
UPRIGHT = {
    1: [[1, 2, 3], [4, 5, 6]],
    2: [[3, 2, 1], [6, 5, 4]],
    3: [[6, 5, 4], [3, 2, 1]],
    4: [[4, 5, 6], [1, 2, 3]],
    5: [[1, 4], [2, 5], [3, 6]],
    6: [[4, 1], [5, 2], [6, 3]],
    7: [[6, 3], [5, 2], [4, 1]],
    8: [[3, 6], [2, 5], [1, 4]],
}


def pixels(path, channels=3):
    return np.asarray(read_image(path, channels)).tolist()


def grey(*values, dtype=np.uint8):
    return Image.fromarray(np.array([values], dtype=dtype))


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width, height, depth, colour, rows, *more):
    """A PNG file, for what Pillow does not write."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"".join([b"\x89PNG\r\n\x1a\n", header, *more, chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")])


def patch_tiff(path, tag, before, after):
    """Change a field of a TIFF file, for what Pillow does not write."""
    data = path.read_bytes()
    assert data.count(struct.pack("<HHIHH", tag, 3, 1, before, 0)) == 1
    path.write_bytes(
        data.replace(struct.pack("<HHIHH", tag, 3, 1, before, 0), struct.pack("<HHIHH", tag, 3, 1, after, 0))
    )


def save_with_alpha(path, mode):
    image = Image.new("LA", (4, 1))
    image.putdata([(0, 255), (0, 0), (0, 128), (200, 255)])
    image.convert(mode).save(path)


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("ending", ["png", "tiff", "webp", "jpg"])
def test_turned_images_are_read_upright(tmp_path, orientation, ending):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    blocks = np.kron(np.array([[1, 2, 3], [4, 5, 6]]) * 40, np.ones((8, 8)))  # whole blocks of JPEG, hence exact
    path = tmp_path / f"turned.{ending}"
    Image.fromarray(blocks.astype(np.uint8)).save(path, exif=exif, **({"lossless": True} if ending == "webp" else {}))
    assert pixels(path, 1) == np.kron(np.array(UPRIGHT[orientation]) * 40, np.ones((8, 8))).tolist()
    assert decoded_bytes(path, 1) == 16 * 24
    assert sorted(read_header(path).size) == [16, 24]


def test_greys(tmp_path):
    grey(0, 100, 255).save(tmp_path / "grey.png")
    assert pixels(tmp_path / "grey.png", 1) == [[0, 100, 255]]
    assert pixels(tmp_path / "grey.png", 3) == [[[0] * 3, [100] * 3, [255] * 3]]
    Image.fromarray(np.array([[True, False, True]])).save(tmp_path / "bits.png")
    assert read_header(tmp_path / "bits.png").is_grey
    assert pixels(tmp_path / "bits.png", 1) == [[255, 0, 255]]
    assert pixels(tmp_path / "bits.png", 3) == [[[255] * 3, [0] * 3, [255] * 3]]


def test_colour_as_grey_weighs_red_green_and_blue(tmp_path):
    Image.fromarray(np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255]]], dtype=np.uint8)).save(tmp_path / "rgb.png")
    assert pixels(tmp_path / "rgb.png", 1) == [[76, 150, 29]]  # 0.299, 0.587, 0.114


@pytest.mark.parametrize("ending", ["png", "tiff"])
@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparent_pixels_are_shown_on_white(tmp_path, mode, ending):
    path = tmp_path / f"clear.{ending}"
    save_with_alpha(path, mode)
    expected = [0, 255, 127, 200]  # 255 * (1 - 128 / 255) = 127
    assert read_header(path).is_grey == (mode == "LA")
    assert pixels(path, 1) == [expected]
    assert pixels(path, 3) == [[[value] * 3 for value in expected]]


@pytest.mark.parametrize(("mode", "stored"), [pytest.param("LA", "La", marks=OLD_PILLOW), ("RGBA", "RGBa")])
def test_tiff_with_colours_multiplied_by_alpha(tmp_path, mode, stored):
    save_with_alpha(tmp_path / "clear.tiff", mode)
    patch_tiff(tmp_path / "clear.tiff", 338, 2, 1)
    with Image.open(tmp_path / "clear.tiff") as image:
        assert image.mode in (stored, mode)  # Pillow itself divides the colours
    for channels in (1, 3):
        assert np.array(pixels(tmp_path / "clear.tiff", channels)).reshape(4, -1)[:, 0].tolist() == [0, 255, 127, 200]


def test_palettes(tmp_path):
    image = Image.new("P", (3, 1))
    image.putpalette([255, 0, 0, 0, 0, 255, 0, 255, 0])
    image.putdata([0, 1, 2])
    image.save(tmp_path / "opaque.png")
    image.save(tmp_path / "opaque.gif")
    assert not read_header(tmp_path / "opaque.png").is_grey
    for name in ("opaque.png", "opaque.gif"):
        assert pixels(tmp_path / name) == [[[255, 0, 0], [0, 0, 255], [0, 255, 0]]]
    image.save(tmp_path / "clear.png", transparency=bytes([255, 128, 0]))  # one alpha a colour
    assert pixels(tmp_path / "clear.png") == [[[255, 0, 0], [127, 127, 255], [255, 255, 255]]]
    for name in ("one.png", "one.gif"):
        image.save(tmp_path / name, transparency=0)  # one colour is clear
        assert pixels(tmp_path / name) == [[[255, 255, 255], [0, 0, 255], [0, 255, 0]]]


def test_a_colour_that_stands_for_transparency(tmp_path):
    (tmp_path / "grey.png").write_bytes(png(2, 1, 8, 0, b"\0\5\11", chunk(b"tRNS", struct.pack(">H", 9))))
    assert pixels(tmp_path / "grey.png", 1) == [[5, 255]]
    (tmp_path / "rgb.png").write_bytes(png(2, 1, 8, 2, b"\0\1\2\3\4\5\6", chunk(b"tRNS", struct.pack(">3H", 1, 2, 3))))
    assert pixels(tmp_path / "rgb.png") == [[[255, 255, 255], [4, 5, 6]]]


@pytest.mark.parametrize(
    ("ink", "seen"),
    [((0, 0, 0, 0), (255, 255, 255)), ((255, 0, 0, 0), (0, 255, 255)), ((0, 0, 0, 255), (0, 0, 0))],
    ids=["paper", "cyan", "black"],
)
def test_printing_colours(tmp_path, ink, seen):
    image = Image.new("CMYK", (16, 16), ink)
    image.save(tmp_path / "ink.tiff")
    image.save(tmp_path / "ink.jpg")  # inverted, as Adobe does, with a mark that says so
    assert b"Adobe" in (tmp_path / "ink.jpg").read_bytes()
    for name in ("ink.tiff", "ink.jpg"):
        assert pixels(tmp_path / name)[3][3] == list(seen)
        assert pixels(tmp_path / name, 1)[3][3] == round(np.dot(seen, (0.299, 0.587, 0.114)))


@OLD_PILLOW
def test_other_colour_spaces(tmp_path):
    Image.new("RGB", (16, 16), (200, 30, 90)).convert("YCbCr").save(tmp_path / "video.tiff")
    Image.new("RGB", (16, 16), (200, 30, 90)).convert("YCbCr").save(tmp_path / "video.jpg", quality=100)
    Image.new("LAB", (1, 1), (255, 128, 128)).save(tmp_path / "lab.tiff")
    for name in ("video.tiff", "video.jpg"):
        assert np.abs(np.array(pixels(tmp_path / name)[3][3]) - (200, 30, 90)).max() <= 2  # by rounding
        assert abs(pixels(tmp_path / name, 1)[3][3] - 88) <= 1
    assert np.min(pixels(tmp_path / "lab.tiff", 3)) >= 254
    assert np.min(pixels(tmp_path / "lab.tiff", 1)) >= 254


def test_16_bits_are_scaled(tmp_path):
    values, expected = (0, 128, 129, 257 * 7, 65535), [0, 0, 1, 7, 255]  # 128 / 257 is just below a half
    grey(*values, dtype=np.uint16).save(tmp_path / "deep.png")
    grey(*values, dtype=np.uint16).save(tmp_path / "little.tiff")
    Image.frombytes("I;16B", (5, 1), np.array(values, dtype=">u2").tobytes()).save(tmp_path / "big.tiff")
    assert (tmp_path / "big.tiff").read_bytes().startswith(b"MM")
    (tmp_path / "deep.pgm").write_bytes(b"P5 5 1 65535\n" + np.array(values, dtype=">u2").tobytes())
    for name in ("deep.png", "little.tiff", "big.tiff", "deep.pgm"):
        assert read_header(tmp_path / name).is_grey
        assert pixels(tmp_path / name, 1) == [expected]
        assert pixels(tmp_path / name, 3) == [[[value] * 3 for value in expected]]
    (tmp_path / "rgb.png").write_bytes(png(1, 1, 16, 2, b"\0" + struct.pack(">3H", 0, 257 * 7, 65535)))
    assert pixels(tmp_path / "rgb.png") == [[[0, 7, 255]]]


def test_tiff_of_12_bits_and_of_white_as_zero(tmp_path):
    grey(0, 257 * 7, 65535, dtype=np.uint16).save(tmp_path / "negative.tiff", tiffinfo={262: 0})
    assert pixels(tmp_path / "negative.tiff", 1) == [[255, 248, 0]]
    grey(0, 0, 0, dtype=np.uint16).save(tmp_path / "twelve.tiff")
    patch_tiff(tmp_path / "twelve.tiff", 258, 16, 12)
    data = (tmp_path / "twelve.tiff").read_bytes()
    (tmp_path / "twelve.tiff").write_bytes(data[:-6] + bytes.fromhex("000fff800000"))  # 0, 4095, 2048, and a spare 0
    assert pixels(tmp_path / "twelve.tiff", 1) == [[0, 255, 128]]


def test_floating_point_numbers_run_from_0_to_1(tmp_path):
    grey(0, 0.2, 1, dtype=np.float32).save(tmp_path / "float.tiff")
    assert pixels(tmp_path / "float.tiff", 1) == [[0, 51, 255]]
    assert pixels(tmp_path / "float.tiff", 3) == [[[0] * 3, [51] * 3, [255] * 3]]


@pytest.mark.parametrize(
    ("values", "dtype", "message"),
    [
        ((0, 200), np.float32, "holds floating-point numbers from 0 to 200, but black is 0 and white is 1: scale and"),
        ((-1, 1), np.float32, "holds floating-point numbers from -1 to 1"),
        ((0, np.nan), np.float32, "holds floating-point numbers from nan to nan"),
        ((0, 200), np.int32, "holds whole numbers of 32 bits or with a sign, .*: save the image with 8 bits"),
    ],
)
def test_numbers_without_a_known_scale_are_refused(tmp_path, values, dtype, message):
    grey(*values, dtype=dtype).save(tmp_path / "odd.tiff")
    with pytest.raises(ValueError, match=rf"odd\.tiff {message}") as caught:
        read_image(tmp_path / "odd.tiff", 1)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("ending", ["gif", "webp", "png", "tiff"])
def test_the_first_of_several_frames_is_read(tmp_path, ending):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue")]
    options = {"lossless": True} if ending == "webp" else {}
    frames[0].save(tmp_path / f"many.{ending}", save_all=True, append_images=frames[1:], **options)
    with Image.open(tmp_path / f"many.{ending}") as image:
        assert image.n_frames == 3
    assert pixels(tmp_path / f"many.{ending}") == [[[255, 0, 0]] * 8] * 8


@pytest.mark.parametrize("name", ["two words.png", "größe 図 🐈.png", "no_ending", "photo.jpg", "UPPER.JPEG"])
def test_a_name_says_nothing_of_the_content(tmp_path, name):
    grey(1, 2, 3).save(tmp_path / name, "PNG")
    assert pixels(tmp_path / name, 1) == [[1, 2, 3]]
    assert pixels(str(tmp_path / name), 1) == [[1, 2, 3]]
    assert Preprocessing(size=(1, 3), channels=1, mean=(0,), std=(1,)).load(tmp_path / name).tolist() == [[[1, 2, 3]]]


@pytest.mark.parametrize("ending", ["jpg", "png", "webp"])
@pytest.mark.parametrize(
    "damaged",
    [b"nonsense", b"", b"II*\0", b"MM\0*\xff\xff\xff\xff", b"II*\0\x08\0\0\0\xff\xff" + bytes(range(64))],
    ids=["nonsense", "empty", "cut", "points nowhere", "too many entries"],
)
def test_damaged_exif_data_leave_the_pixels_alone(tmp_path, ending, damaged):
    path = tmp_path / f"photo.{ending}"
    # Pillow writes what it is given, except that PNG goes without the mark at the start.
    Image.new("L", (16, 16), 7).save(
        path, exif=b"Exif\0\0" + damaged, **({} if ending != "webp" else {"lossless": True})
    )
    assert pixels(path, 1) == [[7] * 16] * 16
    assert decoded_bytes(path, 3) == 16 * 16 * 4  # Pillow keeps a spare byte beside the three of a colour


def test_a_jpeg_is_decoded_at_the_size_that_is_needed(tmp_path):
    random = np.random.default_rng(0)
    coarse = Image.fromarray(random.integers(0, 256, (30, 40, 3), dtype=np.uint8))
    coarse.resize((400, 300), Image.Resampling.BICUBIC).save(tmp_path / "a.jpg", quality=95)
    whole = read_image(tmp_path / "a.jpg", 3)
    for at_least, side in ((None, 300), (301, 300), (151, 300), (150, 150), (76, 150), (75, 75), (37, 38), (8, 38)):
        image = read_image(tmp_path / "a.jpg", 3, at_least=at_least)
        assert min(image.size) == side
        assert at_least is None or min(image.size) >= min(at_least, 300)
    part = np.asarray(read_image(tmp_path / "a.jpg", 3, at_least=150), dtype=float)
    expected = np.asarray(whole.resize((200, 150), Image.Resampling.BOX), dtype=float)
    assert np.abs(part - expected).mean() < 3
    coarse.resize((400, 300)).save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png", 3, at_least=10).size == (400, 300)


def test_a_jpeg_on_its_side_is_turned_at_any_size(tmp_path):
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    Image.new("RGB", (400, 300)).save(tmp_path / "a.jpg", exif=exif)
    assert read_image(tmp_path / "a.jpg", 3, at_least=150).size == (150, 200)
