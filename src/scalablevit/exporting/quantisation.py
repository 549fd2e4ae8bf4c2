"""8-bit exports: products in int8, with what ranges activations have found on images.

Linear layers and convolutions are quantised, weights per output channel; norms, softmax, GELU and sums stay in floating
point. ONNX files go through ONNX Runtime's static quantisation, OpenVINO models through NNCF, each being what its
runtime is fastest with; docs/deploy.md has figures.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from scalablevit.exporting.description import Description
from scalablevit.exporting.openvino_files import read_openvino, save_openvino
from scalablevit.exporting.remarks import kept_quiet

PACKAGES = {"onnx": "onnxruntime", "openvino": "nncf"}  # that quantise, by kind of export
QUANTISED = ["Conv", "Gemm", "MatMul"]


def quantise(path: Path, images: Sequence[np.ndarray[Any, Any]]) -> None:
    """Quantises an export in its place.

    Args:
        path: The ``.onnx`` or ``.xml`` file, of float32.
        images: What to find the ranges on, each (1, c, h, w), float32, normalised.
    """
    with kept_quiet():
        if path.suffix == ".onnx":
            _quantise_onnx(path, images)
        else:
            _quantise_openvino(path, images)


def rewrite_metadata(path: Path, description: Description) -> None:
    """Has an ``.onnx`` or ``.xml`` file say something else of itself."""
    if path.suffix == ".onnx":
        import onnx

        model = onnx.load(path)
        onnx.helper.set_model_props(model, description.to_strings())
        onnx.save(model, path)
    else:
        save_openvino(read_openvino(path), path, description.to_strings())


def _quantise_onnx(path: Path, images: Sequence[np.ndarray[Any, Any]]) -> None:
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.images = iter(images)

        def get_next(self) -> dict[str, Any] | None:
            image = next(self.images, None)
            return None if image is None else {"images": image}

    quantised = path.with_suffix(".int8.onnx")
    quantize_static(
        path,
        quantised,
        Reader(),
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=QUANTISED,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )
    quantised.replace(path)


def _quantise_openvino(path: Path, images: Sequence[np.ndarray[Any, Any]]) -> None:
    import nncf
    from nncf.quantization.advanced_parameters import QuantizationParameters

    quantised = nncf.quantize(
        read_openvino(path),
        nncf.Dataset(images),
        preset=nncf.QuantizationPreset.MIXED,  # activations that are not symmetric, weights that are
        model_type=nncf.ModelType.TRANSFORMER,
        subset_size=len(images),
        # Ranges of whole maps. NNCF takes axis 1 for the channels where a depthwise convolution reads, which is the
        # height of maps with their channels last: the model would run at the height of the calibration alone.
        advanced_parameters=nncf.AdvancedQuantizationParameters(
            activations_quantization_params=QuantizationParameters(per_channel=False)
        ),
    )
    save_openvino(quantised, path, {})
