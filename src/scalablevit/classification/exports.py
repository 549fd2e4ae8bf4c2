"""Exporting a trained model, with what needs images: quantisation, and how much accuracy an export loses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scalablevit.classification.class_folders import images_below
from scalablevit.classification.evaluation import drawn_split, evaluate_images, name_of_data
from scalablevit.classification.images import LabelledImages
from scalablevit.classification.option_checks import check_range
from scalablevit.classification.run_folder import RunFolder
from scalablevit.classification.scores import AnyResult, EvaluateResult
from scalablevit.classification.sources import find_evaluation_data, locate, split_folders
from scalablevit.configuration import check_count
from scalablevit.exporting.description import Description
from scalablevit.exporting.opening import open_export
from scalablevit.exporting.quantisation import PACKAGES, quantise, rewrite_metadata
from scalablevit.exporting.writing import Written, check_free, choose_target, write_export
from scalablevit.extras import require_extra
from scalablevit.preprocessing import Preprocessing
from scalablevit.weights import is_multi_label, load_model, read_config

BATCH_SIZE = 64  # of an evaluation


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """How right a model is, and what was made of it, on the same images.

    Args:
        data: What was evaluated on.
        images: How many.
        metric: ``"top1"``, or ``"mean_average_precision"`` where an image may have several labels.
        before: Of the model, in float32, in per cent.
        after: Of the export, in per cent.
    """

    data: str
    images: int
    metric: str
    before: float
    after: float

    @property
    def lost(self) -> float:
        """Percentage points that the export is worse by; below 0 if it is better."""
        return self.before - self.after


@dataclass(frozen=True, kw_only=True)
class ExportResult:
    """An export that was handed over.

    Args:
        path: The file.
        description: What it says of itself.
        difference: The largest of any logit from the model's, before quantisation and in float32, as a fraction of the
            spread of the logits.
        bytes: Of the file, and of what belongs to it.
        accuracy: Before and after; None if there were no data.
    """

    path: Path
    description: Description
    difference: float
    bytes: int
    accuracy: Accuracy | None = None


def export(
    run: str | Path,
    out: str | Path,
    *,
    to: str | None = None,
    int8: bool = False,
    bf16: bool = False,
    calibrate: str | Path | None = None,
    calibration_images: int = 256,
    data: str | Path | None = None,
    split: str | None = None,
    max_lost: float = 0.5,
    overwrite: bool = False,
) -> ExportResult:
    """Writes a trained model as a file that runs without this package.

    It is run on random images of several sizes beside the model, and handed over only if its logits agree to 1e-4 of
    their spread. What int8 and bfloat16 change is measured as accuracy.

    Args:
        run: A run folder, or a folder by `save_model`.
        out: The file.
        to: ``"onnx"`` (.onnx), ``"openvino"`` (.xml, with a .bin beside it), ``"pt2"`` (a `torch.export` program) or
            ``"aoti"`` (.pt2 too: compiled by AOTInductor for this processor); None: by the ending of `out`.
        int8: Quantises an ONNX or OpenVINO export; `calibrate` and `data` are needed.
        bf16: Has OpenVINO compute in bfloat16 what is not int8; `data` are needed.
        calibrate: A folder of images like those that the model will see, or ``"sample"``; the ranges of activations
            are found on them.
        calibration_images: How many of them at most, evenly taken.
        data: Labelled images, as for `evaluate`, to compare the accuracy on, before and after.
        split: ``"train"``, ``"val"`` or ``"test"``; None: val where the data are told apart, else all images.
        max_lost: Percentage points of accuracy; an export that loses more is not written.
        overwrite: Whether a file there is replaced.

    Raises:
        ValueError: If something is asked for that is not possible, or the export is not as good as it must be. Nothing
            is written then, and a file that was there stays.
        MissingExtraError: If a package is missing.
    """
    target = choose_target(out, to)
    _check_options(target, int8=int8, bf16=bf16, calibrate=calibrate, data=data)
    check_range("max_lost", max_lost, 0, 100)
    check_count("calibration_images", calibration_images)
    check_free(Path(out), overwrite=overwrite)
    config = read_config(run)
    preprocessing = Preprocessing.from_pretrained_cfg(config["pretrained_cfg"])
    labelled = None if data is None else _find_data(run, config, data, split)
    files = [] if calibrate is None else _calibration_files(calibrate, calibration_images)
    pixels = [preprocessing.load(file) for file in files]  # before the work, since one of them may be no image
    model = load_model(run, dtype=torch.float32)
    if model.num_classes == 0:
        raise ValueError(
            f"{run} holds a network without a classifier, which gives no logits: give it one (num_classes), or write it"
            " with scalablevit.exporting.export_onnx or export_program"
        )
    accuracy: Accuracy | None = None

    def finish(path: Path, description: Description) -> Description:
        nonlocal accuracy
        if int8:
            quantise(path, [preprocessing.normalise(each[None]).numpy() for each in pixels])
            description = replace(description, weights="int8")
            rewrite_metadata(path, description)
        if labelled is not None:
            before, after = (_score(each, labelled, preprocessing) for each in (model, open_export(path)))
            accuracy = _compare(before, after, name_of_data(data or ""))
            _check_accuracy(accuracy, Path(out), max_lost)
            if target in PACKAGES:  # the others are not written a second time
                description = replace(description, notes=_notes(accuracy, len(files)))
                rewrite_metadata(path, description)
        return description

    written = write_export(
        model, out, target, arithmetic="bf16" if bf16 else "fp32", overwrite=overwrite, change=finish
    )
    return ExportResult(**{name: getattr(written, name) for name in Written.__dataclass_fields__}, accuracy=accuracy)


def _check_options(target: str, *, int8: bool, bf16: bool, calibrate: object, data: object) -> None:
    """Raises an error where options do not go together, or a package is missing that they need."""
    if bf16 and target != "openvino":
        raise ValueError(f"bf16 is what OpenVINO can compute in, not what --to {target} makes: use --to openvino")
    if int8 and target not in PACKAGES:
        raise ValueError(f"int8 is for --to {' and --to '.join(PACKAGES)}, not for --to {target}")
    if int8 and calibrate is None:
        raise ValueError("int8 needs images to find ranges of activations on: name a folder with --calibrate")
    if calibrate is not None and not int8:
        raise ValueError("calibrate is given without int8, which alone uses it: add --int8, or leave it out")
    if (int8 or bf16) and data is None:
        raise ValueError(
            f"{'int8' if int8 else 'bf16'} changes the answers of a model: name labelled images with --data, on which"
            " the accuracy is compared"
        )
    if int8:
        require_extra("export", PACKAGES[target])


def _calibration_files(calibrate: str | Path, count: int) -> list[Path]:
    """So many images of a folder, evenly taken; of a data set with train/ those in there."""
    folder = locate(calibrate)
    if not folder.is_dir():
        raise ValueError(f"calibrate is {str(calibrate)!r}, which is no folder: name one with images")
    files = list(images_below(split_folders(folder).get("train", folder)))
    if not files:
        raise ValueError(f"{folder} holds no images to calibrate with")
    count = min(count, len(files))
    return [files[index * len(files) // count] for index in range(count)]


def _find_data(run: str | Path, config: dict[str, Any], data: str | Path, split: str | None) -> LabelledImages:
    if "label_names" not in config:
        raise ValueError(f"the model in {run} has no names of classes, which data need: save it with labels")
    chosen = drawn_split(RunFolder(Path(run)), data) or data
    return find_evaluation_data(chosen, config["label_names"], multi_label=is_multi_label(config), split=split)


def _score(network: Callable[[Tensor], Tensor], images: LabelledImages, preprocessing: Preprocessing) -> AnyResult:
    evaluation = evaluate_images(
        network,
        images,
        preprocessing,
        torch.device("cpu"),
        batch_size=BATCH_SIZE,
        workers=0,
        max_unreadable=0.01,
    )
    return evaluation.result


def _compare(before: AnyResult, after: AnyResult, data: str) -> Accuracy:
    metric = "top1" if isinstance(before, EvaluateResult) else "mean_average_precision"
    return Accuracy(data=data, images=before.images, metric=metric, before=before.score, after=after.score)


def _check_accuracy(accuracy: Accuracy, out: Path, max_lost: float) -> None:
    if not accuracy.lost <= max_lost:  # not a number is too much, too
        raise ValueError(
            f"{out} was not written: its {accuracy.metric} on {accuracy.images} images is {accuracy.after:.2f} %, the"
            f" model's {accuracy.before:.2f} %, and more than {max_lost:g} points are lost: calibrate with other or"
            " more images, leave --int8 or --bf16 out, or raise --max-lost"
        )


def _notes(accuracy: Accuracy, calibration_images: int) -> dict[str, Any]:
    """What a file says of its accuracy; of the data the name alone, as its path means nothing elsewhere."""
    facts = {**asdict(accuracy), "data": Path(accuracy.data).name}
    return {"accuracy": facts, **({"calibration_images": calibration_images} if calibration_images else {})}
