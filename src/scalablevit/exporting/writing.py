"""A model into a file of another kind, which is run and compared before it is handed over."""

from __future__ import annotations

import copy
import errno
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from scalablevit.exporting.agreement import check_agreement, check_runs, shapes_to_check
from scalablevit.exporting.description import Arithmetic, Description
from scalablevit.exporting.onnx_file import export_onnx
from scalablevit.exporting.opening import open_export
from scalablevit.exporting.openvino_files import read_openvino, save_openvino
from scalablevit.exporting.program import (
    check_compiler,
    check_evaluation_mode,
    compile_program,
    export_program,
    save_program,
    smallest_side,
)
from scalablevit.exporting.remarks import kept_quiet
from scalablevit.extras import require_extra
from scalablevit.scalable_vit import ScalableViT
from scalablevit.suggestions import nearest_name

Target = Literal["onnx", "openvino", "pt2", "aoti"]
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)  # of the place, not of what is written


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A kind of export.

    Args:
        suffix: Of its file.
        packages: That write and run it.
        is_program: Whether it is a `torch.export` program, which takes no images below `smallest_side`.
        write: Writes a model with metadata.
    """

    suffix: str
    packages: tuple[str, ...]
    is_program: bool
    write: Callable[[ScalableViT, Path, dict[str, str]], object]


def _write_openvino(model: ScalableViT, path: Path, metadata: dict[str, str]) -> None:
    file = export_onnx(model, path.with_suffix(".onnx"))
    save_openvino(read_openvino(file), path, metadata)
    file.unlink()


def _write_compiled(model: ScalableViT, path: Path, metadata: dict[str, str]) -> None:
    check_compiler()
    compile_program(export_program(model), path, metadata)


KINDS: dict[str, Kind] = {
    "onnx": Kind(suffix=".onnx", packages=("onnx", "onnxscript", "onnxruntime"), is_program=False, write=export_onnx),
    "openvino": Kind(
        suffix=".xml", packages=("onnx", "onnxscript", "openvino"), is_program=False, write=_write_openvino
    ),
    "pt2": Kind(
        suffix=".pt2",
        packages=(),
        is_program=True,
        write=lambda model, path, metadata: save_program(export_program(model), path, metadata),
    ),
    "aoti": Kind(
        suffix=".pt2",
        packages=(),
        is_program=True,
        write=_write_compiled,
    ),
}


@dataclass(frozen=True, kw_only=True)
class Written:
    """An export that was handed over.

    Args:
        path: The file.
        description: What it says of itself.
        difference: The largest of any logit from the model's, before quantisation and in float32, as a fraction of the
            spread of the logits.
        bytes: Of the file, and of what belongs to it.
    """

    path: Path
    description: Description
    difference: float
    bytes: int


def choose_target(out: str | Path, to: str | None = None) -> Target:
    """The kind of export that a name means, or that is asked for.

    Raises:
        ValueError: If `to` is no kind, or the ending of the name is another's.
    """
    suffix = Path(out).suffix
    if suffix != suffix.lower():
        raise ValueError(f"out is {str(out)!r}: write the ending in small letters, {suffix.lower()}")
    if to is None:
        found = [name for name, kind in KINDS.items() if kind.suffix == suffix]
        if not found:
            meant = {kind.suffix: name for name, kind in reversed(KINDS.items())}  # the first kind of each ending
            endings = ", ".join(f"{ending} ({meant[ending]})" for ending in reversed(meant))
            raise ValueError(
                f"out is {str(out)!r}, whose ending says no kind of export: give --to, or one of {endings}"
            )
        return found[0]  # type: ignore[return-value]
    if to not in KINDS:
        raise ValueError(f"to is {to!r}{nearest_name(to, KINDS)}; it must be one of {', '.join(get_args(Target))}")
    if suffix != KINDS[to].suffix:
        raise ValueError(f"out is {str(out)!r}, but --to {to} writes a file that ends in {KINDS[to].suffix}")
    return to  # type: ignore[return-value]


def check_free(out: Path, *, overwrite: bool) -> None:
    """Raises a ValueError unless an export may be written there."""
    if out.is_dir():
        raise ValueError(f"{out} is a folder: give the name of a file with --out")
    if not out.resolve().parent.is_dir():
        raise ValueError(f"{out}: there is no folder {out.parent}: make it")
    if not os.access(out.resolve().parent, os.W_OK):
        raise ValueError(f"{out}: you may not write into {out.parent}: name another folder")
    for path in files_of(out):
        if path.exists() and not overwrite:
            raise ValueError(f"{path} exists: give another --out, or --overwrite to replace it")


def files_of(out: Path) -> list[Path]:
    """The files that an export of that name consists of."""
    return [out.with_suffix(".bin"), out] if out.suffix.lower() == ".xml" else [out]


def write_export(
    model: ScalableViT,
    out: str | Path,
    to: str | None = None,
    *,
    arithmetic: Arithmetic = "fp32",
    overwrite: bool = False,
    change: Callable[[Path, Description], Description] | None = None,
) -> Written:
    """Writes a model as another kind of file, runs it beside the model, and hands it over if the two agree.

    Until then it is in a temporary folder beside, and a file that was there before stays as it is.

    Args:
        model: In evaluation mode. It is written in float32.
        out: The file.
        to: ``"onnx"``, ``"openvino"``, ``"pt2"`` (a `torch.export` program) or ``"aoti"`` (compiled by AOTInductor for
            this processor); None: by the ending of `out`.
        arithmetic: ``"bf16"`` for a file that tells OpenVINO to compute in it.
        overwrite: Whether a file there is replaced.
        change: Called with the path of the file after it was found to agree, to change it there and give its new
            description.

    Raises:
        ValueError: If something is asked for that is not possible, or the file does not agree with the model.
        OSError: If there is no room for it.
        MissingExtraError: If a package is missing.
    """
    out, target = Path(out), choose_target(out, to)
    kind = KINDS[target]
    require_extra("export", *kind.packages)
    check_free(out, overwrite=overwrite)
    if arithmetic != "fp32" and target != "openvino":
        raise ValueError(f"bf16 is what OpenVINO can compute in, and not --to {target}: use --to openvino")
    check_evaluation_mode(model)
    description = Description.of(
        model, smallest_side=smallest_side(model) if kind.is_program else 1, arithmetic=arithmetic
    )
    shapes = _checked_shapes(description, target)
    model = copy.deepcopy(model).float().cpu()
    with beside(out) as path:
        with kept_quiet():
            kind.write(model, path, description.to_strings())
        difference = check_agreement(model, open_export(path, precision="fp32"), out, shapes)
        if change is not None:
            description = change(path, description)
            check_runs(open_export(path), out, model.in_chans, model.num_classes, shapes)
        size = sum(file.stat().st_size for file in files_of(path))
        for file, final in zip(files_of(path), files_of(out), strict=True):
            file.replace(final)
    return Written(path=out, description=description, difference=difference, bytes=size)


def _checked_shapes(description: Description, target: str) -> list[tuple[int, int, int]]:
    _, height, width = description.pretrained_cfg["input_size"]
    if min(height, width) < description.smallest_side:
        raise ValueError(
            f"the model is for images of {height} x {width} pixels, but --to {target} serves no height or width below"
            f" {description.smallest_side}: use --to onnx or --to openvino, which serve any size"
        )
    return shapes_to_check(height, width, description.smallest_side)


@contextmanager
def beside(out: Path) -> Iterator[Path]:
    """The path of a file of the same name in a temporary folder beside, on the same file system.

    Raises:
        OSError: If nothing can be written there, or no more.
    """
    try:
        temporary = tempfile.TemporaryDirectory(prefix=f".{out.stem}-", dir=out.resolve().parent)
    except OSError as error:
        reason = f"nothing can be written into {out.parent} ({error.strerror})"
        raise OSError(f"{out} was not written: {reason}: name another folder") from error
    with temporary as folder:
        try:
            yield Path(folder) / out.name
        except OSError as error:
            if error.errno not in _NO_ROOM:
                raise
            raise OSError(f"{out} was not written ({error.strerror}): make room, or name another folder") from error
