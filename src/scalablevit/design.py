"""The choices in which the two published forms of ScalableViT differ, as data.

ScalableViT (Yang et al., ECCV 2022, arXiv:2203.10790) exists in two published forms that are different networks: the
one of the vit-pytorch package, and the one that the paper's authors trained. A `Design` names every choice in which
they differ. It is read by constructors only; no ``forward`` branches on it.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

LayerOrder = Literal["ssa ff peg ff iwsa", "iwsa ff peg ssa ff"]
Normalisation = Literal["every stage", "last stage"]
Convolution = Literal["dense", "depthwise"]
HeadKind = Literal["linear", "hidden"]
Initialisation = Literal["pytorch", "paper"]


@dataclass(frozen=True, kw_only=True)
class Design:
    """How a ScalableViT is put together, apart from its sizes.

    Two values are published networks: `VIT_PYTORCH` and `PAPER`. Any other mix, made with `dataclasses.replace`,
    works as well but is nobody's published network.

    Args:
        name: What the design is called, in files and messages.
        layer_order: The residual blocks of one layer in running order. PEG (a positional encoding generator) runs in
            the first layer of each stage only. The order of vit-pytorch is the one its code *runs*: it registers
            the two last blocks as (feed-forward, IWSA) and unpacks them under swapped names.
        patch_norm: Whether a LayerNorm follows each patch embedding.
        output_norm: ``"every stage"``: a LayerNorm ends each stage but the last, whose pooled features the head
            normalises. ``"last stage"``: one LayerNorm ends the last stage and the head needs none.
        norm_eps: epsilon of all LayerNorms but those inside `keys_values` (1e-5) and the hidden head (1e-6).
        qkv_bias: Whether the query, key and value projections have a bias.
        keys_values: How SSA reduces its keys and values in space: one ``"dense"`` convolution, or a ``"depthwise"``
            and a 1x1 convolution, LayerNorm and GELU before linear projections.
        lim: The convolution of the Local Interactive Module.
        head: ``"linear"``, or ``"hidden"``: a layer of 4096 units before the classifier.
        patch_dropout: Whether `dropout` also follows each patch embedding.
        initialisation: PyTorch's defaults, or the paper authors' (truncated normal 0.02 for linear layers, normal
            with variance 2 / fan-out for convolutions, zero biases).

    Raises:
        ValueError: If a field holds none of its possible values.
    """

    name: str
    layer_order: LayerOrder
    patch_norm: bool
    output_norm: Normalisation
    norm_eps: float
    qkv_bias: bool
    keys_values: Convolution
    lim: Convolution
    head: HeadKind
    patch_dropout: bool
    initialisation: Initialisation

    def __post_init__(self) -> None:
        for field, allowed in _CHOICES.items():
            value = getattr(self, field)
            if value not in allowed:
                raise ValueError(f"Design.{field} is {value!r}; it must be one of {', '.join(map(repr, allowed))}")
        if not 0 < self.norm_eps < 1:
            raise ValueError(f"Design.norm_eps is {self.norm_eps!r}; it must lie between 0 and 1, for example 1e-6")

    def to_dict(self) -> dict[str, Any]:
        """The fields as strings, numbers and booleans, fit for a JSON file."""
        return asdict(self)


_CHOICES: dict[str, tuple[object, ...]] = {
    "layer_order": get_args(LayerOrder),
    "patch_norm": (True, False),
    "output_norm": get_args(Normalisation),
    "qkv_bias": (True, False),
    "keys_values": get_args(Convolution),
    "lim": get_args(Convolution),
    "head": get_args(HeadKind),
    "patch_dropout": (True, False),
    "initialisation": get_args(Initialisation),
}

VIT_PYTORCH = Design(
    name="vit-pytorch",
    layer_order="ssa ff peg ff iwsa",
    patch_norm=False,
    output_norm="every stage",
    norm_eps=1e-5,
    qkv_bias=False,
    keys_values="dense",
    lim="dense",
    head="linear",
    patch_dropout=False,
    initialisation="pytorch",
)

PAPER = Design(
    name="paper",
    layer_order="iwsa ff peg ssa ff",
    patch_norm=True,
    output_norm="last stage",
    norm_eps=1e-6,
    qkv_bias=True,
    keys_values="depthwise",
    lim="depthwise",
    head="hidden",
    patch_dropout=True,
    initialisation="paper",
)

DESIGNS: dict[str, Design] = {design.name: design for design in (VIT_PYTORCH, PAPER)}


def resolve_design(design: str | Design | dict[str, Any]) -> Design:
    """The `Design` that a name, a `Design` or the dictionary of one (from a file) stands for.

    Raises:
        ValueError: If the name is not a published design, or the dictionary does not hold a design's fields.
    """
    if isinstance(design, Design):
        return design
    if isinstance(design, dict):
        expected = {field.name for field in fields(Design)}
        if set(design) != expected:
            raise ValueError(f"design has the fields {sorted(design)}; it must have exactly {sorted(expected)}")
        return Design(**design)
    if design not in DESIGNS:
        raise ValueError(f"design is {design!r}; it must be one of {', '.join(map(repr, DESIGNS))}, or a Design")
    return DESIGNS[design]
