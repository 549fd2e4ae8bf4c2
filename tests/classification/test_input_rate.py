"""Reading beside training: what is counted, and what is said of it."""

import time

import pytest
import torch
from torch.utils.data import Dataset

from scalablevit.classification.data import collate
from scalablevit.classification.input_rate import FEW_BATCHES, InputRate, TimedLoader, measure_reading, rate_of


class Slow(Dataset):
    """Samples that take a while to read, asked for by position, or by (epoch, position)."""

    def __init__(self, count, seconds):
        self.count = count
        self.seconds = seconds

    def __len__(self):
        return self.count

    def __getitem__(self, position):
        time.sleep(self.seconds)
        return torch.zeros(1, 2, 2), torch.tensor(0)


def test_a_loader_knows_how_long_it_was_waited_for():
    loader = TimedLoader(Slow(12, 0.01), 4, collate_fn=collate)
    started = time.perf_counter()
    for _ in loader:
        time.sleep(0.02)
    seconds = time.perf_counter() - started
    assert loader.images == 12
    assert 0.12 <= loader.waited_s <= seconds - 0.06
    rate = rate_of(loader, seconds, alone=None)
    assert rate.reads == pytest.approx(12 / loader.waited_s)
    assert rate.trains == pytest.approx(12 / (seconds - loader.waited_s))
    assert rate.waiting == pytest.approx(loader.waited_s / seconds)
    assert rate.limit == "reading"
    loader.reset()
    assert (loader.images, loader.waited_s) == (0, 0.0)
    assert len(list(loader)) == 3  # the second time, too
    assert loader.images == 12


@pytest.mark.parametrize(
    ("waiting", "workers", "limit", "words"),
    [
        (0.05, 0, "network", "reads 1,850 images/s, trains 412 images/s: the network is the limit"),
        (0.3, 0, "both", "in turn, 30 % of the time reading: --workers 1"),
        (0.8, 0, "reading", "reading is the limit, 80 % of the time is waiting; raise --workers"),
        (0.05, 4, "network", "the network is the limit"),
        (0.3, 4, "reading", "reading is the limit, 30 % of the time is waiting; raise --workers"),
        (0.3, 64, "reading", "with 64 workers for 8 cores: smaller images, or more cores, help"),
    ],
)
def test_the_limit_is_named(monkeypatch, waiting, workers, limit, words):
    monkeypatch.setattr("scalablevit.classification.input_rate.available_cores", lambda: 8)
    rate = InputRate(reads=1850.4, trains=412.3, waiting=waiting, workers=workers)
    assert rate.limit == limit
    assert words in rate.sentence()
    assert InputRate.from_json(rate.to_json()) == rate


def test_what_was_not_measured_is_not_said():
    assert InputRate(reads=None, trains=412.3, waiting=0.0, workers=2).sentence().startswith("trains 412 images/s")


def test_workers_that_are_waited_for_give_what_they_can():
    loader = TimedLoader(Slow(8, 0.0), 4, collate_fn=collate, num_workers=0)
    loader.images, loader.waited_s = 100, 3.0
    loader.num_workers = 2
    assert rate_of(loader, 10.0, alone=55.0).reads == 10.0
    loader.waited_s = 0.5
    assert rate_of(loader, 10.0, alone=55.0).reads == 55.0


def test_reading_alone_is_measured_within_a_time():
    few = measure_reading(Slow(FEW_BATCHES * 4 - 1, 0.0), batch_size=4, workers=0)
    assert few is None
    started = time.perf_counter()
    rate = measure_reading(Slow(100_000, 0.002), batch_size=4, workers=0, seconds=0.2)
    assert time.perf_counter() - started < 2
    assert 150 < rate <= 500
