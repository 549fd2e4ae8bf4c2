"""The named sizes of ScalableViT, with what has been published of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from scalablevit.scalable_vit import ScalableViT


@dataclass(frozen=True, kw_only=True)
class Published:
    """What is known of a variant from elsewhere; none of it is measured by this project."""

    top1: float  # per cent on ImageNet-1k, 224 px
    source: str
    drop_path: float  # of the recipe that reached `top1`


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A named size: the arguments that make it, and what has been published of it, if anything."""

    name: str
    arguments: dict[str, Any] = field(repr=False)
    image_size: int = 224  # pixels of the images that it is made for; it takes others
    published: Published | None = None

    def build(self, num_classes: int = 1000, **overrides: Any) -> ScalableViT:
        """The model; `overrides` go before the variant's own arguments of `ScalableViT`."""
        return ScalableViT(num_classes=num_classes, **{**self.arguments, **overrides})


_PAPER_SOURCE = "Yang et al., ECCV 2022, arXiv:2203.10790"
_PAPER: dict[str, Any] = {"design": "paper", "window_size": 7, "reduction_factor": (8, 4, 2, 1)}

VARIANTS: dict[str, Variant] = {
    variant.name: variant
    for variant in (
        Variant(
            name="scalablevit_nano",
            arguments={
                **_PAPER,
                "dim": (32, 64, 96, 128),
                "depth": (1, 1, 2, 1),
                "heads": (1, 2, 3, 4),
                "reduction_factor": (4, 2, 1, 1),
                "head": "linear",
                "patch_size": 2,
            },
            image_size=64,
        ),
        Variant(
            name="scalablevit_tiny",
            arguments={
                **_PAPER,
                "dim": (64, 128, 192, 384),
                "depth": (1, 1, 4, 1),
                "heads": (2, 4, 6, 12),
                "head": "linear",
            },
        ),
        Variant(
            name="scalablevit_small",
            arguments={
                **_PAPER,
                "dim": (64, 128, 256, 512),
                "depth": (1, 1, 10, 1),
                "heads": (2, 4, 8, 16),
                "ssa_dim_key": (40, 40, 40, 32),
            },
            published=Published(top1=83.1, source=_PAPER_SOURCE, drop_path=0.2),
        ),
        Variant(
            name="scalablevit_base",
            arguments={
                **_PAPER,
                "dim": (96, 192, 384, 768),
                "depth": (1, 1, 7, 3),
                "heads": (3, 6, 12, 24),
                "ssa_dim_key": (64, 40, 40, 32),
            },
            published=Published(top1=84.1, source=_PAPER_SOURCE, drop_path=0.5),
        ),
        Variant(
            name="scalablevit_large",
            arguments={
                **_PAPER,
                "dim": (128, 256, 512, 1024),
                "depth": (1, 3, 6, 2),
                "heads": (4, 8, 16, 32),
                "ssa_dim_key": (8, 16, 32, 32),
            },
            published=Published(top1=84.4, source=_PAPER_SOURCE, drop_path=0.5),
        ),
    )
}

# What timm knows as "scalablevit", the name of a network that is none of the variants, unless it is given arguments.
UNNAMED = Variant(
    name="scalablevit",
    arguments={
        "design": "vit-pytorch",
        "window_size": 7,
        "reduction_factor": (8, 4, 2, 1),
        "dim": (64, 128, 256, 512),
        "depth": (1, 1, 10, 1),
        "heads": (2, 4, 8, 16),
    },
)


def _factory(name: str, summary: str) -> Callable[..., ScalableViT]:
    variant = VARIANTS[name]

    def build(num_classes: int = 1000, **overrides: Any) -> ScalableViT:
        return variant.build(num_classes, **overrides)

    build.__name__ = build.__qualname__ = name
    build.__doc__ = f"""{summary}

    Args:
        num_classes: Number of logits.
        **overrides: Arguments of `ScalableViT` that go before the variant's own.

    Raises:
        ValueError: As `ScalableViT`.
        TypeError: If `ScalableViT` has no such argument.
    """
    return build


scalablevit_nano = _factory("scalablevit_nano", "Nano: ours, not the paper's; patch 2, for small images and machines.")
scalablevit_tiny = _factory("scalablevit_tiny", "Tiny: ours, not the paper's; between nano and the paper's small.")
scalablevit_small = _factory("scalablevit_small", "The paper's ScalableViT-S (arXiv:2203.10790, table 1).")
scalablevit_base = _factory("scalablevit_base", "The paper's ScalableViT-B (arXiv:2203.10790, table 1).")
scalablevit_large = _factory("scalablevit_large", "The paper's ScalableViT-L (arXiv:2203.10790, table 1).")
