"""The HTTP API: the same answers as offline prediction, and a reason for whatever is refused."""

import io
import re
import struct
import threading
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from fastapi.testclient import TestClient
from PIL import Image

import scalablevit
from scalablevit import Predictor, scalablevit_nano
from scalablevit.serving import ServingOptions
from scalablevit.serving.server import application

LABELS = ["cat", "dog", "hen", "owl"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("model") / "nano"
    scalablevit.save_model(scalablevit_nano(num_classes=4), path, labels=LABELS)
    return path


@pytest.fixture(scope="module")
def predictor(folder):
    return Predictor(folder, device="cpu")


def client_of(predictor, **options):
    return TestClient(
        application(predictor, ServingOptions(**{"page": False, **options})), raise_server_exceptions=False
    )


@pytest.fixture(scope="module")
def client(predictor):
    with client_of(predictor, max_bytes=100_000, max_pixels=1_000_000) as each:
        yield each


def picture(seed=0, kind="PNG", size=(40, 30)):
    values = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(values).save(file, kind)
    return file.getvalue()


def bomb(width, height):
    """A PNG file whose header promises more than its pixels hold."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    )


def test_the_answer_is_that_of_offline_prediction_bare_and_in_a_form(client, predictor, tmp_path):
    (tmp_path / "image.png").write_bytes(picture())
    expected = predictor(tmp_path / "image.png")
    for sent in ({"content": picture()}, {"files": {"image": ("../../etc/passwd", picture())}}):
        answer = client.post("/predict", **sent)
        assert answer.status_code == 200, answer.text
        assert answer.json()["labels"] == list(expected.labels)
        assert answer.json()["indices"] == list(expected.indices)
        assert answer.json()["probabilities"] == pytest.approx(expected.probabilities, abs=1e-6)


def test_top(client):
    two = client.post("/predict?top=2", content=picture()).json()
    assert len(two["labels"]) == len(two["probabilities"]) == 2
    assert len(client.post("/predict?top=99", content=picture()).json()["labels"]) == 4
    for wrong, reason in (
        ("0", "top is '0'; it should be greater than or equal to 1"),
        ("many", "top is 'many'; it should be a valid integer"),
        ("9" * 5000, "top is '99999"),
        ("%0A%00", r"top is '\n\x00'; it should be a valid integer"),
    ):
        answer = client.post(f"/predict?top={wrong}", content=picture())
        assert answer.status_code == 422
        assert answer.json()["detail"].startswith(reason)
        assert len(answer.json()["detail"]) < 300


@pytest.mark.parametrize(
    ("content", "status", "reason"),
    [
        (b"", 400, "the image is empty (0 bytes)"),
        (b"no image at all", 400, "is not an image"),
        (b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>', 400, "is not an image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", 400, "is not an image"),
        (picture()[:500], 400, "is damaged"),
        (picture(kind="JPEG")[:400], 400, "is damaged"),
        (bytes(100_001), 413, "larger than 100000 bytes"),
        (bomb(1001, 1000), 413, "1001 x 1000, 1001000 pixels; 1000000 are allowed"),
        (bomb(60_000, 60_000), 413, "too large"),
        (bomb(100_000, 1), 413, "too thin"),
    ],
    ids=["empty", "text", "svg", "eps", "cut png", "cut jpeg", "bytes", "pixels", "bomb", "thin"],
)
def test_what_is_no_image_is_refused_with_a_reason(client, content, status, reason):
    answer = client.post("/predict", content=content)
    assert (answer.status_code, reason in answer.json()["detail"]) == (status, True), answer.text
    assert "\n" not in answer.json()["detail"]


@pytest.mark.parametrize(
    ("kind", "content"),
    [
        ("multipart/form-data", b"x"),
        ("multipart/form-data; boundary=a", b""),
        ("multipart/form-data; boundary=a", b"no boundary"),
        ("multipart/form-data; boundary=a", b"--a\r\nContent-Disposition: form-data\r\n\r\nx\r\n--a--\r\n"),
        ("multipart/form-data; boundary=a", b'--a\r\nContent-Disposition: form-data; name="x"\r\n\r\nx\r\n--a--\r\n'),
    ],
)
def test_broken_forms(client, kind, content):
    answer = client.post("/predict", content=content, headers={"Content-Type": kind})
    assert answer.status_code == 400
    assert "form" in answer.json()["detail"]


def test_a_body_of_unknown_length_is_read_no_further_than_allowed(client):
    given = []

    def endless():
        for _ in range(1000):
            given.append(1)
            yield bytes(10_000)

    assert client.post("/predict", content=endless()).status_code == 413


@pytest.mark.parametrize("method", ["get", "put", "patch", "delete", "options"])
def test_wrong_methods(client, method):
    answer = getattr(client, method)("/predict")
    assert (answer.status_code, answer.headers["allow"]) == (405, "POST")


@pytest.mark.parametrize("path", ["/health", "/metrics"])
def test_whether_it_runs_may_be_asked_without_a_body(client, path):
    assert client.head(path).status_code == 200


def test_numbers_health_and_description(predictor):
    with client_of(predictor) as own:
        own.post("/predict", content=picture())
        own.post("/predict", content=b"")
        lines = own.get("/metrics").text.splitlines()
        assert 'scalablevit_requests_total{status="200"} 1.0' in lines
        assert 'scalablevit_requests_total{status="400"} 1.0' in lines
        assert "scalablevit_request_seconds_count 2.0" in lines
        assert "scalablevit_batch_size_count 1.0" in lines
        assert "scalablevit_in_flight 0.0" in lines
        assert "scalablevit_queue 0.0" in lines
        assert own.get("/health").json()["classes"] == 4
        assert set(own.get("/openapi.json").json()["paths"]) == {"/predict", "/health", "/metrics"}
        assert "POST /predict" in own.get("/docs").text
        assert not re.search(r"(src|href)=\"?(https?:)?//", own.get("/docs").text)


def test_no_other_origin_is_allowed(client):
    answer = client.post("/predict", content=picture(), headers={"Origin": "http://elsewhere.example"})
    assert "access-control-allow-origin" not in answer.headers


def test_everybody_in_a_batch_gets_as_many_classes_as_asked_for(predictor):
    tops = [1, 4, 2, 3, 1, 2]
    with client_of(predictor, batch_wait_ms=500, batch_size=len(tops)) as own:
        with ThreadPoolExecutor(len(tops)) as pool:
            answers = pool.map(lambda top: own.post(f"/predict?top={top}", content=picture()).json(), tops)
            assert [len(answer["labels"]) for answer in answers] == tops
        assert f"scalablevit_batch_size_sum {len(tops)}.0" in own.get("/metrics").text


def test_a_token(predictor):
    with client_of(predictor, token="a secret") as own:
        for path in ("/metrics", "/docs", "/openapi.json"):
            assert own.get(path).status_code == 401
        assert own.get("/health").status_code == 200
        for shown in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic a secret"}):
            answer = own.post("/predict", content=picture(), headers=shown)
            assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
        right = {"Authorization": "Bearer a secret"}
        assert own.post("/predict", content=picture(), headers=right).status_code == 200


class Gated:
    """A predictor that waits at a gate."""

    def __init__(self, predictor):
        self.gate, self.entered, self._predictor = threading.Event(), threading.Event(), predictor

    def __getattr__(self, name):
        return getattr(self._predictor, name)

    def predict_pixels(self, pixels, top):
        self.entered.set()
        assert self.gate.wait(20)
        return self._predictor.predict_pixels(pixels, top)


def test_too_many_at_once_and_too_slow(predictor):
    gated = Gated(predictor)
    with client_of(gated, max_in_flight=1, timeout_s=0.5) as own:
        answers = []
        first = threading.Thread(target=lambda: answers.append(own.post("/predict", content=picture())))
        first.start()
        assert gated.entered.wait(20)
        second = own.post("/predict", content=picture())
        assert (second.status_code, second.headers["retry-after"]) == (503, "1")
        first.join()
        assert answers[0].status_code == 504
        gated.gate.set()
        assert own.post("/predict", content=picture()).status_code == 200


def test_faults_of_the_model_are_500_without_a_traceback(predictor):
    class Broken(Gated):
        def predict_pixels(self, pixels, top):
            raise RuntimeError("inside")

    with client_of(Broken(predictor)) as own:
        answer = own.post("/predict", content=picture())
        assert answer.status_code == 500
        assert "inside" not in answer.text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"port": 70_000}, "port is 70000"),
        ({"batch_wait_ms": -1}, "batch_wait_ms is -1"),
        ({"timeout_s": 0}, "timeout_s is 0"),
        ({"max_bytes": 0}, "max_bytes"),
        ({"token": ""}, "token is empty"),
        ({"token": " abc"}, "token begins or ends with a space"),
    ],
)
def test_options_that_are_not_possible(options, message):
    with pytest.raises(ValueError, match=message):
        ServingOptions(**options)
