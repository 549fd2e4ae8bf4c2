"""Checkpoints that are whole, damaged, or cannot be written."""

import logging
import zipfile

import pytest
import torch

from scalablevit.classification.checkpoint_files import (
    damage,
    newest_whole,
    partial_file,
    read_checkpoint,
    write_checkpoint,
)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "checkpoints" / "last.ckpt"
    write_checkpoint({"step": 7, "weights": torch.arange(1000.0)}, path)
    return path


def test_what_was_written_is_read_by_torch_and_by_us(file):
    assert damage(file) == ""
    for content in (read_checkpoint(file), torch.load(file, weights_only=True), torch.load(file, mmap=True)):
        assert content["step"] == 7
        assert torch.equal(content["weights"], torch.arange(1000.0))
    assert zipfile.ZipFile(file).testzip() is None
    assert list(file.parent.iterdir()) == [file]


def test_every_changed_byte_and_every_cut_is_found(file):
    whole = file.read_bytes()
    for position in range(0, len(whole), 97):
        changed = bytearray(whole)
        changed[position] ^= 0x10
        file.write_bytes(changed)
        assert damage(file), position
    for length in (0, 1, 70, 71, 72, len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:length])
        assert "ends without a checksum" in damage(file), length
    file.write_bytes(whole + b"0")
    assert damage(file)
    with pytest.raises(ValueError, match=r"last\.ckpt is damaged \(it ends without a checksum.*with --overwrite"):
        read_checkpoint(file)


def test_what_another_program_wrote_does_not_pass_for_whole(file):
    torch.save({"step": 7}, file)
    assert "ends without a checksum" in damage(file)


def test_the_one_that_was_there_goes_to_its_place(file):
    previous = file.with_name("previous.ckpt")
    for step in (8, 9):
        write_checkpoint({"step": step}, file, previous)
    assert [read_checkpoint(each)["step"] for each in (file, previous)] == [9, 8]


def test_a_full_disk_changes_nothing(file):
    whole = file.read_bytes()
    partial_file(file).symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left on device"):
        write_checkpoint({"step": 8}, file, file.with_name("previous.ckpt"))
    assert list(file.parent.iterdir()) == [file]
    assert file.read_bytes() == whole


def test_the_newest_whole_one_is_taken_and_damage_is_told(file, caplog):
    previous = file.with_name("previous.ckpt")
    files = (file, previous)
    write_checkpoint({"step": 8}, file, previous)
    with caplog.at_level(logging.WARNING):
        assert newest_whole(files) == file
        assert caplog.text == ""
        file.write_bytes(file.read_bytes()[:-100])
        assert newest_whole(files) == previous
    assert "last.ckpt is damaged (it ends without a checksum, so it is not complete); going on from" in caplog.text
    previous.unlink()
    with pytest.raises(ValueError, match="there is nothing to go on from"):
        newest_whole(files)
    file.unlink()
    assert newest_whole(files) is None
