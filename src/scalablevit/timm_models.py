"""ScalableViT at home in timm: importing this module registers ``scalablevit_*`` with ``timm.create_model``.

    import timm
    import scalablevit.timm_models

    model = timm.create_model("scalablevit_small", num_classes=10)

``scalablevit_nano`` to ``_large`` are the named networks, in the paper's form. ``scalablevit`` is the form of
vit-pytorch in the widths and depth of small, or any other network of `ScalableViT` by its arguments.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models._features import FeatureGetterNet  # exported nowhere else
from torch import Tensor

from scalablevit.scalable_vit import ScalableViT
from scalablevit.variants import UNNAMED, VARIANTS
from scalablevit.weights import convert_checkpoint
from scalablevit.weights.layouts import CLASSIFIER, FIRST_CONV

__all__ = ["FeatureGetter", "TimmScalableViT", "checkpoint_filter_fn"]

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
        **arguments: All others of `ScalableViT`.

    Raises:
        ValueError: As `ScalableViT`.
        TypeError: If `ScalableViT` has no such argument.
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
    """timm's wrapper of a model that gives feature maps, with the gradient checkpointing that its others have."""

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Whether each layer is computed again in the backward pass instead of keeping its activations."""
        self.model.set_grad_checkpointing(enable)


def checkpoint_filter_fn(state_dict: Mapping[str, Any], model: ScalableViT) -> dict[str, Tensor]:
    """A checkpoint in the layout of this package, of vit-pytorch or of the paper's authors, for `model`.

    The name is timm's. Classes, channels and the head may be others than the model's: timm adapts or drops them.

    Raises:
        ValueError: If the layout is unknown, or a foreign one is of another network.
    """
    return convert_checkpoint(state_dict, model)


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
