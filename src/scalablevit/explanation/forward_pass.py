"""One image's way through a network, with what its attentions were given on the way. The network is left as it was.

Axes: b batch, here 1; h height, w width, c channels. Maps are channels-last, (b, h, w, c).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from PIL import Image
from torch import Tensor, nn

from scalablevit.attention import InteractiveWindowedSelfAttention, ScalableSelfAttention
from scalablevit.images import convert_image
from scalablevit.preprocessing import Preprocessing
from scalablevit.scalable_vit import ScalableViT
from scalablevit.stages import Stage


@dataclass(frozen=True, kw_only=True)
class ForwardPass:
    """What an image leaves in a network.

    Args:
        patches: What the first patch embedding gives, (1, h, w, c): before any attention.
        maps: What each stage gives, (1, h, w, c).
        logits: (classes).
        inputs: What each attention is given, (1, h, w, c): the map of its layer after the norm.
    """

    patches: Tensor
    maps: tuple[Tensor, ...]
    logits: Tensor
    inputs: dict[nn.Module, Tensor] = field(repr=False)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """The block runs with the model in eval mode. Afterwards each of its modules is in the mode that it was in."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def run(model: ScalableViT, images: Tensor) -> ForwardPass:
    """Shows the network one image, in eval mode.

    Args:
        model: The network.
        images: (1, channels, height, width), normalised.
    """
    inputs: dict[nn.Module, Tensor] = {}

    def keep(module: nn.Module, given: tuple[Any, ...]) -> None:
        inputs[module] = given[0].detach()

    with ExitStack() as stack:
        stack.enter_context(evaluating(model))
        stack.enter_context(torch.no_grad())
        for module in model.modules():
            if isinstance(module, (ScalableSelfAttention, InteractiveWindowedSelfAttention)):
                stack.callback(module.register_forward_pre_hook(keep).remove)
        maps = [images.permute(0, 2, 3, 1)]
        patches = cast(Stage, model.stages[0]).patch_embedding(maps[0])
        for stage in model.stages:
            maps.append(stage(maps[-1]))
        logits = model.forward_head(maps[-1].permute(0, 3, 1, 2))
    return ForwardPass(patches=patches, maps=tuple(maps[1:]), logits=logits[0], inputs=inputs)


def to_images(model: ScalableViT, preprocessing: Preprocessing, image: Image.Image) -> Tensor:
    """What a network takes, (1, channels, height, width), of an image in any of Pillow's modes."""
    like = next(model.parameters())
    pixels = preprocessing.to_pixels(convert_image(image, preprocessing.channels))
    return preprocessing.normalise(pixels[None].to(like.device)).to(like.dtype)


def to_probabilities(logits: Tensor, labels: Sequence[str], *, multi_label: bool) -> list[float]:
    """The probability of each class, from 0 to 1; they sum to 1, unless each is one of its own.

    Raises:
        ValueError: If the labels are not as many as the logits.
    """
    if logits.ndim != 1 or len(labels) != len(logits):
        shape = list(logits.shape)
        raise ValueError(f"labels has {len(labels)} names for logits of the shape {shape}: give one for each class")
    values = logits.float()
    return (values.sigmoid() if multi_label else values.softmax(0)).tolist()
