"""The vit-pytorch form against the package vit-pytorch, run live with the same weights."""

import copy
import random

import pytest
import torch
from vit_pytorch.scalable_vit import ScalableViT as Reference

from scalablevit import ScalableViT
from scalablevit.benchmarking.contenders import PRESETS
from scalablevit.weights import convert_state_dict
from tests.networks import randomise

README = PRESETS["readme"]


def twins(arguments, dtype):
    torch.manual_seed(0)
    ours = randomise(ScalableViT(**arguments).to(dtype))
    reference = Reference(**arguments).to(dtype)
    reference.load_state_dict(convert_state_dict(ours.state_dict(), ours, to="vit-pytorch"))
    return ours.eval(), reference.eval()


def relative(ours, reference, floor=0.0):
    ours, reference = ours.detach(), reference.detach()
    return float((ours - reference).norm() / reference.norm().clamp_min(floor))


def outputs_and_gradients(model, images, probe):
    """Logits, the images' gradient, and a dictionary of the parameters' gradients."""
    images = images.clone().requires_grad_()
    logits = model(images)
    (logits * probe).sum().backward()
    return {"logits": logits.detach(), "images": images.grad, **{name: p.grad for name, p in model.named_parameters()}}


def check_agreement(arguments, shape, dtype, tolerance):
    ours, reference = twins(arguments, dtype)
    exact = copy.deepcopy(reference).double()
    torch.manual_seed(1)
    images, probe = torch.randn(*shape, dtype=dtype), torch.randn(shape[0], arguments["num_classes"], dtype=dtype)
    mine = outputs_and_gradients(ours, images, probe)
    theirs = outputs_and_gradients(reference, images, probe)
    true = outputs_and_gradients(exact, images.double(), probe.double())
    parameters = {name: mine[name] for name, _ in ours.named_parameters()}
    converted = convert_state_dict(parameters, ours, to="vit-pytorch")
    converted |= {"logits": mine["logits"], "images": mine["images"]}
    # A softmax over one key has no gradient; what rounding makes of that is measured against all gradients together.
    floor = 1e-3 * float(torch.stack([true[name].norm() for name, _ in reference.named_parameters()]).norm())
    for name, expected in theirs.items():
        # Some of these random networks amplify rounding: there the reference itself is further from the truth.
        own_error = relative(expected.double(), true[name], floor)
        assert relative(converted[name], expected, floor) < max(tolerance, 3 * own_error), name
    assert relative(mine["logits"], theirs["logits"]) < tolerance


def random_case(seed):
    """Arguments, and an image size whose maps the reference's windows and reductions accept."""
    choose = random.Random(seed)
    stages = 1 + seed % 4
    windows = [choose.choice([None, 1, 2, 3, 4]) for _ in range(stages)]
    factors = [choose.randint(1, 8) for _ in range(stages)]
    size = []
    for _ in range(2):
        fits = [
            pixels
            for pixels in range(1, 140)
            if all(
                positions >= factor and (window is None or positions % window == 0)
                for stage, (window, factor) in enumerate(zip(windows, factors, strict=True))
                if (positions := -(-pixels // (4 * 2**stage)))
            )
        ]
        if not fits:
            return None
        size.append(choose.choice(fits))

    def per_stage(values):
        return tuple(choose.choice(values) for _ in range(stages))

    arguments = {
        "num_classes": choose.randint(2, 9),
        "dim": choose.choice([4, 6, 8]),
        "depth": tuple(choose.randint(1, 2) for _ in range(stages)),
        "heads": per_stage([1, 2, 3]),
        "reduction_factor": tuple(factors),
        "window_size": tuple(windows),
        "iwsa_dim_key": per_stage([2, 5, 8]),
        "iwsa_dim_value": per_stage([3, 4, 8]),
        "ssa_dim_key": per_stage([2, 5, 8]),
        "ssa_dim_value": per_stage([3, 4, 8]),
        "ff_expansion_factor": choose.choice([1, 2, 4]),
        "channels": choose.choice([1, 3, 4]),
    }
    return arguments, (choose.randint(1, 3), arguments["channels"], *size)


CASES = [case for seed in range(40) if (case := random_case(seed))]


def test_the_random_cases_cover_what_they_should():
    arguments = [case[0] for case in CASES]
    assert {len(case["depth"]) for case in arguments} == {1, 2, 3, 4}
    assert {case["channels"] for case in arguments} == {1, 3, 4}
    assert {factor for case in arguments for factor in case["reduction_factor"]} >= {1, 2, 3, 4, 5, 6, 7, 8}
    assert any(None in case["window_size"] for case in arguments)
    sizes = [case[1][2:] for case in CASES]
    assert any(h != w for h, w in sizes)
    assert any(h % 2 and w % 2 for h, w in sizes)


@pytest.mark.parametrize("case", CASES, ids=lambda case: "x".join(map(str, case[1])))
def test_random_configurations_agree_in_float64(case):
    check_agreement(*case, torch.float64, 1e-10)


@pytest.mark.parametrize("case", CASES[::4], ids=lambda case: "x".join(map(str, case[1])))
def test_random_configurations_agree_in_float32(case):
    check_agreement(*case, torch.float32, 1e-5)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
@pytest.mark.slow
def test_the_readme_configuration_of_vit_pytorch_agrees(dtype, tolerance):
    check_agreement(README, (1, 3, 256, 256), dtype, tolerance)


def test_the_readme_configuration_agrees_forward():
    ours, reference = twins(README, torch.float32)
    with torch.no_grad():
        images = torch.randn(1, 3, 256, 256)
        assert relative(ours(images), reference(images)) < 1e-5


def test_the_order_that_runs_is_not_the_order_of_the_names():
    arguments = {"num_classes": 3, "dim": 8, "depth": (1,), "heads": 2, "reduction_factor": 2, "window_size": 2}
    ours, reference = twins(arguments, torch.float64)
    images = torch.randn(1, 3, 32, 32, dtype=torch.float64)
    layer = ours.stages[0].layers[0]
    assert [name for name, _ in layer.named_children()] == ["ssa", "ff1", "peg", "ff2", "iwsa"]
    assert relative(ours(images), reference(images)) < 1e-10
    layer._modules["ff2"], layer._modules["iwsa"] = layer._modules["iwsa"], layer._modules["ff2"]
    assert relative(ours(images), reference(images)) > 1e-3


def test_dropout_has_the_distribution_of_the_reference():
    arguments = {
        "num_classes": 4,
        "dim": 8,
        "depth": (1, 1),
        "heads": 2,
        "reduction_factor": (2, 1),
        "window_size": (4, None),
        "dropout": 0.2,
    }
    ours, reference = (model.train() for model in twins(arguments, torch.float32))
    image = torch.randn(1, 3, 32, 32)
    torch.manual_seed(0)
    draws = 3000
    with torch.no_grad():
        mine, theirs = (
            torch.cat([model(image.expand(500, -1, -1, -1)) for _ in range(6)]) for model in (ours, reference)
        )
    # The mean of `draws` numbers has a standard error of std / sqrt(draws); four of them, for the difference of two.
    error = (mine.var(0) + theirs.var(0)).div(draws).sqrt()
    assert bool(((mine.mean(0) - theirs.mean(0)).abs() < 4 * error).all())
    torch.testing.assert_close(mine.std(0), theirs.std(0), rtol=0.06, atol=0)
    assert bool((mine.std(0) > 0.01).all())
