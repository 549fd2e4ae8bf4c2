"""Sets of Hugging Face's whose images are fetched as they are needed."""

import multiprocessing
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

from scalablevit.classification.readers import open_set, streams
from scalablevit.classification.readers.notation import SetName
from scalablevit.classification.sources import find_training_data
from scalablevit.classification.stopping import StoppedBySignal
from scalablevit.images import UnreachableStoreError, read_image
from tests.classification.readers import sets

datasets = pytest.importorskip("datasets")


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(streams, "WAITS", (0.0, 0.0))


@pytest.fixture
def folder(tmp_path):
    """Two files to train on, of 15 rows in groups of 4, and one to test with."""
    for split, parts in (("train", 2), ("test", 1)):
        for number in range(parts):
            (tmp_path / "set" / "data").mkdir(parents=True, exist_ok=True)
            file = tmp_path / "set" / "data" / f"{split}-{number:05}-of-{parts:05}.parquet"
            sets.table(split).shard(parts, number, contiguous=True).to_parquet(str(file), batch_size=4)
    return tmp_path / "set"


@pytest.fixture
def fetched(monkeypatch):
    """Counts how often each group was fetched with its images."""
    counts, read = Counter(), streams.RowGroup.read

    def counted(group, columns):
        if columns == ["image"]:
            counts[group.file, group.number] += 1
        return read(group, columns)

    monkeypatch.setattr(streams.RowGroup, "read", counted)
    return counts


def check(images, split, order=None):
    assert images.classes == sets.NAMES
    assert images.targets().tolist() == sets.labels(split)
    for index in range(len(images)) if order is None else order:
        assert np.array_equal(np.asarray(read_image(images.paths[index], 1)), sets.pixels(split)[index])


def test_a_folder_of_parquet_files(folder, tmp_path, fetched):
    image_set = open_set(f"hfids/{folder}:{tmp_path / 'kept'}")
    assert sorted(image_set.splits) == ["test", "train"]
    for split, groups in (("train", (4, 4, 4, 3) * 2), ("test", (4, 4, 4))):
        images = image_set.images(split)
        assert images.stretches == groups
        assert not fetched or split == "test"  # labels alone say which images there are
        check(images, split)
    assert set(fetched.values()) == {1}
    assert str(image_set.images("train").paths[5]).endswith("/train/5")
    check(open_set(f"hfids/{folder}:{tmp_path / 'kept'}").images("train"), "train")
    assert set(fetched.values()) == {1}  # another run finds what was kept


def test_without_a_folder_a_temporary_one_is_used(folder):
    images = open_set(f"hfids/{folder}").images("test")
    check(images, "test")
    assert images.paths[0].store.folder.is_relative_to(streams._temporary_folder())


def test_the_oldest_groups_make_room(folder, tmp_path, fetched):
    images = open_set(f"hfids/{folder}:{tmp_path / 'kept'}").images("train")
    store = images.paths[0].store
    store.most = 3
    check(images, "train")
    assert [file.name for file in sorted(store.folder.glob("*.arrow"))] == [f"{n:08}.arrow" for n in (5, 6, 7)]
    check(images, "train", [0, 1, 2, 3])
    assert fetched[store.groups[0].file, 0] == 2


def test_a_group_whose_file_is_damaged_is_fetched_again(folder, tmp_path, fetched):
    images = open_set(f"hfids/{folder}:{tmp_path / 'kept'}").images("train")
    check(images, "train", [0])
    kept = images.paths[0].store.folder / "00000000.arrow"
    kept.write_bytes(kept.read_bytes()[:100])
    check(images, "train", [1])
    assert fetched[images.paths[0].store.groups[0].file, 0] == 2


def test_a_group_with_wrong_offsets_does_not_end_the_process(folder, tmp_path):
    data = f"hfids/{folder}:{tmp_path / 'kept'}"
    images = open_set(data).images("train")
    check(images, "train", [0])
    kept = images.paths[0].store.folder / "00000000.arrow"
    content = bytearray(kept.read_bytes())
    place = content.index(sets.png(sets.pixels("train")[0])) - 64  # the offsets lie before the images
    content[place : place + 60] = b"\xa7" * 60
    kept.write_bytes(content)
    check(open_set(data).images("train"), "train", [0, 1, 2, 3])


