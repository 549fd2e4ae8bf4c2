"""The web page: an image goes in, its classes and what the network looks at come out."""

# No `from __future__ import annotations`: Gradio looks at the signatures of the functions it is given.

import asyncio
import hmac
import os
from collections.abc import AsyncGenerator, Coroutine
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from fastapi import FastAPI

from scalablevit.extras import require_extra
from scalablevit.serving.image_service import ImageService
from scalablevit.serving.refusal import Refusal

TOP = 5
KEPT_S = 600  # how long uploaded images stay on the disk, in seconds
_STYLE = """
.gradio-container {width: 100% !important; max-width: 1100px !important; margin: 0 auto !important}
footer {display: none !important}
#given img {width: 100%; height: 100%; object-fit: contain}
/* The picture is three panels wide: on a phone, it is moved sideways rather than shrunk. */
@media (max-width: 700px) {#looks {overflow-x: auto !important} #looks img {min-width: 900px; max-width: none}}
"""


def add_page(app: FastAPI, service: ImageService) -> None:
    """Puts the page at ``/`` of the server.

    With a token, the page asks for it as a password, with any name.

    Raises:
        MissingExtraError: If Gradio is not installed.
    """
    require_extra("serve", "gradio")
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read by Gradio when it is imported
    import gradio

    token = service.options.token

    def is_right(name: str, password: str) -> bool:
        return token is not None and hmac.compare_digest(password.encode(), token.encode())

    blocks = _blocks(service)
    gradio.mount_gradio_app(
        app,
        blocks,
        path="/",
        auth=None if token is None else is_right,
        auth_message="Any name will do; the password is the server's token.",
        show_error=False,  # what is not meant for users may name files of the server
        max_file_size=service.options.max_bytes,
        ssr_mode=False,
        run_history=False,
        enable_monitoring=False,
        footer_links=[],
        # Fonts of the machine: the usual theme loads its own from elsewhere.
        theme=gradio.themes.Soft(
            font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"], primary_hue="blue"
        ),
        css=_STYLE,
    )
    # Otherwise Gradio takes itself for private, and copies whatever file of the server a request names.
    blocks.has_launched = True


def _take_uploads_alone(image: Any, max_bytes: int) -> None:
    """Has a Gradio image take what was uploaded to it, and nothing else that a request may name.

    Not as a class of its own: of each of those Gradio writes a stub file beside the code.
    """
    import gradio

    def preprocess(payload: Any) -> str | None:
        """The path of the uploaded file; what a browser sends as a URL is not looked at."""
        if payload is None:
            return None
        path = Path(payload.path or "").resolve()
        if not path.is_relative_to(Path(image.GRADIO_CACHE).resolve()) or not path.is_file():
            raise gradio.Error("This is no uploaded image: upload it again.", print_exception=False)
        if path.stat().st_size > max_bytes:
            reason = f"The file is larger than {max_bytes} bytes: take a smaller image."
            raise gradio.Error(reason, print_exception=False)
        return str(path)

    image.preprocess = preprocess


def _blocks(service: ImageService) -> Any:
    import gradio

    has_picture = can_explain(service)

    async def limited(work: Coroutine[Any, Any, Any]) -> Any:
        # Of each step, and never around a yield: what iterates may change its task there, or never come back.
        try:
            with service.admitted():
                return await asyncio.wait_for(work, service.options.timeout_s)
        except Refusal as refusal:
            raise gradio.Error(refusal.reason, print_exception=False) from refusal
        except TimeoutError as error:
            raise gradio.Error("That took too long: try again later.", print_exception=False) from error
        finally:
            work.close()  # if it was not admitted, it never began

    async def classify(path: str | None) -> AsyncGenerator[tuple[Any, Any]]:
        """The classes first, since the picture takes longer."""
        if path is None:
            yield None, gradio.update(value=None, visible=False)
            return
        content = await asyncio.to_thread(Path(path).read_bytes)
        prediction = await limited(service.classify(content, TOP))
        yield dict(zip(prediction.labels, prediction.probabilities, strict=True)), gradio.update()
        if has_picture:
            yield gradio.update(), gradio.update(value=await limited(service.picture(content)), visible=True)

    with gradio.Blocks(title="scalablevit", analytics_enabled=False, delete_cache=(KEPT_S, KEPT_S)) as blocks:
        gradio.Markdown(
            f"# What is in the image?\nDrop one, and a ScalableViT names its class, of {len(service.predictor.labels)}."
        )
        with gradio.Row():
            given = gradio.Image(
                type="filepath",
                image_mode=None,
                sources=["upload", "clipboard"],
                label="Image",
                height=320,
                buttons=[],
                elem_id="given",
            )
            _take_uploads_alone(given, service.options.max_bytes)
            classes = gradio.Label(num_top_classes=TOP, label="Classes")
        picture = gradio.Image(
            label="What the network looks at",
            show_label=False,  # it would cover the picture's own headings
            interactive=False,
            visible=False,
            format="png",
            buttons=[],
            elem_id="looks",
        )
        # Several people at once: the service has limits of its own.
        given.change(
            classify, given, [classes, picture], concurrency_limit=None, show_progress="minimal", api_name="classify"
        )
    return blocks


def can_explain(service: ImageService) -> bool:
    """Whether there is a network to look into, and what draws the picture is installed."""
    try:
        service.predictor.model  # noqa: B018  # an export has none, and says so
    except ValueError:
        return False
    return find_spec("captum") is not None and find_spec("matplotlib") is not None
