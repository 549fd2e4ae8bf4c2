"""The routes of the server."""

# No `from __future__ import annotations`: FastAPI looks the annotations of the routes up, some of which are local.

import asyncio
import hmac
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from time import perf_counter
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse
from pydantic import BaseModel
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect

import scalablevit
from scalablevit.classification.predictor import Predictor
from scalablevit.serving.bodies import BodyLimit, RefusalResponse, read_image_bytes
from scalablevit.serving.description_page import describe
from scalablevit.serving.image_service import ImageService
from scalablevit.serving.metrics import ServerMetrics
from scalablevit.serving.options import ServingOptions
from scalablevit.serving.refusal import Refusal

CLIENT_GONE = 499  # nobody reads it; nginx's number for such requests
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
IMAGE_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "properties": {"image": {"type": "string", "format": "binary"}},
                    "required": ["image"],
                }
            },
        },
    }
}


class PredictionAnswer(BaseModel):
    """The most probable classes of an image, the most probable first."""

    labels: list[str]
    probabilities: list[float]
    indices: list[int]


class HealthAnswer(BaseModel):
    """That the server runs, and what it serves."""

    status: str
    version: str
    classes: int


class ErrorAnswer(BaseModel):
    """Why a request was not served."""

    detail: str


_ERRORS: dict[int | str, dict[str, Any]] = {
    400: {"model": ErrorAnswer, "description": "Not a readable image, or a broken form"},
    401: {"model": ErrorAnswer, "description": "No token, or a wrong one"},
    408: {"model": ErrorAnswer, "description": "The body did not come in time"},
    413: {"model": ErrorAnswer, "description": "Too many bytes or pixels"},
    422: {"model": ErrorAnswer, "description": "A value that is not possible"},
    503: {"model": ErrorAnswer, "description": "Too many requests in flight"},
    504: {"model": ErrorAnswer, "description": "Took too long"},
}


