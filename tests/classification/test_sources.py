"""What data may be: folders, CSV files; what is found in them, and what is said of mistakes."""

import os

import pytest

from scalablevit.classification.class_folders import images_in_class_folders
from scalablevit.classification.csv_files import read_table, write_table
from scalablevit.classification.images import LabelledImages
from scalablevit.classification.sources import find_evaluation_data, find_training_data
from scalablevit.classification.splitting import split_images
from tests.conftest import make


def training(data, **options):
    found = find_training_data(data, **{"seed": 0, "val_fraction": 0.25, **options})
    return found.training, found.validation


def test_classes_are_sorted_and_images_found_further_down(tmp_path):
    make(tmp_path, "dog/2.png", "dog/old/1.png", "cat/3.PNG".lower(), "dog/notes.txt", ".hidden/1.png", "dog/.x.png")
    found = images_in_class_folders(tmp_path)
    assert found.classes == ("cat", "dog")
    assert [str(path.relative_to(tmp_path)) for path in found.paths] == ["cat/3.png", "dog/2.png", "dog/old/1.png"]
    assert found.labels == ((0,), (1,), (1,))
    assert found.targets().tolist() == [0, 1, 1]


def test_validation_has_the_classes_of_training(tmp_path):
    make(tmp_path, "train/a/1.png", "train/b/1.png", "train/c/1.png", "val/c/1.png", "val/b/1.png", "val/a/notes.txt")
    train, val = training(tmp_path)
    assert val.classes == train.classes == ("a", "b", "c")
    assert val.labels == ((1,), (2,))
    assert val.counts() == {"a": 0, "b": 1, "c": 1}


def test_evaluation_takes_val_or_the_folder_itself(tmp_path):
    make(tmp_path, "with/val/a/1.png", "with/train/b/1.png", "with/train/b/2.png", "without/a/1.png")
    assert len(find_evaluation_data(tmp_path / "with", ["a", "b"])) == 1
    assert len(find_evaluation_data(tmp_path / "with", ["a", "b"], split="train")) == 2
    assert find_evaluation_data(tmp_path / "without", ["b", "a"]).labels == ((1,),)
    with pytest.raises(ValueError, match="holds no folder test/"):
        find_evaluation_data(tmp_path / "without", ["b", "a"], split="test")


def test_one_folder_of_classes_is_split_class_by_class(tmp_path):
    make(tmp_path, *(f"a/{index}.png" for index in range(12)), *(f"b/{index}.png" for index in range(4)), "c/0.png")
    train, val = training(tmp_path)
    assert train.counts() == {"a": 9, "b": 3, "c": 1}
    assert val.counts() == {"a": 3, "b": 1, "c": 0}
    assert not set(train.paths) & set(val.paths)
    assert training(tmp_path)[1] == val
    assert training(tmp_path, seed=1)[1] != val
    assert find_training_data(tmp_path, seed=0, val_fraction=0.25).drawn


def test_a_split_that_cannot_be_made_is_refused():
    images = LabelledImages(paths=("x", "y"), labels=((0,), (1,)), classes=("a", "b"))
    with pytest.raises(ValueError, match="the classes have too few images"):
        split_images(images, seed=0, fraction=0.5)


@pytest.mark.parametrize("seed", range(10))
def test_every_label_keeps_an_image_to_train_on(seed):
    # One image of a and one of b are drawn, but not the two that c has.
    labels = ((0,), (0, 2), (1,), (1, 2))
    images = LabelledImages(paths=tuple("wxyz"), labels=labels, classes=tuple("abc"), multi_label=True)
    train, val = split_images(images, seed=seed, fraction=0.5)
    assert len(val) == 2
    assert all(train.counts().values())


def test_a_csv_file_of_three_columns(tmp_path):
    (tmp_path / "set.csv").write_text(
        "Path, Label, Split\nx/1.png, cat, train\nx/2.png, Großer Hund, train\n"
        "/abs/3.png, cat, val\nx/4.png, cat, test\n"
    )
    train, val = training(tmp_path / "set.csv")
    assert train.classes == val.classes == ("Großer Hund", "cat")
    assert train.paths == (tmp_path / "x/1.png", tmp_path / "x/2.png")
    assert [str(path) for path in val.paths] == ["/abs/3.png"]
    assert find_evaluation_data(tmp_path / "set.csv", train.classes, split="test").labels == ((1,),)


