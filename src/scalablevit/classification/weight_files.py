"""Weights from any known layout into any other, as files, each proved by reading it again and by running both sides."""

from __future__ import annotations

import math
import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from scalablevit.classification.initial_weights import InitialWeights, read_initial_weights
from scalablevit.scalable_vit import ScalableViT
from scalablevit.suggestions import nearest_name
from scalablevit.trained import model_folder
from scalablevit.variants import VARIANTS
from scalablevit.weights import (
    architecture_name,
    convert_state_dict,
    is_multi_label,
    read_config,
    read_weights,
    save_model,
    weights_file,
)
from scalablevit.weights.files import PICKLE_SUFFIXES
from scalablevit.weights.layouts import CLASSIFIER, FIRST_CONV, LAYOUT_VERSION, LAYOUTS, OWN_LAYOUT, detect_layout

OWN_FILES = ("config.json", "model.safetensors")  # that save_model writes
FILE_SUFFIXES = (".safetensors", ".pth", ".pt")
TOLERANCE = 1e-4  # of logits, as a fraction of their spread: rounding in float32, in sums of another order
LARGEST_SIDE = 512  # in pixels, of the images that both sides are run on


@dataclass(frozen=True, kw_only=True)
class ConversionResult:
    """What was converted, and how that was proved.

    Args:
        path: What was written.
        source: The layout that the weights came in.
        target: The layout that they are in now.
        architecture: The network.
        parameters: How many tensors there are.
        checks: What was compared, as lines.
    """

    path: Path
    source: str
    target: str
    architecture: str
    parameters: int
    checks: tuple[str, ...]


