"""What people see of a run, on a terminal and in a file."""

import io

import pytest
import pytorch_lightning as pl
from rich.console import Console

from scalablevit.classification.progress import ProgressDisplay, describe, format_seconds
from scalablevit.classification.run_folder import EpochMetrics
from scalablevit.classification.training import train
from tests.conftest import CHOSEN, TINY


def console(**options):
    return Console(file=io.StringIO(), width=120, highlight=False, **options)


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0:00"), (59.6, "1:00"), (83, "1:23"), (3723, "1:02:03")])
def test_times_are_readable(seconds, text):
    assert format_seconds(seconds) == text


def test_an_epoch_is_a_line():
    row = EpochMetrics(
        epoch=3,
        train_loss=0.71234,
        val_loss=0.4,
        val_score=87.25,
        learning_rate=0.00123,
        seconds=12.34,
        images_per_second=512.6,
    )
    text = "  loss 0.712  val loss 0.400  val top-1 87.2 %  lr 1.2e-03  513 images/s  12.3 s"
    assert describe(row, 9) == f"epoch 3/9{text}"
    assert describe(row) == f"epoch 3{text}"


def test_a_file_gets_plain_lines_and_more_of_them_in_long_epochs(data, tmp_path):
    quiet, chatty = console(), console()
    train(data, tmp_path / "quiet", **TINY, callbacks=[ProgressDisplay(quiet)])
    train(data, tmp_path / "chatty", **TINY, callbacks=[ProgressDisplay(chatty, interval_s=0)])
    notes = quiet.file.getvalue().splitlines()[: len(CHOSEN)]
    assert [line.split()[0] for line in notes] == list(CHOSEN)
    assert len(quiet.file.getvalue().splitlines()) == len(CHOSEN) + 1 + 2 + 1  # what limits the run
    lines = chatty.file.getvalue().splitlines()[len(CHOSEN) :]
    assert len(lines) == 1 + 2 + 1 + 2 * 3  # three steps of 16 of the 48 images in each epoch
    assert lines[1].startswith("epoch 1/2  step 1  loss ")
    assert "\x1b" not in chatty.file.getvalue()


def test_a_terminal_gets_a_bar_that_goes_away(data, tmp_path):
    terminal = console(force_terminal=True)
    train(data, tmp_path / "run", **TINY, callbacks=[ProgressDisplay(terminal)])
    shown = terminal.file.getvalue()
    assert "━" in shown
    assert "epoch 2/2  loss" in shown
    assert shown.count("\x1b[?25l") == shown.count("\x1b[?25h") == 1  # the cursor was hidden and is back


def test_the_terminal_is_left_in_order_after_an_error(data, tmp_path):
    class Failing(pl.Callback):
        def on_train_batch_end(self, *arguments):
            raise RuntimeError("a defect")

    terminal = console(force_terminal=True)
    with pytest.raises(RuntimeError, match="a defect"):
        train(data, tmp_path / "run", **TINY, callbacks=[ProgressDisplay(terminal), Failing()])
    shown = terminal.file.getvalue()
    assert shown.count("\x1b[?25l") == shown.count("\x1b[?25h") == 1  # the cursor was hidden and is back
