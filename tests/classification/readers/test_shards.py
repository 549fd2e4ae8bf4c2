"""WebDataset shards."""

import json
import tarfile

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from scalablevit.classification.augmentation import Augmentation
from scalablevit.classification.data import DecodedImages, EpochSampler, TrainingSet, collate
from scalablevit.classification.readers import open_set
from scalablevit.images import read_image
from scalablevit.preprocessing import Preprocessing
from tests.classification.readers import sets

webdataset = pytest.importorskip("webdataset")


def read_shard(shard):
    """The samples of a shard as WebDataset reads them."""
    with shard.open("rb") as file:
        files = webdataset.tariterators.tar_file_expander([{"stream": file, "url": str(shard)}])
        return list(webdataset.tariterators.group_by_keys(files))


def test_samples_are_those_that_webdataset_reads(tmp_path):
    shards = sets.write_shards(tmp_path)
    images = open_set(f"wds/{tmp_path}").images("train")
    theirs = [sample for shard in shards for sample in read_shard(shard)]
    assert len(images) == len(theirs) == 30
    for place, label, sample in zip(images.paths, images.targets(), theirs, strict=True):
        assert place.read_bytes() == sample["png"]
        assert int(sample["cls"]) == label
        assert str(place).endswith(f".tar/{sample['__key__']}.png")
    assert np.array_equal(np.asarray(read_image(images.paths[17], 1)), sets.pixels("train")[17])


# Python warns of forks in a process with threads, which is what a loader's workers are, and PyTorch of more of them
# than there are cores.
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_two_nodes_with_two_workers_each_see_each_sample_once_an_epoch(tmp_path):
    sets.write_shards(tmp_path)
    images = open_set(f"wds/{tmp_path}").images("train")
    preprocessing = Preprocessing(size=(28, 28), channels=1, mean=(0.5,), std=(0.5,))
    augmentation = Augmentation(
        preprocessing=preprocessing, random_crop="none", padding=0, smallest_area=0.3, flip=0.0, erasing=0.0
    )
    dataset = TrainingSet(DecodedImages(images.paths, 1, limit_mb=0), images, augmentation, seed=3)
    dataset[0, 0]  # imports what workers would import, each for itself
    sampler = EpochSampler(len(images), seed=3)
    seen = []
    for node in range(2):
        sampler.set_epoch(4)
        share = list(sampler)[node::2]
        loader = DataLoader(dataset, 4, sampler=share, num_workers=2, collate_fn=collate)
        seen += [pixels.to(torch.uint8).numpy().tobytes() for batch in loader for pixels in batch.pixels]
    assert sorted(seen) == sorted(image.tobytes() for image in sets.pixels("train"))


def test_parts_are_told_by_names_folders_or_the_info_file(tmp_path):
    sets.write_shards(tmp_path / "names", "train")
    sets.write_shards(tmp_path / "names", "test", name="x-{split}-{number}.tar")
    assert list(open_set(f"wds/{tmp_path / 'names'}").splits) == ["train", "test"]
    sets.write_shards(tmp_path / "folders" / "train", "train", name="{number:04d}.tar")
    sets.write_shards(tmp_path / "folders" / "validation", "test", name="{number:04d}.tar")
    image_set = open_set(f"wds/{tmp_path / 'folders'}")
    assert (image_set.find("train"), image_set.find("val")) == ("train", "validation")
    assert len(image_set.images("val")) == 12
    sets.write_shards(tmp_path / "plain", "train", name="{number:04d}.tar")
    assert list(open_set(f"wds/{tmp_path / 'plain'}").splits) == ["all"]
    shards = sets.write_shards(tmp_path / "info", "train", name="part_{number}.tar")
    info = {"splits": {"train": {"filenames": [shard.name for shard in shards[:2]]}}}
    (tmp_path / "info" / "_info.json").write_text(json.dumps(info))
    assert len(open_set(f"wds/{tmp_path / 'info'}").images("train")) == 14