def convert(
    source: str | Path,
    destination: str | Path,
    *,
    model: str | None = None,
    to: str = OWN_LAYOUT,
    heads: Sequence[int] | None = None,
    window_size: Sequence[int | None] | None = None,
    overwrite: bool = False,
) -> ConversionResult:
    """Writes weights in another layout. What is written is read again, and run where both sides can be.

    Args:
        source: A run folder, a folder by `save_model`, the name of a trained model, or a file with the weights of this
            package, of vit-pytorch or of the paper's authors.
        destination: A folder, as by `save_model`, for the layout of this package; or a file, ``.safetensors``, ``.pth``
            or ``.pt``.
        model: The variant that the weights are of. For a file of this package it must be given; for others it is
            checked.
        to: ``"scalablevit"``, ``"vit-pytorch"`` or ``"paper"``.
        heads: For a file of vit-pytorch, which does not say it: the number of heads, one or one per stage.
        window_size: For such a file: the size of the windows, one or one per stage; None for the whole map.
        overwrite: Whether a file or folder that is there is replaced.

    Raises:
        ValueError: If the weights cannot be read, are of another network, or the layout cannot express the network; if
            the destination is not free; or if what was written is not what was read.
    """
    if to not in LAYOUTS:
        raise ValueError(f"to is {to!r}; it must be one of {', '.join(map(repr, LAYOUTS))}{nearest_name(to, LAYOUTS)}")
    path = Path(destination)
    _check_destination(path, Path(source), to, overwrite=overwrite)
    initial = _read(source, model, heads, window_size)
    odd = next((each for each, tensor in initial.state.items() if not tensor.isfinite().all()), None)
    if odd is not None:
        raise ValueError(f"{source} holds numbers that are not finite, in {odd}: no two networks of it can be compared")
    network = ScalableViT(**initial.arguments).eval()
    network.load_state_dict(initial.state)
    name = architecture_name(network.config)
    if model is not None and name != model:
        raise ValueError(
            f"{source} holds no {model}: it is {name}, with dim {network.config['dim']} and depth"
            f" {network.config['depth']}. Leave --model out, or give that name"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{path.name}-", dir=path.parent) as folder:
        written = Path(folder) / path.name
        _write(network, written, to, initial)
        checks = _check(network, written, to, source, initial.layout)
        if path.is_dir():
            shutil.rmtree(path)
        written.replace(path)
    return ConversionResult(
        path=path,
        source=initial.layout,
        target=to,
        architecture=name,
        parameters=len(initial.state),
        checks=tuple(checks),
    )


def _check_destination(path: Path, source: Path, to: str, *, overwrite: bool) -> None:
    is_file = path.suffix in FILE_SUFFIXES
    if not is_file and path.suffix.lower() in (*FILE_SUFFIXES, *PICKLE_SUFFIXES):
        raise ValueError(
            f"destination is {path}; files of weights are written that end in {', '.join(FILE_SUFFIXES)}: let it end so"
        )
    if not is_file and to != OWN_LAYOUT:
        raise ValueError(
            f"destination is {path}; the {to} layout is written into a file: let it end in {', '.join(FILE_SUFFIXES)}"
        )
    if path.exists() and path.resolve() == source.resolve():
        raise ValueError(f"destination is {path}, the source itself: give another")
    if path.is_dir() and source.resolve().is_relative_to(path.resolve()):
        raise ValueError(f"destination is {path}, which holds the source: give another")
    if path.exists() and not overwrite:
        raise ValueError(f"{path} exists: give another destination, or --overwrite")
    if path.is_dir() and (is_file or not (path / "config.json").is_file() or (path / "config.yaml").is_file()):
        raise ValueError(f"{path} is a folder that was not written by save_model alone, and is not replaced")
    others = sorted(each.name for each in path.iterdir() if each.name not in OWN_FILES) if path.is_dir() else []
    if others:
        raise ValueError(
            f"{path} holds {others[0]!r} as well, and would lose it: move that away, or give another folder"
        )
    parent = next(each for each in path.absolute().parents if each.exists())
    if not parent.is_dir():
        raise ValueError(f"destination is {path}, but {parent} is a file and no folder: give another")
    if not os.access(parent, os.W_OK):
        raise ValueError(f"destination is {path}, but you may not write into {parent}: give another")


def _read(
    source: str | Path, model: str | None, heads: Sequence[int] | None, window_size: Sequence[int | None] | None
) -> InitialWeights:
    if model is not None and model not in VARIANTS:
        raise ValueError(f"model is {model!r}; it must be one of {', '.join(VARIANTS)}{nearest_name(model, VARIANTS)}")
    is_file = not model_folder(source).is_dir() and Path(source).is_file()
    if model is None and is_file and detect_layout(read_weights(source)) == OWN_LAYOUT:
        beside = Path(source).parent
        folder = f"the folder {beside}" if (beside / "config.json").is_file() else "a folder by save_model"
        raise ValueError(
            f"{source} holds parameters alone, and not of which network they are: give {folder}, or name the variant"
            " with --model"
        )
    if model is None or not is_file:
        return read_initial_weights(source, heads=heads, window_size=window_size)
    state = read_weights(source)
    if detect_layout(state) != OWN_LAYOUT:
        usual = VARIANTS[model].arguments
        heads = usual["heads"] if heads is None else heads
        window_size = _sequence(usual["window_size"]) if window_size is None else window_size
        return read_initial_weights(source, heads=heads, window_size=window_size)
    if heads is not None or window_size is not None:
        raise ValueError(
            f"{source} is a file of this package, of {model}, whose heads and windows are known: leave them out"
        )
    # A file of ours does not say which network it is of; its ends say what the variant leaves open.
    classifier = state.get(f"{CLASSIFIER}.weight")
    channels = state[f"{FIRST_CONV}.weight"].shape[1]
    network = VARIANTS[model].build(0 if classifier is None else len(classifier), channels=channels, device="meta")
    return InitialWeights(
        source=Path(source),
        layout=OWN_LAYOUT,
        arguments=network.config,
        state=convert_state_dict(state, network),
        labels=None,
        normalisation=None,
    )


def _sequence(value: Any) -> tuple[int, ...]:
    return (value,) if isinstance(value, int) else tuple(value)


def _write(network: ScalableViT, path: Path, to: str, initial: InitialWeights) -> None:
    if path.suffix not in FILE_SUFFIXES:
        is_folder = initial.source.is_dir()
        save_model(
            network,
            path,
            initial.labels,
            read_config(initial.source)["pretrained_cfg"] if is_folder else _normalisation(initial),
            multi_label=is_multi_label(read_config(initial.source)) if is_folder else None,
        )
        return
    state = convert_state_dict(network.state_dict(), network, to=to)
    if path.suffix == ".safetensors":
        own = {"scalablevit_layout": str(LAYOUT_VERSION)} if to == OWN_LAYOUT else {}
        safetensors.torch.save_file(
            {name: each.contiguous() for name, each in state.items()}, path, {"format": "pt", **own}
        )
    else:
        torch.save(state, path)


def _normalisation(initial: InitialWeights) -> dict[str, Any]:
    if initial.normalisation is None:
        return {}
    mean, std = initial.normalisation
    return {"mean": list(mean), "std": list(std)}


def _check(network: ScalableViT, written: Path, to: str, source: str | Path, layout: str) -> list[str]:
    """What was compared.

    Raises:
        ValueError: If something differs.
    """
    state = read_weights(weights_file(written) if written.is_dir() else written)
    back = convert_state_dict(state, network)
    different = [name for name, tensor in network.state_dict().items() if not torch.equal(tensor, back[name])]
    if different:
        raise ValueError(f"{different[0]} is not the same when it is read again; nothing was written")
    checks = [f"read again and converted back, {len(back)} of {len(back)} parameters are the same, bit for bit"]
    again = ScalableViT(**network.config).eval()
    again.load_state_dict(back)
    runs: list[tuple[str, torch.nn.Module]] = [("what was written, in this package", again)]
    for where, side, given in (("source", layout, source), ("result", to, None)):
        if side == "vit-pytorch" and find_spec("vit_pytorch") is None:
            checks.append(f"the {where} was not run: vit-pytorch is not installed")
        elif side == "vit-pytorch":
            theirs = _vit_pytorch(network)
            theirs.load_state_dict(state if given is None else read_weights(given))
            runs.append((f"the {where}, in vit-pytorch", theirs))
    sides = _sides(network)
    if max(sides[0]) > LARGEST_SIDE:
        return [*checks, f"not run: the smallest image that its windows divide has {max(sides[0])} pixels"]
    for name, other in runs:
        largest = max(_difference(network, other, side) for side in sides)
        if not largest <= TOLERANCE:
            raise ValueError(
                f"the logits of {name} differ by {largest:.1e} of their spread, more than {TOLERANCE:g}; nothing was"
                " written. Files of vit-pytorch do not say heads and windows: are --heads and --window-size right?"
            )
        sizes = " and ".join(f"{height}x{width}" for height, width in sides)
        checks.append(f"{name}: logits at {sizes} differ from the network's by {largest:.1e} of their spread at most")
    return checks


def _vit_pytorch(network: ScalableViT) -> torch.nn.Module:
    from vit_pytorch.scalable_vit import ScalableViT as Theirs

    config = network.config
    names = ("num_classes", "depth", "heads", "reduction_factor", "iwsa_dim_key", "iwsa_dim_value", "ssa_dim_key")
    arguments = {name: _tuple(config[name]) for name in (*names, "ssa_dim_value", "window_size", "channels")}
    factor = config["ff_expansion_factor"]
    model: torch.nn.Module = Theirs(
        dim=config["dim"][0], ff_expansion_factor=factor[0] if isinstance(factor, list) else factor, **arguments
    )
    return model.eval()


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _sides(network: ScalableViT) -> list[tuple[int, int]]:
    """Two sizes of images that every window and every reduction of the network divides."""
    config, stride, side = network.config, 1, 1
    for index, reduction in enumerate(config["reduction_factor"]):
        stride *= config["patch_size"] if index == 0 else 2
        side = math.lcm(side, stride * reduction, stride * (config["window_size"][index] or 1))
    return [(side, side), (side, 2 * side)]


@torch.inference_mode()
def _difference(one: ScalableViT, other: torch.nn.Module, side: tuple[int, int]) -> float:
    """The largest difference of logits, as a fraction of their spread."""
    images = torch.randn((1, one.in_chans, *side), generator=torch.Generator().manual_seed(0))
    first: Tensor = one(images)
    second: Tensor = other(images)
    spread = max(float(first.std()), 1e-12) if first.numel() > 1 else max(float(first.abs().max()), 1e-12)
    return float((first - second).abs().max()) / spread
