"""The parts of ScalableViT that are neither attention nor feed-forward: residual branches, patch embedding, PEG.

Axes: b batch, h height, w width, c channels. Maps are channels-last, (b, h, w, c), throughout.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.fx
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules import module as of_all_modules

from scalablevit.convolutions import MapConv2d
from scalablevit.dot_product import is_eager
from scalablevit.kernels.parts import BlockParts, Layer, Norm, PositionParts
from scalablevit.linear_in_graphs import linear_in_graph
from scalablevit.norms import normed
from scalablevit.patches import embed_in_graph, embed_natively
from scalablevit.products import linear_by_kernel


class DropPath(nn.Module):
    """Stochastic depth (Huang et al., arXiv:1603.09382): in training, drops a sample's branch with probability `rate`.

    What is kept is divided by ``1 - rate``, so that the expectation does not change. `rate` is a plain number that may
    be set at any time.
    """

    def __init__(self, rate: float = 0.0) -> None:
        super().__init__()
        self.rate = float(rate)

    def is_off(self) -> bool:
        return not self.training or self.rate == 0.0

    def forward(self, x: Tensor) -> Tensor:
        if self.is_off():
            return x
        keep = torch.empty([x.shape[0], 1, 1, 1], dtype=x.dtype, device=x.device).bernoulli_(1.0 - self.rate)
        return x * (keep / (1.0 - self.rate) if self.rate < 1.0 else keep)

    def extra_repr(self) -> str:
        return f"rate={self.rate:.3g}"


class Branch(nn.Module):
    """A branch that may run the norm before it as well. Maps (b, h, w, c) to (b, h, w, c)."""

    def forward_after(self, norm: nn.LayerNorm, x: Tensor, *, residual: bool) -> Tensor:
        """``self(norm(x))``, or x plus that, for where PyTorch runs eagerly and both modules are plain."""
        raise NotImplementedError

    def compiled_after(self, norm: nn.LayerNorm, x: Tensor, *, residual: bool) -> Tensor | None:
        """The same for a compiled graph, in operators as far as there are any; None for norm and branch as they are."""
        raise NotImplementedError

    def parts_after(self, norm: nn.LayerNorm) -> BlockParts | None:
        """What it is made of after a norm; None where that is not just what it was made as, or with dropout."""
        raise NotImplementedError


class PreNormResidual(nn.Module):
    """x + drop_path(branch(norm(x))), the form of every block of a layer but PEG. Maps (b, h, w, c) to (b, h, w, c)."""

    def __init__(self, norm: nn.Module, branch: nn.Module, drop_path: float = 0.0) -> None:
        super().__init__()
        self.norm = norm
        self.branch = branch
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        if torch.jit.is_scripting():
            return x + self.drop_path(self.branch(self.norm(x)))
        else:
            norm, branch, drop_path = child_of(self, "norm"), child_of(self, "branch"), child_of(self, "drop_path")
            if norm is None or branch is None or drop_path is None:
                return x + self.drop_path(self.branch(self.norm(x)))
            if torch.compiler.is_compiling() and not torch.compiler._is_exporting_flag:
                out = self._compiled(x)
                return x + drop_path(branch(norm(x))) if out is None else out
            if not is_eager(x) or not is_plain(norm, nn.LayerNorm) or not is_plain_with(branch, "forward_after"):
                return x + drop_path(branch(norm(x)))
            is_off = is_plain(drop_path, DropPath) and drop_path.is_off()
            found: Tensor = branch.forward_after(norm, x, residual=is_off)
            return found if is_off else x + drop_path(found)

    def parts(self) -> BlockParts | None:
        """What it is made of; None where that is not just what it was made as, or something is dropped."""
        norm, branch, drop_path = child_of(self, "norm"), child_of(self, "branch"), child_of(self, "drop_path")
        if not is_plain(drop_path, DropPath) or not drop_path.is_off() or not is_plain_with(branch, "parts_after"):
            return None
        found: BlockParts | None = branch.parts_after(norm)
        return found

    def _compiled(self, x: Tensor) -> Tensor | None:
        """What a compiled graph holds in the place of norm and branch, if they are just what they were made as."""
        norm, branch, drop_path = self.norm, cast(Branch, self.branch), self.drop_path
        if not is_plain(norm, nn.LayerNorm) or not is_plain_with(branch, "compiled_after"):
            return None
        is_off = is_plain(drop_path, DropPath) and drop_path.is_off()
        found = branch.compiled_after(cast(nn.LayerNorm, norm), x, residual=is_off)
        return found if is_off or found is None else x + drop_path(found)


class Linear(nn.Linear):
    """`torch.nn.Linear`, whose bias is added after the product where that is faster: in float32 on a CPU, eagerly.

    There PyTorch writes the bias into every row before the product adds to it: a second trip through memory.
    """

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The product x @ weight^T, plus bias: (..., c) to (..., c')."""
    if torch.jit.is_scripting():
        return F.linear(x, weight, bias)
    else:
        if torch.compiler.is_compiling():
            out = None if torch.compiler._is_exporting_flag else linear_in_graph(x, weight, bias)
        else:
            out = linear_by_kernel(x, weight, bias) if is_eager(x) else None
        if out is not None:
            return out
        if bias is None or x.device.type != "cpu" or x.dtype != torch.float32 or torch.compiler.is_compiling():
            return F.linear(x, weight, bias)
        if torch.is_autocast_enabled("cpu"):
            return F.linear(x, weight, bias)
        return F.linear(x, weight).add_(bias)


torch.fx.wrap("linear")


class PointwiseConv(Linear):
    """A 1x1 convolution over channels-last maps, which is a linear layer, but is initialised as a convolution."""


class PatchEmbedding(nn.Module):
    """An overlapping strided convolution that makes the map of a stage out of the image or of the stage before.

    Maps (b, h, w, dim_in) to (b, ceil(h / stride), ceil(w / stride), dim). The kernel is ``2 * stride - 1`` wide: the
    7x7 stride 4 and 3x3 stride 2 of both published forms.

    Args:
        dim_in: Channels that come in.
        dim: Channels that go out.
        stride: Pixels, or positions of the map before, per position.
        norm: A module for (b, h', w', dim) maps that follows the convolution; `torch.nn.Identity` for none.
        dropout: Probability that an element is zeroed, in training.
    """

    def __init__(
        self,
        dim_in: int,
        dim: int,
        *,
        stride: int,
        norm: nn.Module,
        dropout: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.conv = MapConv2d(dim_in, dim, 2 * stride - 1, stride, stride - 1, device=device, dtype=dtype)
        self.norm = norm
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        if not torch.jit.is_scripting():
            out = self._embed_at_once(x)
            if out is not None:
                return out
        x = self.conv(x)
        if torch.jit.is_scripting():
            x = self.norm(x)
        else:
            plain = is_eager(x) and is_plain(self.norm, nn.LayerNorm)
            x = normed(cast(nn.LayerNorm, self.norm), x) if plain else self.norm(x)
        return self.dropout(x)

    @torch.jit.unused
    def _embed_at_once(self, x: Tensor) -> Tensor | None:
        """As one step; None where it is recorded, none is there, or modules are not just what they were made as."""
        compiles = torch.compiler.is_compiling() and not torch.compiler._is_exporting_flag
        if not compiles and (torch.is_grad_enabled() or not is_eager(x)):
            return None
        conv, norm, dropout = child_of(self, "conv"), child_of(self, "norm"), child_of(self, "dropout")
        layer, of_norm = plain_layer(conv, MapConv2d), plain_norm(norm)
        if layer is None or (of_norm is None and not is_plain(norm, nn.Identity)):
            return None
        if not is_plain(dropout, nn.Dropout) or (dropout.training and dropout.p > 0.0) or not conv.is_square():
            return None
        stride, padding = conv.stride[0], cast(tuple[int, int], conv.padding)[0]
        return (embed_in_graph if compiles else embed_natively)(x, layer, of_norm, stride=stride, padding=padding)


class PEG(nn.Module):
    """Positional encoding generator (Chu et al., arXiv:2102.10882): x + depthwise 3x3 convolution of x, with bias."""

    def __init__(self, dim: int, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.conv = MapConv2d(dim, dim, 3, padding=1, groups=dim, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        if torch.jit.is_scripting():
            return x + self.conv(x)
        else:
            plain = is_eager(x) and is_plain(self.conv, MapConv2d)
            out = self.conv.convolve_depthwise(x, residual=True) if plain else None
            return x + self.conv(x) if out is None else out

    def parts(self) -> PositionParts | None:
        """What it is made of; None where that is not just what it was made as."""
        conv = child_of(self, "conv")
        layer = plain_layer(conv, MapConv2d)
        return PositionParts(layer) if layer is not None and conv.is_depthwise_3x3() else None


def is_plain(module: nn.Module | None, kind: type[nn.Module] = Linear) -> bool:
    """Whether a call of the module does what its class, `kind`, says, and no more: no adapter in its place, no hook."""
    return module is not None and _is_as_made(module, kind) and not has_hooks_for_all()


def has_hooks_for_all() -> bool:
    """Whether a hook wants to see calls of all modules."""
    return bool(
        of_all_modules._global_forward_hooks
        or of_all_modules._global_forward_pre_hooks
        or of_all_modules._global_backward_hooks
        or of_all_modules._global_backward_pre_hooks
    )


def _is_as_made(module: nn.Module, kind: type[nn.Module]) -> bool:
    if type(module) is not kind or "forward" in vars(module):
        return False
    return not (
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    )


def child_of(module: nn.Module, name: str) -> Any:
    """A module in another; None where something else has its place, or nothing.

    Modules take a microsecond to find one as an attribute, which counts with few positions.
    """
    return module._modules.get(name)


def plain_layer(module: nn.Module | None, kind: type[nn.Module] = Linear) -> Layer | None:
    """What a module as its class made it consists of; None for another, or where that are not parameters.

    Whether hooks want to see all modules is the caller's to ask.
    """
    if module is None or not _is_as_made(module, kind):
        return None
    parameters = module._parameters
    weight = parameters.get("weight")
    return None if weight is None or "bias" not in parameters else Layer(weight, parameters["bias"])


def plain_norm(module: nn.Module | None) -> Norm | None:
    """Likewise of a LayerNorm over the channels; None without a bias."""
    layer = plain_layer(module, nn.LayerNorm)
    if layer is None or layer.bias is None or len(cast(nn.LayerNorm, module).normalized_shape) != 1:
        return None
    return Norm(layer.weight, layer.bias, cast(nn.LayerNorm, module).eps)


def is_plain_with(module: nn.Module, method: str) -> bool:
    """Whether `module` is plain, of the very class that has the method: a class made from it may run otherwise."""
    return method in vars(type(module)) and is_plain(module, type(module))
