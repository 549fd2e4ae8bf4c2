"""Training that starts from weights: what they are of, what of them is kept, and what is new."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from scalablevit.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from scalablevit.scalable_vit import ScalableViT
from scalablevit.suggestions import nearest_path
from scalablevit.trained import model_folder
from scalablevit.weights import convert_state_dict, infer_arguments, read_config, read_weights, weights_file
from scalablevit.weights.layouts import CLASSIFIER, FIRST_CONV, OWN_LAYOUT, detect_layout
from scalablevit.weights.state_dicts import shapes_of, unwrap

FIRST_WEIGHT = f"{FIRST_CONV}.weight"
VIT_PYTORCH_HEAD_WIDTH = 32  # its default; the weights do not say how many heads there are


@dataclass(frozen=True, kw_only=True)
class InitialWeights:
    """Weights to start from, and the network that they are of.

    Args:
        source: Where they come from.
        layout: Whose parameter names they have.
        arguments: Of `ScalableViT`.
        state: The parameters, in our own layout.
        labels: Names of the classes, if they are known.
        normalisation: Mean and standard deviation that the images had, if they are known.
    """

    source: Path
    layout: str
    arguments: dict[str, Any]
    state: dict[str, Tensor]
    labels: tuple[str, ...] | None
    normalisation: tuple[tuple[float, ...], tuple[float, ...]] | None


def read_initial_weights(
    source: str | Path,
    *,
    heads: Sequence[int] | None = None,
    window_size: Sequence[int | None] | None = None,
) -> InitialWeights:
    """Reads weights to start from.

    Args:
        source: A run folder or a folder by `save_model`, the name of a trained model of `scalablevit.trained`, or a
            file of vit-pytorch or the paper's authors.
        heads: For a file of vit-pytorch, the number of heads, one or one per stage.
        window_size: For such a file, the size of the windows, one or one per stage; None for the whole map.

    Raises:
        ValueError: If there are no weights there that can be read, or they are of another kind of network.
    """
    path = model_folder(source)
    if not path.exists():
        raise ValueError(
            f"weights {path} does not exist{nearest_path(path)}: give a run folder, or a file with weights"
        )
    if path.is_dir():
        if heads is not None or window_size is not None:
            raise ValueError(f"{path} says itself what heads and window_size are: leave them out")
        return _from_folder(path)
    state = unwrap(read_weights(path))
    layout = detect_layout(shapes_of(state))
    if layout == OWN_LAYOUT:
        folder = f"its folder, {path.parent}" if (path.parent / "config.json").is_file() else "a folder by save_model"
        raise ValueError(f"{path} holds parameters alone, and config.json says of which network: give {folder}")
    if layout == "vit-pytorch" and heads is None:
        heads = _guess_heads(state)
    arguments = infer_arguments(state, heads=_one_or_all(heads))
    windows = _one_or_all(window_size) if window_size is not None else (7 if layout == "paper" else None)
    arguments["window_size"] = windows
    model = ScalableViT(**arguments, device="meta")
    imagenet = (IMAGENET_MEAN, IMAGENET_STD) if layout == "paper" and model.in_chans == 3 else None
    return InitialWeights(
        source=path,
        layout=layout,
        arguments=arguments,
        state=convert_state_dict(state, model),
        labels=None,
        normalisation=imagenet,
    )


def build_from(initial: InitialWeights, classes: Sequence[str], channels: int, **drop_rates: float) -> ScalableViT:
    """The network of the weights, untrained, for other classes and channels."""
    arguments = {**initial.arguments, **drop_rates, "num_classes": len(classes), "channels": channels}
    return ScalableViT(**arguments)


def load_into(model: ScalableViT, initial: InitialWeights, classes: Sequence[str]) -> list[str]:
    """Loads what fits into a model; what does not keeps the values that it has.

    The first convolution is adapted to the model's channels: for grey images its weights are summed over the colours,
    for colour images those of grey are spread over three channels. The classifier is kept if the classes are the same.

    Returns:
        Lines that say what was kept and what is new.

    Raises:
        ValueError: If another parameter does not fit: the model is another network.
    """
    own = model.state_dict()
    state = dict(initial.state)
    notes = []
    if initial.labels != tuple(classes) or any(
        state[name].shape != own[name].shape for name in state if name.startswith(CLASSIFIER) and name in own
    ):
        state = {name: tensor for name, tensor in state.items() if not name.startswith(CLASSIFIER)}
        before = len(initial.labels) if initial.labels else initial.arguments["num_classes"]
        notes.append(f"new: the classifier, for {len(classes)} classes (the weights have {before} others)")
    if state[FIRST_WEIGHT].shape[1] != model.in_chans:
        before = state[FIRST_WEIGHT].shape[1]
        state[FIRST_WEIGHT] = adapt_channels(state[FIRST_WEIGHT], model.in_chans)
        notes.append(f"adapted: the first convolution, from {before} to {model.in_chans} channels")
    surplus = next((name for name in state if name not in own), None)
    if surplus is not None:
        raise ValueError(
            f"{initial.source} has {surplus}, which the model has not: leave --model out to take the network of the"
            " weights"
        )
    for name, tensor in own.items():
        if name not in state and not name.startswith(CLASSIFIER):
            raise ValueError(
                f"{initial.source} has no {name}, which the model has: leave --model out to take its network"
            )
        if name in state and state[name].shape != tensor.shape:
            raise ValueError(
                f"{initial.source} has {name} of shape {tuple(state[name].shape)}, the model {tuple(tensor.shape)}:"
                " leave --model out to take the network of the weights"
            )
    model.load_state_dict(state, strict=False)
    kept = sum(tensor.numel() for tensor in state.values()) / 1e6
    return [f"kept: {len(state)} of {len(own)} parameters, {kept:.2f} M values, of {initial.source}", *notes]


def adapt_channels(weight: Tensor, channels: int) -> Tensor:
    """The weight (o, c, k, k) of a first convolution for another number of channels, 1 or 3.

    A grey image gives what it gave with its one channel repeated three times, and the other way round.
    """
    if channels == 1:
        return weight.sum(1, keepdim=True)
    return weight.mean(1, keepdim=True).repeat(1, channels, 1, 1) * (weight.shape[1] / channels)


def _from_folder(path: Path) -> InitialWeights:
    config = read_config(path)
    preprocessing = Preprocessing.from_pretrained_cfg(config["pretrained_cfg"])
    labels = config.get("label_names")
    return InitialWeights(
        source=path,
        layout=OWN_LAYOUT,
        arguments=config["scalablevit"]["arguments"],
        state=dict(read_weights(weights_file(path))),
        labels=tuple(labels) if labels else None,
        normalisation=(preprocessing.mean, preprocessing.std),
    )


def _guess_heads(state: Mapping[str, Tensor]) -> list[int]:
    widths = []
    stage = 0
    while (name := f"layers.{stage}.0.layers.0.4.to_v.weight") in state:
        widths.append(state[name].shape[0])
        stage += 1
    odd = [width for width in widths if width % VIT_PYTORCH_HEAD_WIDTH]
    if odd or not widths:
        raise ValueError("the weights of vit-pytorch do not say how many heads there are: give --heads")
    return [width // VIT_PYTORCH_HEAD_WIDTH for width in widths]


def _one_or_all(values: Sequence[int | None] | None) -> Any:
    if values is None:
        return None
    return values[0] if len(values) == 1 else tuple(values)
