"""The parts of a training step, by hand arithmetic."""

import math

import pytest
import torch

from scalablevit import scalablevit_nano
from scalablevit.classification.configuration import TrainConfig
from scalablevit.classification.task import make_optimizer, parameter_groups, schedule, smooth


def test_the_learning_rate_rises_and_falls():
    rates = [schedule(step, steps=11, warmup_steps=4, final=0.1) for step in range(11)]
    assert rates[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert rates[7] == pytest.approx(0.1 + 0.9 * (1 + math.cos(math.pi / 2)) / 2)  # half way down
    assert rates[10] == pytest.approx(0.1)
    assert sorted(rates[4:], reverse=True) == rates[4:]


def test_the_learning_rate_without_warmup_and_of_one_step():
    assert schedule(0, steps=1, warmup_steps=0, final=0.0) == 1.0
    assert schedule(0, steps=1, warmup_steps=1, final=0.0) == 1.0


def test_smoothing_spreads_a_part_evenly():
    targets = smooth(torch.tensor([2, 0]), 4, 0.2)
    torch.testing.assert_close(targets, torch.tensor([[0.05, 0.05, 0.85, 0.05], [0.85, 0.05, 0.05, 0.05]]))


def test_norms_biases_and_peg_do_not_decay():
    model = scalablevit_nano(3, device="meta")
    decayed, spared = parameter_groups(model, 0.3)
    assert (decayed["weight_decay"], spared["weight_decay"]) == (0.3, 0.0)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decayed, spared = ({names[id(parameter)] for parameter in group["params"]} for group in (decayed, spared))
    assert decayed | spared == set(names.values())
    assert not decayed & spared
    assert all(name.endswith(".weight") and "norm" not in name and ".peg." not in name for name in decayed)
    assert all(name.endswith(".bias") or "norm" in name or ".peg." in name for name in spared)


def test_muon_gets_the_matrices_of_linear_layers_and_adamw_the_rest():
    model = scalablevit_nano(3, device="meta")
    optimizer = make_optimizer(model, TrainConfig(learning_rate=0.01))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = [({names[id(p)] for p in group["params"]}, group) for group in optimizer.param_groups]
    assert set().union(*(held for held, _ in groups)) == set(names.values())
    assert sum(len(held) for held, _ in groups) == len(names)
    muon = set().union(*(held for held, group in groups if group["is_matrix"]))
    assert muon == {name for name, p in model.named_parameters() if p.ndim == 2} - {"head.classifier.weight"}
    assert "stages.0.layers.0.ff1.branch.fc1.weight" in muon
    assert {(group["is_matrix"], group["lr"]) for _, group in groups} == {(True, 0.01), (False, 0.004)}


def test_adamw_is_there_for_those_who_want_it():
    optimizer = make_optimizer(scalablevit_nano(3), TrainConfig(optimizer="adamw"))
    assert isinstance(optimizer, torch.optim.AdamW)
    assert [group["lr"] for group in optimizer.param_groups] == [1e-3, 1e-3]
