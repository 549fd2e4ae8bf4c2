"""Decoding and the evaluation transform, against timm's and by hand."""

import json
import os
import re
import struct
import threading
import warnings
import weakref
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile
from timm.data import create_transform, resolve_data_config

from scalablevit.images import StoredImage, decoded_bytes, read_image
from scalablevit.preprocessing import Preprocessing, measure_preprocessing


def random_image(height, width, mode="RGB", seed=0):
    shape = (height, width) if mode == "L" else (height, width, 3)
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8))


@pytest.mark.parametrize("crop_mode", ["center", "squash", "border"])
@pytest.mark.parametrize("size", [(24, 24), (20, 32)])
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_agrees_with_timm(crop_mode, size, mode):
    channels = 3 if mode == "RGB" else 1
    preprocessing = Preprocessing(
        size=size,
        channels=channels,
        mean=(0.1, 0.2, 0.3)[:channels],
        std=(0.4, 0.5, 0.6)[:channels],
        interpolation="bilinear",
        crop_fraction=0.9,
        crop_mode=crop_mode,
    )
    image = random_image(37, 53, mode)
    ours = preprocessing.normalise(preprocessing.to_pixels(image)[None])[0]
    cfg = preprocessing.to_pretrained_cfg()
    theirs = create_transform(**resolve_data_config(pretrained_cfg=cfg))(image)
    assert ours.shape == (channels, *size)
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("crop_mode", ["center", "squash", "border"])
@pytest.mark.parametrize(("mode", "channels"), [("L", 1), ("RGB", 3)])
def test_an_image_of_the_right_size_is_taken_as_it_is(mode, channels, crop_mode, monkeypatch):
    preprocessing = Preprocessing(
        size=(20, 32), channels=channels, mean=(0.5,) * channels, std=(0.5,) * channels, crop_mode=crop_mode
    )
    image = random_image(20, 32, mode)
    expected = replace(preprocessing)._resize_and_crop(image)
    monkeypatch.setattr(Preprocessing, "_resize_and_crop", None)
    pixels = preprocessing.to_pixels(image)
    assert pixels.is_contiguous()
    assert torch.equal(pixels, expected)
    pixels.zero_()  # its own memory, and not the image's
    assert image.getextrema() != (0, 0)
    for other, given in (
        (preprocessing, random_image(32, 20, mode)),
        (replace(preprocessing, crop_fraction=0.9), image),
    ):
        with pytest.raises(TypeError):
            other.to_pixels(given)


def test_normalises_as_by_hand():
    preprocessing = Preprocessing(size=(1, 2), channels=1, mean=(0.2,), std=(0.4,))
    pixels = torch.tensor([[[[0, 255]]]], dtype=torch.uint8)
    torch.testing.assert_close(preprocessing.normalise(pixels), torch.tensor([[[[-0.5, 2.0]]]]))


def test_survives_a_json_file():
    before = Preprocessing(
        size=(30, 40), channels=1, mean=(0.1,), std=(0.7,), interpolation="bilinear", crop_fraction=0.8
    )
    after = Preprocessing.from_pretrained_cfg(json.loads(json.dumps(before.to_pretrained_cfg())))
    assert after == before


@pytest.mark.parametrize(
    ("cfg", "message"),
    [
        ({"input_size": [224, 224]}, r"input_size is \[224, 224\]; it must be channels, height and width"),
        ({"input_size": 224}, "input_size is 224; it must be"),
        ({"input_size": [3, "224", 224]}, "input_size is .* it must be"),
        ({"mean": 0.5}, "mean is 0.5; it must hold a number for each channel"),
        ({"std": "none"}, "std is 'none'; it must hold a number for each channel"),
    ],
)
def test_what_a_file_says_in_another_form_is_named(cfg, message):
    with pytest.raises(ValueError, match=message):
        Preprocessing.from_pretrained_cfg(cfg)


@pytest.mark.parametrize("cfg", [{}, {"input_size": [1, 64, 64], "mean": [0.5], "std": [0.5]}])
def test_defaults_are_timms(cfg):
    ours, theirs = Preprocessing.from_pretrained_cfg(cfg), resolve_data_config(pretrained_cfg=cfg or {"url": ""})
    assert (ours.channels, *ours.size) == tuple(theirs["input_size"])
    assert (ours.mean, ours.std) == (tuple(theirs["mean"]), tuple(theirs["std"]))
    assert (ours.interpolation, ours.crop_fraction) == (theirs["interpolation"], theirs["crop_pct"])
    assert ours.crop_mode == theirs["crop_mode"]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"channels": 4}, "channels is 4"),
        ({"size": (0, 8)}, r"size is \(0, 8\)"),
        ({"mean": (0.5,)}, r"mean is \(0.5,\); it must hold 3 numbers"),
        ({"std": (0.5, 0.0, 0.5)}, "it must hold positive numbers"),
        ({"crop_fraction": 1.5}, "crop_fraction is 1.5"),
        ({"interpolation": "cubic"}, "interpolation is 'cubic'; it must be one of 'nearest'"),
        ({"crop_mode": "middle"}, "crop_mode is 'middle'"),
    ],
)
def test_refuses_what_is_not_possible(wrong, message):
    with pytest.raises(ValueError, match=message):
        Preprocessing(**{"size": (8, 8), **wrong})


