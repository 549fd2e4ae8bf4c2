"""Our own layout is frozen: files that people have saved must stay readable.

A change to it is a new `LAYOUT_VERSION`, and a way to read the older files. The lists are then written anew by
``python -m tests.weights.test_own_layout``.
"""

from pathlib import Path

import pytest

from scalablevit import ScalableViT, scalablevit_nano
from scalablevit.weights.layouts import LAYOUT_VERSION
from tests.weights.test_conversion import ARGUMENTS

LISTS = Path(__file__).parent / "layout_1"
MODELS = {
    "nano": lambda: scalablevit_nano(num_classes=10, device="meta"),
    "tiny_vit_pytorch_form": lambda: ScalableViT(design="vit-pytorch", **ARGUMENTS, device="meta"),
    "tiny_paper_form": lambda: ScalableViT(design="paper", **{**ARGUMENTS, "head": "hidden"}, device="meta"),
}


def listing(model):
    """A line for each parameter, with its name and shape."""
    return "".join(f"{name} {' '.join(map(str, tensor.shape))}\n" for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("name", MODELS)
def test_names_and_shapes_are_frozen(name):
    assert listing(MODELS[name]()) == (LISTS / f"{name}.txt").read_text(encoding="utf-8")


def test_the_frozen_lists_are_of_the_current_version():
    assert LISTS.name == f"layout_{LAYOUT_VERSION}"


if __name__ == "__main__":
    LISTS.mkdir(exist_ok=True)
    for name, build in MODELS.items():
        (LISTS / f"{name}.txt").write_text(listing(build()), encoding="utf-8")
