"""PyTorch's archives of exported programs, ``.pt2``: whole programs, or compiled by AOTInductor."""

from __future__ import annotations

import json
import zipfile
import zlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scalablevit.weights.files import DAMAGE

METADATA_FILE = "scalablevit.json"  # among the extra files of a program
# What PyTorch raises at archives that are damaged or of another version.
_DAMAGE = (*DAMAGE, zipfile.BadZipFile)


def is_compiled(path: Path) -> bool:
    """Whether an archive holds machine code rather than a program.

    Raises:
        ValueError: If it is no archive.
    """
    return any("/data/aotinductor/" in name for name in _names(path))


class ProgramArchive:
    """A program, or what AOTInductor has made of one.

    Args:
        path: The archive.
        device: PyTorch's name of a device; None: the CPU. Compiled ones run where they were compiled for.
        threads: Must be None: PyTorch has one number of threads for all that it does.

    Raises:
        ValueError: If the archive cannot be read, or does not run so.
    """

    def __init__(self, path: Path, *, device: str | None = None, threads: int | None = None) -> None:
        self.path = path
        self.device = _device(device or "cpu")
        self.is_compiled = is_compiled(path)
        if threads is not None:
            raise ValueError(
                f"threads is {threads}, but {path} runs in PyTorch, which has one number of threads for the whole"
                " process: set it with torch.set_num_threads"
            )

    def metadata(self) -> dict[str, str]:
        """What the archive says of itself.

        Raises:
            ValueError: If that is damaged.
        """
        wanted = "_metadata.json" if self.is_compiled else f"/extra/{METADATA_FILE}"
        try:
            with zipfile.ZipFile(self.path) as archive:
                found = [name for name in archive.namelist() if name.endswith(wanted)]
                return {} if not found else dict(json.loads(archive.read(found[0])))
        except (ValueError, TypeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise ValueError(f"{self.path} is damaged ({error}): get it again, or export it anew") from error

    def load(self) -> None:
        """Gets ready to run.

        Raises:
            ValueError: If the archive does not load here.
        """
        made_for = self.metadata().get("AOTI_DEVICE_KEY", "cpu") if self.is_compiled else self.device.type
        if made_for != self.device.type:
            raise ValueError(f"device is {str(self.device)!r}, but {self.path} was compiled for {made_for!r}")
        try:
            self._run = self._load()
        except _DAMAGE as error:
            of = self.metadata()
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise ValueError(
                f"{self.path} does not load here (it was written by PyTorch {of.get('torch_version', '?')}, this is"
                f" {torch.__version__}): {reason}"
            ) from error

    def _load(self) -> Any:
        if not self.is_compiled:
            program = torch.export.load(self.path)
            if self.device.type != "cpu":
                from torch.export.passes import move_to_device_pass

                program = move_to_device_pass(program, str(self.device))
            return program.module()
        return torch._inductor.aoti_load_package(str(self.path))

    def __call__(self, images: Tensor) -> Tensor:
        with torch.inference_mode():
            return self._run(images.to(self.device))


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # the latter where PyTorch was built without CUDA
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"device is {name!r}, on which PyTorch does not compute here: {reason}") from error
    return device


def _names(path: Path) -> list[str]:
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.namelist()
    except zipfile.BadZipFile as error:
        raise ValueError(f"{path} is not an archive of PyTorch's: {error}") from error
