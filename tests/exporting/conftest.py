"""One small trained-looking model, and what it becomes as files of each kind."""

import pytest

from scalablevit.exporting import write_export
from scalablevit.weights import load_model, save_model
from tests.networks import randomise, small_network

# Of two stages, for time; the slow tests take all four.
SHORT = {
    "dim": (8, 16),
    "depth": (1, 1),
    "heads": (1, 2),
    "reduction_factor": (8, 1),
    "ssa_dim_key": (10, 8),
    "ssa_dim_value": (8, 6),
    "iwsa_dim_key": 8,
    "iwsa_dim_value": (8, 6),
}
LABELS = ("ant", "bee", 'wasp "yellow"', "<fly> & more", "Käfer")
IMAGES = {
    "input_size": [3, 40, 33],
    "mean": [0.4, 0.5, 0.6],
    "std": [0.2, 0.2, 0.3],
    "interpolation": "bilinear",
    "crop_pct": 0.9,
    "license": "cc-by-4.0",
}


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    """As it is loaded from a folder; not to be changed."""
    folder = tmp_path_factory.mktemp("model")
    save_model(randomise(small_network(**SHORT)), folder, LABELS, IMAGES, multi_label=True)
    return load_model(folder)


@pytest.fixture(scope="session")
def exports(model, tmp_path_factory):
    """What `write_export` says of files of the three kinds that are made quickly, by the kind."""
    folder = tmp_path_factory.mktemp("exports")
    names = {"onnx": "model.onnx", "openvino": "model.xml", "pt2": "model.pt2"}
    return {kind: write_export(model, folder / name) for kind, name in names.items()}
