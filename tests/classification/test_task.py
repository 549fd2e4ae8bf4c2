"""The parts of a training step, by hand arithmetic."""

import math

import numpy as np
import pytest
import torch

from scalablevit import scalablevit_nano
from scalablevit.classification.configuration import TrainConfig
from scalablevit.classification.data import UnreadableImages
from scalablevit.classification.mixing import mix
from scalablevit.classification.task import ClassificationTask, average_into, schedule, smooth


def task(*, weights, smoothing, multi_label=False):
    """One whose classes weigh differently."""
    names = "abcdef"[: len(weights)]
    config = TrainConfig(label_smoothing=smoothing)
    model, unreadable = scalablevit_nano(len(names)), UnreadableImages(1, 0)
    return ClassificationTask(
        model, config, None, names, unreadable, multi_label=multi_label, class_weights=torch.tensor(weights)
    )


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


def test_the_weight_of_a_class_is_that_of_its_images():
    """So that the best answers are the smoothed labels, however much an image of the rare class counts."""
    weighted = task(weights=[0.5, 50.0], smoothing=0.1)
    labels = torch.tensor([0, 1])
    logits = smooth(labels, 2, 0.1).log().requires_grad_()
    loss = weighted._loss(logits, weighted._targets(labels))
    loss.backward()
    torch.testing.assert_close(logits.grad, torch.zeros(2, 2), atol=1e-6, rtol=0)
    entropy = -(0.05 * math.log(0.05) + 0.95 * math.log(0.95))
    assert float(loss.detach()) == pytest.approx((0.5 + 50) * entropy / 2, rel=1e-5)


def test_the_weight_of_a_label_that_is_there_is_not_that_of_one_that_is_not():
    weighted = task(weights=[9.0, 99.0], smoothing=0.1, multi_label=True)
    labels = torch.tensor([[0.0, 1.0], [0.0, 0.0]])
    logits = torch.logit(0.9 * labels + 0.05).requires_grad_()
    loss = weighted._loss(logits, weighted._targets(labels))
    loss.backward()
    torch.testing.assert_close(logits.grad, torch.zeros(2, 2), atol=1e-6, rtol=0)
    entropy = -(0.05 * math.log(0.05) + 0.95 * math.log(0.95))
    assert float(loss.detach()) == pytest.approx((1 + 99 + 1 + 1) * entropy / 4, rel=1e-5)


@pytest.mark.parametrize("multi_label", [False, True])
def test_the_loss_of_mixed_images_is_that_of_their_labels_in_the_same_proportion(multi_label):
    weighted = task(weights=[0.5, 4.0, 0.0], smoothing=0.1, multi_label=multi_label)
    labels = torch.tensor([[0.0, 1.0, 1.0], [1.0, 0.0, 0.0]]) if multi_label else torch.tensor([0, 1])
    logits = torch.randn(1, 3, generator=torch.Generator().manual_seed(0)).expand(2, 3)
    images = torch.eye(2).view(2, 2, 1, 1)
    mixed, targets = mix(images, weighted._targets(labels), mixup=1.0, cutmix=0.0, random=np.random.default_rng(3))
    shares = mixed.flatten(1)  # how much of each image there is in each
    assert 0.05 < float(shares[0, 0]) < 0.95
    alone = [float(weighted._loss(logits[:1], weighted._targets(labels)[index : index + 1])) for index in range(2)]
    expected = float((shares @ torch.tensor(alone)).mean())
    assert float(weighted._loss(logits, targets)) == pytest.approx(expected, rel=1e-5)


def test_an_average_of_few_steps_forgets_the_first():
    """With a decay of 0.998 four fifths of the average after 100 steps would be the weights of the first."""
    average = [torch.zeros(1)]
    seen = []
    for step in range(1, 101):
        average_into(average, [torch.tensor([float(step)])], torch.tensor(step), decay=0.998)
        seen.append(float(average[0]))
    expected = 0.0
    for step in range(1, 101):
        decay = min(0.998, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * step
    assert seen[-1] == pytest.approx(expected, rel=1e-5)
    assert 85 < seen[-1] < 100
    average_into(average, [torch.tensor([0.0])], torch.tensor(10**6), decay=0.998)
    assert float(average[0]) == pytest.approx(0.998 * seen[-1], rel=1e-5)
