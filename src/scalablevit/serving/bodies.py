"""Bodies of requests, read in a bounded way: the bytes of an image, bare or in a form."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

from fastapi import HTTPException, Request
from fastapi.responses import JSONResponse
from python_multipart.exceptions import FormParserError
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from scalablevit.serving.refusal import Refusal

LINGER_S = 2.0
LINGER_BYTES = 16_000_000
FORM_BYTES = 10_000


async def read_image_bytes(request: Request, max_bytes: int) -> bytes:
    """The image that a request holds: its body, or the one file of its form.

    Raises:
        Refusal: 413 for more bytes than allowed, before they are read; 400 for a broken form, or none of one file.
        ClientDisconnect: If the client goes before all has come.
    """
    body = await _read(request, max_bytes)
    if request.headers.get("content-type", "").strip().lower().startswith("multipart/"):
        return await _file_in_form(request, body)
    return body


async def _read(request: Request, max_bytes: int) -> bytes:
    too_large = Refusal(
        413, f"the body is larger than {max_bytes} bytes: send a smaller image", {"Connection": "close"}
    )
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length[:20]) > max_bytes:
        raise too_large
    body = bytearray()
    async for chunk in request.stream():
        if len(body) + len(chunk) > max_bytes:
            raise too_large
        body += chunk
    request.state.body_is_read = True  # what answers a refusal need not read on
    return bytes(body)


async def _file_in_form(request: Request, body: bytes) -> bytes:
    async def stream() -> AsyncGenerator[bytes, None]:
        yield body

    try:
        form = await MultiPartParser(request.headers, stream(), max_files=1, max_fields=10).parse()
    except (MultiPartException, FormParserError, ValueError, LookupError) as error:
        raise Refusal(400, f"the form cannot be read ({' '.join(str(error).split())}): send one file in it") from error
    try:
        files = [value for _, value in form.multi_items() if isinstance(value, UploadFile)]
        if len(files) != 1:
            raise Refusal(400, "the form holds no file: send the image as one, for example with curl -F image=@FILE")
        return await files[0].read()
    finally:
        await form.close()


class BodyLimit:
    """What keeps the bodies of all requests but those of /predict, which has a limit of its own, below so many bytes.

    Args:
        app: The application inside.
        max_bytes: Of an image; what a form puts around it comes on top.
    """

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self._app = app
        self._most = max_bytes + FORM_BYTES
        self._reason = f"the body is larger than {max_bytes} bytes: send a smaller image"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers 413 at once where the length is told, and ends what reads on where it is not."""
        if scope["type"] != "http" or scope["path"] == "/predict":
            await self._app(scope, receive, send)
            return
        length = dict(scope["headers"]).get(b"content-length", b"").decode("latin-1")
        if length.isdecimal() and int(length[:20]) > self._most:
            await RefusalResponse({"detail": self._reason}, 413, {"Connection": "close"})(scope, receive, send)
            return
        received = 0

        async def counted() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self._most:
                raise HTTPException(413, self._reason)
            return message

        await self._app(scope, counted, send)


class RefusalResponse(JSONResponse):
    """The answer to a request whose body may not have been read: what still comes is thrown away for a moment.

    A connection closed with unread bytes is reset, and the client may never see why.
    """

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers, then reads on in vain, within bounds."""
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": bytes(self.body), "more_body": True})
        try:
            async with asyncio.timeout(LINGER_S):
                await _discard(receive)
        except TimeoutError:
            pass  # long enough: the connection is closed
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _discard(receive: Receive) -> None:
    discarded = 0
    while discarded < LINGER_BYTES:
        message = await receive()
        if message["type"] != "http.request" or not message.get("more_body", False):
            return
        discarded += len(message.get("body", b""))
