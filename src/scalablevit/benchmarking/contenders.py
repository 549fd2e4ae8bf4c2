"""Models that are measured side by side, by the names that a user gives them."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from scalablevit.benchmarking.published import published_top1
from scalablevit.extras import require_extra
from scalablevit.scalable_vit import ScalableViT
from scalablevit.suggestions import nearest_name, nearest_path
from scalablevit.variants import VARIANTS

_README: dict[str, Any] = {
    "num_classes": 1000,
    "dim": 64,
    "heads": (2, 4, 8, 16),
    "depth": (2, 2, 20, 2),
    "ssa_dim_key": (40, 40, 40, 32),
    "reduction_factor": (8, 4, 2, 1),
    "window_size": (64, 32, None, None),
}
# Configurations that vit-pytorch's class and ours take alike, in that package's form.
PRESETS: dict[str, dict[str, Any]] = {
    "readme": {**_README, "dropout": 0.1},  # the one in vit-pytorch's README
    "readme-without-dropout": _README,
    "paper-depth": {**_README, "depth": (1, 1, 10, 1), "window_size": 7},  # small's depth and windows
}

KINDS = "a network of ours, vit-pytorch:PRESET, scalablevit:PRESET, timm:NAME or path:FILE.py:FACTORY"


@dataclass(frozen=True, kw_only=True)
class Contender:
    """A model to measure.

    Args:
        name: As the user gave it.
        build: Makes the model for images of a height and width, with random weights.
        top1: Published accuracy on ImageNet-1k, in per cent, if any is known.
    """

    name: str
    build: Callable[[int, int], nn.Module]
    top1: float | None = None


def parse_contender(name: str) -> Contender:
    """The contender that a name means.

    Args:
        name: ``scalablevit_small`` or another network of ours; ``vit-pytorch:PRESET`` (that package's model) and
            ``scalablevit:PRESET`` (ours, the same network), where the preset is ``readme``, ``readme-without-dropout``
            or ``paper-depth``; ``timm:NAME``, any model of timm; ``path:FILE.py:FACTORY``, a function or class in a
            file, which is called without arguments and gives a model.

    Raises:
        ValueError: If there is no such thing; the message names the nearest.
    """
    kind, _, rest = name.rpartition(":") if not name.startswith("path:") else ("path", "", name[len("path:") :])
    builders: dict[str, Callable[[str], Callable[[int, int], nn.Module]]] = {
        "": _ours,
        "scalablevit": lambda preset: lambda height, width: ScalableViT(**_preset(preset)),
        "vit-pytorch": _vit_pytorch,
        "timm": _timm,
        "path": _path,
    }
    if kind not in builders:
        raise ValueError(f"contender {name!r} is of no known kind{nearest_name(kind, builders)}; it must be {KINDS}")
    return Contender(name=name, build=builders[kind](rest), top1=published_top1(name))


def _ours(name: str) -> Callable[[int, int], nn.Module]:
    if name not in VARIANTS:
        raise ValueError(f"contender {name!r} is not there{nearest_name(name, VARIANTS)}; it must be {KINDS}")
    return lambda height, width: VARIANTS[name].build()


def _preset(name: str) -> dict[str, Any]:
    if name not in PRESETS:
        raise ValueError(f"preset {name!r} is not there{nearest_name(name, PRESETS)}; give one of {', '.join(PRESETS)}")
    return PRESETS[name]


def _vit_pytorch(preset: str) -> Callable[[int, int], nn.Module]:
    arguments = _preset(preset)
    require_extra("benchmark", "vit_pytorch")
    from vit_pytorch.scalable_vit import ScalableViT as Reference

    return lambda height, width: Reference(**arguments)


def _timm(name: str) -> Callable[[int, int], nn.Module]:
    import timm

    import scalablevit.timm_models  # ours are among timm's

    del scalablevit
    if not timm.is_model(name):
        raise ValueError(f"timm has no model {name!r}{nearest_name(name, timm.list_models())}; see timm.list_models()")

    def build(height: int, width: int) -> nn.Module:
        config = timm.get_pretrained_cfg(name)
        is_fixed = config is not None and config.fixed_input_size
        return timm.create_model(name, num_classes=1000, **({"img_size": (height, width)} if is_fixed else {}))

    return build


def _path(rest: str) -> Callable[[int, int], nn.Module]:
    file, _, factory = rest.rpartition(":")
    path = Path(file)
    if not file or not path.is_file():
        raise ValueError(f"{file or rest} does not exist{nearest_path(file or rest)}: give path:FILE.py:FACTORY")
    spec = importlib.util.spec_from_file_location(f"contender_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ValueError(f"{path} is no Python file: give path:FILE.py:FACTORY")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not callable(getattr(module, factory, None)):
        known = [name for name, value in vars(module).items() if callable(value)]
        raise ValueError(f"{path} has no function or class {factory!r}{nearest_name(factory, known)}")
    return lambda height, width: getattr(module, factory)()
