"""PyTorch's archives of exported programs, ``.pt2``: whole programs, or compiled by AOTInductor."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

METADATA_FILE = "scalablevit.json"  # among the extra files of a program


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
        self.device = torch.device(device or "cpu")
        self.is_compiled = is_compiled(path)
        if threads is not None:
            raise ValueError(
                f"threads is {threads}, but {path} runs in PyTorch, which has one number of threads for the whole"
                " process: set it with torch.set_num_threads"
            )

    def metadata(self) -> dict[str, str]:
        """What the archive says of itself."""
        wanted = "_metadata.json" if self.is_compiled else f"/extra/{METADATA_FILE}"
        with zipfile.ZipFile(self.path) as archive:
            found = [name for name in archive.namelist() if name.endswith(wanted)]
            return {} if not found else dict(json.loads(archive.read(found[0])))

    def load(self) -> None:
        """Gets ready to run.

        Raises:
            ValueError: If the archive does not load here.
        """
        try:
            self._run = self._load()
        except (RuntimeError, OSError, zipfile.BadZipFile) as error:
            of = self.metadata()
            raise ValueError(
                f"{self.path} does not load here (it was written by PyTorch {of.get('torch_version', '?')}, this is"
                f" {torch.__version__}): {str(error).splitlines()[0]}"
            ) from error

    def _load(self) -> Any:
        if not self.is_compiled:
            program = torch.export.load(self.path)
            if self.device.type != "cpu":
                from torch.export.passes import move_to_device_pass

                program = move_to_device_pass(program, str(self.device))
            return program.module()
        made_for = self.metadata().get("AOTI_DEVICE_KEY", "cpu")
        if made_for != self.device.type:
            raise ValueError(f"device is {str(self.device)!r}, but {self.path} was compiled for {made_for!r}")
        return torch._inductor.aoti_load_package(str(self.path))

    def __call__(self, images: Tensor) -> Tensor:
        with torch.inference_mode():
            return self._run(images.to(self.device))


def _names(path: Path) -> list[str]:
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.namelist()
    except zipfile.BadZipFile as error:
        raise ValueError(f"{path} is not an archive of PyTorch's: {error}") from error