def test_parts_of_a_csv_file_have_the_names_that_folders_may_have(tmp_path):
    (tmp_path / "set.csv").write_text(
        "path,label,split\n1.png,a,Training\n2.png,b,train\n3.png,a,Validation\n4.png,b,dev\n"
    )
    train, val = training(tmp_path / "set.csv")
    assert (len(train), len(val)) == (2, 2)


def test_a_part_of_a_csv_file_without_parts_is_refused(tmp_path):
    (tmp_path / "set.csv").write_text("path,label\n1.png,a\n2.png,b\n")
    with pytest.raises(ValueError, match=r"set\.csv has no column split: add it, or leave --split out to use all"):
        find_evaluation_data(tmp_path / "set.csv", ["a", "b"], split="val")


def test_a_csv_file_of_several_labels(tmp_path):
    (tmp_path / "set.csv").write_text("path,labels\n1.png,sun;sea\n2.png,\n3.png,sea | snow|sea\n4.png,sea;sun\n")
    table = read_table(tmp_path / "set.csv")
    images = table.images(None, table.classes(None), "set.csv")
    assert images.classes == ("sea", "snow", "sun")
    assert images.targets().tolist() == [[1, 0, 1], [0, 0, 0], [1, 1, 0], [1, 0, 1]]
    train, val = training(tmp_path / "set.csv", val_fraction=0.5)
    assert len(val) == 1  # of the two with sea and sun
    assert train.multi_label
    assert val.multi_label


def test_what_is_written_is_read_again(tmp_path):
    images = LabelledImages(
        paths=(tmp_path / "a b.png", tmp_path / "c,d.png"), labels=((0,), (1,)), classes=("x, y", "ü")
    )
    write_table(tmp_path / "split.csv", [("train", images), ("val", images.select([]))])
    table = read_table(tmp_path / "split.csv")
    assert table.images("train", images.classes, "split.csv") == images


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file,label\nx.png,a\n", "has the columns file, label: a CSV file of images has a header"),
        ("", r"has the columns \(none\)"),
        ("path,label\n", "holds a header and no images"),
        ("path,label\nx.png,\n", r"line 2: x\.png has no label"),
        ("path,label\n,a\n", "line 2, has no path"),
        ("path,label,split\nx.png,a,holdout\n", "split is 'holdout'; it must be one of train, val, test"),
        ("path,label,label\nx.png,a,b\n", "has the column label twice: keep the one that is meant"),
        ("path,label\nx.png,a\nx.png,b\n", "twice: keep one of the lines"),
        ("path,label\nx.png,cat\ny.png,Cat\n", "'Cat' and 'cat', which differ only in case"),
        ("path,label,split\nx.png,a,train\ny.png,b,train\nz.png,c,val\n", "has the label 'c', a class that the model"),
        (
            "path,label,split\nx.png,a,train\ny.png,b,train\n",
            "holds no images with split val, but train: give some images that split, or leave the column",
        ),
        ("path,label\nx.png,a\ny.png,a\n", "holds one class, 'a'"),
    ],
)
def test_mistakes_in_csv_files_are_named(tmp_path, text, message):
    (tmp_path / "set.csv").write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        training(tmp_path / "set.csv")
    assert "set.csv" in str(caught.value)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["train/a/1.png", "train/b/1.png"], "holds no folder val/"),
        (["val/a/1.png"], "holds no folder train/"),
        (["train/a/1.png", "val/a/1.png"], "holds one class, 'a'"),
        (["train/1.png", "val/a/1.png"], r"train holds no folders: it must hold one folder per class"),
        (["train/a/1.png", "train/b/1.txt", "val/a/1.png"], r"train/b holds no images \(\.bmp"),
        (["train/a/1.png", "train/b/1.png", "val/a/1.txt"], r"val holds no images"),
        (
            ["train/a/1.png", "train/b/1.png", "val/z/1.png"],
            "val/z is a class that the model does not have; it has a, b",
        ),
        (["cat/1.png", "Cat/1.png"], "'Cat' and 'cat', which differ only in case"),
    ],
)
def test_mistakes_in_folders_are_named(tmp_path, files, message):
    with pytest.raises(ValueError, match=message) as caught:
        training(make(tmp_path, *files))
    assert str(tmp_path) in str(caught.value)


