"""`Predictor`: every form of image, streams, and results."""

import io
import itertools
import json
import struct
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image

from scalablevit import Predictor, save_model, scalablevit_nano
from scalablevit.classification import image_inputs
from scalablevit.classification.prediction import FailedPrediction, Prediction
from scalablevit.images import read_image
from scalablevit.kernels.cpu.compilation import library
from scalablevit.kernels.cpu.kept_weights import kept_weight


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model of colour images of 12 x 9 pixels."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("model")
    save_model(scalablevit_nano(4), path, ["a", "b", "c", "d"], {"input_size": [3, 12, 9], "crop_pct": 1.0})
    return path


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["a"], ["x.png", "b/x.png"]),
        (["a", "c"], ["a/x.png", "a/b/x.png", "c/x.png"]),
        (["a/b"], ["x.png"]),
        (["a/b/x.png"], ["x.png"]),
        (["a/x.png", "c/x.png"], ["a/x.png", "c/x.png"]),
        (["*/x.png"], ["a/x.png", "c/x.png"]),
        (["a/../c", "a/b/x.png"], ["c/x.png", "a/b/x.png"]),
    ],
)
def test_files_are_named_below_the_folder_that_was_given(paths, names, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a/b/x.png", "a/x.png", "c/x.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    for given in (paths, [str(tmp_path / path) for path in paths]):
        assert image_inputs.names_below(image_inputs.find_files(given), given) == names


@pytest.fixture(scope="module")
def predictor(folder):
    return Predictor(folder, device="cpu", batch_size=4, top=4)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Twenty-three PNG files of sizes of their own."""
    path, random = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for index in range(23):
        pixels = random.integers(0, 256, (10 + index % 5, 20 - index % 3, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path / f"{index:02d}.png")
    return sorted(path.iterdir())


def by_hand(predictor, image):
    with torch.no_grad():
        pixels = predictor.preprocessing.to_pixels(image)[None]
        return predictor.model(predictor.preprocessing.normalise(pixels))[0].softmax(0)


def check(prediction, expected):
    order = expected.argsort(descending=True)
    assert prediction.indices == tuple(order.tolist())
    assert prediction.probabilities == pytest.approx(expected[order].tolist(), rel=1e-4)
    assert prediction.labels == tuple("abcd"[index] for index in order)
    assert (prediction.index, prediction.label) == (prediction.indices[0], prediction.labels[0])


def test_its_model_is_prepacked(predictor):
    if library() is None:
        pytest.skip("no compiler")
    weights = [module.weight for module in predictor.model.modules() if isinstance(module, torch.nn.Linear)]
    assert all(kept_weight(weight) is not None for weight in weights)


@pytest.mark.parametrize("workers", [1, 3])
def test_all_files_in_their_order(folder, predictor, files, workers):
    found = Predictor(folder, device="cpu", batch_size=4, top=4, workers=workers)(files)
    assert [each.path for each in found] == files
    for prediction, path in zip(found, files, strict=True):
        check(prediction, by_hand(predictor, read_image(path, 3)))


def test_every_form_is_the_same_image(predictor, files):
    path = files[0]
    image = Image.open(path)
    array = np.asarray(image)
    tensor = torch.from_numpy(array.copy()).permute(2, 0, 1)
    forms = [path, str(path), image, array, tensor, array / 255, tensor / 255, (array / 255).astype(np.float16)]
    expected = predictor(path)
    assert isinstance(expected, Prediction)
    for form in forms:
        found = predictor(form)
        assert (found.indices, found.probabilities) == (expected.indices, expected.probabilities)
    mixed = predictor(iter(forms))
    for found in mixed:
        assert found.probabilities == pytest.approx(expected.probabilities, rel=1e-5)
    assert [each.path for each in mixed] == [path, path] + [None] * (len(forms) - 2)


def test_grey_in_memory_is_grey_in_a_file(predictor, files):
    grey = Image.open(files[3]).convert("L")
    expected = predictor(grey).probabilities
    for form in (np.asarray(grey), np.asarray(grey)[..., None], torch.from_numpy(np.array(grey))[None]):
        assert predictor(form).probabilities == expected


def test_transparency_is_shown_on_white_and_pictures_are_turned_upright(predictor, tmp_path):
    clear = np.zeros((8, 8, 4), np.uint8)
    white = predictor(np.full((8, 8, 3), 255, np.uint8)).probabilities
    assert predictor(clear).probabilities == white
    turned = Image.fromarray(np.arange(192, dtype=np.uint8).reshape(8, 8, 3))
    exif = Image.Exif()
    exif[0x0112] = 6
    turned.save(tmp_path / "turned.png", exif=exif)
    in_memory = Image.open(tmp_path / "turned.png")
    assert predictor(in_memory).probabilities == predictor(tmp_path / "turned.png").probabilities
    assert predictor(in_memory).probabilities != predictor(turned).probabilities


def test_a_batch_has_as_many_results_and_one_image_has_one(predictor, files):
    images = np.stack([np.asarray(Image.open(files[0]))] * 3)
    assert len(predictor(images)) == 3
    assert len(predictor(torch.from_numpy(images).permute(0, 3, 1, 2))) == 3
    assert len(predictor([files[0]])) == 1
    assert len(predictor(str(files[0].parent))) == len(predictor(f"{files[0].parent}/*.png")) == len(files)
    assert predictor([]) == []


def test_one_by_one_is_the_same_as_in_batches(folder, files):
    one, many = (Predictor(folder, device="cpu", batch_size=size)(files) for size in (1, 32))
    assert [each.indices for each in one] == [each.indices for each in many]
    torch.testing.assert_close(
        torch.tensor([each.probabilities for each in one]), torch.tensor([each.probabilities for each in many])
    )


def test_what_cannot_be_read_is_in_its_place(predictor, files, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(files[0].read_bytes()[:60])
    found = list(predictor.stream([files[0], broken, np.full((4, 4), 3.5), files[1], tmp_path / "none.png"]))
    assert [type(each) for each in found] == [
        Prediction, FailedPrediction, FailedPrediction, Prediction, FailedPrediction,
    ]  # fmt: skip
    assert found[1].path == broken
    assert "broken.png cannot be read as an image" in found[1].reason
    assert "holds numbers from 3.5 to 3.5, but black is 0 and white is 1" in found[2].reason
    assert "none.png does not exist" in found[4].reason
    with pytest.raises(ValueError, match=r"broken\.png cannot be read"):
        predictor([files[0], broken])
    with pytest.raises(FileNotFoundError, match=r"none\.png does not exist"):
        predictor(tmp_path / "none.png")


def test_a_damaged_image_that_pillow_has_opened_is_one_of_the_results(predictor, files, monkeypatch):
    def load():
        raise struct.error("unpack requires a buffer of 4 bytes")

    damaged = Image.new("RGB", (20, 10))
    monkeypatch.setattr(damaged, "load", load)
    found = list(predictor.stream([files[0], damaged, files[1]]))
    assert [type(each) for each in found] == [Prediction, FailedPrediction, Prediction]
    assert found[1].reason == "a Pillow image of 20 x 10, mode RGB: unpack requires a buffer of 4 bytes"


def test_one_opened_image_may_be_given_many_times(folder, files):
    image = Image.open(files[0])
    found = Predictor(folder, device="cpu", workers=4)([image] * 20)
    assert len({each.indices for each in found}) == 1


def test_an_endless_stream_is_read_a_few_batches_ahead(predictor, files):
    asked = []

    def endless():
        for index in itertools.count():
            asked.append(index)
            yield files[index % len(files)]

    stream = predictor.stream(endless())
    for count in range(1, 30):
        assert next(stream).path == files[(count - 1) % len(files)]
        assert len(asked) <= count + 3 * predictor.batch_size
    stream.close()
    assert not [each for each in threading.enumerate() if each.name.startswith("scalablevit-read")]


def test_a_thread_is_given_its_share_of_a_batch_at_once(folder, files, monkeypatch):
    shares, submit = [], ThreadPoolExecutor.submit

    def noted(pool, work, images):
        shares.append(len(images))
        return submit(pool, work, images)

    monkeypatch.setattr(ThreadPoolExecutor, "submit", noted)
    Predictor(folder, device="cpu", batch_size=10, workers=3)(files)  # 23 of them
    assert shares == [4, 4, 2, 4, 4, 2, 1, 1, 1]


def test_a_mistake_in_the_users_own_iterator_comes_through(predictor, files):
    def failing():
        yield files[0]
        raise KeyError("the camera")

    with pytest.raises(KeyError, match="the camera"):
        predictor(failing())


@pytest.mark.parametrize("count", [0, 1, 4, 9, 14])
def test_what_came_before_a_mistake_in_the_source_comes_first(predictor, files, count):
    def failing():
        yield from files[:count]
        raise KeyError("the camera")

    found = []
    with pytest.raises(KeyError, match="the camera"):
        found.extend(predictor.stream(failing()))  # a list keeps what came before an error
    assert [each.path for each in found] == files[:count]
    found = []
    with pytest.raises(ValueError, match=r"\*\.none holds no images"):
        found.extend(predictor.stream([*files[:count], "*.none"]))
    assert [each.path for each in found] == files[:count]


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((4, 4, 2), np.uint8), r"an array of uint8 of shape \(4, 4, 2\) is no image: its shape"),
        (np.zeros((4, 4), np.int32), "holds numbers of which nobody can say which is white"),
        (np.zeros((0, 4), np.uint8), "has no pixels"),
        (np.full((2, 2), np.nan), "holds numbers from nan to nan"),
        (torch.zeros(4, 4, 3), r"a tensor of torch.float32 of shape \(4, 4, 3\) is no image: its shape"),
        (torch.full((3, 4, 4), -1.0), "give pixels that are not normalised"),
        (3, r"something of type int \(3\) is no image: give a path"),
        ([["a.png"]], "something of type list of length 1 is no image"),
    ],
)
def test_what_is_no_image_is_told(predictor, image, message):
    with pytest.raises(ValueError, match=message):
        predictor(image)


def closed_image(path):
    with Image.open(path) as image:
        return image


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: torch.zeros(3, 4, 4, device="meta"), "must be dense and have values"),
        (lambda path: torch.zeros(4, 4).to_sparse(), "must be dense and have values"),
        (lambda path: Image.new("RGB", (0, 4)), "a Pillow image of 0 x 4, mode RGB is no image: it has no pixels"),
        (closed_image, "give it before it is closed"),
        (lambda path: "https://example.com/cat.jpg", "cat.jpg is an address, and no file: download it"),
        (lambda path: f"{'long' * 100}.png", "File name too long"),
        (lambda path: path.read_bytes(), "something of type bytes of length"),
    ],
)
def test_what_holds_no_image_is_one_of_the_results(predictor, files, make, message):
    found = list(predictor.stream([files[0], make(files[0]), files[1]]))
    assert [type(each) for each in found] == [Prediction, FailedPrediction, Prediction]
    assert message in found[1].reason
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        predictor([make(files[0])])


@pytest.mark.parametrize("given", [b"content", bytearray(b"content"), {"a.png": 1}, io.BytesIO(b"a\nb")])
def test_what_iterates_over_something_else_is_no_list_of_images(predictor, given):
    with pytest.raises(ValueError, match=f"something of type {type(given).__name__} .*is no image: give a path"):
        predictor(given)


def test_an_empty_path_is_not_the_working_directory(predictor, files, monkeypatch):
    monkeypatch.chdir(files[0].parent)
    with pytest.raises(ValueError, match="a path is empty"):
        predictor("")


def test_a_folder_is_walked_as_its_files_are_asked_for(tmp_path, monkeypatch):
    asked = []

    def many(folder):
        for index in range(1000):
            asked.append(index)
            yield folder / f"{index}.png"

    monkeypatch.setattr(image_inputs, "images_below", many)
    assert next(iter(image_inputs.files_of(tmp_path))) == tmp_path / "0.png"
    assert len(asked) == 1
    assert image_inputs.count_files([tmp_path, tmp_path]) == 2000


def test_options_are_checked(folder, predictor, files):
    for name in ("top", "batch_size", "workers"):
        with pytest.raises(ValueError, match=f"{name} is 0"):
            Predictor(folder, **{name: 0})
    with pytest.raises(ValueError, match="top is 0"):
        predictor(files[0], top=0)
    assert len(predictor(files[0], top=2).labels) == 2


def test_several_labels_have_probabilities_of_their_own(tmp_path, files):
    save_model(scalablevit_nano(4), tmp_path, ["a", "b", "c", "d"], {"input_size": [3, 8, 8]}, multi_label=True)
    predictor = Predictor(tmp_path, device="cpu")
    logits = predictor.model(predictor.preprocessing.normalise(predictor.preprocessing.load(files[0])[None]))[0]
    found = predictor(files[0])
    assert predictor.multi_label
    assert found.probabilities == pytest.approx(logits.sigmoid().sort(descending=True).values.tolist(), rel=1e-4)


def test_a_result_is_a_line_of_json(predictor, files):
    found = json.loads(predictor(files[0]).to_json())
    assert found["path"] == str(files[0])
    assert set(found) == {"path", "labels", "probabilities", "indices"}
    assert json.loads(predictor(np.zeros((4, 4), np.uint8)).to_json())["path"] is None


@pytest.mark.parametrize("count", [1, 5, 19, 20, 500])
def test_bars_and_words_of_classes_do_not_touch_however_many_there_are(count):
    numbers = tuple(range(count))
    prediction = Prediction(
        path=None,
        labels=tuple(f"class\n{number}" for number in numbers),
        probabilities=(0.5,) * count,
        indices=numbers,
        source=np.zeros((10, 10), np.uint8),
    )
    bars = np.asarray(prediction.picture())[:, 480 + 24 : -24].astype(int)  # beside the image, without margins
    has_bar = (bars == (47, 111, 178)).all(2).any(1)
    has_words = (bars.sum(2) < 300).any(1)  # dark, as neither bars nor paper are
    assert (np.diff(has_bar.astype(int)) == 1).sum() == count
    assert has_words.any()
    assert not (has_bar & has_words).any()


def test_a_result_is_a_picture(predictor, files):
    picture = predictor(files[0]).picture()
    image = Image.open(files[0])
    side = round(480 / image.height)
    assert picture.getpixel((0, 240)) == image.getpixel((0, 240 // side))  # enlarged as it is
    blue = np.asarray(picture).reshape(-1, 3) == (47, 111, 178)
    assert 1000 < blue.all(1).sum() < 520 * 480 / 3
    with pytest.raises(ValueError, match="does not know its image"):
        predictor.predict_pixels(torch.zeros(1, 3, 12, 9, dtype=torch.uint8))[0].picture()
