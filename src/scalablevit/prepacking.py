"""Weights laid out once instead of at each call, for models that only run."""

from __future__ import annotations

from typing import TypeVar

from torch import nn

from scalablevit.kernels.cpu.kept_weights import keep, let_go

Model = TypeVar("Model", bound=nn.Module)


def prepack(model: Model, *, enabled: bool = True) -> Model:
    """Lets kernels keep the weights of a model's layers as they read them, from one call to the next.

    They lay them out first, in the type of the products: S takes 0.83 of the time with one image in bfloat16, 0.86 in
    float32, 0.90 and 0.92 with eight, if that is done (two cores of a Xeon with a matrix unit; docs/log.md). What is
    kept takes two bytes for each number with products in bfloat16, four in float32 or where the processor has no
    products of bfloat16, six in float32 with a matrix unit. It is made when it is first needed, and let go with the
    model.

    Weights may change, by steps of training, ``load_state_dict`` or whatever else PyTorch counts as a change of a
    tensor: they are laid out anew then. What kernels cannot see is a part of a weight that is written past that, a
    few numbers or the lines of a head, as by ``weight.data[0, 0] = 1``, or through another tensor or array that shares
    the memory: call this again after that.

    Args:
        model: One of ours, alone, as a part of another, or compiled. Nothing else about it changes: it can be trained,
            saved and copied as before. Not prepacked are copies, weights that were moved or converted since or came
            with ``load_state_dict(assign=True)``, those that are not on a CPU, were made in ``inference_mode`` or share
            their memory.
        enabled: False to let go of what was kept.

    Returns:
        The same model.

    Raises:
        TypeError: If it is not a module.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is a {type(model).__name__}: give a torch.nn.Module")
    weights = [parameter for parameter in model.parameters() if parameter.ndim == 2]
    if enabled:
        keep(weights)
    else:
        let_go(weights)
    return model