def make_app(predictor: Predictor, options: ServingOptions) -> FastAPI:
    """The server's application, without the web page.

    Args:
        predictor: The model.
        options: Its limits.
    """
    metrics = ServerMetrics()
    service = ImageService(predictor, options, metrics)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncGenerator[None]:
        service.start()
        try:
            yield
        finally:
            await service.close()

    app = FastAPI(
        title="scalablevit",
        description="The classes of images, by a trained ScalableViT.",
        version=scalablevit.__version__,
        lifespan=lifespan,
        openapi_url=None,
        docs_url=None,  # FastAPI's pages load their scripts from elsewhere
        redoc_url=None,
    )
    app.state.service = service
    app.add_exception_handler(Refusal, _answer_refusal)
    app.add_exception_handler(RequestValidationError, _answer_wrong_value)
    # For no origin: a page mounted later would bring its own, which allows all where the server has a name.
    app.add_middleware(CORSMiddleware, allow_origins=[])
    app.add_middleware(BodyLimit, max_bytes=options.max_bytes)
    with_token = [Depends(_token_check(options.token))]
    _add_predict(app, service, metrics, with_token)

    @app.head("/health", include_in_schema=False)
    @app.get("/health")
    async def health() -> HealthAnswer:
        """Whether the server runs."""
        return HealthAnswer(status="ok", version=scalablevit.__version__, classes=len(predictor.labels))

    @app.head("/metrics", dependencies=with_token, include_in_schema=False)
    @app.get("/metrics", dependencies=with_token, response_class=Response)
    async def numbers() -> Response:
        """What the server counts, for Prometheus."""
        return Response(metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    _refuse_other_methods(app, "/health", "GET")
    _refuse_other_methods(app, "/metrics", "GET")

    @app.get("/openapi.json", dependencies=with_token, include_in_schema=False)
    async def schema() -> JSONResponse:
        return JSONResponse(app.openapi())

    @app.get("/docs", dependencies=with_token, include_in_schema=False)
    async def description() -> HTMLResponse:
        return HTMLResponse(describe(app.openapi()))

    return app


def _add_predict(app: FastAPI, service: ImageService, metrics: ServerMetrics, dependencies: list[Any]) -> None:
    @app.post(
        "/predict",
        dependencies=dependencies,
        responses=_ERRORS,
        openapi_extra=IMAGE_BODY,
        response_model=PredictionAnswer,
    )
    async def predict(
        request: Request, top: Annotated[int, Query(ge=1, le=100_000, description="How many classes to give.")] = 5
    ) -> Response:
        """The most probable classes of one image: the body of the request, or the one file of its form."""
        with service.admitted():
            content = await _body_in_time(request, service.options)
            prediction = await _unless_gone(request, _in_time(service, content, top))
        # By hand: of the same form as PredictionAnswer, without the time to check it.
        return JSONResponse(
            {"labels": prediction.labels, "probabilities": prediction.probabilities, "indices": prediction.indices}
        )

    _refuse_other_methods(app, "/predict", "POST")

    @app.middleware("http")
    async def count(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        if request.url.path != "/predict":
            return await call_next(request)
        begin = perf_counter()
        response = await call_next(request)
        metrics.seconds.observe(perf_counter() - begin)
        metrics.requests.labels(str(response.status_code)).inc()
        return response


def _refuse_other_methods(app: FastAPI, path: str, method: str) -> None:
    """405 for all methods but one. A page mounted at / would take them as its own."""
    others = [other for other in METHODS if other != method and not (method == "GET" and other == "HEAD")]

    @app.api_route(path, methods=others, include_in_schema=False)
    async def wrong_method(request: Request) -> Response:
        raise Refusal(405, f"{request.method} is not how {path} is asked: use {method}", {"Allow": method})


async def _body_in_time(request: Request, options: ServingOptions) -> bytes:
    try:
        async with asyncio.timeout(options.timeout_s):
            return await read_image_bytes(request, options.max_bytes)
    except TimeoutError as error:
        reason = f"the body did not come within {options.timeout_s:g} seconds"
        raise Refusal(408, reason) from error
    except ClientDisconnect as error:
        raise Refusal(CLIENT_GONE, "the client has gone") from error


async def _in_time(service: ImageService, content: bytes, top: int) -> Any:
    try:
        async with asyncio.timeout(service.options.timeout_s):
            return await service.classify(content, top)
    except TimeoutError as error:
        raise Refusal(504, f"no answer within {service.options.timeout_s:g} seconds: try again later") from error


async def _unless_gone(request: Request, work: Coroutine[Any, Any, Any]) -> Any:
    """What the work gives; it is called off when the client goes."""
    working, going = asyncio.create_task(work), asyncio.create_task(_gone(request))
    try:
        await asyncio.wait([working, going], return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise Refusal(CLIENT_GONE, "the client has gone")
        return working.result()
    finally:
        for task in (working, going):
            task.cancel()
        await asyncio.gather(working, going, return_exceptions=True)


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _token_check(token: str | None) -> Callable[[Request], Awaitable[None]]:
    async def check(request: Request) -> None:
        if token is None:
            return
        kind, _, shown = request.headers.get("authorization", "").partition(" ")
        if kind.lower() != "bearer" or not hmac.compare_digest(shown.strip().encode(), token.encode()):
            raise Refusal(
                401,
                "the token is missing or wrong: send it as Authorization: Bearer TOKEN",
                {"WWW-Authenticate": "Bearer"},
            )

    return check


async def _answer_wrong_value(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    wrong = error.errors()[0]
    name, value = wrong["loc"][-1], f"{wrong['input']!r:.80}"
    return await _answer_refusal(request, Refusal(422, f"{name} is {value}; {wrong['msg'].replace('Input', 'it', 1)}"))


async def _answer_refusal(request: Request, error: Exception) -> Response:
    assert isinstance(error, Refusal)
    if getattr(request.state, "body_is_read", False):
        return JSONResponse({"detail": error.reason}, error.status, error.headers)
    # A body that nobody has read must not be taken for the next request.
    return RefusalResponse({"detail": error.reason}, error.status, {"Connection": "close", **error.headers})
