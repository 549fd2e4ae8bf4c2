"""The layout of the paper authors' released code, as their checkpoints have it.

Its blocks are single attentions, each with its feed-forward: block 2j of a stage is the IWSA and block 2j + 1 the SSA
of our layer j. An older form of their code scales the channels of SSA's values as well as those of its keys; the same
table holds for it, and the widths are read from the weights.

One of their networks is not supported: ``scalable_vit_small_0`` (never released) divides the scores of its last stage
by the square root of 40 although the keys are 32 wide, and nothing in its weights says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from scalablevit.design import PAPER
from scalablevit.weights.rules import ForeignLayout, Rule, StageWidths
from scalablevit.weights.state_dicts import Shapes, count, shape_of

_OURS = "stages.{stage}.layers.{layer}"
_IWSA = "stages.{stage}.{first}"
_SSA = "stages.{stage}.{second}"

RULES = (
    Rule("stages.{stage}.patch_embedding.conv", "patch_embeds.{stage}.proj"),
    Rule("stages.{stage}.patch_embedding.norm", "patch_embeds.{stage}.norm"),
    Rule(f"{_OURS}.iwsa.norm", f"{_IWSA}.norm1"),
    Rule(f"{_OURS}.iwsa.branch.to_qkv", f"{_IWSA}.attn.qkv"),
    Rule(f"{_OURS}.iwsa.branch.lim", f"{_IWSA}.attn.lim_func"),
    Rule(f"{_OURS}.iwsa.branch.to_out", f"{_IWSA}.attn.proj"),
    Rule(f"{_OURS}.ff1.norm", f"{_IWSA}.norm2"),
    Rule(f"{_OURS}.ff1.branch.fc1", f"{_IWSA}.mlp.fc1"),
    Rule(f"{_OURS}.ff1.branch.fc2", f"{_IWSA}.mlp.fc2"),
    Rule(f"{_OURS}.peg.conv", "pos_block.{stage}.proj.0"),
    Rule(f"{_OURS}.ssa.norm", f"{_SSA}.norm1"),
    Rule(f"{_OURS}.ssa.branch.to_q", f"{_SSA}.attn.q"),
    Rule(f"{_OURS}.ssa.branch.keys_values.reduce", f"{_SSA}.attn.reduction.0"),
    Rule(f"{_OURS}.ssa.branch.keys_values.scale_channels", f"{_SSA}.attn.reduction.1", "convolution"),
    Rule(f"{_OURS}.ssa.branch.keys_values.norm", f"{_SSA}.attn.norm_act.0"),
    Rule(
        f"{_OURS}.ssa.branch.keys_values.to_kv",
        (f"{_SSA}.attn.k", f"{_SSA}.attn.v"),
        rows=("ssa_dim_key", "ssa_dim_value"),
        where="reduced",
    ),
    Rule(f"{_OURS}.ssa.branch.keys_values.to_kv", f"{_SSA}.attn.kv", where="not reduced"),
    Rule(f"{_OURS}.ssa.branch.to_out", f"{_SSA}.attn.proj"),
    Rule(f"{_OURS}.ff2.norm", f"{_SSA}.norm2"),
    Rule(f"{_OURS}.ff2.branch.fc1", f"{_SSA}.mlp.fc1"),
    Rule(f"{_OURS}.ff2.branch.fc2", f"{_SSA}.mlp.fc2"),
    Rule("stages.{stage}.norm", "norm"),
    Rule("head.hidden.0", "head.0"),
    Rule("head.hidden.1", "head.1"),
    Rule("head.classifier", "head.3", where="hidden head"),
    Rule("head.classifier", "head", where="linear head"),
)


def check_names(shapes: Shapes) -> None:
    """Checks that the blocks of each stage are IWSA and SSA in turn, and end with an SSA.

    Raises:
        ValueError: If a stage has an odd number of blocks, or an SSA where an IWSA should be (the authors' window 1).
    """
    for stage in range(_stages(shapes)):
        blocks = _blocks(shapes, stage)
        if blocks % 2:
            raise ValueError(
                f"stage {stage} has {blocks} attention blocks (stages.{stage}.*), and an odd number of them cannot be"
                " represented: a layer of ScalableViT has two, an IWSA and an SSA"
            )
        for block in range(blocks):
            wanted, other = ("IWSA", "SSA") if block % 2 == 0 else ("SSA", "IWSA")
            other_key = f"stages.{stage}.{block}.attn.{'q' if other == 'SSA' else 'qkv'}.weight"
            if other_key in shapes:
                raise ValueError(
                    f"{other_key} belongs to an {other}, where an {wanted} should be (window 1 in the authors' code"
                    " means SSA): such a network cannot be represented, since a layer of ScalableViT has both"
                )


def read_stage(shapes: Shapes, stage: int) -> StageWidths:
    """What the weights of one stage say.

    Raises:
        ValueError: If a parameter that says it is missing.
    """
    iwsa, ssa = f"stages.{stage}.0", f"stages.{stage}.1"
    iwsa_values = shape_of(shapes, f"{iwsa}.attn.proj.weight", 2)[1]
    reduction = f"{ssa}.attn.reduction.0.weight"
    return StageWidths(
        dim=shape_of(shapes, f"patch_embeds.{stage}.proj.weight", 4)[0],
        depth=_blocks(shapes, stage) // 2,
        reduction_factor=shape_of(shapes, reduction, 4)[2] if reduction in shapes else 1,
        iwsa_keys=(shape_of(shapes, f"{iwsa}.attn.qkv.weight", 2)[0] - iwsa_values) // 2,
        iwsa_values=iwsa_values,
        ssa_keys=shape_of(shapes, f"{ssa}.attn.q.weight", 2)[0],
        ssa_values=shape_of(shapes, f"{ssa}.attn.proj.weight", 2)[1],
        ff_hidden=shape_of(shapes, f"{iwsa}.mlp.fc1.weight", 2)[0],
    )


def read_model(shapes: Shapes) -> dict[str, Any]:
    """What the weights say of the model as a whole, as arguments of `ScalableViT`.

    Raises:
        ValueError: If a parameter that says it is missing.
    """
    is_hidden = "head.0.weight" in shapes
    classifier = "head.3.weight" if is_hidden else "head.weight"
    return {
        "design": PAPER.name if "stages.0.0.attn.qkv.bias" in shapes else replace(PAPER, qkv_bias=False),
        "head": "hidden" if is_hidden else "linear",
        "num_classes": shape_of(shapes, classifier, 2)[0] if classifier in shapes else 0,
    }


def limits(config: Mapping[str, Any]) -> str | None:
    """In what a model with this `config` is none that the authors' code can make; None for nothing."""
    for stage, (dim, heads, factor) in enumerate(
        zip(config["dim"], config["heads"], config["reduction_factor"], strict=True)
    ):
        keys = heads * config["ssa_dim_key"][stage]
        widths = {"iwsa_dim_key": {dim}, "iwsa_dim_value": {dim}, "ssa_dim_value": {dim, keys}}
        if factor == 1:
            widths |= {"ssa_dim_key": {dim}, "ssa_dim_value": {dim}}
        for name, possible in widths.items():
            if heads * config[name][stage] not in possible:
                needed = " or ".join(f"{width / heads:g}" for width in sorted(possible))
                return f"{name} is {config[name][stage]} in stage {stage}, and there it is {needed}"
    return None


def _stages(shapes: Shapes) -> int:
    return count(shapes, r"patch_embeds\.(\d+)\.")


def _blocks(shapes: Shapes, stage: int) -> int:
    return count(shapes, rf"stages\.{stage}\.(\d+)\.")


LAYOUT = ForeignLayout(
    name="paper",
    design=PAPER,
    free_fields=frozenset({"name", "head", "qkv_bias", "patch_dropout", "initialisation"}),
    first_conv="patch_embeds.0.proj.weight",
    patch_size=4,
    head_prefix="head.",
    head_width=32,
    marker=r"patch_embeds\.|pos_block\.|stages\.\d+\.\d+\.",
    rules=RULES,
    check_names=check_names,
    count_stages=_stages,
    read_stage=read_stage,
    read_model=read_model,
    limits=limits,
)
