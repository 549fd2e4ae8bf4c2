"""Kinds of operations, by the names that PyTorch gives them: what tables of counts and of times have in common."""

from __future__ import annotations

import re

# The first that fits. Softmax and batched products are attention's, where no fused kernel does it as one operation.
_PATTERNS = {
    "attention": r"attention|^softmax|^safe_softmax|^bmm|^baddbmm",
    "convolution": r"conv",
    "linear": r"^addmm|^mm$|^linear|^mkldnn_linear",
    "norm": r"norm",
    "GELU": r"gelu",
    "elementwise": r"^(add|sub|rsub|mul|div|addcmul|bernoulli|where)$|dropout",
    "copy": r"copy|clone|^cat$|pad|fill|zero|ones|^full|^new_full|repeat|contiguous|index|slice_|select_",
    "sum": r"^sum|mean|pool",
}
KINDS = (*_PATTERNS, "other")


def kind_of(name: str) -> str:
    """The kind, one of `KINDS`, of an operation named as ``aten::add_``, ``aten.add_.Tensor`` or ``add``."""
    plain = name.replace("::", ".").split(".")
    operation = (plain[1] if len(plain) > 1 else plain[0]).strip("_")
    return next((kind for kind, pattern in _PATTERNS.items() if re.search(pattern, operation)), "other")
