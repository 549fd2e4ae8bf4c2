"""What `timm.create_model` gives, beyond timm's own tests (`make timm-suite` runs those)."""

import copy
import pickle

import pytest
import timm
import torch
from timm.models import FeatureInfo
from timm.models._features import FeatureGetterNet, FeatureListNet
from timm.optim import create_optimizer_v2, param_groups_layer_decay
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

import scalablevit
import scalablevit.timm_models
from scalablevit.exporting import export_onnx, export_program
from scalablevit.timm_models import TimmScalableViT
from scalablevit.variants import VARIANTS
from tests.networks import SIZES, randomise

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
