"""What an export says of itself, in whatever file: enough to run it, and to read what it gives, without this package.

Every kind of file holds the same strings under the same names, because strings are what all of them can hold. Those
that are more than a word are JSON.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch

from scalablevit.scalable_vit import ScalableViT
from scalablevit.weights.folder_config import MULTI_LABEL, config_text

Arithmetic = Literal["fp32", "bf16"]
Weights = Literal["fp32", "int8"]
INPUT = (
    "images: float32 (batch, channels, height, width); pixels from 0 to 1, resized and cropped as pretrained_cfg says,"
    " minus its mean, divided by its std"
)
OUTPUT = "logits: float32 (batch, classes), in the order of the labels"
SOFTMAX, SIGMOID = "softmax over the classes", "sigmoid of each class by itself"


@dataclass(frozen=True, kw_only=True)
class Description:
    """What an export says of itself.

    Args:
        architecture: Name of the variant, or "scalablevit".
        num_classes: Number of logits.
        pretrained_cfg: How images are made into what the model takes, under timm's names.
        labels: Names of the classes, in the order of the logits; None if there are none.
        multi_label: Whether an image may have any number of labels.
        smallest_side: The smallest height and width that it takes, in pixels.
        weights: ``"fp32"``, or ``"int8"`` after quantisation.
        arithmetic: ``"bf16"`` if the runtime had better compute in it what is not int8, where it can.
        license: Of the weights, as the model says; empty if it says nothing.
        version: Of the package that wrote the file.
        torch: Version of PyTorch that wrote it.
        notes: What else there is to say, for example of the accuracy.
    """

    architecture: str
    num_classes: int
    pretrained_cfg: dict[str, Any]
    labels: tuple[str, ...] | None = None
    multi_label: bool = False
    smallest_side: int = 1
    weights: Weights = "fp32"
    arithmetic: Arithmetic = "fp32"
    license: str = ""
    version: str = ""
    torch: str = ""
    notes: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, model: ScalableViT, **others: Any) -> Description:
        """Of a model, from what it came with; `others` are the fields that it does not say."""
        from scalablevit import __version__  # while this module is imported the package may still be half made

        config = json.loads(config_text(model, None, None))
        labels = config.get("label_names")
        return cls(
            architecture=config["architecture"],
            num_classes=config["num_classes"],
            pretrained_cfg=config["pretrained_cfg"],
            labels=None if labels is None else tuple(labels),
            multi_label=config.get("problem_type") == MULTI_LABEL,
            license=config["pretrained_cfg"].get("license") or "",
            version=__version__,
            torch=torch.__version__,
            **others,
        )

    def to_strings(self) -> dict[str, str]:
        """What goes into the file."""
        return {
            "scalablevit_version": self.version,
            "torch_version": self.torch,
            "license": self.license,
            "code_license": "MIT",
            "architecture": self.architecture,
            "num_classes": str(self.num_classes),
            "labels": json.dumps(self.labels, ensure_ascii=False),
            "multi_label": json.dumps(self.multi_label),
            "pretrained_cfg": json.dumps(self.pretrained_cfg, ensure_ascii=False),
            "input": INPUT,
            "output": OUTPUT,
            "probabilities": SIGMOID if self.multi_label else SOFTMAX,
            "smallest_side": str(self.smallest_side),
            "weights": self.weights,
            "arithmetic": self.arithmetic,
            "notes": json.dumps(self.notes, ensure_ascii=False),
        }

    @classmethod
    def from_strings(cls, strings: Mapping[str, str], source: str) -> Description:
        """What `to_strings` has put into a file.

        Args:
            strings: From the file, among others.
            source: Its name, for the message.

        Raises:
            ValueError: If they are not of an export by this package, or damaged.
        """
        if "scalablevit_version" not in strings:
            raise ValueError(
                f"{source} does not say what images it takes: it was not written by `scalablevit export`, which can"
                " write it anew"
            )
        try:
            labels = json.loads(strings["labels"])
            return cls(
                architecture=strings["architecture"],
                num_classes=int(strings["num_classes"]),
                pretrained_cfg=json.loads(strings["pretrained_cfg"]),
                labels=None if labels is None else tuple(labels),
                multi_label=json.loads(strings["multi_label"]),
                smallest_side=int(strings["smallest_side"]),
                weights=_one_of(strings["weights"], Weights),
                arithmetic=_one_of(strings["arithmetic"], Arithmetic),
                license=strings["license"],
                version=strings["scalablevit_version"],
                torch=strings["torch_version"],
                notes=json.loads(strings["notes"]),
            )
        except (KeyError, ValueError) as error:
            raise ValueError(
                f"what {source} says of itself cannot be read ({type(error).__name__}: {error}): export it anew"
            ) from error


def _one_of(word: str, allowed: Any) -> Any:
    if word not in get_args(allowed):
        raise ValueError(f"{word!r} is none of {', '.join(get_args(allowed))}")
    return word
