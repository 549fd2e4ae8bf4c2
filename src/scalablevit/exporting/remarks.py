"""Other packages' remarks on their own work, kept from those who only want an export."""

from __future__ import annotations

import io
import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout

TALKERS = ("nncf", "onnxscript", "onnx_ir", "torch.onnx", "torch.utils.cpp_extension")


@contextmanager
def kept_quiet() -> Iterator[None]:
    """Without warnings, logged remarks and progress bars, and without word to others; errors come through."""
    loggers = [logging.getLogger(name) for name in TALKERS]
    levels = [logger.level for logger in loggers]
    root = logging.getLogger()  # ONNX Runtime's quantisation logs there; a filter leaves other loggers alone
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    root.addFilter(_is_error)
    told = os.environ.get("NNCF_CI")
    os.environ["NNCF_CI"] = "1"  # read where nncf is imported: else it reports its use to its makers over the network
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        root.removeFilter(_is_error)
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        if told is None:
            del os.environ["NNCF_CI"]


def _is_error(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR
