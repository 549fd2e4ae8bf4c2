"""From a map to logits: pooling, the linear and the hidden head.

Axes: b batch, h height, w width, c channels. The head takes maps as they leave the backbone, (b, c, h, w).
"""

from __future__ import annotations

from typing import Any, get_args

import torch
from torch import Tensor, nn

from scalablevit.design import HeadKind
from scalablevit.layers import Linear

POOLINGS = ("avg", "max", "avgmax", "catavgmax", "")
HIDDEN_UNITS = 4096


class PoolingWidthError(ValueError, AssertionError):
    """A pooling whose features do not fit the trained layers of the head; timm's callers look for AssertionError."""


class GlobalPool(nn.Module):
    """Pools a map over its positions: (b, c, h, w) to (b, c); ``""`` leaves the map, channels last: (b, h, w, c).

    Args:
        pooling: ``"avg"``, ``"max"``, ``"avgmax"`` (their mean), ``"catavgmax"`` (both, 2 * c wide) or ``""``.

    Raises:
        ValueError: If `pooling` is none of these.
    """

    def __init__(self, pooling: str) -> None:
        super().__init__()
        if pooling not in POOLINGS:
            raise ValueError(f"global_pool is {pooling!r}; it must be one of {', '.join(map(repr, POOLINGS))}")
        self.pooling = pooling

    def forward(self, maps: Tensor) -> Tensor:
        if self.pooling == "":
            return maps.permute(0, 2, 3, 1)
        if self.pooling == "avg":
            return maps.mean((2, 3))
        if self.pooling == "max":
            return maps.amax((2, 3))
        if self.pooling == "avgmax":
            return 0.5 * (maps.mean((2, 3)) + maps.amax((2, 3)))
        return torch.cat([maps.mean((2, 3)), maps.amax((2, 3))], dim=1)

    def feature_factor(self) -> int:
        """How many times wider the pooled features are than the map."""
        return 2 if self.pooling == "catavgmax" else 1

    def extra_repr(self) -> str:
        return repr(self.pooling)


class ClassifierHead(nn.Module):
    """Pooling, an optional norm, an optional hidden layer, dropout and the classifier.

    Maps (b, c, h, w) to logits (b, num_classes); without pooling to (b, num_classes, h, w). With no classes the
    classifier is a `torch.nn.Identity` and the features come out.

    Args:
        dim: Channels c of the map.
        num_classes: Number of logits; 0 for none.
        kind: ``"linear"``, or ``"hidden"``: Linear to 4096, LayerNorm, GELU before the classifier.
        norm_eps: epsilon of a LayerNorm over the pooled features; None for no norm.
        pooling: See `GlobalPool`.
        dropout: Probability that a feature is zeroed before the classifier, in training.
    """

    def __init__(
        self,
        dim: int,
        num_classes: int,
        *,
        kind: HeadKind,
        norm_eps: float | None,
        pooling: str,
        dropout: float,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if kind not in get_args(HeadKind):
            raise ValueError(f"head is {kind!r}; it must be one of {', '.join(map(repr, get_args(HeadKind)))}, or None")
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.dim = dim
        self.kind = kind
        self.pool = GlobalPool(pooling)
        features = dim * self.pool.feature_factor()
        self.norm = nn.Identity() if norm_eps is None else nn.LayerNorm(features, eps=norm_eps, **factory)
        self.hidden: nn.Module = nn.Identity()
        if kind == "hidden":
            self.hidden = nn.Sequential(
                Linear(features, HIDDEN_UNITS, **factory),
                nn.LayerNorm(HIDDEN_UNITS, eps=1e-6, **factory),
                nn.GELU(),
            )
        self.features = HIDDEN_UNITS if kind == "hidden" else features
        self.dropout = nn.Dropout(dropout)
        self.classifier = self._new_classifier(num_classes, **factory)

    def forward(self, maps: Tensor, pre_logits: bool = False) -> Tensor:
        x = self.dropout(self.hidden(self.norm(self.pool(maps))))
        if not pre_logits:
            x = self.classifier(x)
        return x.permute(0, 3, 1, 2) if self.pool.pooling == "" else x  # an unpooled map leaves channels first

    def reset(
        self, num_classes: int, pooling: str | None = None, *, requires_grad: bool = True, **factory: Any
    ) -> None:
        """Replaces the classifier, and nothing else but the pooling.

        Args:
            num_classes: Number of logits; 0 for none.
            pooling: New pooling; None: unchanged.
            requires_grad: Of the new classifier's parameters.
            **factory: ``device`` and ``dtype`` of the new classifier.

        Raises:
            ValueError: If the pooling is unknown, or makes the features wider or narrower than the head was built for.
        """
        if pooling is not None:
            pool = GlobalPool(pooling)
            self._check_width(pool)
            self.pool = pool
        self.classifier = self._new_classifier(num_classes, **factory).requires_grad_(requires_grad)
        self.train(self.training)  # what is new follows

    def _check_width(self, pool: GlobalPool) -> None:
        parts = [m for m in (self.norm, self.hidden) if not isinstance(m, nn.Identity)]
        if parts and pool.feature_factor() != self.pool.feature_factor():
            raise PoolingWidthError(
                f"global_pool cannot change from {self.pool.pooling!r} to {pool.pooling!r}: the head's trained layers"
                f" are {self.dim * self.pool.feature_factor()} wide. Build the model with global_pool={pool.pooling!r}"
            )
        if not parts:
            self.features = self.dim * pool.feature_factor()

    def _new_classifier(self, num_classes: int, **factory: Any) -> nn.Module:
        return Linear(self.features, num_classes, **factory) if num_classes > 0 else nn.Identity()
