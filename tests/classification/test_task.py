"""The parts of a training step, by hand arithmetic."""

import math

import pytest
import torch

from scalablevit.classification.task import schedule, smooth


def test_the_learning_rate_rises_and_falls():
    rates = [schedule(step, steps=11, warmup_steps=4, final=0.1) for step in range(11)]
    assert rates[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert rates[7] == pytest.approx(0.1 + 0.9 * (1 + math.cos(math.pi / 2)) / 2)  # half way down
    assert rates[10] == pytest.approx(0.1)
    assert sorted(rates[4:], reverse=True) == rates[4:]


def test_the_learning_rate_without_warmup_and_of_one_step():
    assert schedule(0, steps=1, warmup_steps=0, final=0.0) == 1.0
    assert schedule(0, steps=1, warmup_steps=1, final=0.0) == 1.0


def test_the_learning_rate_rises_from_where_it_is_told_to():
    rates = [schedule(step, steps=11, warmup_steps=4, first=0.2, final=0.1) for step in range(11)]
    assert rates[:5] == pytest.approx([0.4, 0.6, 0.8, 1.0, 1.0])
    assert rates[4:] == [schedule(step, steps=11, warmup_steps=4, final=0.1) for step in range(4, 11)]


def test_smoothing_spreads_a_part_evenly():
    targets = smooth(torch.tensor([2, 0]), 4, 0.2)
    torch.testing.assert_close(targets, torch.tensor([[0.05, 0.05, 0.85, 0.05], [0.85, 0.05, 0.05, 0.05]]))