def test_threads_fetch_a_group_once(folder, tmp_path, fetched):
    images = open_set(f"hfids/{folder}:{tmp_path / 'kept'}").images("train")
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda path: read_image(path, 1), images.paths * 3))
    assert set(fetched.values()) == {1}


def _read_all(images, found):
    found.put([np.asarray(read_image(path, 1)).sum() for path in images.paths])


def test_processes_share_a_folder(folder, tmp_path):
    images = open_set(f"hfids/{folder}:{tmp_path / 'kept'}").images("train")
    context = multiprocessing.get_context("spawn")
    found = context.Queue()
    processes = [context.Process(target=_read_all, args=(images, found)) for _ in range(2)]
    for process in processes:
        process.start()
    expected = [image.sum() for image in sets.pixels("train")]
    assert [found.get(timeout=60) for _ in processes] == [expected, expected]
    for process in processes:
        process.join()
    assert len(list(images.paths[0].store.folder.glob("*.arrow"))) == 8
    assert not list(images.paths[0].store.folder.glob("*.unfinished"))


class Ranges(SimpleHTTPRequestHandler):
    """A file server that sends parts of files, and counts the bytes."""

    sent: ClassVar = Counter()

    def do_GET(self):
        content = Path(self.translate_path(self.path)).read_bytes()
        first, last = map(int, self.headers["Range"].removeprefix("bytes=").split("-"))
        part = content[first : last + 1]
        self.sent["bytes"] += len(part)
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {first}-{first + len(part) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        self.wfile.write(part)

    def end_headers(self):
        self.send_header("Accept-Ranges", "bytes")
        super().end_headers()

    def log_message(self, *_):
        pass


@pytest.fixture
def server(tmp_path):
    """A set of two files of 2 MB each in 15 groups, behind an address."""
    (tmp_path / "far").mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (30, 200, 700), dtype=np.uint8)
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=list(sets.NAMES))})
    cells = {"image": [{"bytes": sets.png(image), "path": None} for image in noise], "label": sets.labels("train")}
    whole = datasets.Dataset.from_dict(cells, features=features)
    for number in range(2):
        whole.shard(2, number, contiguous=True).to_parquet(str(tmp_path / "far" / f"{number}.parquet"), batch_size=1)
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Ranges, directory=str(tmp_path / "far")))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    Ranges.sent.clear()
    yield [f"http://127.0.0.1:{server.server_port}/{number}.parquet" for number in range(2)], noise
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_parts_of_files_are_fetched_from_an_address_by_forked_processes_too(server, tmp_path):
    files, noise = server
    name = SetName(kind="hfids", name="far", folder=tmp_path / "kept")
    images = streams._read_part(name, "train", files, None, None)
    assert images.targets().tolist() == sets.labels("train")
    assert np.array_equal(np.asarray(read_image(images.paths[20], 1)), noise[20])
    assert Ranges.sent["bytes"] < 0.3 * sum(map(len, map(sets.png, noise)))
    context = multiprocessing.get_context("fork")
    found = context.Queue()
    process = context.Process(target=_read_all, args=(images, found))
    process.start()
    assert found.get(timeout=60) == noise.sum(axis=(1, 2)).tolist()
    process.join()


def test_what_cannot_be_fetched_is_tried_again_and_then_no_image_to_leave_out(folder, tmp_path, monkeypatch):
    images = open_set(f"hfids/{folder}:{tmp_path / 'kept'}").images("train")
    read, failures = streams.RowGroup.read, [ConnectionError("gone"), TimeoutError("slow")]

    def failing(group, columns):
        if failures:
            raise failures.pop()
        return read(group, columns)

    monkeypatch.setattr(streams.RowGroup, "read", failing)
    check(images, "train", [0])
    failures += [ConnectionError("gone")] * 3
    with pytest.raises(UnreachableStoreError, match=r"parquet cannot be read, tried 3 times \(ConnectionError: gone\)"):
        read_image(images.paths[29], 1)


def test_failures_do_not_wait_for_each_other(folder, tmp_path, monkeypatch):
    images = open_set(f"hfids/{folder}:{tmp_path / 'kept'}").images("train")
    monkeypatch.setattr(streams, "WAITS", (0.2, 0.2))

    def failing(group, columns):
        raise ConnectionError("404\n\nnobody is there")

    monkeypatch.setattr(streams.RowGroup, "read", failing)
    started = time.perf_counter()
    with ThreadPoolExecutor(8) as pool:
        found = [pool.submit(read_image, images.paths[0], 1) for _ in range(8)]
    assert time.perf_counter() - started < 1.6  # one after the other they would take 3.2
    for one in found:
        with pytest.raises(UnreachableStoreError, match=r"ConnectionError: 404 nobody is there"):
            one.result()


