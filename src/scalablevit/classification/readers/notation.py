"""How a user names a data set: timm's notation, and after a colon the folder that it lies in."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

KINDS = {
    "torch": "torch/NAME:FOLDER, a set of torchvision's in a folder",
    "hfds": "hfds/NAME, a set of Hugging Face's, or hfds/FOLDER, a folder of Parquet files or of images",
    "hfids": "hfids/NAME, a set of Hugging Face's whose images are fetched as they are needed",
    "wds": "wds/FOLDER, a folder of WebDataset shards",
}

REMOTE = ("pipe:", "http:", "https:", "s3:", "gs:", "hf:")


@dataclass(frozen=True, kw_only=True)
class SetName:
    """What a user names a set by.

    Args:
        kind: One of `KINDS`.
        name: The set, as its library knows it; or a folder.
        folder: Where it lies, or is kept; None: not said.
    """

    kind: str
    name: str
    folder: Path | None

    def __str__(self) -> str:
        return f"{self.kind}/{self.name}{'' if self.folder is None else f':{self.folder}'}"

    def absolute(self) -> SetName:
        """The same, in a way that holds from any working directory."""
        name = self.name
        if self.kind == "wds" or (self.kind != "torch" and Path(name).exists()):
            name = str(Path(name).resolve())
        return SetName(kind=self.kind, name=name, folder=None if self.folder is None else self.folder.resolve())


def is_named_set(data: str | Path) -> bool:
    """Whether data are named in timm's notation; ``./torch/x`` is a path."""
    return isinstance(data, str) and data.partition("/")[0].lower() in KINDS and "/" in data


def parse_set_name(data: str) -> SetName:
    """What `data` names.

    Raises:
        ValueError: If the name, or the folder behind the colon, is empty.
    """
    kind, _, rest = data.partition("/")
    kind = kind.lower()
    is_address = "::" in rest or rest.startswith(REMOTE)  # whose colons part nothing here
    name, colon, folder = rest.rpartition(":") if ":" in rest and not is_address else (rest, "", "")
    if not name or (colon and not folder):
        raise ValueError(f"data is {data!r}; give {KINDS[kind]}")
    return SetName(kind=kind, name=name, folder=Path(folder).expanduser() if folder else None)
