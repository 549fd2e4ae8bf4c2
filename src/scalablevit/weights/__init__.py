"""Weights: files, folders, and the conversion between the layouts of the published implementations."""

from scalablevit.weights.arguments import infer_arguments
from scalablevit.weights.conversion import convert_checkpoint, convert_state_dict
from scalablevit.weights.files import read_weights
from scalablevit.weights.folder_config import architecture_name, is_multi_label
from scalablevit.weights.folders import load_model, read_config, save_model, weights_file

__all__ = [
    "architecture_name",
    "convert_checkpoint",
    "convert_state_dict",
    "infer_arguments",
    "is_multi_label",
    "load_model",
    "read_config",
    "read_weights",
    "save_model",
    "weights_file",
]
