"""One small picture of what a network looks at, for where an answer is wanted at once."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image

from scalablevit.explanation.evidence import find_evidence
from scalablevit.explanation.explanation import per_cent
from scalablevit.explanation.forward_pass import run, to_images, to_probabilities
from scalablevit.explanation.looks import choose_stages, look_from
from scalablevit.extras import require_extra
from scalablevit.preprocessing import Preprocessing
from scalablevit.scalable_vit import ScalableViT

FEW_STEPS = 8  # of the integral


def attention_picture(
    model: ScalableViT,
    preprocessing: Preprocessing,
    labels: Sequence[str],
    image: Image.Image,
    *,
    multi_label: bool = False,
) -> Image.Image:
    """What the network is given, where the evidence for its first class is, and where its attention goes from there.

    Args:
        model: The network. It is left as it was.
        preprocessing: What its images go through.
        labels: Names of its classes, in the order of the logits.
        image: The image, in any mode.
        multi_label: Whether each class has a probability of its own.

    Returns:
        Three panels side by side, 1400 pixels wide, in RGB.

    Raises:
        MissingExtraError: If captum or matplotlib is not installed.
        ValueError: If the image cannot be shown in 8 bits, or the labels are not as many as the logits.
    """
    require_extra("explain", "captum", "matplotlib")
    from scalablevit.explanation.panels import evidence_panel, given_panel, look_panel
    from scalablevit.explanation.picture import draw_panels
    from scalablevit.explanation.view import view_of

    view = view_of(image, preprocessing)
    passed = run(model, to_images(model, preprocessing, image))
    probabilities = to_probabilities(passed.logits, labels, multi_label=multi_label)
    best = max(range(len(labels)), key=probabilities.__getitem__)
    evidence = find_evidence(model, passed, best, steps=FEW_STEPS)
    look = look_from(
        model, passed, choose_stages(model)[-1], points=[evidence.peak_pixel] if evidence.values.any() else []
    )
    panels = [
        given_panel(view, caption=f"{labels[best]}: {per_cent(probabilities[best])}"),
        evidence_panel(view, evidence, labels[best]),
        look_panel(view, look),
    ]
    return draw_panels([panels])
