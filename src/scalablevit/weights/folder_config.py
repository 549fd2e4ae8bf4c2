"""What ``config.json`` beside saved weights says: to timm what the model is, and to us how to make it again."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from scalablevit.scalable_vit import ScalableViT
from scalablevit.variants import UNNAMED, VARIANTS, Variant
from scalablevit.weights.layouts import CLASSIFIER, FIRST_CONV, LAYOUT_VERSION

# The fields of timm's PretrainedCfg that a user may say; timm refuses a file with a field that it does not know.
PRETRAINED_FIELDS = frozenset(
    {
        "input_size", "test_input_size", "min_input_size", "fixed_input_size", "interpolation", "crop_pct",
        "test_crop_pct", "crop_mode", "mean", "std", "num_classes", "label_offset", "label_descriptions", "pool_size",
        "test_pool_size", "first_conv", "classifier", "license", "description", "origin_url", "paper_name",
        "paper_ids", "notes",
    }
)  # fmt: skip

# Those that say what the network is, which may have changed since, or that only a certain image size has.
_FACTS = frozenset({"num_classes", "label_offset", "label_descriptions", "first_conv", "classifier"})
_INHERITED_FIELDS = PRETRAINED_FIELDS - _FACTS - {"pool_size", "test_pool_size"}
# Those that say where weights came from; saved weights are where they are.
_SOURCE_FIELDS = frozenset(
    {"architecture", "tag", "url", "file", "state_dict", "source", "hf_hub_id", "hf_hub_filename", "custom_load",
     "label_names", "problem_type"}
)  # fmt: skip

# What transformers calls it.
MULTI_LABEL = "multi_label_classification"

# timm's names of arguments of `ScalableViT` that have other names there.
TIMM_NAMES = {
    "in_chans": "channels",
    "drop_rate": "head_dropout",
    "proj_drop_rate": "dropout",
    "attn_drop_rate": "attention_dropout",
    "drop_path_rate": "drop_path",
}
# Arguments that belong to a training rather than to a network.
_DROP_RATES = frozenset({"dropout", "attention_dropout", "head_dropout", "drop_path"})
# Arguments that leave a named variant what it is.
_FREE_ARGUMENTS = _DROP_RATES | {"num_classes", "channels", "global_pool"}


def config_text(
    model: ScalableViT,
    labels: Sequence[str] | None,
    pretrained_cfg: Mapping[str, Any] | None,
    *,
    multi_label: bool | None = None,
) -> str:
    """``config.json`` of a model, as text.

    Args:
        model: The model.
        labels: Names of the classes, in the order of the logits; None: those that the model came with, if any.
        pretrained_cfg: Fields of timm's ``PretrainedCfg`` that go before those that the model came with.
        multi_label: Whether the model gives any number of labels to an image; None: as the model came.

    Raises:
        ValueError: If the labels or `pretrained_cfg` do not fit the model, or cannot be written as JSON.
    """
    from scalablevit import __version__  # while this module is imported the package is still half made

    variant = _variant_of(model.config)
    config: dict[str, Any] = {
        "architecture": variant.name,
        "num_classes": model.num_classes,
        "num_features": model.num_features,
        "global_pool": model.global_pool,
    }
    labels = _inherited_labels(model) if labels is None else labels
    if labels is not None:
        config["label_names"] = _checked_labels(labels, model.num_classes)
    if is_multi_label(model.pretrained_cfg or {}) if multi_label is None else multi_label:
        config["problem_type"] = MULTI_LABEL
    config["model_args"] = _model_args(model, is_named=variant is not UNNAMED)
    config["pretrained_cfg"] = _pretrained_cfg(model, dict(pretrained_cfg or {}), variant.image_size)
    config["scalablevit"] = {"layout_version": LAYOUT_VERSION, "version": __version__, "arguments": model.config}
    try:
        return json.dumps(config, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"pretrained_cfg cannot be written as JSON: {error}; give plain numbers and strings"
        ) from error


def is_multi_label(config: Mapping[str, Any]) -> bool:
    """Whether the model of a ``config.json`` gives any number of labels to an image."""
    return config.get("problem_type") == MULTI_LABEL


def architecture_name(config: Mapping[str, Any]) -> str:
    """The variant that a `config` is, whatever its classes, channels, pooling and drop rates; else "scalablevit"."""
    return _variant_of(config).name


def network_arguments(config: Mapping[str, Any]) -> dict[str, Any] | None:
    """The arguments of `ScalableViT` that a ``config.json`` says, of this package or of timm; None if it says none.

    What stands outside our own part of the file goes first: transformers, which knows nothing of it, copies that and
    changes the rest.
    """
    own, given = config.get("scalablevit"), config.get("model_args") or {}
    if isinstance(own, dict) and isinstance(own.get("arguments"), dict):
        arguments = own["arguments"]
    elif config.get("architecture") in (UNNAMED.name, *VARIANTS):
        arguments = VARIANTS.get(config["architecture"], UNNAMED).arguments
    else:
        return None
    outside = {TIMM_NAMES.get(name, name): value for name, value in given.items()}
    return {**arguments, **outside, **({"num_classes": config["num_classes"]} if "num_classes" in config else {})}


def _variant_of(config: Mapping[str, Any]) -> Variant:
    for variant in VARIANTS.values():
        if list(variant.arguments["depth"]) != config["depth"]:
            continue  # spares the construction
        other = variant.build(device="meta").config
        if all(config[name] == other[name] for name in other if name not in _FREE_ARGUMENTS):
            return variant
    return UNNAMED


def _model_args(model: ScalableViT, *, is_named: bool) -> dict[str, Any]:
    """What timm, beside the architecture, makes the model again with.

    The number of classes is not among it: timm has it from elsewhere in the file, and transformers gives it beside
    these and would give it twice. Neither are drop rates, which timm leaves to the next training.
    """
    config = model.config
    network = {} if is_named else {name: value for name, value in config.items() if name not in _FREE_ARGUMENTS}
    return {"in_chans": config["channels"], "global_pool": config["global_pool"], **network}


def _inherited_labels(model: ScalableViT) -> Sequence[str] | None:
    """The names of classes that a model came with, if it still has those classes."""
    labels = (model.pretrained_cfg or {}).get("label_names")
    is_kept = isinstance(labels, (list, tuple)) and len(labels) == model.num_classes and not model.has_new_classifier
    return labels if is_kept else None


def _inherited_cfg(model: ScalableViT) -> dict[str, Any]:
    """What a model came with says of its images, as far as it holds for the channels that it has now.

    A mean and a standard deviation that all channels share, as of grey images, hold for any number of them.
    """
    cfg = {name: value for name, value in (model.pretrained_cfg or {}).items() if value is not None}
    cfg = {name: value for name, value in cfg.items() if name in _INHERITED_FIELDS}
    for name in ("input_size", "test_input_size", "min_input_size"):
        if name in cfg:
            cfg[name] = [model.in_chans, *cfg[name][1:]]
    if any(len(cfg.get(name, ())) not in (0, model.in_chans) for name in ("mean", "std")):
        statistics = {name: cfg.pop(name, ()) for name in ("mean", "std")}
        if all(len(set(values)) == 1 for values in statistics.values()):
            cfg |= {name: [values[0]] * model.in_chans for name, values in statistics.items()}
    return cfg


def _pretrained_cfg(model: ScalableViT, given: dict[str, Any], image_size: int) -> dict[str, Any]:
    given = {name: value for name, value in given.items() if name not in _SOURCE_FIELDS}
    unknown = sorted(set(given) - PRETRAINED_FIELDS)
    if unknown:
        possible = ", ".join(sorted(PRETRAINED_FIELDS))
        raise ValueError(f"pretrained_cfg has the field {unknown[0]!r}; it may have {possible}")
    channels, is_rgb = model.in_chans, model.in_chans == 3
    usual = {
        "input_size": [channels, image_size, image_size],
        "fixed_input_size": False,
        "interpolation": "bicubic",
        "crop_pct": 0.875,
        "mean": [0.485, 0.456, 0.406] if is_rgb else [0.5] * channels,
        "std": [0.229, 0.224, 0.225] if is_rgb else [0.5] * channels,
        "pool_size": None,
    }
    facts = {
        "num_classes": model.num_classes,
        "first_conv": FIRST_CONV,
        "classifier": CLASSIFIER,
    }
    for name, value in facts.items():
        if given.get(name, value) != value:
            raise ValueError(f"pretrained_cfg has {name} {given[name]!r}, but the model's is {value!r}: leave it out")
    result = {**usual, **_inherited_cfg(model), **given, **facts}
    size = result["input_size"]
    if not isinstance(size, (list, tuple)) or len(size) != 3 or size[0] != channels:
        raise ValueError(f"pretrained_cfg has input_size {size!r}; it must be ({channels}, height, width)")
    for name in ("mean", "std"):
        if not isinstance(result[name], (list, tuple)) or len(result[name]) != channels:
            raise ValueError(f"pretrained_cfg has {name} {result[name]!r}; it must be a list of {channels} numbers")
    return result


def _checked_labels(labels: Sequence[str], num_classes: int) -> list[str]:
    if isinstance(labels, str) or not all(isinstance(label, str) for label in labels):
        raise ValueError(f"labels is {labels!r}; it must be a list with the name of each class, as strings")
    if len(labels) != num_classes:
        raise ValueError(f"labels has {len(labels)} names, but the model has {num_classes} classes: give one for each")
    return list(labels)
