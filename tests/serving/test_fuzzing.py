"""Nothing that is sent makes the server fail: random bytes, damaged images, and requests made from its own schema."""

import asyncio
import random

import httpx
import pytest

from scalablevit.serving import ServingOptions
from scalablevit.serving.server import application
from tests.serving.test_api import client, folder, picture, predictor  # noqa: F401

ALLOWED = {200, 400, 413}


@pytest.mark.slow
def test_random_bytes_and_damaged_images(client):  # noqa: F811
    draw = random.Random(0)
    whole = [picture(kind=kind) for kind in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")]
    statuses = set()
    for index in range(700):
        content = bytearray(whole[index % len(whole)]) if index % 3 else bytearray(draw.randbytes(draw.randrange(200)))
        for _ in range(draw.randrange(20)):
            if content:
                content[draw.randrange(len(content))] = draw.randrange(256)
        answer = client.post("/predict", content=bytes(content[: draw.randrange(len(content) + 1) or None]))
        assert answer.status_code in ALLOWED, answer.text
        assert "\n" not in answer.text
        statuses.add(answer.status_code)
    assert {200, 400} <= statuses


@pytest.mark.slow
def test_random_forms(client):  # noqa: F811
    draw = random.Random(1)
    whole = (
        b'--a\r\nContent-Disposition: form-data; name="image"; filename="x.png"\r\nContent-Type: image/png\r\n\r\n'
        + picture()
        + b"\r\n--a--\r\n"
    )
    for _ in range(300):
        content = bytearray(whole)
        for _ in range(draw.randrange(1, 6)):
            content[draw.randrange(140)] = draw.randrange(256)
        answer = client.post(
            "/predict", content=bytes(content), headers={"Content-Type": "multipart/form-data; boundary=a"}
        )
        assert answer.status_code in ALLOWED, answer.text


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_requests_made_from_the_schema(predictor):  # noqa: F811
    schemathesis = pytest.importorskip("schemathesis")
    from hypothesis import HealthCheck, given, settings

    def server():  # belongs to the event loop that it is first run in
        return application(predictor, ServingOptions(page=False))

    schema = schemathesis.openapi.from_dict(server().openapi())
    strategies = [operation.ok().as_strategy() for operation in schema.get_all_operations()]
    assert len(strategies) == 3

    for strategy in strategies:

        @settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
        @given(case=strategy)
        def check(case):
            answer = asyncio.run(send(server(), case))
            assert answer.status_code < 500, answer.text

        check()


async def send(app, case):
    """The answer to a case of schemathesis, without a network."""
    options = case.as_transport_kwargs(base_url="http://server")
    allowed = {"method", "url", "headers", "params", "files", "cookies"}
    given = {name: value for name, value in options.items() if name in allowed and value is not None}
    if isinstance(options.get("data"), (bytes, str)):
        given["content"] = options["data"]
    given["headers"] = dict(given.get("headers") or {})
    if "files" in given:
        parts = given["files"].items() if isinstance(given["files"], dict) else given["files"]
        given["files"] = [(name, as_part(value)) for name, value in parts]
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app, raise_app_exceptions=False)) as caller,
    ):
        return await caller.request(**given)


def as_part(value):
    """A part of a form as httpx takes it: bytes or text, where schemathesis draws numbers and more as well."""
    if isinstance(value, tuple):
        return (value[0], as_part(value[1]), *value[2:])
    return value if isinstance(value, (bytes, str)) else str(value)
