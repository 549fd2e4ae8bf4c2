"""What `timm.create_model` gives, beyond timm's own tests (`make timm-suite` runs those)."""

import copy
import json
import pickle

import pytest
import timm
import torch
from timm.models import FeatureInfo
from timm.models._features import FeatureGetterNet, FeatureListNet
from timm.models._hub import save_for_hf
from timm.optim import create_optimizer_v2, param_groups_layer_decay
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from vit_pytorch.scalable_vit import ScalableViT as VitPytorch

import scalablevit
import scalablevit.timm_models
from scalablevit import convert_state_dict, load_model, save_model
from scalablevit.design import PAPER, VIT_PYTORCH
from scalablevit.exporting import export_onnx, export_program
from scalablevit.timm_models import TimmScalableViT
from scalablevit.variants import VARIANTS
from scalablevit.weights import read_config
from tests.networks import SIZES, randomise
from tests.references import golden_case

NAMES = ["scalablevit", *VARIANTS]
SMALL = {
    "dim": (8, 16),
    "depth": (1, 2),
    "heads": (1, 2),
    "reduction_factor": (2, 1),
    "window_size": 3,
    **dict.fromkeys(("iwsa_dim_key", "iwsa_dim_value", "ssa_dim_key", "ssa_dim_value"), 8),
}
DESIGNS = pytest.mark.parametrize("design", ["vit-pytorch", "paper"])


def create(**arguments):
    return timm.create_model("scalablevit", **{**SMALL, "num_classes": 5, **arguments})


