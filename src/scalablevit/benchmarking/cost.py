"""Parameters and multiply-accumulates of a model, computed rather than looked up."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode


def count_parameters(model: nn.Module) -> int:
    """Number of parameters, each counted once."""
    return sum(parameter.numel() for parameter in model.parameters())


def count_macs(model: nn.Module, height: int, width: int) -> int:
    """Multiply-accumulates of one image's forward pass, as the model runs it.

    Counted are matrix products, the two of attention among them, and convolutions: what papers call FLOPs. Norms,
    activations and sums are not. Attention is counted with keys and values padded to one width, as they are multiplied
    (see `scalablevit.dot_product.attend`), so that models whose widths differ count up to 0.3 % more than in theory.

    Args:
        model: The model, for images of `in_chans` channels, if it says so, or three. It may be on the meta device, and
            its values are neither read nor changed.
        height: Of the image, in pixels.
        width: Of the image, in pixels.
    """
    shadow = copy.deepcopy(model).to("meta").eval()
    image = torch.empty(1, getattr(model, "in_chans", 3), height, width, device="meta")
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        shadow(image)
    return int(counter.get_total_flops()) // 2


def count_saved_bytes(model: nn.Module, images: Tensor) -> int:
    """Bytes of the distinct storages that one forward pass keeps for the backward pass, parameters left out."""
    parameters = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    storages: dict[int, int] = {}
    kept = []  # an address counts once only while its tensor lives

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = model(images)
    del out
    return sum(size for address, size in storages.items() if address not in parameters)
