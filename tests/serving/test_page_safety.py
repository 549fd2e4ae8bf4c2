"""What the web page must not open: files of the server, other origins, larger files than the API takes."""

import base64
import gc
import json
import warnings

import pytest

from scalablevit.serving import ServingOptions
from tests.serving.test_api import LABELS, folder, picture, predictor  # noqa: F401

pytest.importorskip("gradio", reason="gradio is not installed")

MARK = {"_type": "gradio.FileData"}  # how Gradio marks what it is to fetch
MAX_BYTES = 50_000


@pytest.fixture(scope="module")
def client(predictor):  # noqa: F811
    from fastapi.testclient import TestClient

    from scalablevit.serving.server import application

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # Gradio leaves an event loop behind when it is imported
        app = application(predictor, ServingOptions(max_bytes=MAX_BYTES))
        gc.collect()
    with TestClient(app, raise_server_exceptions=False) as each:
        yield each


def upload(client, content, name="image.png"):
    return client.post("/gradio_api/upload", files={"files": (name, content)})


def classify(client, image):
    """What the page's server tells of an image, as text."""
    asked = client.post("/gradio_api/call/classify", json={"data": [image]})
    assert asked.status_code == 200
    return client.get(f"/gradio_api/call/classify/{asked.json()['event_id']}").text


def test_health_may_be_asked_without_a_body_beside_the_page(client):
    assert client.head("/health").status_code == 200


def test_an_uploaded_image_is_classified(client):
    path = upload(client, picture()).json()[0]
    told = classify(client, {"path": path, "meta": MARK, "orig_name": "image.png"})
    assert "event: complete" in told
    assert any(label in told for label in LABELS)


@pytest.mark.parametrize("mark", [{"meta": MARK}, {}, {"orig_name": "x.png"}, {"meta": MARK, "orig_name": "x.svg"}])
def test_files_of_the_server_are_neither_read_nor_classified(client, mark, tmp_path):
    for path in (tmp_path / "private.png", tmp_path / "private.txt"):
        path.write_bytes(picture() if path.suffix == ".png" else b"a secret")
        told = classify(client, {"path": str(path), **mark})
        assert "event: error" in told
        assert not any(label in told for label in LABELS)
        assert "/" not in told.split("data:", 1)[1]  # no path
        assert client.get(f"/gradio_api/file={path}").status_code in (403, 404)


def test_only_uploads_are_taken_whatever_else_a_request_holds(client):
    url = "data:image/png;base64," + base64.b64encode(picture(size=(60, 60))).decode()
    assert "event: error" in classify(client, {"url": url, "meta": MARK})
    assert "event: error" in classify(client, {"path": "../../../etc/hostname", "meta": MARK})
    assert "event: error" in classify(client, {"path": "http://127.0.0.1:1/image.png", "meta": MARK})


def test_what_is_no_image_is_refused_in_one_sentence(client):
    path = upload(client, b"no image", "image.png").json()[0]
    told = classify(client, {"path": path, "meta": MARK, "orig_name": "image.png"})
    error = json.loads(told.split("data:", 1)[1])
    assert "Traceback" not in told
    assert len(error["error"].splitlines()) == 1


@pytest.mark.parametrize("is_announced", [True, False], ids=["length told", "in chunks"])
def test_bodies_are_as_limited_as_those_of_the_api(client, is_announced):
    boundary = "b"
    body = (
        b'--b\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n'
        + bytes(200_000)
        + b"\r\n--b--\r\n"
    )
    pieces = [body[i : i + 10_000] for i in range(0, len(body), 10_000)]
    answer = client.post(
        "/gradio_api/upload",
        content=body if is_announced else iter(pieces),
        headers={"Content-Type": f"multipart/form-data; boundary={boundary}"},
    )
    assert answer.status_code == 413
    assert upload(client, bytes(40_000)).status_code == 200


@pytest.mark.parametrize("path", ["/", "/gradio_api/info", "/health", "/predict"])
def test_no_other_origin_is_allowed(client, path):
    headers = {"Origin": "http://elsewhere.example", "Host": "server.example"}
    asked = client.options(
        path, headers={**headers, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "x"}
    )
    for answer in (client.get(path, headers=headers), asked):
        assert "access-control-allow-origin" not in answer.headers
        assert "access-control-allow-credentials" not in answer.headers


@pytest.mark.parametrize("path", ["/health", "/metrics"])
def test_methods_of_the_api_are_not_taken_by_the_page(client, path):
    answer = client.post(path)
    assert answer.status_code == 405
    assert answer.headers["allow"] == "GET"
