"""A trained model, served until a signal comes."""

from __future__ import annotations

import logging
import math
import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scalablevit.extras import require_extra
from scalablevit.serving.options import ServingOptions

if TYPE_CHECKING:
    import uvicorn
    from fastapi import FastAPI

    from scalablevit.classification.predictor import Predictor

TOKEN_VARIABLE = "SCALABLEVIT_TOKEN"  # the name of one


def serve(run: str | Path, *, device: str | None = None, **options: Any) -> None:
    """Serves a trained model over HTTP until SIGTERM or SIGINT; what is in flight then is answered first.

    ``POST /predict`` names the classes of an image; ``/`` is a web page that does the same; ``/health``, ``/metrics``
    and ``/docs`` are what they are called.

    Args:
        run: A run folder, a folder by `save_model`, the name of a trained model, or a file by `export`.
        device: Where to compute, for example ``"cuda"``; None: the machine's accelerator if it has one.
        **options: See `ServingOptions`. Without a token there, that of the environment variable SCALABLEVIT_TOKEN
            is asked for, if it is set.

    Raises:
        ValueError: If the run or an option is not as it must be.
        OSError: If the address cannot be listened at.
        MissingExtraError: If a package of the extra ``serve`` is not installed.
    """
    chosen = ServingOptions(**{"token": os.environ.get(TOKEN_VARIABLE) or None, **options})
    require_serving(chosen)
    from scalablevit.classification.predictor import Predictor

    predictor = Predictor(run, device=device)
    _warm_up(predictor)
    app = application(predictor, chosen)
    server = _server(app, chosen)
    with _listening(chosen) as listener, _stopping_quietly(server), _quiet_about_forms():
        _announce(listener, chosen)
        server.run(sockets=[listener])


def _warm_up(predictor: Predictor) -> None:
    """One image, before anybody waits for it: the first imports what reads images, and has kernels chosen."""
    from PIL import Image

    height, width = predictor.preprocessing.size
    blank = Image.new("L" if predictor.preprocessing.channels == 1 else "RGB", (width, height))
    predictor.predict_pixels(predictor.preprocessing.to_pixels(blank).unsqueeze(0), 1)


def require_serving(options: ServingOptions) -> None:
    """Checks that what a server needs is installed.

    Raises:
        MissingExtraError: If something is not.
    """
    require_extra("serve", "fastapi", "uvicorn", "prometheus_client", "python_multipart")
    if options.page:
        require_extra("serve", "gradio")


def application(predictor: Predictor, options: ServingOptions) -> FastAPI:
    """The ASGI application, for servers of one's own.

    Args:
        predictor: The model.
        options: Its limits; host and port are not looked at.
    """
    from scalablevit.serving.app import make_app

    app = make_app(predictor, options)
    if options.page:
        from scalablevit.serving.page import add_page

        add_page(app, app.state.service)
    return app


def _server(app: FastAPI, options: ServingOptions) -> uvicorn.Server:
    import uvicorn

    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=math.ceil(options.timeout_s),
    )
    return uvicorn.Server(config)


@contextmanager
def _listening(options: ServingOptions) -> Iterator[socket.socket]:
    family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
    with socket.socket(family) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((options.host, options.port))
            listener.listen(2048)  # whoever has read the address may connect, and waits for the server to begin
        except OSError as error:
            reason = f"cannot listen at {options.host}, port {options.port} ({error.strerror or error})"
            raise OSError(f"{reason}: name others with --host and --port") from error
        yield listener


@contextmanager
def _quiet_about_forms() -> Iterator[None]:
    """Keeps what is wrong with a client's form from the server's standard error: the client is told, with a 400."""
    logger = logging.getLogger("python_multipart")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _announce(listener: socket.socket, options: ServingOptions) -> None:
    host = f"[{options.host}]" if ":" in options.host else options.host
    what = "web page and API" if options.page else "API"
    os.write(1, f"scalablevit: {what} at http://{host}:{listener.getsockname()[1]}/\n".encode())


@contextmanager
def _stopping_quietly(server: uvicorn.Server) -> Iterator[None]:
    """Has SIGTERM end the server also before it minds signals itself, and the process as if it had come to its end.

    Uvicorn raises the signal that stopped it once more, which would end the process as if nobody had minded it.
    """

    def stop(number: int, frame: Any) -> None:
        server.should_exit = True

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
