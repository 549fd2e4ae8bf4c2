"""Weights through timm: of every layout, for other classes and channels, and folders of timm's and ours."""

import json

import pytest
import timm
import torch
from timm.models._hub import save_for_hf
from vit_pytorch.scalable_vit import ScalableViT as VitPytorch

import scalablevit
import scalablevit.timm_models
from scalablevit import convert_state_dict, load_model, save_model
from scalablevit.design import PAPER, VIT_PYTORCH
from scalablevit.weights import read_config
from tests.networks import randomise
from tests.references import golden_case
from tests.test_timm_models import DESIGNS, SMALL, create


@pytest.fixture
def images():
    return torch.randn(2, 3, 32, 48, generator=torch.Generator().manual_seed(0))


def from_weights(state, **arguments):
    return create(**arguments, pretrained=True, pretrained_cfg_overlay={"state_dict": state}).eval()


def network_of(layout):
    """A network in a published form, the arguments for timm that make it, and its state dict in that layout."""
    design = {"vit-pytorch": VIT_PYTORCH, "paper": PAPER}[layout].name
    model = randomise(create(design=design)).eval()
    return model, {"design": design}, convert_state_dict(model.state_dict(), model, to=layout)


def native_network():
    model = randomise(create(design="paper")).eval()
    return model, {"design": "paper"}, model.state_dict()


SOURCES = pytest.mark.parametrize("layout", ["scalablevit", "vit-pytorch", "paper"])


def source(layout):
    return native_network() if layout == "scalablevit" else network_of(layout)


@SOURCES
@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"state_dict": prefixed(state, "model.")},
        lambda state: {"model": prefixed(state, "module._orig_mod.")},
        lambda state: {"model_state_dict": state},
    ],
)
def test_weights_of_every_layout_load(layout, wrap, images):
    model, arguments, state = source(layout)
    assert torch.equal(from_weights(wrap(state), **arguments)(images), model(images))


def prefixed(state, prefix):
    return {f"{prefix}{name}": tensor for name, tensor in state.items()}


@SOURCES
def test_other_classes_keep_all_but_the_classifier(layout, images):
    model, arguments, state = source(layout)
    other = from_weights(state, num_classes=7, **arguments)
    assert other(images).shape == (2, 7)
    pre_logits = [m.forward_head(m.forward_features(images), pre_logits=True) for m in (model, other)]
    assert torch.equal(*pre_logits)


@SOURCES
def test_headless_weights_load_into_models_without_classes(layout, images):
    model, arguments, state = source(layout)
    headless = {name: tensor for name, tensor in state.items() if not name.startswith(("head.", "mlp_head."))}
    for num_classes in (0, 5):
        other = from_weights(headless, num_classes=num_classes, **arguments)
        assert torch.equal(other.forward_features(images), model.forward_features(images))
    getter = from_weights(headless, features_only=True, **arguments)
    assert torch.equal(getter(images)[-1], model.forward_features(images))


@SOURCES
def test_weights_without_classifier_keep_the_rest_of_the_head(layout, images):
    model, arguments, state = source(layout)
    classifier = ("head.classifier.", "head.3.", "mlp_head.2.")
    partial = {name: tensor for name, tensor in state.items() if not name.startswith(classifier)}
    other = from_weights(partial, num_classes=0, **arguments)
    model.reset_classifier(0)
    assert torch.equal(other(images), model(images))


@SOURCES
def test_other_channels_are_adapted_as_timm_does(layout, images):
    model, arguments, state = source(layout)
    grey = images.mean(1, keepdim=True)
    other = from_weights(state, in_chans=1, **arguments)
    torch.testing.assert_close(other(grey), model(grey.expand(-1, 3, -1, -1)), rtol=1e-4, atol=1e-5)
    own = other.state_dict()
    grey_state = own if layout == "scalablevit" else convert_state_dict(own, other, to=layout)
    colour = from_weights(grey_state, **arguments)  # whatever timm takes the channels of the file to be
    torch.testing.assert_close(colour(grey.expand(-1, 3, -1, -1)), other(grey), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("layout", ["vit-pytorch", "paper"])
def test_foreign_weights_of_another_network_are_refused(layout):
    _, arguments, state = network_of(layout)
    with pytest.raises(
        ValueError, match=r"does not fit the model.*Build the model with .*ff_expansion_factor=\(4, 4\)"
    ):
        from_weights(state, **arguments, ff_expansion_factor=2)
    state.pop(next(name for name in state if "proj" in name or "to_out" in name))
    with pytest.raises(ValueError, match=r"missing|holds no"):
        from_weights(state, **arguments)


def test_own_weights_of_another_network_are_refused():
    with pytest.raises(ValueError, match=r"of another network than the model: .*stages\.0"):
        from_weights(create().state_dict(), ff_expansion_factor=2)


def test_wrong_heads_are_among_what_may_be_wrong():
    _, _, state = network_of("vit-pytorch")
    with pytest.raises(
        ValueError, match=r"Build the model with iwsa_dim_key=.*, or with other heads: the weights do not"
    ):
        from_weights(state, heads=(2, 4))


def test_weights_of_vit_pytorch_itself_give_its_outputs(images):
    windows = {"window_size": (4, 2)}  # it takes only windows that divide the map
    theirs = randomise(VitPytorch(num_classes=5, **{**SMALL, "dim": 8, **windows})).eval()
    ours = from_weights(theirs.state_dict(), **windows)
    torch.testing.assert_close(ours(images), theirs(images), rtol=1e-4, atol=1e-5)


def test_weights_of_the_authors_give_their_outputs():
    case = golden_case("paper_tiny")
    classes = case.logits.shape[1]
    arguments = {**case.arguments, "num_classes": classes}
    model = from_weights(case.state_dict, **arguments)
    torch.testing.assert_close(model(case.images), case.logits, rtol=0, atol=1e-4)


# Folders


def check_same(back, model, images):
    """The same weights bit by bit. What they give may be rounded otherwise where they lie elsewhere in memory."""
    state = model.state_dict()
    assert back.state_dict().keys() == state.keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in back.state_dict().items())
    torch.testing.assert_close(back(images), model(images), rtol=1e-5, atol=1e-5)


