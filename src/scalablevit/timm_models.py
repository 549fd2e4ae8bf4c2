"""ScalableViT at home in timm: importing this module registers ``scalablevit_*`` with ``timm.create_model``.

    import timm
    import scalablevit.timm_models

    model = timm.create_model("scalablevit_small", num_classes=10)

``scalablevit_nano`` to ``_large`` are the named networks, in the paper's form. ``scalablevit`` is the form of
vit-pytorch in the widths and depth of small, or any other network of `ScalableViT` by its arguments.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from typing import Any

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models._features import FeatureGetterNet  # exported nowhere else
from timm.models._manipulate import adapt_input_conv
from torch import Tensor

from scalablevit.configuration import check_count, check_probability
from scalablevit.scalable_vit import ScalableViT
from scalablevit.variants import UNNAMED, VARIANTS
from scalablevit.weights import convert_checkpoint
from scalablevit.weights.folder_config import TIMM_NAMES
from scalablevit.weights.layouts import CLASSIFIER, FIRST_CONV

__all__ = ["FeatureGetter", "TimmScalableViT", "checkpoint_filter_fn"]

NO_CLASSIFIER = -1  # as a number of classes: that of no model, so that timm does not look for a classifier
# What users of other models of timm may give, and what there is instead.
HINTS = {
    "img_size": "any size works, leave it out",
    "output_stride": "strides are those of the published networks, leave it out",
    "depths": "it is called depth",
    "embed_dim": "it is called dim",
    "embed_dims": "it is called dim",
    "num_heads": "it is called heads",
    "mlp_ratio": "it is called ff_expansion_factor",
    **{ours: f"it is called {timms}, as everywhere in timm" for timms, ours in TIMM_NAMES.items()},
}

_NETWORKS = {**VARIANTS, UNNAMED.name: UNNAMED}


class TimmScalableViT(ScalableViT):
    """`ScalableViT` with timm's names for arguments.

    Args:
        num_classes: Number of logits; 0 for a model whose head gives features.
        in_chans: Channels of the images.
        global_pool: As in `ScalableViT`.
        drop_rate: Probability that a feature is zeroed before the classifier, in training.
        proj_drop_rate: Probability that an activation is zeroed after output projections and in feed-forwards.
        attn_drop_rate: Probability that an attention weight is zeroed.
        drop_path_rate: Rate of stochastic depth of the last attention block.
        **arguments: All other arguments of `ScalableViT`.

    Raises:
        ValueError: As `ScalableViT`.
        TypeError: If `ScalableViT` has no such argument, or it has timm's name here; the message says what there is.
    """

    def __init__(
        self,
        *,
        num_classes: int = 1000,
        in_chans: int = 3,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        **arguments: Any,
    ) -> None:
        known = inspect.signature(ScalableViT).parameters
        for name in arguments:
            if name in HINTS or name not in known:
                raise TypeError(f"{name} is no argument of {type(self).__name__}: {_hint(name, known)}")
        check_count("in_chans", in_chans)
        for name, rate in (
            ("drop_rate", drop_rate),
            ("proj_drop_rate", proj_drop_rate),
            ("attn_drop_rate", attn_drop_rate),
            ("drop_path_rate", drop_path_rate),
        ):
            check_probability(name, rate)
        super().__init__(
            num_classes=num_classes,
            channels=in_chans,
            global_pool=global_pool,
            head_dropout=drop_rate,
            dropout=proj_drop_rate,
            attention_dropout=attn_drop_rate,
            drop_path=drop_path_rate,
            **arguments,
        )


class FeatureGetter(FeatureGetterNet):
    """timm's wrapper of a model that gives feature maps, with what training asks of the model in it."""

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Whether each layer is computed again in the backward pass instead of keeping its activations."""
        self.model.set_grad_checkpointing(enable)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """As of the model, for layer-wise learning rates."""

        def inside(pattern: str) -> str:
            return pattern.replace("^", r"^model\.", 1)

        groups = self.model.group_matcher(coarse)
        blocks = groups["blocks"]
        inner = inside(blocks) if coarse else [(inside(pattern), suffix) for pattern, suffix in blocks]
        return {"stem": inside(groups["stem"]), "blocks": inner}

    def no_weight_decay(self) -> set[str]:
        """As of the model: the parameters that weight decay leaves alone."""
        return {f"model.{name}" for name in self.model.no_weight_decay()}


def checkpoint_filter_fn(state_dict: Mapping[str, Any], model: ScalableViT) -> dict[str, Tensor]:
    """A checkpoint in the layout of this package, of vit-pytorch or of the paper's authors, for `model`.

    The name is timm's. Classes, channels and the head may be others than the model's. timm goes by what
    ``model.pretrained_cfg`` says of the checkpoint's classes, and drops a classifier of others; here it is made to say
    what the checkpoint has.

    Args:
        state_dict: As for `scalablevit.convert_state_dict`.
        model: The model that is to start from it; its ``pretrained_cfg`` is changed, if it has one.

    Returns:
        The tensors under the model's names.

    Raises:
        ValueError: If the layout is unknown, or the checkpoint is of another network.
    """
    state = convert_checkpoint(state_dict, model)
    classifier, first = state.get(f"{CLASSIFIER}.weight"), state.get(f"{FIRST_CONV}.weight")
    cfg = model.pretrained_cfg
    if cfg is not None:
        cfg["num_classes"] = NO_CLASSIFIER if classifier is None else classifier.shape[0]
        if first is not None and first.shape[1] not in (cfg["input_size"][0], model.in_chans):
            state[f"{FIRST_CONV}.weight"] = adapt_input_conv(model.in_chans, first, base_chans=first.shape[1])
    return state


def _hint(name: str, known: Iterable[str]) -> str:
    return HINTS.get(name) or f"give one of {', '.join(sorted({*known, *TIMM_NAMES} - set(HINTS)))}"


def _default_cfg(name: str) -> dict[str, Any]:
    network = _NETWORKS[name]
    size = network.image_size
    stride = network.arguments.get("patch_size", 4) * 2 ** (len(network.arguments["depth"]) - 1)
    return {
        "url": "",
        "num_classes": 1000,
        "input_size": (3, size, size),
        "fixed_input_size": False,
        "pool_size": (size // stride, size // stride),
        "crop_pct": 0.875,
        "interpolation": "bicubic",
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "first_conv": FIRST_CONV,
        "classifier": CLASSIFIER,
        "license": "mit",
        "paper_name": "ScalableViT: Rethinking the Context-oriented Generalization of Vision Transformer",
        "paper_ids": "arXiv:2203.10790",
        "origin_url": "https://github.com/Yangr116/ScalableViT",
    }


default_cfgs = generate_default_cfgs({f"{name}.untrained": _default_cfg(name) for name in _NETWORKS})


def _create(name: str, pretrained: bool, **kwargs: Any) -> TimmScalableViT | FeatureGetter:
    feature_cls = kwargs.pop("feature_cls", "getter")
    if feature_cls not in ("getter", FeatureGetterNet, FeatureGetter):
        raise ValueError(
            f"feature_cls is {feature_cls!r}; it must be 'getter', or be left out: maps are channels-last inside, and"
            " timm's other extractors, which run or hook a model's children, would give them so"
        )
    arguments = {**_NETWORKS[name].arguments, **kwargs}
    depth = arguments["depth"]
    stages = 1 if isinstance(depth, int) else len(depth)
    return build_model_with_cfg(
        TimmScalableViT,
        name,
        pretrained,
        pretrained_filter_fn=checkpoint_filter_fn,
        feature_cfg={"out_indices": tuple(range(stages)), "feature_cls": FeatureGetter},
        **arguments,
    )


@register_model
def scalablevit(pretrained: bool = False, **kwargs: Any) -> TimmScalableViT | FeatureGetter:
    """vit-pytorch's form in the widths and depth of small; any other network by the arguments of `ScalableViT`."""
    return _create("scalablevit", pretrained, **kwargs)


