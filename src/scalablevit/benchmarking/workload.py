"""What a contender has to do in a benchmark: forward alone, or forward and backward, in some precision."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import nn

from scalablevit.configuration import check_count
from scalablevit.prepacking import prepack
from scalablevit.suggestions import nearest_name

Mode = Literal["infer", "train"]
Precision = Literal["fp32", "bf16", "fp16", "bf16-true", "fp16-true"]  # Lightning's words
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True, kw_only=True)
class Workload:
    """What each contender does.

    Args:
        mode: ``"infer"``: a forward pass without gradients, in evaluation mode. ``"train"``: forward, cross-entropy and
            backward, in training mode; no optimiser.
        precision: ``"fp32"``; autocast to ``"bf16"`` or ``"fp16"``; ``"bf16-true"`` or ``"fp16-true"``: weights and
            images of that type.
        batch: Images at once.
        compile: Whether models are compiled, for each size by itself.
        channels_last: Whether images and convolution weights have PyTorch's channels-last memory format.
        prepack: Whether models are prepacked, which changes nothing about those that are not ours; not in training.
        device: Where.
    """

    mode: Mode = "infer"
    precision: Precision = "fp32"
    batch: int = 8
    compile: bool = False
    channels_last: bool = False
    prepack: bool = False
    device: str = "cpu"

    def __post_init__(self) -> None:
        for name, value, allowed in (
            ("mode", self.mode, get_args(Mode)),
            ("precision", self.precision, get_args(Precision)),
        ):
            if value not in allowed:
                hint = nearest_name(str(value), allowed)
                raise ValueError(f"{name} is {value!r}{hint}; it must be one of {', '.join(allowed)}")
        check_count("batch", self.batch)
        if self.prepack and self.mode == "train":
            raise ValueError(
                'prepack is True with mode "train", which changes weights: leave it out, or measure "infer"'
            )
        try:
            torch.empty(0, device=self.device)
        except (RuntimeError, AssertionError) as error:  # the second where PyTorch was built without CUDA
            raise ValueError(f"device is {self.device!r}, which this machine does not have: {error}") from error

    @property
    def dtype(self) -> torch.dtype:
        """That products are computed in."""
        return DTYPES[self.precision.removesuffix("-true")]

    def place(self, model: nn.Module) -> nn.Module:
        """The model where, and as, it is to run."""
        model = model.to(self.device, self._stored_dtype).train(self.mode == "train")
        if self.channels_last:
            model = model.to(memory_format=torch.channels_last)
        if self.prepack:
            model = prepack(model)
        # One graph for each size: what a size that is known allows is part of what is measured.
        return torch.compile(model, dynamic=False) if self.compile else model  # type: ignore[return-value]

    def images(self, height: int, width: int) -> torch.Tensor:
        """Random images (batch, 3, height, width)."""
        images = torch.randn(self.batch, 3, height, width, device=self.device, dtype=self._stored_dtype)
        return images.to(memory_format=torch.channels_last) if self.channels_last else images

    def step(self, model: nn.Module, images: torch.Tensor) -> Callable[[], object]:
        """One step of a model that `place` has placed."""
        if self.mode == "infer":

            def infer() -> torch.Tensor:
                with torch.inference_mode(), self._autocast():
                    return model(images)

            return infer
        labels = torch.zeros(self.batch, dtype=torch.long, device=self.device)

        def train() -> None:
            with self._autocast():
                loss = F.cross_entropy(model(images).float(), labels)
            loss.backward()
            model.zero_grad(set_to_none=True)

        return train

    def synchronise(self) -> None:
        """Waits until the device has done what it was given."""
        if torch.device(self.device).type == "cuda":
            torch.cuda.synchronize()

    @property
    def _stored_dtype(self) -> torch.dtype:
        """Of weights and images."""
        return self.dtype if self.precision.endswith("-true") else torch.float32

    def _autocast(self) -> AbstractContextManager[object]:
        if self.dtype == self._stored_dtype:
            return nullcontext()
        return torch.autocast(torch.device(self.device).type, dtype=self.dtype)
