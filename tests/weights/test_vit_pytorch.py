"""The layout of vit-pytorch, against the package itself: the same weights compute the same, in both directions."""

import pytest
import torch
from vit_pytorch.scalable_vit import ScalableViT as Reference

from scalablevit import ScalableViT
from scalablevit.weights import convert_state_dict

CONFIGURATIONS = {
    # Reduction factors of 1 and more, one of them no divisor of the map; heads of unequal widths; whole-map windows.
    "unequal": {
        "num_classes": 10,
        "dim": 16,
        "depth": (1, 2, 1),
        "heads": (2, 4, 2),
        "reduction_factor": (8, 3, 1),
        "window_size": (8, 4, None),
        "ssa_dim_key": (40, 8, 32),
        "ssa_dim_value": (32, 16, 32),
        "iwsa_dim_key": (8, 32, 16),
        "iwsa_dim_value": (16, 16, 8),
    },
    "one channel": {
        "num_classes": 3,
        "dim": 8,
        "depth": (3, 1),
        "heads": 2,
        "reduction_factor": (4, 1),
        "channels": 1,
        "ff_expansion_factor": 2,
    },
    "no reduction": {"num_classes": 5, "dim": 12, "depth": (2,), "heads": 3, "reduction_factor": 1, "window_size": 4},
}
UNEQUAL = CONFIGURATIONS["unequal"]


def outputs_and_gradients(model, images):
    images = images.clone().requires_grad_()
    logits = model(images)
    (logits * torch.linspace(-1, 1, logits.numel(), dtype=logits.dtype).view_as(logits)).sum().backward()
    return logits, images.grad


def with_random_norms(model):
    # Fresh norms are ones and zeros, which would hide that they were mixed up.
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.double().eval()


@pytest.mark.parametrize("direction", ["to ours", "to theirs"])
@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_same_weights_compute_the_same(name, direction):
    arguments = CONFIGURATIONS[name]
    torch.manual_seed(0)
    ours, theirs = with_random_norms(ScalableViT(**arguments)), with_random_norms(Reference(**arguments))
    if direction == "to ours":
        ours.load_state_dict(convert_state_dict(theirs.state_dict(), ours))
    else:
        theirs.load_state_dict(convert_state_dict(ours.state_dict(), ours, to="vit-pytorch"))
    images = torch.randn(2, arguments.get("channels", 3), 32, 64, dtype=torch.float64)

    logits, gradient = outputs_and_gradients(ours, images)
    expected_logits, expected_gradient = outputs_and_gradients(theirs, images)

    assert expected_logits.std() > 0.1
    torch.testing.assert_close(logits, expected_logits, rtol=0, atol=1e-10)
    torch.testing.assert_close(gradient, expected_gradient, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_there_and_back_gives_the_same_bits(name):
    state = Reference(**CONFIGURATIONS[name]).state_dict()
    model = ScalableViT(**CONFIGURATIONS[name])

    back = convert_state_dict(convert_state_dict(state, model), model, to="vit-pytorch")

    assert back.keys() == state.keys()
    assert all(torch.equal(back[key], state[key]) for key in state)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dim": (16, 24, 64)}, r"dim is \[16, 24, 64\], and there it doubles from stage to stage"),
        ({"ff_expansion_factor": (4, 4, 2)}, r"ff_expansion_factor is \[4, 4, 2\], and there it is the same"),
        ({"head": "hidden"}, r"head is 'hidden', and there it is 'linear'"),
        ({"num_classes": 0}, r"num_classes is 0, and there it is at least 1"),
        ({"global_pool": "avgmax"}, r"global_pool is 'avgmax', and there it is 'avg'"),
        ({"patch_size": 2}, r"patch_size is 2, and there it is 4: build the model with patch_size=4"),
        ({"design": "paper"}, r"layer_order of its design .* build the model with design='vit-pytorch'"),
    ],
)
def test_a_network_that_vit_pytorch_cannot_make_is_refused(changes, message):
    model = ScalableViT(**{**UNEQUAL, **changes})

    with pytest.raises(ValueError, match="the vit-pytorch layout cannot express the model: " + message):
        convert_state_dict(model.state_dict(), model, to="vit-pytorch")