@pytest.mark.parametrize("error", [StoppedBySignal("SIGTERM"), MemoryError()])
def test_what_will_not_pass_is_not_tried_again(error):
    calls = []

    def action():
        calls.append(1)
        raise error

    with pytest.raises(type(error)):
        streams.insistently(action, "a file")
    assert len(calls) == 1


def test_a_file_that_is_gone_is_told_at_once(folder, tmp_path, monkeypatch):
    images = open_set(f"hfids/{folder}:{tmp_path / 'kept'}").images("test")
    monkeypatch.setattr(streams, "WAITS", (60.0,))
    next((folder / "data").glob("test-*")).unlink()
    with pytest.raises(UnreachableStoreError, match=r"test-.*\.parquet is not there"):
        read_image(images.paths[0], 1)


def test_a_damaged_file_is_told_at_once(folder, monkeypatch):
    monkeypatch.setattr(streams, "WAITS", (60.0,))
    file = next((folder / "data").glob("test-*"))
    file.write_bytes(file.read_bytes()[:300])
    with pytest.raises(UnreachableStoreError, match=r"test-.*\.parquet is no Parquet file \(.*\): replace it"):
        open_set(f"hfids/{folder}").images("test")


@pytest.mark.parametrize("column", ["image", "label"])
def test_a_file_without_a_column_is_named(folder, column):
    file = folder / "data" / "train-00001-of-00002.parquet"
    sets.table("train").remove_columns(column).to_parquet(str(file))
    with pytest.raises(ValueError, match=rf"train-00001-of-00002\.parquet has no column {column}"):
        open_set(f"hfids/{folder}").images("train")


def test_a_folder_that_cannot_be_written_to_is_said(folder, tmp_path):
    (tmp_path / "file").write_text("")
    images = open_set(f"hfids/{folder}:{tmp_path / 'file'}").images("train")
    with pytest.raises(UnreachableStoreError, match=r"cannot be kept in .*file.*name another folder behind a colon"):
        read_image(images.paths[0], 1)


def test_what_is_kept_of_other_files_is_not_taken_for_these(folder, tmp_path):
    data = f"hfids/{folder}:{tmp_path / 'kept'}"
    check(open_set(data).images("test"), "test")
    other = sets.table("train").select(range(12))
    other.to_parquet(str(next((folder / "data").glob("test-*"))), batch_size=4)
    images = open_set(data).images("test")
    assert np.array_equal(np.asarray(read_image(images.paths[4], 1)), sets.pixels("train")[4])


def test_names_of_columns_and_lists_of_labels(folder, tmp_path):
    several = (datasets.List(datasets.ClassLabel(names=list(sets.NAMES))), [[0, 2], [], [1]] * 4)
    (tmp_path / "2").mkdir()
    sets.table("test", several=several).to_parquet(str(tmp_path / "2" / "test.parquet"), batch_size=4)
    images = open_set(f"hfids/{tmp_path / '2'}", target_key="several").images("test")
    assert images.multi_label
    assert images.targets()[:3].tolist() == [[1, 0, 1], [0, 0, 0], [0, 1, 0]]
    assert images.stretches == (4, 4, 4)
    with pytest.raises(ValueError, match="has no column 'fin', but image, label"):
        open_set(f"hfids/{folder}", target_key="fin").images("train")


def test_what_cannot_be_streamed_is_said(folder, tmp_path):
    with pytest.raises(ValueError, match="there is no folder"):
        open_set(f"hfids/{tmp_path}/nothing")
    (tmp_path / "images" / "train" / "a").mkdir(parents=True)
    (tmp_path / "images" / "train" / "a" / "1.png").write_bytes(sets.png(sets.pixels("train")[0]))
    with pytest.raises(ValueError, match=r"Parquet files can be streamed, and .*1\.png is none: give hfds/"):
        open_set(f"hfids/{tmp_path / 'images'}")
    with pytest.raises(ValueError, match=r"has no part to validate with.*--val-split, or give hfds/"):
        find_training_data(f"hfids/{folder}", seed=0, val_fraction=0.2)
