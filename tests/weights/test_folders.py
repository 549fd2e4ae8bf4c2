"""`save_model`, `load_model`, `read_config`: a model comes back as it went, and timm reads what it needs."""

import dataclasses
import json
from dataclasses import replace

import pytest
import safetensors
import safetensors.torch
import torch
from timm.models._helpers import load_state_dict
from timm.models._hub import load_model_config_from_path
from timm.models._pretrained import PretrainedCfg

import scalablevit
from scalablevit import ScalableViT, scalablevit_nano
from scalablevit.design import PAPER, VIT_PYTORCH
from scalablevit.weights import load_model, read_config, save_model
from scalablevit.weights.folder_config import PRETRAINED_FIELDS, architecture_name
from tests.weights.test_conversion import ARGUMENTS

MIXED = replace(VIT_PYTORCH, name="mine", keys_values="depthwise", norm_eps=1e-3, patch_norm=True, head="hidden")
LABELS = ["T-shirt/top", "Trouser", "Füße"]


def build(design="vit-pytorch", **changes):
    return ScalableViT(**{**ARGUMENTS, "design": design, **changes})


def same_weights(model, other):
    ours, theirs = model.state_dict(), other.state_dict()
    return list(ours) == list(theirs) and all(
        ours[name].dtype == theirs[name].dtype and torch.equal(ours[name], theirs[name]) for name in ours
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("design", ["vit-pytorch", "paper", MIXED], ids=["vit-pytorch", "paper", "mixed"])
def test_a_model_comes_back_as_it_went(tmp_path, design, dtype):
    model = build(design, head=None, drop_path=0.1, dropout=0.2).to(dtype)
    save_model(model, tmp_path / "a" / "model")

    loaded = load_model(tmp_path / "a" / "model")

    assert same_weights(model, loaded)
    assert loaded.config == model.config
    assert loaded.design == model.design
    assert not any(module.training for module in loaded.modules())
    assert all(parameter.requires_grad and not parameter.is_meta for parameter in loaded.parameters())


def test_logits_are_the_same_bits(tmp_path):
    model = build("paper").eval()
    save_model(model, tmp_path)
    images = torch.randn(2, 3, 40, 36)

    assert torch.equal(load_model(str(tmp_path))(images), model(images))


def test_type_and_device_can_be_chosen(tmp_path):
    save_model(build().to(torch.bfloat16), tmp_path)

    loaded = load_model(tmp_path, device=torch.device("cpu"), dtype=torch.float32)

    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}
    with pytest.raises(ValueError, match=r"dtype is torch\.int8; it must be a floating-point type"):
        load_model(tmp_path, dtype=torch.int8)


def test_loading_draws_no_random_numbers(tmp_path):
    save_model(scalablevit_nano(num_classes=3), tmp_path)
    state = torch.get_rng_state()

    load_model(tmp_path)

    assert torch.equal(torch.get_rng_state(), state)


def test_a_replaced_classifier_and_pooling_come_back(tmp_path):
    model = build("paper")
    model.reset_classifier(7, global_pool="max")
    save_model(model, tmp_path)

    loaded = load_model(tmp_path)

    assert (loaded.num_classes, loaded.global_pool) == (7, "max")
    assert same_weights(model, loaded)


def test_tied_shared_and_strided_parameters_are_saved(tmp_path):
    model = build()
    layer = model.stages[0].layers[0]
    layer.ff1.branch.fc1.weight = layer.ff2.branch.fc1.weight  # tied
    strided = layer.ff1.branch.fc2.weight
    strided.data = strided.data.t().contiguous().t()
    pool = torch.randn(2 * 32)
    layer.ff1.norm.weight.data, layer.ff1.norm.bias.data = pool[16:32], pool[32:48]  # two views of one storage
    model.to(memory_format=torch.channels_last)
    save_model(model, tmp_path)

    assert same_weights(model, load_model(tmp_path))


