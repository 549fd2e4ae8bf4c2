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

# What transformers calls it.
MULTI_LABEL = "multi_label_classification"

# Arguments that belong to a training rather than to a network.
_DROP_RATES = frozenset({"dropout", "attention_dropout", "head_dropout", "drop_path"})
# Arguments that leave a named variant what it is.
_FREE_ARGUMENTS = _DROP_RATES | {"num_classes", "channels", "global_pool"}


def config_text(
    model: ScalableViT,
    labels: Sequence[str] | None,
    pretrained_cfg: Mapping[str, Any] | None,
    *,
    multi_label: bool = False,
) -> str:
    """``config.json`` of a model, as text.

    Args:
        model: The model.
        labels: Names of the classes, in the order of the logits; None for none.
        pretrained_cfg: Fields of timm's ``PretrainedCfg`` that go before the usual ones.
        multi_label: Whether the model gives any number of labels to an image.

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
    if labels is not None:
        config["label_names"] = _checked_labels(labels, model.num_classes)
    if multi_label:
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


def architecture_name(config: Mapping[str, Any]) -> str:
    """The variant that a `config` is, whatever its classes, channels, pooling and drop rates; else "scalablevit"."""
    return _variant_of(config).name


def network_arguments(config: Mapping[str, Any]) -> dict[str, Any] | None:
    """The arguments of `ScalableViT` that a ``config.json`` says, of this package or of timm; None if it says none.

    What stands beside them goes first: transformers changes the number of classes there, and timm leaves the rest out.
    """
    own = config.get("scalablevit")
    if isinstance(own, dict) and isinstance(own.get("arguments"), dict):
        arguments = own["arguments"]
    elif config.get("architecture") in (UNNAMED.name, *VARIANTS) and isinstance(config.get("model_args", {}), dict):
        given = {"channels" if name == "in_chans" else name: v for name, v in config.get("model_args", {}).items()}
        arguments = {**VARIANTS.get(config["architecture"], UNNAMED).arguments, **given}
    else:
        return None
    return {**arguments, "num_classes": config["num_classes"]} if "num_classes" in config else arguments


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


def _pretrained_cfg(model: ScalableViT, given: dict[str, Any], image_size: int) -> dict[str, Any]:
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
    result = {**usual, **given, **facts}
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