def test_loads_a_file_as_it_is_read(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned; to be shown, the image is turned clockwise by a quarter
    Image.fromarray(np.array([[10, 20, 30], [40, 50, 60]], dtype=np.uint8)).save(tmp_path / "turned.png", exif=exif)
    preprocessing = Preprocessing(size=(3, 2), channels=1, mean=(0.0,), std=(1.0,))
    assert preprocessing.load(tmp_path / "turned.png").tolist() == [[[40, 10], [50, 20], [60, 30]]]


def refusal(path, kind=ValueError):
    """What all that read files say of one, in one line that starts with its name."""
    said = []
    for read in (
        lambda: Preprocessing(size=(8, 8)).load(path),
        lambda: measure_preprocessing([path], size=(8, 8), channels=1),
    ):
        with pytest.raises(kind) as caught:
            read()
        said.append(str(caught.value))
    assert said[0] == said[1]
    assert said[0].startswith(f"{path} ")
    assert "\n" not in said[0]
    return said[0].removeprefix(f"{path} ")


@pytest.mark.parametrize("ending", ["jpg", "png", "tiff", "gif", "webp", "bmp"])
def test_refuses_a_file_that_was_cut_short(tmp_path, ending):
    path = tmp_path / f"cut.{ending}"
    random_image(64, 64).save(path)
    whole = path.read_bytes()
    for fraction in (0.5, 0.8):
        path.write_bytes(whole[: int(len(whole) * fraction)])
        assert re.fullmatch(
            r"cannot be read as an image \(.+\): replace or remove it|is not an image, or .+: convert or remove it",
            refusal(path),
        )


def test_refuses_what_is_not_an_image(tmp_path):
    (tmp_path / "empty.png").touch()
    assert refusal(tmp_path / "empty.png") == "is empty (0 bytes): replace or remove it"
    (tmp_path / "text.jpg").write_text("no image")
    problem = "is not an image, or of a kind that Pillow cannot read: convert or remove it"
    assert refusal(tmp_path / "text.jpg") == problem
    (tmp_path / "folder.png").mkdir()
    assert refusal(tmp_path / "folder.png") == "is a folder: give the path of an image file"


def test_refuses_what_is_not_there(tmp_path):
    missing = "does not exist: give the path of an image file"
    assert refusal(tmp_path / "missing.png", FileNotFoundError) == missing
    (tmp_path / "link.png").symlink_to("gone.png")
    broken = "is a link to gone.png, which does not exist: mend or remove the link"
    assert refusal(tmp_path / "link.png", FileNotFoundError) == broken


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes with names")
def test_refuses_what_would_be_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    found = []
    waiting = threading.Thread(target=lambda: found.append(refusal(tmp_path / "pipe.png")), daemon=True)
    waiting.start()
    waiting.join(60)  # a reader that waits for a writer would do so for ever
    assert found == ["is a pipe, and no file: give the path of an image file, or remove it"]
    (tmp_path / "device.png").symlink_to(os.devnull)
    assert refusal(tmp_path / "device.png").startswith("is a device, and no file: ")


@pytest.mark.skipif(not Path("/dev/fd").is_dir(), reason="there are no pipes without names")
def test_reads_a_pipe_of_the_shells(tmp_path):
    random_image(8, 8).save(tmp_path / "image.png")
    reader, writer = os.pipe()  # as in `scalablevit predict RUN <(command)`
    os.write(writer, (tmp_path / "image.png").read_bytes())
    os.close(writer)
    assert read_image(f"/dev/fd/{reader}", 3).size == (8, 8)
    os.close(reader)


@pytest.mark.skipif(hasattr(os, "geteuid") and os.geteuid() == 0, reason="root may read every file")
def test_refuses_a_file_that_may_not_be_read(tmp_path):
    random_image(8, 8).save(tmp_path / "private.png")
    (tmp_path / "private.png").chmod(0)
    assert refusal(tmp_path / "private.png").startswith("may not be read by you: ")


def test_says_that_a_file_may_not_be_read(tmp_path, monkeypatch):
    def refuse(self, *_):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "open", refuse)  # which works for root, too
    problem = "may not be read by you: have its permissions changed (chmod +r), or remove it"
    assert refusal(tmp_path / "private.png") == problem


