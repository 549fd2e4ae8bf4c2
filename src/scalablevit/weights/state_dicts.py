"""State dicts as files hold them: out of their wrapping, their shapes, and whether they are what is needed."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor

Shape = tuple[int, ...]
Shapes = dict[str, Shape]

# Where checkpoints keep the state dict, in the order in which they are tried.
WRAPPING_KEYS = ("state_dict", "model", "model_ema", "model_state_dict")
# What stands before every name of a model that torch wraps for several devices, or compiles; and of one that is the
# ``model`` of a Lightning module or of a timm wrapper.
WRAPPING_PREFIXES = ("module.", "_orig_mod.", "model.")

_NAMED_KEYS = 6  # as many as fit a message that is still read


def unwrap(checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    """The state dict in a checkpoint.

    Args:
        checkpoint: A state dict, or a dict that holds one under ``"state_dict"``, ``"model"``, ``"model_ema"`` or
            ``"model_state_dict"`` (the first of these that is there). A prefix ``module.``, ``_orig_mod.`` or
            ``model.`` that all names have is taken away.

    Returns:
        A new dict with the tensors themselves, not copies.

    Raises:
        ValueError: If there is no state dict in it.
    """
    state = checkpoint
    for key in WRAPPING_KEYS:
        if isinstance(state, Mapping) and isinstance(state.get(key), Mapping):
            state = state[key]
            break
    if not isinstance(state, Mapping) or not state:
        raise ValueError(f"a state dict is needed, which is a dict of names and tensors; this is {_described(state)}")
    for name, value in state.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise ValueError(
                f"a state dict is needed, a dict of names and tensors, but {name!r} holds a {type(value).__name__}; in"
                f" a checkpoint it is looked for under {', '.join(map(repr, WRAPPING_KEYS))}"
            )
    return _without_prefixes(dict(state))


def _without_prefixes(state: dict[str, Tensor]) -> dict[str, Tensor]:
    for prefix in WRAPPING_PREFIXES:
        if all(name.startswith(prefix) for name in state):
            return _without_prefixes({name.removeprefix(prefix): tensor for name, tensor in state.items()})
    return state


def _described(value: object) -> str:
    return "empty" if isinstance(value, Mapping) else f"a {type(value).__name__}"


def shapes_of(state: Mapping[str, Tensor]) -> Shapes:
    """The shape of each tensor."""
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def shape_of(shapes: Shapes, name: str, rank: int) -> Shape:
    """The shape that belongs to `name`.

    Raises:
        ValueError: If there is none, or it does not have `rank` numbers.
    """
    if name not in shapes:
        raise ValueError(
            f"the state dict holds no {name}: it is incomplete, or not of the layout that it seems to have"
        )
    if len(shapes[name]) != rank:
        raise ValueError(f"{name} is {list(shapes[name])} in the state dict; it must have {rank} axes")
    return shapes[name]


def count(shapes: Shapes, pattern: str) -> int:
    """One more than the highest number that the group of `pattern` has, at the start of a name; 0 if none matches."""
    return 1 + max((int(match[1]) for name in shapes if (match := re.match(pattern, name))), default=-1)


def differences(shapes: Shapes, expected: Shapes) -> str:
    """Says which names are missing, left over or of another shape; empty if there is nothing to say."""
    parts = []
    missing = [name for name in expected if name not in shapes]
    leftover = [name for name in shapes if name not in expected]
    if missing:
        parts.append(f"missing are {listed(missing)}")
    if leftover:
        parts.append(f"left over are {listed(leftover)}")
    wrong = [
        f"{name} is {list(shapes[name])} and should be {list(expected[name])}"
        for name in expected
        if name in shapes and shapes[name] != expected[name]
    ]
    if wrong:
        parts.append("of another shape: " + listed(wrong))
    return "; ".join(parts)


def listed(items: Iterable[str]) -> str:
    """The items in one line; the first few of them if there are many."""
    all_items: Sequence[str] = list(items)
    rest = len(all_items) - _NAMED_KEYS
    return ", ".join(all_items[:_NAMED_KEYS]) + (f" and {rest} more" if rest > 0 else "")
