"""What was found about a block and its parameters, kept for as long as these lie where they lie.

Which kernel serves, and with what numbers, follows from the types, sizes and places in memory of a dozen tensors. With
few positions it takes longer to ask than the kernel takes, and a fraction of that to see that nothing has changed.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any, TypeVar

from torch import Tensor, nn

from scalablevit.kernels.switches import autocast_dtype, choices

Found = TypeVar("Found")

_PLAIN = {Tensor, nn.Parameter, type(None)}
_UNKNOWN: Any = object()
# A case takes 1.5 KB, of all blocks of a stage some 50. Those of one block are, for example, sizes of maps.
_MOST_TENSORS, _MOST_CASES = 1 << 15, 16

# By the address of the first tensor, and how many there are: what was asked about all of them, and what was found in
# each case. Only numbers are kept of tensors, so that none lives longer for it.
_known: dict[tuple[int, int], tuple[list[Any], dict[Hashable, Any]]] = {}
_settings = {"counts_changes": False}


def count_changes(counts: bool) -> None:
    """Whether tensors are compared by how often PyTorch has seen them change, too."""
    _settings["counts_changes"] = counts


def forget() -> None:
    """Nothing is known any longer."""
    _known.clear()


def version_of(x: Tensor) -> int:
    """How often PyTorch has seen a tensor change; it does not look at those that were made for inference."""
    return 0 if x.is_inference() else x._version


def remembered(case: Hashable, tensors: Sequence[Tensor | None], find: Callable[[], Found]) -> Found:
    """What `find` gives: from the last time, if the tensors are alike in all that kernels ask for.

    Args:
        case: All that the result depends on beside the tensors, the switches and autocast.
        tensors: One at least. They are compared by place, type, size, order in memory and sign, by version if changes
            count, and not by what is in them.
        find: Called without arguments where nothing is known. Nothing that it gives holds a tensor.
    """
    if not {type(x) for x in tensors} <= _PLAIN:
        return find()  # a subclass may lie nowhere
    facts: list[Any] = [
        None if x is None else (x.data_ptr(), x.dtype, x.shape, x.is_contiguous(), x.is_cpu, type(x), x.is_neg())
        for x in tensors
    ]
    if _settings["counts_changes"]:
        facts += [0 if x is None else version_of(x) for x in tensors]
    place = next(fact[0] for fact in facts if fact is not None), len(tensors)
    known = _known.get(place)
    if known is None or known[0] != facts:
        if sum(tensors for _, tensors in list(_known)) >= _MOST_TENSORS:
            _known.clear()
        known = _known[place] = facts, {}
    cases, case = known[1], (case, autocast_dtype(), *choices.values())
    found: Found = cases.get(case, _UNKNOWN)
    if found is _UNKNOWN:
        if len(cases) >= _MOST_CASES:
            cases.clear()
        found = cases[case] = find()
    return found
