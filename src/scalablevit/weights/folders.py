"""A model as a folder: weights and configuration in the form that timm reads from a local folder.

``model.safetensors`` holds the parameters in our own layout, ``config.json`` what timm wants to know of a model and,
under the key ``scalablevit``, the arguments that make it again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from scalablevit.scalable_vit import ScalableViT
from scalablevit.suggestions import nearest_path
from scalablevit.trained import TRAINED_MODELS, model_folder
from scalablevit.weights.files import PICKLE_SUFFIXES, SAFETENSORS_SUFFIX, read_weights
from scalablevit.weights.folder_config import config_text, network_arguments
from scalablevit.weights.layouts import LAYOUT_VERSION, check_layout_version
from scalablevit.weights.state_dicts import differences, shapes_of

WEIGHTS_FILE = "model.safetensors"
TIMM_WEIGHTS_FILE = "pytorch_model.bin"  # of timm's save_for_hf, unless it is told otherwise
CONFIG_FILE = "config.json"
EXPORT_SUFFIXES = (".onnx", ".pt2", ".xml")  # of files by `scalablevit export`


def save_model(
    model: ScalableViT,
    path: str | Path,
    labels: Sequence[str] | None = None,
    pretrained_cfg: Mapping[str, Any] | None = None,
    *,
    multi_label: bool | None = None,
) -> None:
    """Writes a model into a folder, which `load_model` and timm read. Each file is replaced as a whole or not at all.

    Args:
        model: The model. Its parameters are written in their own types.
        path: The folder; made if it does not exist. Other files in it are left alone.
        labels: Names of the classes, in the order of the logits; None: those that the model was loaded with, unless its
            classifier is new.
        pretrained_cfg: Fields of timm's ``PretrainedCfg`` that differ from what the model was loaded with, or for a new
            model from the usual ones (224 pixels, 64 for nano; ImageNet's mean and standard deviation, or 0.5 if there
            are not three channels; bicubic, crop 0.875).
        multi_label: Whether the model gives any number of labels to an image, each with a probability of its own; None:
            as it was loaded, else no.

    Raises:
        ValueError: If the model is not a `ScalableViT` as its arguments make it, has no values yet, or the labels or
            `pretrained_cfg` do not fit it.
    """
    _check_model(model)
    text = config_text(model, labels, pretrained_cfg, multi_label=multi_label)
    folder = Path(path)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file; a model is saved into a folder: give another path")
    folder.mkdir(parents=True, exist_ok=True)
    metadata = {"format": "pt", "scalablevit_layout": str(LAYOUT_VERSION)}
    tensors = _own_storage(model.state_dict())
    _replace(
        {
            folder / WEIGHTS_FILE: lambda file: safetensors.torch.save_file(tensors, file, metadata),
            folder / CONFIG_FILE: lambda file: file.write_text(text, encoding="utf-8"),
        }
    )


def load_model(
    path: str | Path, device: torch.device | str | None = None, dtype: torch.dtype | None = None
) -> ScalableViT:
    """The model that `save_model` wrote, in eval mode.

    Args:
        path: The folder; a run folder, which holds the same files, does as well, and so does one that timm's
            ``save_for_hf`` or transformers' ``save_pretrained`` wrote of a network of ours. Or the name of a trained
            model that comes with the package; see `scalablevit.trained`.
        device: Where the parameters go; None: the CPU.
        dtype: Type of the parameters; None: as they were saved.

    Raises:
        ValueError: If the folder does not hold such a model, or a newer version wrote it, or `dtype` is no
            floating-point type.
    """
    if dtype is not None and not dtype.is_floating_point:
        raise ValueError(f"dtype is {dtype}; it must be a floating-point type, such as torch.bfloat16")
    config = read_config(path)
    try:
        model = ScalableViT(**config["scalablevit"]["arguments"], device="meta")
    except (TypeError, ValueError) as error:
        raise ValueError(f"the arguments in {Path(path) / CONFIG_FILE} make no model: {error}") from error
    file = weights_file(path)
    state = read_weights(file, device=device)
    problem = differences(shapes_of(state), shapes_of(model.state_dict()))
    if problem:
        raise ValueError(f"{file} does not fit the model of {CONFIG_FILE} beside it: {problem}. Save the model anew")
    if dtype is not None:
        state = {name: tensor.to(dtype) for name, tensor in state.items()}
    model.load_state_dict(state, assign=True)
    model.pretrained_cfg = {
        **config["pretrained_cfg"],
        **{name: config[name] for name in ("label_names", "problem_type") if name in config},
    }
    return model.eval()


def weights_file(folder: str | Path) -> Path:
    """The file with the weights in a folder that holds a model, whether it is there or not."""
    file = model_folder(folder) / WEIGHTS_FILE
    timms = file.with_name(TIMM_WEIGHTS_FILE)
    return timms if timms.is_file() and not file.exists() else file


def read_config(path: str | Path) -> dict[str, Any]:
    """What ``config.json`` of a folder by `save_model` says.

    Args:
        path: The folder, as for `load_model`.

    Returns:
        ``architecture``, ``num_classes``, ``num_features``, ``global_pool``, ``label_names`` (where there are labels),
        ``model_args`` and ``pretrained_cfg``, as timm has them, and ``scalablevit``, with ``arguments`` for
        `ScalableViT`.

    Raises:
        ValueError: If there is no such file, it is not of a network of ours, or a newer version wrote it.
    """
    folder = model_folder(path)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file, not a folder: {_instead_of_file(folder)}")
    if not folder.is_dir():
        raise ValueError(f"{folder} does not exist{nearest_path(folder)}: {_wanted()}")
    file = folder / CONFIG_FILE
    if not file.is_file() and (folder / "config.yaml").is_file():
        raise ValueError(
            f"{folder} holds a training run that has not come to its end: scalablevit train --resume {folder}"
        )
    if not file.is_file():
        raise ValueError(f"{folder} holds no {CONFIG_FILE}: give the folder that save_model or a training run wrote")
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is not JSON ({error}): save the model anew") from error
    is_readable = isinstance(config, dict) and isinstance(config.get("model_args") or {}, dict)
    arguments = network_arguments(config) if is_readable else None
    if arguments is None:
        raise ValueError(
            f"{file} is not of a network of scalablevit (it has neither arguments under the key 'scalablevit' nor an"
            " architecture scalablevit_* with model_args): build the model yourself and load its weights through"
            " convert_state_dict"
        )
    if not isinstance(config.get("pretrained_cfg"), dict):
        raise ValueError(f"{file} does not say under pretrained_cfg what images the model takes: save the model anew")
    labels, classes = config.get("label_names"), arguments.get("num_classes")
    if "transformers_version" in config and isinstance(labels, list) and len(labels) != classes:
        del config["label_names"]  # transformers keeps those of the network before
    _check_labels(file, config.get("label_names"), classes)
    own = config.get("scalablevit")
    own = own if isinstance(own, dict) else {"layout_version": LAYOUT_VERSION}
    check_layout_version(own.get("layout_version"), str(file))
    return {**config, "scalablevit": {**own, "arguments": arguments}}


def _wanted() -> str:
    names = ", ".join(TRAINED_MODELS)
    return f"give the folder that save_model or a training run wrote, or the name of a trained model ({names})"


def _instead_of_file(file: Path) -> str:
    """What is to be given where a file was, which depends on what its name says it is."""
    if file.suffix.lower() in EXPORT_SUFFIXES:
        return f"it is an export, which holds a program and no network; {_wanted()}, of which it was made"
    if (file.parent / CONFIG_FILE).is_file() and file.suffix in (SAFETENSORS_SUFFIX, *PICKLE_SUFFIXES):
        return f"give the folder with all of the model, {file.parent}"
    if file.suffix in (SAFETENSORS_SUFFIX, *PICKLE_SUFFIXES):
        return f"{_wanted()}; `scalablevit convert` makes such a folder of weights"
    return _wanted()


def _check_labels(file: Path, labels: Any, classes: Any) -> None:
    if labels and (not isinstance(labels, list) or (isinstance(classes, int) and len(labels) != classes)):
        count = f"{len(labels)} names" if isinstance(labels, list) else repr(labels)
        raise ValueError(f"{file} has {count} under label_names, but the network has {classes} classes: name each once")


def _check_model(model: ScalableViT) -> None:
    if not isinstance(model, ScalableViT):
        raise ValueError(
            f"model is a {type(model).__name__}; it must be a ScalableViT: of a compiled model save model._orig_mod, of"
            " one wrapped for several devices model.module"
        )
    state = model.state_dict()
    unset = [name for name, tensor in state.items() if tensor.is_meta]
    if unset:
        raise ValueError(f"{unset[0]} is on the meta device and has no values: load weights before the model is saved")
    again = ScalableViT(**model.config, device="meta").state_dict()
    problem = differences(shapes_of(state), shapes_of(again))
    if problem:
        raise ValueError(
            f"the model was changed after it was built, so that its config does not make it again: {problem}. Save the"
            " whole model before it is pruned or taken apart"
        )


def _own_storage(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors on the CPU, contiguous, and none sharing memory with another, as safetensors wants them."""
    seen: set[int] = set()
    owned = {}
    for name, tensor in state.items():
        tensor = tensor.detach().cpu().contiguous()
        address = tensor.untyped_storage().data_ptr()
        owned[name] = tensor.clone() if address in seen else tensor
        seen.add(address)
    return owned


def _replace(writers: Mapping[Path, Callable[[Path], object]]) -> None:
    """Has each writer fill a file beside its path. When all are done, they go to their places, each in one step."""
    temporaries = {path: path.with_name(f".{path.name}.{os.getpid()}.partial") for path in writers}
    try:
        for path, write in writers.items():
            temporary = temporaries[path]
            temporary.touch()
            mode = temporary.stat().st_mode
            write(temporary)
            temporary.chmod(mode)  # safetensors makes files that nobody else can read
        for path, temporary in temporaries.items():
            temporary.replace(path)
    finally:
        for temporary in temporaries.values():
            temporary.unlink(missing_ok=True)