def bomb(side):
    """A PNG file of a few bytes whose header promises so many pixels a side."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def test_refuses_a_decompression_bomb_by_its_header(tmp_path, monkeypatch):
    (tmp_path / "bomb.png").write_bytes(bomb(30_000))
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda _: pytest.fail("the pixels were decoded"))
    assert re.fullmatch(
        r"is too large \(.*900000000 pixels.* limit of 178956970 .*\): shrink or remove it, or, .*MAX_IMAGE_PIXELS",
        refusal(tmp_path / "bomb.png"),
    )
    with pytest.raises(ValueError, match=r"bomb\.png is too large"):
        decoded_bytes(tmp_path / "bomb.png", 3)


def test_reads_what_is_large_but_below_the_limit_without_a_warning(tmp_path, monkeypatch):
    (tmp_path / "large.png").write_bytes(bomb(13_300))  # 177 million pixels, of which Pillow warns
    assert decoded_bytes(tmp_path / "large.png", 1) == 13_300**2
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50)
    image = random_image(10, 10)
    image.save(tmp_path / "image.png")
    assert np.array_equal(read_image(tmp_path / "image.png", 3), image)
    random_image(10, 11).save(tmp_path / "image.png")
    assert refusal(tmp_path / "image.png").startswith("is too large")


class Gated:
    """A store whose images come when the gate of each is opened."""

    def __init__(self, content, count):
        self.content = content
        self.asked, self.gates = ([threading.Event() for _ in range(count)] for _ in range(2))

    def read(self, index):
        self.asked[index].set()
        assert self.gates[index].wait(20)
        return self.content

    def name(self, index):
        return str(index)


def test_readings_that_overlap_leave_the_filters_of_warnings_as_they_were(tmp_path, monkeypatch):
    random_image(10, 10).save(tmp_path / "image.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50)  # Pillow warns of twice as many
    store, before = Gated((tmp_path / "image.png").read_bytes(), 2), list(warnings.filters)
    with ThreadPoolExecutor(2) as pool:
        reading = []
        for index in range(2):
            reading.append(pool.submit(read_image, StoredImage(store, index), 3))
            assert store.asked[index].wait(20)
        for index in range(2):  # the first to begin is the first to end
            store.gates[index].set()
            reading[index].result()
    assert warnings.filters == before


def save_all(folder, images):
    paths = [folder / f"{index}.png" for index in range(len(images))]
    for path, image in zip(paths, images, strict=True):
        image.save(path)
    return paths


def test_measures_mean_and_deviation(tmp_path):
    paths = save_all(tmp_path, [Image.new("L", (30, 40), value) for value in (51, 153)])
    preprocessing = measure_preprocessing(paths, size=(30, 30), channels=1)
    # Half of all pixels are 0.2 and half 0.6: they lie 0.2 around their mean.
    assert preprocessing == Preprocessing(size=(30, 30), channels=1, mean=(0.4,), std=(0.2,))


def test_measures_each_colour_by_itself(tmp_path):
    paths = save_all(tmp_path, [Image.new("L", (8, 8), 102), Image.new("RGB", (8, 8), (102, 0, 204))])
    preprocessing = measure_preprocessing(paths, size=(8, 8), channels=3)
    assert preprocessing.mean == pytest.approx((0.4, 0.2, 0.6))
    assert preprocessing.std[0] == 1.0  # of a channel that is the same everywhere, which is not to be divided by zero


def test_measures_what_the_model_will_see(tmp_path):
    black_on_nothing = Image.new("LA", (2, 2), (0, 0))
    black_on_nothing.putpixel((0, 0), (0, 255))
    deep = Image.fromarray(np.full((2, 2), 51 * 257, dtype=np.uint16))
    preprocessing = measure_preprocessing(save_all(tmp_path, [black_on_nothing, deep]), size=(2, 2), channels=1)
    assert preprocessing.mean == pytest.approx(((3 + 4 * 0.2) / 8,), abs=1e-4)


def test_measuring_keeps_no_image_at_full_size(tmp_path, monkeypatch):
    paths, images = save_all(tmp_path, [Image.new("L", (40, 40), value) for value in range(5)]), []

    def spy(path, channels):
        assert not any(image() for image in images)
        image = read_image(path, channels)
        images.append(weakref.ref(image))
        return image

    monkeypatch.setattr("scalablevit.preprocessing.read_image", spy)
    measure_preprocessing(paths, size=(8, 8), channels=1)
    assert len(images) == 5


def test_measuring_names_the_file_that_cannot_be_read(tmp_path):
    paths = save_all(tmp_path, [Image.new("L", (8, 8)), random_image(64, 64)])
    paths[1].write_bytes(paths[1].read_bytes()[:2000])
    with pytest.raises(ValueError, match=r"1\.png cannot be read as an image"):
        measure_preprocessing(paths, size=(8, 8), channels=1)
