"""The layout of the vit-pytorch package's ``ScalableViT``.

Its transformer registers each layer as (SSA, feed-forward, PEG, feed-forward, IWSA), unpacks that under swapped names,
and runs it in the registered order. So the numbers 0 to 4 in its names are also our running order.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from scalablevit.design import VIT_PYTORCH
from scalablevit.weights.rules import ForeignLayout, Rule, StageWidths
from scalablevit.weights.state_dicts import Shapes, count, shape_of

_OURS = "stages.{stage}.layers.{layer}"
_THEIRS = "layers.{stage}.0.layers.{layer}"

RULES = (
    Rule("stages.0.patch_embedding.conv", "to_patches"),
    Rule("stages.{stage}.patch_embedding.conv", "layers.{previous}.1.conv"),
    Rule(f"{_OURS}.ssa.norm", f"{_THEIRS}.0.norm", "channel norm"),
    Rule(f"{_OURS}.ssa.branch.to_q", f"{_THEIRS}.0.to_q", "convolution"),
    Rule(
        f"{_OURS}.ssa.branch.keys_values.to_kv",
        (f"{_THEIRS}.0.to_k", f"{_THEIRS}.0.to_v"),
        "cells",
        rows=("ssa_dim_key", "ssa_dim_value"),
    ),
    Rule(f"{_OURS}.ssa.branch.to_out", f"{_THEIRS}.0.to_out.0", "convolution"),
    Rule(f"{_OURS}.ff1.norm", f"{_THEIRS}.1.net.0", "channel norm"),
    Rule(f"{_OURS}.ff1.branch.fc1", f"{_THEIRS}.1.net.1", "convolution"),
    Rule(f"{_OURS}.ff1.branch.fc2", f"{_THEIRS}.1.net.4", "convolution"),
    Rule(f"{_OURS}.peg.conv", f"{_THEIRS}.2.proj"),
    Rule(f"{_OURS}.ff2.norm", f"{_THEIRS}.3.net.0", "channel norm"),
    Rule(f"{_OURS}.ff2.branch.fc1", f"{_THEIRS}.3.net.1", "convolution"),
    Rule(f"{_OURS}.ff2.branch.fc2", f"{_THEIRS}.3.net.4", "convolution"),
    Rule(f"{_OURS}.iwsa.norm", f"{_THEIRS}.4.norm", "channel norm"),
    Rule(
        f"{_OURS}.iwsa.branch.to_qkv",
        (f"{_THEIRS}.4.to_q", f"{_THEIRS}.4.to_k", f"{_THEIRS}.4.to_v"),
        "convolution",
        rows=("iwsa_dim_key", "iwsa_dim_key", "iwsa_dim_value"),
    ),
    Rule(f"{_OURS}.iwsa.branch.lim", f"{_THEIRS}.4.local_interactive_module"),
    Rule(f"{_OURS}.iwsa.branch.to_out", f"{_THEIRS}.4.to_out.0", "convolution"),
    Rule("stages.{stage}.norm", "layers.{stage}.0.norm", "channel norm"),
    Rule("head.norm", "mlp_head.1"),
    Rule("head.classifier", "mlp_head.2"),
)


def read_stage(shapes: Shapes, stage: int) -> StageWidths:
    """What the weights of one stage say.

    Raises:
        ValueError: If a parameter that says it is missing.
    """
    layer = f"layers.{stage}.0.layers.0"
    patches = "to_patches" if stage == 0 else f"layers.{stage - 1}.1.conv"
    return StageWidths(
        dim=shape_of(shapes, f"{patches}.weight", 4)[0],
        depth=count(shapes, rf"layers\.{stage}\.0\.layers\.(\d+)\."),
        reduction_factor=shape_of(shapes, f"{layer}.0.to_k.weight", 4)[2],
        iwsa_keys=shape_of(shapes, f"{layer}.4.to_q.weight", 4)[0],
        iwsa_values=shape_of(shapes, f"{layer}.4.to_v.weight", 4)[0],
        ssa_keys=shape_of(shapes, f"{layer}.0.to_q.weight", 4)[0],
        ssa_values=shape_of(shapes, f"{layer}.0.to_v.weight", 4)[0],
        ff_hidden=shape_of(shapes, f"{layer}.1.net.1.weight", 4)[0],
    )


def read_model(shapes: Shapes) -> dict[str, Any]:
    """What the weights say of the model as a whole, as arguments of `ScalableViT`.

    Raises:
        ValueError: If the classifier's weight is no matrix.
    """
    classifier = "mlp_head.2.weight"
    return {
        "design": VIT_PYTORCH.name,
        "head": "linear",
        "num_classes": shape_of(shapes, classifier, 2)[0] if classifier in shapes else 0,
    }


def limits(config: Mapping[str, Any]) -> str | None:
    """In what a model with this `config` is none that vit-pytorch can make; None for nothing."""
    dims, expansions = config["dim"], config["ff_expansion_factor"]
    if dims != [dims[0] * 2**stage for stage in range(len(dims))]:
        return f"dim is {dims}, and there it doubles from stage to stage"
    if len(set(expansions)) > 1:
        return f"ff_expansion_factor is {expansions}, and there it is the same in all stages"
    if config["head"] != "linear":
        return f"head is {config['head']!r}, and there it is 'linear'"
    if config["num_classes"] == 0:
        return "num_classes is 0, and there it is at least 1"
    return None


LAYOUT = ForeignLayout(
    name="vit-pytorch",
    design=VIT_PYTORCH,
    free_fields=frozenset({"name", "head", "patch_dropout", "initialisation"}),
    first_conv="to_patches.weight",
    patch_size=4,
    head_prefix="mlp_head.",
    head_width=None,
    marker=r"to_patches\.|layers\.\d+\.(0\.layers|1\.conv)\.|mlp_head\.",
    rules=RULES,
    check_names=lambda shapes: None,
    count_stages=lambda shapes: count(shapes, r"layers\.(\d+)\."),
    read_stage=read_stage,
    read_model=read_model,
    limits=limits,
)