def test_images_to_test_with_are_no_class_beside_the_others(tmp_path):
    make(tmp_path, "a/1.png", "b/1.png", "test/a/2.png", "test/b/2.png")
    with pytest.raises(
        ValueError, match=r"holds test/, with images of the same classes, .*: move these into .*/train/"
    ):
        find_training_data(tmp_path, seed=0, val_fraction=0.5)
    make(tmp_path / "blood", "control/1.png", "control/2.png", "test/x/1.png", "test/x/2.png")  # a class of that name
    assert find_training_data(tmp_path / "blood", seed=0, val_fraction=0.5).training.classes == ("control", "test")


def test_a_missing_folder_and_a_file_are_named(tmp_path):
    with pytest.raises(ValueError, match="nowhere does not exist: give a folder"):
        training(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"file\.txt is a file, but no CSV file"):
        training(make(tmp_path, "file.txt") / "file.txt")


def test_names_with_spaces_and_accents_in_either_form_of_unicode(tmp_path):
    make(tmp_path, "cafe\u0301 noir/1 a.png", "naïve/ü.png")
    assert images_in_class_folders(tmp_path).classes == ("caf\u00e9 noir", "naïve")


def test_names_that_look_the_same_are_refused(tmp_path):
    make(tmp_path, "cafe\u0301/1.png", "caf\u00e9/1.png")
    with pytest.raises(ValueError, match="have names that look the same: merge them"):
        images_in_class_folders(tmp_path)


def test_classes_have_one_order_in_folders_and_files(tmp_path):
    make(tmp_path, "e\u0301cole/1.png", "e\u0301cole/2.png", "fox/1.png", "fox/2.png")
    train, val = training(tmp_path)
    write_table(tmp_path / "split.csv", [("train", train), ("val", val)])
    assert training(tmp_path / "split.csv")[0].classes == train.classes == ("fox", "\u00e9cole")


def test_other_usual_names_of_the_parts(tmp_path):
    make(tmp_path, "Train/a/1.png", "Train/b/1.png", "Validation/a/2.png", "test/b/3.png")
    train, val = training(tmp_path)
    assert (len(train), len(val)) == (2, 1)
    assert len(find_evaluation_data(tmp_path, train.classes, split="test")) == 1
    make(tmp_path, "val/a/9.png")
    with pytest.raises(ValueError, match="which mean the same: keep one"):
        training(tmp_path)


def test_a_file_of_european_excel(tmp_path):
    (tmp_path / "set.csv").write_text("path;label\n1.png;a\n2.png;a\n3.png;b\n4.png;b\n")
    assert training(tmp_path / "set.csv")[0].classes == ("a", "b")


def test_links_are_followed_and_circles_left(tmp_path):
    make(tmp_path, "data/a/1.png", "store/2.png", "store/b/3.png")
    (tmp_path / "data/a/linked.png").symlink_to(tmp_path / "store/2.png")
    (tmp_path / "data/b").symlink_to(tmp_path / "store/b")
    (tmp_path / "data/a/circle").symlink_to(tmp_path / "data/a")
    found = images_in_class_folders(tmp_path / "data")
    assert [path.name for path in found.paths] == ["1.png", "linked.png", "3.png"]


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is unreadable for root")
def test_a_folder_that_cannot_be_read_is_named(tmp_path):
    make(tmp_path, "a/1.png", "b/deep/1.png")
    (tmp_path / "b/deep").chmod(0)
    try:
        with pytest.raises(ValueError, match=r"b/deep cannot be read .*: allow yourself"):
            images_in_class_folders(tmp_path)
    finally:
        (tmp_path / "b/deep").chmod(0o755)


def test_the_folder_that_the_system_refuses_is_named(tmp_path, monkeypatch):
    make(tmp_path, "a/1.png", "b/deep/1.png")
    scandir = os.scandir

    def refuse(path):
        if str(path).endswith("deep"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(ValueError, match=r"b/deep cannot be read \(Permission denied\): allow yourself"):
        images_in_class_folders(tmp_path)
