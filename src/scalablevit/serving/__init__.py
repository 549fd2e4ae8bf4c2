"""A trained model behind HTTP: an API that gathers requests into batches, and a web page beside it."""

from scalablevit.serving.options import ServingOptions
from scalablevit.serving.server import serve

__all__ = ["ServingOptions", "serve"]
