"""Reading weights from files, without ever running anything that a file holds.

``.safetensors`` files hold tensors and nothing else. Others are pickles, which could name any function to be called.
They are read by `torch.load(weights_only=True)`, which calls none but those that are listed: torch's own list, and what
the paper authors' checkpoints need beside it for the arguments of their training script, which are kept in them.
"""

from __future__ import annotations

import argparse
import codecs
import pathlib
import pickle
import re
import struct
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import safetensors
import torch
from torch import Tensor

from scalablevit.weights.layouts import check_layout_version
from scalablevit.weights.state_dicts import unwrap

SAFETENSORS_SUFFIX = ".safetensors"
PICKLE_SUFFIXES = (".pth", ".pt", ".bin", ".ckpt")

# What pickles of numpy's numbers call; the module that holds it moved in numpy 2.
_NUMPY_SCALAR = cast("Callable[..., Any]", np.float64(0).__reduce__()[0])

# Classes and functions that a pickle may call: they make plain values and touch nothing else. Paths become pure ones,
# which cannot reach the disk. Some names are of older or newer versions of Python and numpy than the one that runs.
_ALLOWED: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [
    argparse.Namespace,
    *(
        (pure, f"{module}.{name}")
        for module in ("pathlib", "pathlib._local")
        for name, pure in (
            ("PosixPath", pathlib.PurePosixPath),
            ("PurePosixPath", pathlib.PurePosixPath),
            ("WindowsPath", pathlib.PureWindowsPath),
            ("PureWindowsPath", pathlib.PureWindowsPath),
        )
    ),
    *((_NUMPY_SCALAR, f"numpy.{module}.multiarray.scalar") for module in ("core", "_core")),
    np.dtype,
    *{type(np.dtype(code)) for code in "?bBhHiIlLqQefd"},  # truth, whole and real numbers of every width
]

# What reading a damaged pickle raises, as far as is known from cutting and changing good ones at every kind of place.
DAMAGE = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
    pickle.UnpicklingError,
    struct.error,
)


def read_weights(path: str | Path, device: torch.device | str | None = None) -> dict[str, Tensor]:
    """The state dict in a file, in the layout that it has there; `convert_state_dict` gives it another.

    Args:
        path: A ``.safetensors`` file, or a checkpoint by `torch.save` (``.pth``, ``.pt``, ``.bin`` or ``.ckpt``). Of a
            checkpoint the state dict is taken out of what it is wrapped in, as in `convert_state_dict`.
        device: Where the tensors go; None: the CPU.

    Returns:
        Names and tensors.

    Raises:
        ValueError: If there is no such file, it is damaged or no checkpoint, is of a newer layout of ours than is
            known, or holds something that is neither data nor on the short list of what is safe, which is not run.
    """
    file = Path(path)
    if file.is_dir():
        raise ValueError(f"{file} is a folder: give a file of weights in it, or use load_model")
    if not file.is_file():
        raise ValueError(f"{file} does not exist: give the path of a file of weights")
    if file.suffix not in (SAFETENSORS_SUFFIX, *PICKLE_SUFFIXES):
        known = ", ".join((SAFETENSORS_SUFFIX, *PICKLE_SUFFIXES))
        raise ValueError(f"{file} has the suffix {file.suffix!r}; weights are read from files that end in {known}")
    place = torch.device("cpu" if device is None else device)
    checkpoint = _read_safetensors(file, place) if file.suffix == SAFETENSORS_SUFFIX else _read_pickle(file)
    try:
        state = unwrap(checkpoint)
    except ValueError as error:
        raise ValueError(f"{file} holds no weights: {error}") from error
    return {name: tensor.to(place) for name, tensor in state.items()}


def _read_safetensors(file: Path, device: torch.device) -> dict[str, Tensor]:
    try:
        with safetensors.safe_open(file, framework="pt", device=str(device)) as opened:
            version = (opened.metadata() or {}).get("scalablevit_layout")
            names = opened.keys()
            tensors = {name: opened.get_tensor(name) for name in names}
    except safetensors.SafetensorError as error:
        reason = _foreign(file, "a safetensors file") or f"is damaged, or no safetensors file ({error})"
        raise ValueError(f"{file} {reason}: get it again") from error
    if version is not None:
        check_layout_version(int(version) if version.isdecimal() else version, str(file))
    return tensors


def _read_pickle(file: Path) -> Any:
    try:
        with torch.serialization.safe_globals(_ALLOWED), warnings.catch_warnings():
            # What torch cannot read of another protocol is an error anyhow.
            warnings.filterwarnings("ignore", message="Detected pickle protocol")
            return torch.load(file, map_location="cpu", weights_only=True)
    except DAMAGE as error:
        refused = re.search(r"GLOBAL ([\w.]+)", str(error))
        if refused:
            raise ValueError(
                f"{file} was refused: it holds {refused[1]}, which is not on the list of what weights need. Nothing of"
                " it was run. If you trust where it came from, open it yourself and save its state dict alone"
            ) from error
        reason = (
            _foreign(file, "a checkpoint of torch.save")
            or f"is damaged, or no checkpoint of torch.save ({_reason(error)})"
        )
        raise ValueError(f"{file} {reason}: get it again") from error


def _foreign(file: Path, kind: str) -> str | None:
    """What is said of a file of text in the place of weights, such as a web page or a pointer of Git LFS; else None."""
    beginning = file.read_bytes()[:200]
    if not beginning:
        return f"is empty (0 bytes), and no {kind.partition(' ')[2]}"
    try:
        text = codecs.getincrementaldecoder("utf-8")().decode(beginning)  # whose last sign may be cut
    except UnicodeDecodeError:
        return None
    first = text.strip().partition("\n")[0].strip()
    if not first or not first.isprintable():
        return None
    return f"is text, and not {kind}: it begins with {first[:40]!r}"


def _reason(error: BaseException) -> str:
    # Torch's own message goes on with the advice to read the file without weights_only, which would run what is in it.
    match = re.search(r"WeightsUnpickler error:\s*(.+)", str(error)) or re.match(r"(?!Weights only)(.+)", str(error))
    return match[1].strip() if match else type(error).__name__