def test_the_files_say_what_timm_reads(tmp_path):
    model = build("paper", channels=1)
    save_model(model, tmp_path, labels=LABELS, pretrained_cfg={"input_size": (1, 32, 48), "crop_pct": 1.0})

    pretrained_cfg, architecture, arguments = load_model_config_from_path(tmp_path)
    timm_cfg = PretrainedCfg(**pretrained_cfg)
    with safetensors.safe_open(tmp_path / "model.safetensors", framework="pt") as opened:
        metadata = opened.metadata()

    assert architecture == "scalablevit"
    assert {**arguments, "in_chans": 1} == arguments
    assert "num_classes" not in arguments  # transformers would give it twice
    assert tuple(timm_cfg.input_size) == (1, 32, 48)
    assert (timm_cfg.mean, timm_cfg.std, timm_cfg.crop_pct) == ([0.5], [0.5], 1.0)
    assert (timm_cfg.num_classes, timm_cfg.label_names) == (3, LABELS)
    assert model.get_submodule(timm_cfg.first_conv).weight is model.stages[0].patch_embedding.conv.weight
    assert model.get_submodule(timm_cfg.classifier) is model.get_classifier()
    assert list(load_state_dict(str(tmp_path / "model.safetensors"))) == sorted(model.state_dict())
    assert metadata == {"format": "pt", "scalablevit_layout": "1"}


def test_read_config_gives_the_file(tmp_path):
    model = build()
    save_model(model, tmp_path, labels=tuple(LABELS))

    config = read_config(tmp_path)

    assert config["label_names"] == LABELS
    assert (config["num_classes"], config["num_features"], config["global_pool"]) == (3, 32, "avg")
    assert config["pretrained_cfg"]["input_size"] == [3, 224, 224]
    assert config["pretrained_cfg"]["mean"] == [0.485, 0.456, 0.406]
    assert config["scalablevit"] == {
        "layout_version": 1,
        "version": scalablevit.__version__,
        "arguments": model.config,
    }
    assert "label_names" not in _saved_config(build(), tmp_path)


def _saved_config(model, folder):
    save_model(model, folder)
    return json.loads((folder / "config.json").read_text(encoding="utf-8"))


def test_the_fields_offered_are_timms():
    ours_to_write = {"url", "file", "state_dict", "hf_hub_id", "hf_hub_filename", "source", "architecture", "tag"}
    ours_to_write |= {"custom_load", "label_names"}

    assert {field.name for field in dataclasses.fields(PretrainedCfg)} - ours_to_write == PRETRAINED_FIELDS


@pytest.mark.parametrize("name", ["scalablevit_nano", "scalablevit_tiny", "scalablevit_small"])
def test_variants_are_named(name):
    build_variant = getattr(scalablevit, name)
    changed = build_variant(10, channels=1, drop_path=0.1, dropout=0.1, global_pool="max", device="meta")

    assert architecture_name(build_variant(device="meta").config) == name
    assert architecture_name(changed.config) == name
    assert architecture_name(build_variant(window_size=8, device="meta").config) == "scalablevit"
    assert architecture_name(build_variant(design="vit-pytorch", device="meta").config) == "scalablevit"


@pytest.mark.parametrize("broken", ["save_file", "write_text"])
def test_a_failed_save_leaves_what_was_there(tmp_path, monkeypatch, broken):
    model = build()
    save_model(model, tmp_path)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}

    def fail(*args, **kwargs):
        if broken == "save_file":
            args[1].write_bytes(b"half a file")
        raise OSError("no space left on device")

    if broken == "save_file":
        monkeypatch.setattr(safetensors.torch, "save_file", fail)
    else:
        monkeypatch.setattr("pathlib.Path.write_text", fail)
    with pytest.raises(OSError, match="no space left"):
        save_model(model, tmp_path, labels=LABELS)

    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before
    assert same_weights(model, load_model(tmp_path))


def test_saving_over_a_loaded_model_does_not_change_it(tmp_path):
    first, second = build(), build()
    save_model(first, tmp_path)
    loaded = load_model(tmp_path)

    save_model(second, tmp_path)

    assert same_weights(loaded, first)
    assert same_weights(load_model(tmp_path), second)