def test_labels_are_numbers_names_or_fields(tmp_path):
    names = ("top", "middle", "bottom")
    sets.write_shards(tmp_path / "a", cls=lambda label: names[label].encode())
    images = open_set(f"wds/{tmp_path / 'a'}").images("train")
    assert images.classes == ("bottom", "middle", "top")
    assert [images.classes[label] for label in images.targets()[:3]] == list(names)
    sets.write_shards(tmp_path / "b", json=lambda label: json.dumps({"kind": label}).encode())
    (tmp_path / "b" / "classes.txt").write_text("\n".join(names))
    images = open_set(f"wds/{tmp_path / 'b'}", target_key="kind").images("train")
    assert images.classes == names
    assert images.targets().tolist() == sets.labels("train")
    with pytest.raises(ValueError, match="has no field 'colour', but kind"):
        open_set(f"wds/{tmp_path / 'b'}", target_key="colour").images("train")


def test_what_is_wrong_with_shards_is_said(tmp_path):
    def images(folder):
        return open_set(f"wds/{folder}").images("train")

    with pytest.raises(ValueError, match="names no folder"):
        images(tmp_path / "none")
    with pytest.raises(ValueError, match="holds no shards"):
        images(tmp_path)
    with pytest.raises(ValueError, match="copy or mount them"):
        images("https://example.org/x-{000..009}.tar")
    (shard,) = sets.write_shards(tmp_path / "a", per_shard=30)
    shard.write_bytes(shard.read_bytes()[:3000])
    with pytest.raises(ValueError, match=r"000000\.tar (cannot be read|: the sample|.*has no)"):
        images(tmp_path / "a")
    (tmp_path / "b").mkdir()
    with tarfile.open(tmp_path / "b" / "train-0.tar", "w") as archive:
        (tmp_path / "1.png").write_bytes(b"x")
        archive.add(tmp_path / "1.png", "1.png")
    with pytest.raises(ValueError, match=r"the sample 1 has no label \(\.cls\), but \.png"):
        images(tmp_path / "b")
    (tmp_path / "b" / "info.json").write_text('{"splits": {"train": {"filenames": ["other.tar"]}}}')
    with pytest.raises(ValueError, match=r"other\.tar, which info\.json names, is not there"):
        images(tmp_path / "b")
    (tmp_path / "b" / "info.json").write_text("{}")
    with pytest.raises(ValueError, match="does not name the shards of each split"):
        images(tmp_path / "b")


@pytest.mark.parametrize(
    ("ending", "content", "message"),
    [
        ("json", b"{no json", r"the sample 1: its \.json is none \(Expecting property name .*\): mend or remove it"),
        ("json", b"[7]", r"the sample 1: its \.json has no fields: mend or remove it"),
        ("json", b"\xff{}", r"the sample 1: its \.json is not in UTF-8"),
        ("json", b'{"kind": null}', r"the sample 1 has an empty label: give it one, or remove it"),
        ("cls", "caf\xe9".encode("latin-1"), r"the sample 1: its \.cls is not in UTF-8 \(unexpected end of data\)"),
        ("cls", b" \n", r"train-0\.tar: the sample 1 has an empty label: give it one, or remove it"),
    ],
)
def test_a_label_that_is_none_is_named_with_its_sample(tmp_path, ending, content, message):
    with tarfile.open(tmp_path / "train-0.tar", "w") as archive:
        for name, data in (("1.png", b"x"), (f"1.{ending}", content)):
            (tmp_path / name).write_bytes(data)
            archive.add(tmp_path / name, name)
    with pytest.raises(ValueError, match=message):
        open_set(f"wds/{tmp_path}", target_key="kind" if ending == "json" else None).images("train")


@pytest.mark.parametrize("name", ["train-{000000..000002}.tar", "train-000000.tar", "*.tar"])
def test_shards_named_one_by_one_are_met_with_their_folder(tmp_path, name):
    sets.write_shards(tmp_path)
    with pytest.raises(ValueError, match=f"names shards: give their folder, wds/{tmp_path}, of which all are read"):
        open_set(f"wds/{tmp_path}/{name}")


def test_shards_that_are_missing_in_a_row_are_told_of(tmp_path, caplog):
    shards = sets.write_shards(tmp_path, per_shard=5)
    assert len(shards) == 6
    assert len(open_set(f"wds/{tmp_path}").images("train")) == 30
    assert not caplog.records
    for index in (1, 3, 4):
        shards[index].unlink()
    assert len(open_set(f"wds/{tmp_path}").images("train")) == 15
    (record,) = caplog.records
    assert record.getMessage() == (
        f"{tmp_path}: 3 shards are missing in the row from train-000000.tar to train-000005.tar, train-000001.tar the"
        " first of them: fetch them, if they are part of the set"
    )
