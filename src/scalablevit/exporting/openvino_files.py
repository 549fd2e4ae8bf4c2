"""An OpenVINO model, two files side by side: the graph in ``.xml``, its weights in ``.bin``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scalablevit.exporting.description import Arithmetic

SECTION = "scalablevit"  # of the file's rt_info
HINTS = {"fp32": "f32", "bf16": "bf16"}


def read_openvino(path: Path) -> Any:
    """The model in an ``.xml`` or ``.onnx`` file, in memory: the file may be written anew."""
    import openvino

    core = openvino.Core()
    core.set_property({"ENABLE_MMAP": False})
    # Not openvino.convert_model, which is the same reader and tells its makers of each use.
    return core.read_model(path)


def save_openvino(model: Any, path: Path, metadata: Mapping[str, str]) -> None:
    """Writes an OpenVINO model, with metadata in its ``rt_info``, in the precision that it has."""
    import openvino

    for name, value in metadata.items():
        model.set_rt_info(value, [SECTION, name])
    openvino.save_model(model, path, compress_to_fp16=False)


class OpenVinoFiles:
    """A model in OpenVINO.

    Args:
        path: The ``.xml`` file; the ``.bin`` beside it is read too.
        device: OpenVINO's name of a device, for example ``"cpu"`` or ``"gpu"``; None: the CPU.
        threads: How many may work on one call; None: as many as OpenVINO thinks right.

    Raises:
        ValueError: If the files cannot be read, or there is no such device.
    """

    def __init__(self, path: Path, *, device: str | None = None, threads: int | None = None) -> None:
        import openvino

        self.path, self.threads = path, threads
        self.core = openvino.Core()
        self.device = (device or "cpu").upper()
        if self.device.partition(".")[0] not in self.core.available_devices:
            available = ", ".join(name.lower() for name in self.core.available_devices)
            raise ValueError(f"device is {device!r}, which OpenVINO does not find here: it has {available}")
        if not path.with_suffix(".bin").is_file():
            raise ValueError(f"{path.with_suffix('.bin')} is missing, which belongs to {path}: copy both")
        try:
            self.model = self.core.read_model(path)
        except RuntimeError as error:
            raise ValueError(f"{path} is not an OpenVINO model that can be read: {_last_line(error)}") from error

    def metadata(self) -> dict[str, str]:
        """What the file says of itself."""
        if not self.model.has_rt_info([SECTION]):
            return {}
        return {name: str(value) for name, value in self.model.get_rt_info([SECTION]).value.items()}

    def compile(self, arithmetic: Arithmetic) -> None:
        """Gets ready to run. Left to itself, OpenVINO computes in bfloat16 wherever a processor is faster in it.

        Raises:
            ValueError: If the device cannot compute so.
        """
        options: dict[str, Any] = {"INFERENCE_PRECISION_HINT": HINTS[arithmetic], "PERFORMANCE_HINT": "LATENCY"}
        if self.threads is not None:
            options["INFERENCE_NUM_THREADS"] = self.threads
        if arithmetic == "bf16" and "BF16" not in self.core.get_property(self.device, "OPTIMIZATION_CAPABILITIES"):
            raise ValueError(
                f"precision is 'bf16', in which {self.device.lower()} does not compute here: open it with 'fp32'"
            )
        self.compiled = self.core.compile_model(self.model, self.device, options)
        self.request = self.compiled.create_infer_request()

    def __call__(self, images: Tensor) -> Tensor:
        logits = self.request.infer([images.numpy(force=True)], share_inputs=True)[0]
        return torch.from_numpy(logits.copy())


def _last_line(error: RuntimeError) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
