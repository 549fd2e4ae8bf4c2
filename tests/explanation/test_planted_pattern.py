"""A network that has learnt to tell textures apart, each somewhere in noise: is the evidence where the texture is?"""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from scalablevit import ScalableViT
from scalablevit.explanation.evidence import find_evidence
from scalablevit.explanation.forward_pass import run

SIZE, SIDE = 32, 12  # pixels of an image, and of the square in it
STEPS = 150


def draw(count, generator):
    """Images (n, 1, 32, 32) of noise with a square of stripes, across or down, or of a chequer; which; and where."""
    rows, columns = torch.arange(SIDE)[:, None] // 3, torch.arange(SIDE)[None] // 3
    textures = [pattern % 2 * 2.0 - 1 for pattern in (rows + 0 * columns, columns + 0 * rows, rows + columns)]
    images = 0.5 * torch.randn(count, 1, SIZE, SIZE, generator=generator)
    labels = torch.randint(3, (count,), generator=generator)
    corners = torch.randint(SIZE - SIDE + 1, (count, 2), generator=generator)
    for image, label, (top, left) in zip(images, labels, corners.tolist(), strict=True):
        square = image[0, top : top + SIDE, left : left + SIDE]
        square.mul_(0.3).add_(textures[label])
    return images, labels, corners


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    model = ScalableViT(
        num_classes=3, dim=(16, 32), depth=(1, 1), heads=(1, 2), reduction_factor=(2, 1), window_size=4, channels=1,
        iwsa_dim_key=16, iwsa_dim_value=16, ssa_dim_key=16, ssa_dim_value=16, patch_size=2,
    )  # fmt: skip
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=STEPS)
    generator = torch.Generator().manual_seed(0)
    for _ in range(STEPS):
        images, labels, _ = draw(16, generator)
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()
        schedule.step()
    return model.eval()


def test_evidence_lies_on_the_pattern(model):
    images, labels, corners = draw(40, torch.Generator().manual_seed(9))
    right, on_pattern, shares = 0, 0, []
    for image, label, (top, left) in zip(images, labels, corners.tolist(), strict=True):
        passed = run(model, image[None])
        right += int(passed.logits.argmax() == label)
        evidence = find_evidence(model, passed, int(label))
        row, column = evidence.peak_pixel
        on_pattern += top <= row < top + SIDE and left <= column < left + SIDE
        heat = evidence.smooth(SIZE, SIZE)
        shares.append(heat[top : top + SIDE, left : left + SIDE].sum() / heat.sum())
    assert right >= 36
    assert on_pattern >= 36
    assert np.median(shares) > 0.5  # the pattern is 14 % of the image
