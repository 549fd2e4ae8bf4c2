"""Published accuracies of the models that ours are measured against, for plots; none of them is measured here."""

from __future__ import annotations

from scalablevit.variants import VARIANTS

# ImageNet-1k top-1 in per cent at 224 px, trained on ImageNet-1k alone and without distillation, as timm's results
# tables give them (huggingface/pytorch-image-models, results/results-imagenet.csv) and the models' papers.
TIMM_TOP1 = {
    "caformer_s18": 83.7,
    "convnext_small": 83.1,
    "convnext_tiny": 82.1,
    "gcvit_tiny": 83.4,
    "mambaout_tiny": 82.7,
    "maxvit_tiny_tf_224": 83.4,
    "nextvit_base": 83.5,
    "pvt_v2_b2": 82.1,
    "pvt_v2_b3": 83.1,
    "swin_small_patch4_window7_224": 83.2,
    "swin_tiny_patch4_window7_224": 81.4,
    "twins_svt_base": 83.1,
    "twins_svt_small": 81.7,
}


def published_top1(contender: str) -> float | None:
    """The published top-1 accuracy of a contender, in per cent; None if none is known.

    Args:
        contender: As in `scalablevit.benchmarking.contenders.parse_contender`.
    """
    kind, _, name = contender.rpartition(":")
    if kind == "timm" and name not in VARIANTS:
        return TIMM_TOP1.get(name.partition(".")[0])
    published = VARIANTS[name].published if name in VARIANTS else None
    return published.top1 if published else None