@DESIGNS
@pytest.mark.parametrize("changes", [{}, {"in_chans": 4, "global_pool": "max", "patch_size": 2, "head": "hidden"}])
def test_timms_own_folders_come_back_bit_by_bit(design, changes, tmp_path):
    model = randomise(create(design=design, **changes)).eval()
    model.reset_classifier(3)
    save_for_hf(model, tmp_path, safe_serialization=True)
    images = torch.randn(1, model.in_chans, 37, 29)
    for back in (timm.create_model(f"local-dir:{tmp_path}", pretrained=True), load_model(tmp_path)):
        check_same(back.eval(), model, images)
        assert back.config == model.config


@pytest.mark.parametrize("safe", [False, True])
def test_timms_folders_of_a_named_network_are_ours_as_well(safe, tmp_path):
    model = randomise(timm.create_model("scalablevit_nano", num_classes=3, in_chans=1, drop_path_rate=0.1)).eval()
    save_for_hf(model, tmp_path, model_config={"label_names": ["a", "b", "c"]}, safe_serialization=safe)
    images = torch.randn(1, 1, 37, 29)
    check_same(load_model(tmp_path), model, images)
    assert read_config(tmp_path)["label_names"] == ["a", "b", "c"]


def test_a_loaded_model_is_saved_with_what_it_came_with(tmp_path):
    cfg = {"input_size": (1, 28, 28), "mean": (0.28,), "std": (0.35,), "crop_pct": 1.0, "description": "clothes"}
    save_model(
        scalablevit.scalablevit_nano(num_classes=2, channels=1), tmp_path / "first", ["a", "b"], cfg, multi_label=True
    )
    first = read_config(tmp_path / "first")
    save_model(load_model(tmp_path / "first"), tmp_path / "second")
    assert read_config(tmp_path / "second") == first

    source = f"local-dir:{tmp_path}/first"
    save_model(timm.create_model(source, pretrained=True, in_chans=3), tmp_path / "colour")
    colour = read_config(tmp_path / "colour")
    assert colour["label_names"] == ["a", "b"]
    expected = {"input_size": [3, 28, 28], "mean": [0.28] * 3, "std": [0.35] * 3, "crop_pct": 1.0}
    assert {name: colour["pretrained_cfg"][name] for name in expected} == expected

    other = timm.create_model(source, pretrained=True)
    other.reset_classifier(2)
    save_model(other, tmp_path / "other", pretrained_cfg=other.pretrained_cfg)
    assert "label_names" not in read_config(tmp_path / "other")
    assert read_config(tmp_path / "other")["pretrained_cfg"]["mean"] == [0.28]


@pytest.mark.parametrize("name", ["scalablevit", "scalablevit_nano"])
@pytest.mark.parametrize("changes", [{}, {"in_chans": 1, "global_pool": "avgmax"}])
def test_our_folders_are_timms_as_well(name, changes, tmp_path):
    arguments = {**(SMALL | {"head": "hidden", "design": "paper"} if name == "scalablevit" else {}), **changes}
    model = randomise(timm.create_model(name, num_classes=3, drop_path_rate=0.3, **arguments)).eval()
    save_model(model, tmp_path, labels=["a", "b", "c"])
    back = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    images = torch.randn(1, model.in_chans, 37, 29)
    check_same(back, model, images)
    check_same(load_model(tmp_path), model, images)
    assert back.pretrained_cfg["label_names"] == ["a", "b", "c"]
    assert back.config["drop_path"] == 0.0  # of the training, not of the network
    other = timm.create_model(f"local-dir:{tmp_path}", pretrained=True, num_classes=9, in_chans=3).eval()
    assert other(torch.randn(1, 3, 64, 64)).shape == (1, 9)
    getter = timm.create_model(f"local-dir:{tmp_path}", pretrained=True, features_only=True).eval()
    assert torch.equal(getter(images)[-1], model.forward_features(images))


def test_the_folder_of_a_named_network_says_little(tmp_path):
    save_model(scalablevit.scalablevit_nano(num_classes=2), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["architecture"] == "scalablevit_nano"
    assert config["model_args"] == {"in_chans": 3, "global_pool": "avg"}
    assert config["pretrained_cfg"]["input_size"] == [3, 64, 64]
