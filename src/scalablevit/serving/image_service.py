"""From the bytes of an image to its classes: decoding on several threads, the network on one, limits on all."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor

from scalablevit.classification.machine_checks import available_cores
from scalablevit.classification.prediction import Prediction
from scalablevit.classification.predictor import Predictor
from scalablevit.images import TooManyPixelsError, read_header, read_image
from scalablevit.serving.metrics import ServerMetrics
from scalablevit.serving.micro_batcher import MicroBatcher
from scalablevit.serving.options import ServingOptions
from scalablevit.serving.refusal import Refusal

# Strangers' files are given to fewer decoders than one's own: EPS starts another program, and the size in the header of
# an icon is not that of the picture inside.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "PPM")
RETRY_AFTER_S = 1


class Asked(NamedTuple):
    """One image for the network: its pixels (c, h, w), uint8, and how many classes are wanted."""

    pixels: Tensor
    top: int


class ImageService:
    """A model that classifies the images of many callers at once.

    Args:
        predictor: The model.
        options: Its limits.
        metrics: Told of batches, queue and requests in flight.
    """

    def __init__(self, predictor: Predictor, options: ServingOptions, metrics: ServerMetrics) -> None:
        self.predictor, self.options, self._metrics = predictor, options, metrics
        self._in_flight = 0
        Image.init()
        self._formats = tuple(name for name in FORMATS if name in Image.OPEN)  # AVIF is not in every Pillow
        self._decoders = ThreadPoolExecutor(min(available_cores(), 8), thread_name_prefix="scalablevit-decode")
        self._batcher = MicroBatcher[Asked, Prediction](
            self._predict,
            batch_size=options.batch_size,
            wait_s=options.batch_wait_ms / 1000,
            on_batch=metrics.batch_sizes.observe,
        )
        metrics.queue.set_function(lambda: self._batcher.waiting)

    def start(self) -> None:
        """Begins to serve, in the running event loop."""
        self._batcher.start()

    async def close(self) -> None:
        """Answers what is in flight, and ends the threads."""
        await self._batcher.close()
        self._decoders.shutdown()

    @contextmanager
    def admitted(self) -> Iterator[None]:
        """A place among the requests in flight, for the length of the block.

        Raises:
            Refusal: 503, if all are taken.
        """
        if self._in_flight >= self.options.max_in_flight:
            raise Refusal(
                503,
                f"{self._in_flight} requests are in flight, as many as are allowed: try again later",
                {"Retry-After": str(RETRY_AFTER_S)},
            )
        self._in_flight += 1
        self._metrics.in_flight.set(self._in_flight)
        try:
            yield
        finally:
            self._in_flight -= 1
            self._metrics.in_flight.set(self._in_flight)

    async def classify(self, content: bytes, top: int) -> Prediction:
        """The most probable classes of an image file.

        Raises:
            Refusal: 400 or 413, if the file is no image or too large.
        """
        pixels = await asyncio.get_running_loop().run_in_executor(self._decoders, self._decode, content)
        return await self._batcher.submit(Asked(pixels, top))

    async def picture(self, content: bytes) -> Image.Image:
        """What the network looks at in an image file.

        Raises:
            Refusal: 400 or 413, if the file is no image or too large.
        """
        from scalablevit.explanation import attention_picture

        image = await asyncio.get_running_loop().run_in_executor(self._decoders, self._open, content)
        predictor = self.predictor
        return await self._batcher.run_between(
            partial(
                attention_picture,
                predictor.model,
                predictor.preprocessing,
                predictor.labels,
                image,
                multi_label=predictor.multi_label,
            )
        )

    def _decode(self, content: bytes) -> Tensor:
        return self.predictor.preprocessing.to_pixels(self._open(content))

    def _open(self, content: bytes) -> Image.Image:
        try:
            self._check_size(read_header(content, formats=self._formats).size)
            return read_image(content, self.predictor.preprocessing.channels, formats=self._formats)
        except TooManyPixelsError as error:
            raise Refusal(413, str(error)) from error
        except ValueError as error:
            raise Refusal(400, str(error)) from error

    def _check_size(self, size: tuple[int, int]) -> None:
        width, height = size
        if min(size) < 1:
            raise Refusal(400, f"the image is {width} x {height}: it has no pixels")
        if width * height > self.options.max_pixels:
            raise Refusal(
                413,
                f"the image is {width} x {height}, {width * height} pixels; {self.options.max_pixels} are allowed:"
                " shrink it",
            )
        # The resize of the shorter side makes a thin image of few pixels a huge one.
        preprocessing = self.predictor.preprocessing
        side = max(preprocessing.size) / preprocessing.crop_fraction
        if preprocessing.crop_mode == "center" and side**2 * max(size) / min(size) > self.options.max_pixels:
            raise Refusal(413, f"the image is {width} x {height}, too thin to be resized: cut it")

    def _predict(self, asked: Sequence[Asked]) -> list[Prediction]:
        most = max(each.top for each in asked)
        predictions = self.predictor.predict_pixels(torch.stack([each.pixels for each in asked]), most)
        return [_first(prediction, each.top) for prediction, each in zip(predictions, asked, strict=True)]


def _first(prediction: Prediction, top: int) -> Prediction:
    """The most probable classes alone: a batch has as many as the caller who wants most of them."""
    return replace(
        prediction,
        labels=prediction.labels[:top],
        probabilities=prediction.probabilities[:top],
        indices=prediction.indices[:top],
    )