@register_model
def scalablevit_nano(pretrained: bool = False, **kwargs: Any) -> TimmScalableViT | FeatureGetter:
    """Nano: ours, not the paper's; patch 2, for small images and machines."""
    return _create("scalablevit_nano", pretrained, **kwargs)


@register_model
def scalablevit_tiny(pretrained: bool = False, **kwargs: Any) -> TimmScalableViT | FeatureGetter:
    """Tiny: ours, not the paper's; between nano and the paper's small."""
    return _create("scalablevit_tiny", pretrained, **kwargs)


@register_model
def scalablevit_small(pretrained: bool = False, **kwargs: Any) -> TimmScalableViT | FeatureGetter:
    """The paper's ScalableViT-S (arXiv:2203.10790, table 1)."""
    return _create("scalablevit_small", pretrained, **kwargs)


@register_model
def scalablevit_base(pretrained: bool = False, **kwargs: Any) -> TimmScalableViT | FeatureGetter:
    """The paper's ScalableViT-B (arXiv:2203.10790, table 1)."""
    return _create("scalablevit_base", pretrained, **kwargs)


@register_model
def scalablevit_large(pretrained: bool = False, **kwargs: Any) -> TimmScalableViT | FeatureGetter:
    """The paper's ScalableViT-L (arXiv:2203.10790, table 1)."""
    return _create("scalablevit_large", pretrained, **kwargs)
