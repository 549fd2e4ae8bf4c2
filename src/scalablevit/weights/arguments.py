"""The arguments of `ScalableViT` that the weights of another implementation say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from scalablevit.weights.layouts import FOREIGN_LAYOUTS, OWN_LAYOUT, detect_layout
from scalablevit.weights.rules import ForeignLayout, StageWidths
from scalablevit.weights.state_dicts import Shapes, shape_of, shapes_of, unwrap


def infer_arguments(state_dict: Mapping[str, Any], heads: int | Sequence[int] | None = None) -> dict[str, Any]:
    """The arguments of `ScalableViT` that the weights of another implementation say.

    The window size leaves no trace in weights, and is not among them: it is 7 in all published networks of the paper.
    Neither does the number of heads; for the paper's layout each head of IWSA is taken to be 32 wide, as in all
    published networks, unless `heads` says something else.

        arguments = infer_arguments(state_dict)
        model = ScalableViT(**arguments, window_size=7)
        model.load_state_dict(convert_state_dict(state_dict, model))

    Args:
        state_dict: A state dict of vit-pytorch or of the paper authors' code, wrapped or not, as in
            `convert_state_dict`.
        heads: Number of heads, one or one per stage. Needed for the layout of vit-pytorch.

    Returns:
        ``design``, ``dim``, ``depth``, ``heads``, ``reduction_factor``, the widths of the heads,
        ``ff_expansion_factor``, ``channels``, ``patch_size``, ``head`` and ``num_classes``.

    Raises:
        ValueError: If the layout is our own or unknown, `heads` is missing or does not fit, a name that says an
            argument is missing, or the network is none that `ScalableViT` can be.
    """
    shapes = shapes_of(unwrap(state_dict))
    name = detect_layout(shapes)
    if name == OWN_LAYOUT:
        raise ValueError(
            "the state dict is of this package's own layout, whose arguments are saved beside it: use load_model on the"
            " folder, or read_config(folder)['scalablevit']['arguments']"
        )
    layout = FOREIGN_LAYOUTS[name]
    layout.check_names(shapes)
    return arguments_of(shapes, layout, heads)


def arguments_of(shapes: Shapes, layout: ForeignLayout, heads: int | Sequence[int] | None) -> dict[str, Any]:
    """`infer_arguments` for shapes that are known to be of a certain layout."""
    stages = [layout.read_stage(shapes, stage) for stage in range(layout.count_stages(shapes))]
    counts = _head_counts(stages, layout, heads)
    columns = [_stage_arguments(*place) for place in zip(range(len(stages)), stages, counts, strict=True)]
    _, channels, kernel, _ = shape_of(shapes, layout.first_conv, 4)
    if kernel != 2 * layout.patch_size - 1:
        raise ValueError(
            f"{layout.first_conv} has a kernel of {kernel}; only that of {2 * layout.patch_size - 1}, for patches of"
            f" {layout.patch_size}, is a convolution that ScalableViT has too"
        )
    return {
        **{name: tuple(column[name] for column in columns) for name in columns[0]},
        "channels": channels,
        "patch_size": layout.patch_size,
        **layout.read_model(shapes),
    }


def _head_counts(stages: Sequence[StageWidths], layout: ForeignLayout, heads: int | Sequence[int] | None) -> list[int]:
    if heads is None:
        if layout.head_width is None:
            raise ValueError(f"weights of the {layout.name} layout do not say how many heads there are: give heads")
        odd = [stage.iwsa_values for stage in stages if stage.iwsa_values % layout.head_width]
        if odd:
            raise ValueError(
                f"IWSA's values are {odd[0]} wide, no multiple of the {layout.head_width} of a head in the published"
                " networks: give heads"
            )
        return [stage.iwsa_values // layout.head_width for stage in stages]
    counts = [heads] * len(stages) if isinstance(heads, int) else list(heads)
    if len(counts) != len(stages):
        raise ValueError(f"heads is {heads!r}; the weights have {len(stages)} stages: give one number, or one for each")
    return counts


def _stage_arguments(index: int, stage: StageWidths, heads: int) -> dict[str, int]:
    if isinstance(heads, bool) or not isinstance(heads, int) or heads < 1:
        raise ValueError(f"heads is {heads!r} for stage {index}; it must be a positive integer")
    widths = {
        "iwsa_dim_key": stage.iwsa_keys,
        "iwsa_dim_value": stage.iwsa_values,
        "ssa_dim_key": stage.ssa_keys,
        "ssa_dim_value": stage.ssa_values,
    }
    for name, width in widths.items():
        if width % heads:
            raise ValueError(f"{width} channels, for {name} in stage {index}, are not {heads} heads: give other heads")
    if stage.ff_hidden % stage.dim:
        raise ValueError(
            f"the feed-forwards of stage {index} are {stage.ff_hidden} wide inside, no multiple of its {stage.dim}"
            " channels: such a network cannot be represented"
        )
    return {
        "dim": stage.dim,
        "depth": stage.depth,
        "heads": heads,
        "reduction_factor": stage.reduction_factor,
        **{name: width // heads for name, width in widths.items()},
        "ff_expansion_factor": stage.ff_hidden // stage.dim,
    }