@pytest.fixture
def images():
    return torch.randn(2, 3, 32, 48, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", NAMES)
def test_default_configurations_are_complete_and_true(name):
    model = timm.create_model(name, device="meta")
    cfg = model.default_cfg
    assert name in timm.list_models("scalablevit*")
    features = model.forward_features(torch.empty(1, *cfg["input_size"], device="meta"))
    assert tuple(features.shape[2:]) == cfg["pool_size"]
    assert isinstance(model.get_submodule(cfg["first_conv"]), nn.Conv2d)
    assert model.get_submodule(cfg["classifier"]) is model.get_classifier()
    assert cfg["num_classes"] == model.num_classes == 1000
    for field in ("mean", "std", "crop_pct", "interpolation", "license", "paper_ids", "paper_name", "origin_url"):
        assert cfg[field], field
    assert cfg["fixed_input_size"] is False


@pytest.mark.parametrize("name", VARIANTS)
def test_a_named_network_is_the_packages_own(name):
    theirs = timm.create_model(name, num_classes=7, device="meta")
    ours = getattr(scalablevit, name)(num_classes=7, device="meta")
    assert theirs.config == ours.config
    assert {n: p.shape for n, p in theirs.state_dict().items()} == {n: p.shape for n, p in ours.state_dict().items()}


def test_drop_rates_have_timms_names():
    model = create(drop_rate=0.1, proj_drop_rate=0.2, attn_drop_rate=0.3, drop_path_rate=0.4)
    config = {name: model.config[name] for name in ("head_dropout", "dropout", "attention_dropout", "drop_path")}
    assert config == {"head_dropout": 0.1, "dropout": 0.2, "attention_dropout": 0.3, "drop_path": 0.4}
    assert {create().config[name] for name in config} == {0.0}
    for name in ("drop_rate", "proj_drop_rate", "attn_drop_rate", "drop_path_rate"):
        with pytest.raises(ValueError, match=rf"{name} is 1\.5"):
            create(**{name: 1.5})
    with pytest.raises(ValueError, match="in_chans is 0"):
        create(in_chans=0)


@pytest.mark.parametrize(
    ("argument", "hint"),
    [
        ("drop_rat", "give one of .*drop_rate"),
        ("img_size", "any size works, leave it out"),
        ("output_stride", "strides are those of the published networks"),
        ("depths", "it is called depth"),
        ("dropout", "it is called proj_drop_rate"),
        ("channels", "it is called in_chans"),
    ],
)
def test_arguments_that_are_not_there_get_a_hint(argument, hint):
    with pytest.raises(TypeError, match=f"{argument} is no argument of TimmScalableViT: {hint}"):
        create(**{argument: 1})


@DESIGNS
@pytest.mark.parametrize(
    "out_indices", [None, (0,), (1,), (0, 1), [1, 0], (-1,), (-2, -1), 1, 2], ids=lambda value: str(value)
)
def test_features_only_gives_what_its_information_says(design, out_indices, images):
    model = create(design=design, features_only=True, out_indices=out_indices).eval()
    maps = model(images)
    assert isinstance(model.feature_info, FeatureInfo)
    for feature, channels, reduction in zip(
        maps, model.feature_info.channels(), model.feature_info.reduction(), strict=True
    ):
        assert feature.shape == (2, channels, 32 // reduction, 48 // reduction)
    model.train()
    sum(feature.square().mean() for feature in model(images)).backward()
    assert all(p.grad is not None for p in model.parameters())


def test_features_only_refuses_what_is_not_there():
    with pytest.raises(ValueError, match="indices holds 4; there are 2 stages"):
        create(features_only=True, out_indices=(0, 4))
    for feature_cls in ("list", "hook", FeatureListNet):
        with pytest.raises(ValueError, match=r"feature_cls is .*; it must be 'getter', or be left out"):
            create(features_only=True, feature_cls=feature_cls)
    assert isinstance(create(features_only=True, feature_cls=FeatureGetterNet), FeatureGetterNet)


@DESIGNS
@pytest.mark.parametrize("features_only", [False, True])
def test_checkpointing_changes_no_output_and_no_gradient(design, features_only, images):
    model = randomise(create(design=design, drop_path_rate=0.5, proj_drop_rate=0.2, features_only=features_only))
    results = []
    for enable in (False, True):
        model.set_grad_checkpointing(enable)
        model.zero_grad()
        torch.manual_seed(0)
        outputs = model(images)
        sum(output.square().sum() for output in outputs).backward()
        results.append([*outputs, *(p.grad.clone() for p in model.parameters())])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-5, atol=1e-6)


@DESIGNS
@pytest.mark.parametrize("global_pool", ["avg", "max", "avgmax", "catavgmax", ""])
@pytest.mark.parametrize("num_classes", [0, 3])
def test_poolings(design, global_pool, num_classes, images):
    model = create(design=design, num_classes=num_classes, global_pool=global_pool).eval()
    width = num_classes or model.head_hidden_size
    assert model(images).shape == ((2, width) if global_pool else (2, width, 4, 6))
    model.reset_classifier(4)
    assert model.global_pool == global_pool
    assert model(images).shape[:2] == (2, 4)


def test_a_pooling_that_does_not_fit_a_trained_head_is_refused_as_timm_does():
    model = create(design="paper")
    with pytest.raises(AssertionError, match=r"global_pool cannot change from 'avg' to 'catavgmax'.*Build the model"):
        model.reset_classifier(3, "catavgmax")


@DESIGNS
def test_batched_equals_one_by_one(design, images):
    model = randomise(create(design=design)).eval()
    with torch.no_grad():
        single = torch.cat([model(image[None]) for image in images])
        torch.testing.assert_close(model(images), single, rtol=1e-5, atol=1e-5)


@DESIGNS
def test_meta_then_memory_then_weights(design, images):
    model = create(design=design, device="meta").to_empty(device="cpu").eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(float("nan"))
    torch.manual_seed(3)
    model.init_weights()
    again = create(design=design).eval()
    torch.manual_seed(3)
    again.init_weights()
    assert torch.equal(model(images), again(images))
    assert model(images).isfinite().all()


@DESIGNS
def test_copies_are_copies(design, images):
    model = randomise(create(design=design)).eval()
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert isinstance(other, TimmScalableViT)
        assert torch.equal(other(images), model(images))


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning", "ignore:.*torch.jit:FutureWarning")
@DESIGNS
def test_pruned_features_can_be_scripted(design, images):
    model = randomise(create(design=design, features_only=True, out_indices=(0,))).eval()
    for one, other in zip(torch.jit.script(model)(images), model(images), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize(
    ("design", "features_only"),
    [
        ("paper", True),
        pytest.param("paper", False, marks=pytest.mark.slow),
        pytest.param("vit-pytorch", True, marks=pytest.mark.slow),
        pytest.param("vit-pytorch", False, marks=pytest.mark.slow),
    ],
)
def test_two_compiled_graphs_serve_six_sizes_and_five_serve_all(design, features_only):
    torch._dynamo.reset()
    arguments = {"depth": (1, 1, 1, 1), "dim": (8, 8, 8, 8), "heads": 1, "reduction_factor": (8, 4, 2, 1)}
    model = randomise(create(design=design, features_only=features_only, **arguments)).eval()
    counter = CompileCounterWithBackend("eager")
    compiled = torch.compile(model, backend=counter, fullgraph=True)
    graphs = []
    for size in SIZES:
        images = torch.randn(2, 3, *size)
        with torch.no_grad():
            for one, other in zip(compiled(images), model(images), strict=True):
                torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
        graphs.append(counter.frame_count)
    assert graphs[5] <= 2
    assert graphs[-1] <= 5


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_a_created_model_is_exported_like_any_other(tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    model = randomise(create(design="paper")).eval()
    file = export_onnx(model, tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(str(file))
    program = export_program(model).module()
    for size in [(1, 3, 40, 56), (3, 3, 67, 45)]:
        images = torch.randn(*size)
        expected = model(images)
        torch.testing.assert_close(program(images), expected, rtol=1e-4, atol=1e-4)
        [logits] = session.run(None, {session.get_inputs()[0].name: images.numpy()})
        torch.testing.assert_close(torch.from_numpy(logits), expected, rtol=1e-4, atol=1e-4)


# Layer-wise decay


@DESIGNS
def test_layer_wise_decay_follows_the_running_order(design):
    model = create(design=design)
    groups = param_groups_layer_decay(
        model, weight_decay=0.05, layer_decay=0.5, no_weight_decay_list=model.no_weight_decay()
    )
    scales = {id(p): group["lr_scale"] for group in groups for p in group["params"]}
    decays = {name: group["weight_decay"] for group in groups for name in names_of(model, group["params"])}
    order = ["stages.0.patch_embedding", "stages.0.layers.0", "stages.1.patch_embedding", "stages.1.layers.1", "head"]
    found = [{scales[id(p)] for p in model.get_submodule(module).parameters()} for module in order]
    assert all(len(scale) == 1 for scale in found)
    assert found == sorted(found, key=min)
    assert found[-1] == {1.0}
    assert min(found[0]) == min(scales.values())
    assert {name for name, decay in decays.items() if decay == 0} == model.no_weight_decay()
    assert "stages.0.layers.0.peg.conv.weight" in model.no_weight_decay()


def names_of(model, parameters):
    ids = {id(p) for p in parameters}
    return [name for name, p in model.named_parameters() if id(p) in ids]


def test_feature_maps_are_trained_with_layer_wise_decay_too():
    model = create(features_only=True)
    optimizer = create_optimizer_v2(model, opt="sgd", lr=1.0, weight_decay=0.05, layer_decay=0.5)
    scales = {id(p): group["lr_scale"] for group in optimizer.param_groups for p in group["params"]}
    inner = model.model.stages
    order = [inner[0].patch_embedding.conv.weight, inner[0].layers[0].ssa.norm.weight, inner[1].layers[1].ssa.norm.bias]
    assert [scales[id(p)] for p in order] == sorted(scales[id(p)] for p in order)
    assert len(set(scales.values())) == 4
    plain = {
        name
        for group in optimizer.param_groups
        if not group["weight_decay"]
        for name in names_of(model, group["params"])
    }
    assert plain == {f"model.{name}" for name in model.model.no_weight_decay()}
    assert model.group_matcher(coarse=True) == {
        "stem": r"^model\.stages\.0\.patch_embedding",
        "blocks": r"^model\.stages\.(\d+)",
    }


def test_timms_optimizer_factory_takes_the_model(images):
    model = create()
    optimizer = create_optimizer_v2(model, opt="adamw", lr=1e-3, weight_decay=0.05, layer_decay=0.7)
    before = [p.clone() for p in model.parameters()]
    nn.functional.cross_entropy(model(images), torch.tensor([0, 1])).backward()
    optimizer.step()
    assert all(not torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True))


# Weights


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


@DESIGNS
@pytest.mark.parametrize("changes", [{}, {"in_chans": 4, "global_pool": "max", "patch_size": 2, "head": "hidden"}])
def test_timms_own_folders_come_back_bit_by_bit(design, changes, tmp_path):
    model = randomise(create(design=design, **changes)).eval()
    model.reset_classifier(3)
    save_for_hf(model, tmp_path, safe_serialization=True)
    images = torch.randn(1, model.in_chans, 37, 29)
    for back in (timm.create_model(f"local-dir:{tmp_path}", pretrained=True), load_model(tmp_path)):
        assert torch.equal(back.eval()(images), model(images))
        assert back.config == model.config


@pytest.mark.parametrize("safe", [False, True])
def test_timms_folders_of_a_named_network_are_ours_as_well(safe, tmp_path):
    model = randomise(timm.create_model("scalablevit_nano", num_classes=3, in_chans=1, drop_path_rate=0.1)).eval()
    save_for_hf(model, tmp_path, model_config={"label_names": ["a", "b", "c"]}, safe_serialization=safe)
    images = torch.randn(1, 1, 37, 29)
    assert torch.equal(load_model(tmp_path)(images), model(images))
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
    assert torch.equal(back(images), model(images))
    assert torch.equal(load_model(tmp_path)(images), model(images))
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
