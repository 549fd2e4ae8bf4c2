"""Which parameters an optimiser moves, and how fast."""

import pytest
import torch
from timm.optim import create_optimizer_v2, param_groups_layer_decay

from scalablevit import scalablevit_nano
from scalablevit.classification.configuration import TrainConfig
from scalablevit.classification.optimisers import freeze_backbone, make_optimizer, parameter_groups


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


def rates(optimizer, model):
    """The learning rate of each parameter, by its name."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {names[id(p)]: group["lr"] for group in optimizer.param_groups for p in group["params"]}


def test_layers_learn_as_fast_as_timm_has_them():
    model = scalablevit_nano(3)
    ours = make_optimizer(model, TrainConfig(optimizer="adamw", learning_rate=0.1, layer_decay=0.5))
    groups = param_groups_layer_decay(model, no_weight_decay_list=model.no_weight_decay(), layer_decay=0.5)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    theirs = {names[id(p)]: 0.1 * group["lr_scale"] for group in groups for p in group["params"]}
    assert rates(ours, model) == pytest.approx(theirs)
    assert len(set(theirs.values())) > 5
    assert ours.param_groups[0]["lr"] == 0.1  # the one that is told of


def test_layers_learn_at_different_speeds_with_muon_too():
    model = scalablevit_nano(3)
    plain, decayed = (
        rates(make_optimizer(model, TrainConfig(learning_rate=0.1, layer_decay=decay)), model) for decay in (1.0, 0.5)
    )
    adamw = rates(make_optimizer(model, TrainConfig(optimizer="adamw", learning_rate=1.0, layer_decay=0.5)), model)
    assert decayed == pytest.approx({name: plain[name] * adamw[name] for name in plain})


def test_of_a_frozen_network_the_head_alone_moves():
    model = scalablevit_nano(3)
    freeze_backbone(model)
    for name in ("muon", "adamw"):
        optimizer = make_optimizer(model, TrainConfig(optimizer=name, learning_rate=0.1))
        assert set(rates(optimizer, model)) == {f"head.{n}" for n, _ in model.head.named_parameters()}


@pytest.mark.parametrize("name", ["sgd", "lamb", "nadamw"])
def test_the_optimisers_of_timm_make_the_steps_that_they_make_by_themselves(name):
    steps = []
    for ours in (True, False):
        torch.manual_seed(0)
        model = scalablevit_nano(3, channels=1)
        config = TrainConfig(optimizer=name, learning_rate=0.1)
        groups = [{key: group[key] for key in ("params", "weight_decay")} for group in parameter_groups(model, 0.05)]
        optimizer = make_optimizer(model, config) if ours else create_optimizer_v2(groups, opt=name, lr=0.1)
        for _ in range(2):
            optimizer.zero_grad()
            model(torch.ones(2, 1, 8, 8)).square().sum().backward()
            optimizer.step()
        steps.append(model.state_dict())
    assert all(torch.equal(tensor, steps[1][key]) for key, tensor in steps[0].items())


def test_what_timm_cannot_make_is_said():
    with pytest.raises(ValueError, match="optimizer 'fusedadam' cannot be made by timm"):
        make_optimizer(scalablevit_nano(3), TrainConfig(optimizer="fusedadam", learning_rate=0.1))
