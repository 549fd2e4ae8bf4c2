"""A trained model, ready to be given images.

Axes: b batch, c channels, h height, w width. Pixels are whole numbers from 0 to 255, (b, c, h, w).
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor

from scalablevit.classification.evaluation import choose_device
from scalablevit.classification.image_inputs import ImageInput, each_image, is_one_image, open_image
from scalablevit.classification.machine_checks import available_cores
from scalablevit.classification.prediction import FailedPrediction, Prediction
from scalablevit.configuration import check_count
from scalablevit.exporting import is_export, open_export
from scalablevit.prepacking import prepack
from scalablevit.preprocessing import Preprocessing
from scalablevit.scalable_vit import ScalableViT
from scalablevit.weights import is_multi_label, load_model, read_config

# Batches that are read ahead of the network: one that waits for it, and one in the making.
READ_AHEAD = 2


class Predictor:
    """A trained model that names the classes of images.

    Images may be given as paths, folders and patterns such as ``"photos/*.jpg"``; as Pillow images; as arrays (h, w),
    (h, w, 1), (h, w, 3) or (h, w, 4); as tensors (h, w), (1, h, w) or (3, h, w); as batches (b, h, w, 1, 3 or 4) of
    arrays or (b, 1 or 3, h, w) of tensors; or as any iterable of them, mixed, and endless if need be. In memory, whole
    numbers of 8 bits go from 0 (black) to 255 (white), floating-point numbers from 0 to 1. All are resized and
    normalised as the model wants it.

    Args:
        run: A run folder, a folder by `save_model`, the name of a trained model that comes with the package, or a file
            by `scalablevit export`.
        device: Where to compute, for example ``"cuda"``; None: the machine's accelerator if it has one, for an export
            the CPU.
        top: How many classes to give for each image; no more than there are.
        batch_size: Images at once.
        workers: Threads that read images beside the network; None: one per processor core it may use, up to 8.

    Attributes:
        labels: Names of the classes, in the order of the logits; their numbers where they have no names.
        preprocessing: What is done to an image before the model sees it.
        multi_label: Whether an image may have any number of labels.
        device: Where pixels go.

    Raises:
        ValueError: If the run is not as it must be, or an option has no sense.
    """

    def __init__(
        self,
        run: str | Path,
        *,
        device: str | None = None,
        top: int = 5,
        batch_size: int = 32,
        workers: int | None = None,
    ) -> None:
        check_count("top", top)
        check_count("batch_size", batch_size)
        self.run = run
        self.top = top
        self.batch_size = batch_size
        self.workers = min(available_cores(), 8) if workers is None else workers
        check_count("workers", self.workers)
        network = _open_export(run, device) if is_export(run) else _open_folder(run, device)
        self.device, self._logits, self.multi_label = network.device, network.logits, network.multi_label
        self.labels, self.preprocessing = network.labels, network.preprocessing
        self._decoding = threading.Lock()

    @property
    def model(self) -> ScalableViT:
        """The network, in eval mode.

        Raises:
            ValueError: If the predictor was made from an export, which holds a program and no network.
        """
        if not isinstance(self._logits, ScalableViT):
            raise ValueError(
                f"{self.run} is an export, which holds a program and no network: give the run it was made of"
            )
        return self._logits

    def __call__(
        self, images: ImageInput | Iterable[ImageInput], top: int | None = None
    ) -> Prediction | list[Prediction]:
        """The most probable classes: one result for a single image, else a list, in the order of the images.

        Args:
            images: An image, or several.
            top: How many classes to give for each image; None: as the predictor was made.

        Raises:
            ValueError: If something is not a readable image, or a folder or pattern holds none.
            FileNotFoundError: If there is no such file.
        """
        found = self.predict_all(images, top)
        return found[0] if is_one_image(images) else found

    def predict_all(self, images: ImageInput | Iterable[ImageInput], top: int | None = None) -> list[Prediction]:
        """The same, always as a list."""
        predictions = []
        for prediction in self.stream(images, top):
            if isinstance(prediction, FailedPrediction):
                raise prediction.error()
            predictions.append(prediction)
        return predictions

    def stream(
        self, images: ImageInput | Iterable[ImageInput], top: int | None = None
    ) -> Iterator[Prediction | FailedPrediction]:
        """The results one by one, in the order of the images; those that cannot be read are among them.

        Images are asked for and read two batches ahead of the network and no further, so that memory stays the same
        however many there are. Of a source that gives them slowly, such as a camera, the first result comes after
        three batches: give the predictor a `batch_size` of 1.

        If the source fails, the results of what it gave before come first, and then its error.

        Raises:
            ValueError: If `top` has no sense; later, if a folder or a pattern holds no images.
        """
        return self._stream(images, self._checked_top(top))

    def _stream(self, images: ImageInput | Iterable[ImageInput], top: int) -> Iterator[Prediction | FailedPrediction]:
        pool = ThreadPoolExecutor(self.workers, thread_name_prefix="scalablevit-read")
        waiting: deque[_Batch] = deque()
        source = each_image(images)
        failure: Exception | None = None
        try:
            while failure is None:
                images_at_once, failure = _take(source, self.batch_size)
                if not images_at_once:
                    break
                waiting.append(self._begin_to_read(images_at_once, pool))
                if len(waiting) > READ_AHEAD:
                    yield from self._predict_batch(waiting.popleft(), top)
            while waiting:
                yield from self._predict_batch(waiting.popleft(), top)
            if failure is not None:
                raise failure
        finally:
            pool.shutdown(cancel_futures=True)

    @torch.inference_mode()
    def predict_pixels(self, pixels: Tensor, top: int | None = None) -> list[Prediction]:
        """The most probable classes of images that `preprocessing.to_pixels` has made ready, all in one batch.

        Args:
            pixels: (b, c, h, w), uint8.
            top: How many classes to give for each image; None: as the predictor was made.
        """
        logits = self._logits(self.preprocessing.normalise(pixels.to(self.device)))  # (b, classes)
        probabilities = logits.sigmoid() if self.multi_label else logits.softmax(1)
        best = probabilities.topk(min(self._checked_top(top), probabilities.shape[1]), dim=1)
        return [
            Prediction(
                path=None,
                labels=tuple(self.labels[index] for index in indices),
                probabilities=tuple(values),
                indices=tuple(indices),
            )
            for values, indices in zip(best.values.tolist(), best.indices.tolist(), strict=True)
        ]

    def _checked_top(self, top: int | None) -> int:
        if top is None:
            return self.top
        check_count("top", top)
        return top

    def _begin_to_read(self, images: list[ImageInput], pool: ThreadPoolExecutor) -> _Batch:
        # A share for each thread: small images take less time than handing them over one by one.
        share = -(-len(images) // self.workers)
        shares = [images[begin : begin + share] for begin in range(0, len(images), share)]
        return _Batch(images, [pool.submit(self._load_all, each) for each in shares])

    def _load_all(self, images: list[ImageInput]) -> list[Tensor | str]:
        return [self._load(image) for image in images]

    def _load(self, image: ImageInput) -> Tensor | str:
        """The pixels (c, h, w) of an image, or why there are none."""
        # Pillow decodes an image that is in memory when its pixels are wanted, and one object in one thread only.
        is_shared = isinstance(image, Image.Image)
        try:
            with self._decoding if is_shared else nullcontext():
                opened = open_image(image, self.preprocessing.channels)
            return self.preprocessing.to_pixels(opened)
        except (ValueError, OSError) as error:
            return str(error)

    def _predict_batch(self, batch: _Batch, top: int) -> Iterator[Prediction | FailedPrediction]:
        """The results of a batch, when it has been read."""
        loaded = [pixels for share in batch.shares for pixels in share.result()]
        readable = [pixels for pixels in loaded if isinstance(pixels, Tensor)]
        found = iter(self.predict_pixels(torch.stack(readable), top) if readable else ())
        for image, pixels in zip(batch.images, loaded, strict=True):
            path = Path(image) if isinstance(image, (str, Path)) else None
            if isinstance(pixels, str):
                yield FailedPrediction(path=path, reason=pixels)
            else:
                yield replace(next(found), path=path, source=image)


class _Batch(NamedTuple):
    """Images that are being read, in shares: their pixels (c, h, w), or why there are none."""

    images: list[ImageInput]
    shares: list[Future[list[Tensor | str]]]


def _take(source: Iterator[ImageInput], count: int) -> tuple[list[ImageInput], Exception | None]:
    """So many images, or as many as there are; and what the source raised, if it did."""
    taken: list[ImageInput] = []
    try:
        for image in islice(source, count):
            taken.append(image)
    except Exception as error:  # noqa: BLE001  # whatever it is, it is raised when its turn comes
        return taken, error
    return taken, None


class _Network(NamedTuple):
    """What a predictor calls, and what is known of it."""

    logits: Callable[[Tensor], Tensor]
    device: torch.device
    labels: tuple[str, ...]
    preprocessing: Preprocessing
    multi_label: bool


def _open_folder(run: str | Path, device: str | None) -> _Network:
    config = read_config(run)
    where = choose_device(device)
    model = prepack(load_model(run, where))
    if model.num_classes == 0:
        raise ValueError(f"{run} holds a network without a classifier, which names no classes: give it one")
    return _Network(
        model,
        where,
        tuple(config.get("label_names") or map(str, range(model.num_classes))),
        Preprocessing.from_pretrained_cfg(config["pretrained_cfg"]),
        is_multi_label(config),
    )


def _open_export(file: str | Path, device: str | None) -> _Network:
    export = open_export(file, device)
    return _Network(
        export,
        torch.device("cpu"),  # its runtime takes images from there, wherever it computes
        export.labels or tuple(map(str, range(export.num_classes))),
        Preprocessing.from_pretrained_cfg(export.pretrained_cfg),
        export.multi_label,
    )