def test_both_files_can_be_read_by_the_same_people(tmp_path):
    save_model(build(), tmp_path)

    assert len({file.stat().st_mode for file in tmp_path.iterdir()}) == 1
    assert sorted(file.name for file in tmp_path.iterdir()) == ["config.json", "model.safetensors"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"labels": ["a", "b"]}, "labels has 2 names, but the model has 3 classes"),
        ({"labels": "abc"}, "labels is 'abc'; it must be a list"),
        ({"labels": [1, 2, 3]}, r"labels is \[1, 2, 3\]; it must be a list with the name of each class, as strings"),
        ({"pretrained_cfg": {"size": 3}}, "pretrained_cfg has the field 'size'; it may have classifier, crop_mode"),
        ({"pretrained_cfg": {"num_classes": 4}}, "pretrained_cfg has num_classes 4, but the model's is 3"),
        ({"pretrained_cfg": {"input_size": (1, 8, 8)}}, r"input_size \(1, 8, 8\); it must be \(3, height, width\)"),
        ({"pretrained_cfg": {"mean": (0.5,)}}, r"mean \(0\.5,\); it must be a list of 3 numbers"),
        ({"pretrained_cfg": {"std": 0.5}}, r"std 0\.5; it must be a list of 3 numbers"),
        ({"pretrained_cfg": {"crop_pct": torch.ones(1)}}, "cannot be written as JSON"),
    ],
)
def test_what_does_not_fit_the_model_is_refused_before_anything_is_written(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        save_model(build(), tmp_path / "new", **options)
    assert not (tmp_path / "new").exists()


def test_models_that_cannot_come_back_are_refused(tmp_path):
    pruned = build()
    pruned.prune_intermediate_layers([0])

    with pytest.raises(ValueError, match="the model was changed after it was built"):
        save_model(pruned, tmp_path)
    with pytest.raises(ValueError, match="is on the meta device and has no values"):
        save_model(build(device="meta"), tmp_path)
    with pytest.raises(ValueError, match=r"model is a DataParallel; .* model\.module"):
        save_model(torch.nn.DataParallel(build()), tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="file is a file; a model is saved into a folder"):
        save_model(build(), tmp_path / "file")


def change_config(folder, change):
    file = folder / "config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    change(config)
    file.write_text(json.dumps(config), encoding="utf-8")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda config: config.update(scalablevit={"layout_version": 1}, architecture="resnet18"),
            r"config\.json is not of a network of scalablevit",
        ),
        (lambda config: config["scalablevit"].update(layout_version=2), "holds layout version 2, .*pip install"),
        (lambda config: config["scalablevit"].update(layout_version="1"), "holds the layout version '1'"),
        (lambda config: config.update(label_names=["a", "b"]), "has 2 names under label_names, .* has 3 classes"),
        (lambda config: config.update(label_names="abc"), "has 'abc' under label_names, .* has 3 classes"),
        (lambda config: config["scalablevit"]["arguments"].update(wings=2), "make no model: .*wings"),
        (lambda config: config["model_args"].update(dim=-1), r"make no model: dim is \[-1, -2\]"),
        (
            lambda config: config.update(num_classes=4),
            r"model\.safetensors does not fit the model of config\.json .*head\.classifier\.weight is \[3, 32\]",
        ),
    ],
)
def test_a_config_of_another_kind_is_named(tmp_path, change, message):
    save_model(build(), tmp_path)
    change_config(tmp_path, change)

    with pytest.raises(ValueError, match=message):
        load_model(tmp_path)


def test_folders_without_a_model_are_named(tmp_path):
    file = tmp_path / "config.json"

    with pytest.raises(ValueError, match="nowhere does not exist: give the folder that save_model"):
        load_model(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"holds no config\.json"):
        load_model(tmp_path)
    for content in ("{", "[1]", '"text"'):
        file.write_text(content, encoding="utf-8")
        with pytest.raises(ValueError, match=r"config\.json is not (JSON|of a network of scalablevit)"):
            load_model(tmp_path)
    with pytest.raises(ValueError, match=r"config\.json is a file, not a folder"):
        read_config(file)
    for name, instead in (
        ("weights.pth", "save_model .*; `scalablevit convert` makes such a folder of weights"),
        ("model.onnx", "it is an export, which holds a program and no network; give the folder .*of which it was made"),
        ("photo.png", "give the folder that save_model"),
    ):
        other = tmp_path / "files" / name
        other.parent.mkdir(exist_ok=True)
        other.write_text("hello")
        with pytest.raises(ValueError, match=rf"{name} is a file, not a folder: .*{instead}"):
            read_config(other)
    save_model(build(), tmp_path)
    with pytest.raises(ValueError, match="safetensors is a file, not a folder: give the folder with all of the model"):
        read_config(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"model\.safetensors does not exist"):
        load_model(tmp_path)


def test_a_paper_model_is_not_saved_as_another_design(tmp_path):
    save_model(build(replace(PAPER, name="other")), tmp_path)

    assert read_config(tmp_path)["scalablevit"]["arguments"]["design"]["name"] == "other"
