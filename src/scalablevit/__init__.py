"""ScalableViT: a hierarchical vision transformer, in both published forms.

The networks are imported at once and need torch alone. What stands on other packages (weights, training, evaluation,
prediction) is imported when it is first asked for.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from scalablevit.design import Design
from scalablevit.prepacking import prepack
from scalablevit.scalable_vit import ScalableViT
from scalablevit.variants import (
    scalablevit_base,
    scalablevit_large,
    scalablevit_nano,
    scalablevit_small,
    scalablevit_tiny,
)

if TYPE_CHECKING:
    from scalablevit.benchmarking.comparison import benchmark
    from scalablevit.classification.checking import check
    from scalablevit.classification.evaluation import evaluate
    from scalablevit.classification.exports import export
    from scalablevit.classification.prediction import predict
    from scalablevit.classification.predictor import Predictor
    from scalablevit.classification.training import train
    from scalablevit.classification.weight_files import convert
    from scalablevit.explanation import explain
    from scalablevit.serving import serve
    from scalablevit.weights import convert_state_dict, load_model, save_model

__version__ = "0.1.0"

_LAZY = {
    "Predictor": "scalablevit.classification.predictor",
    "benchmark": "scalablevit.benchmarking.comparison",
    "check": "scalablevit.classification.checking",
    "convert": "scalablevit.classification.weight_files",
    "convert_state_dict": "scalablevit.weights",
    "evaluate": "scalablevit.classification.evaluation",
    "export": "scalablevit.classification.exports",
    "explain": "scalablevit.explanation",
    "load_model": "scalablevit.weights",
    "predict": "scalablevit.classification.prediction",
    "save_model": "scalablevit.weights",
    "serve": "scalablevit.serving",
    "train": "scalablevit.classification.training",
}

__all__ = [
    "Design",
    "Predictor",
    "ScalableViT",
    "benchmark",
    "check",
    "convert",
    "convert_state_dict",
    "evaluate",
    "explain",
    "export",
    "load_model",
    "predict",
    "prepack",
    "save_model",
    "scalablevit_base",
    "scalablevit_large",
    "scalablevit_nano",
    "scalablevit_small",
    "scalablevit_tiny",
    "serve",
    "train",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_LAZY])
