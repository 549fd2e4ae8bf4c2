"""The blocks of docs/serving.md, against a server that runs."""

import shlex
import subprocess
import threading
import time
from shutil import which

import pytest
import uvicorn

from scalablevit.serving import ServingOptions
from scalablevit.serving.server import application
from tests.documents import blocks, printed, promised, read
from tests.serving.test_api import folder, picture, predictor  # noqa: F401

DOCUMENT = read("docs/serving.md")
ADDRESS = "http://127.0.0.1:8000"


@pytest.fixture(scope="module")
def address(predictor):  # noqa: F811
    app = application(predictor, ServingOptions(page=False))
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join()


@pytest.fixture
def photo(tmp_path, monkeypatch):
    (tmp_path / "photo.jpg").write_bytes(picture(kind="JPEG"))
    monkeypatch.chdir(tmp_path)


def test_python(address, photo):
    for _, block in blocks(DOCUMENT, "python"):
        assert printed(block.replace(ADDRESS, address)) == promised(block)


@pytest.mark.skipif(which("curl") is None, reason="curl is not installed")
def test_shell(address, photo):
    for _, block in blocks(DOCUMENT, "sh"):
        for line in block.replace(ADDRESS, address).splitlines():
            done = subprocess.run([*shlex.split(line), "-s", "--fail"], capture_output=True, text=True, check=True)
            assert '"labels"' in done.stdout


def test_options_and_their_values():
    options = ServingOptions()
    for name, value in (
        ("--timeout-s", f"{options.timeout_s:g}"),
        ("--max-bytes", options.max_bytes),
        ("--max-pixels", options.max_pixels),
        ("--max-in-flight", options.max_in_flight),
        ("--batch-size", options.batch_size),
        ("--batch-wait-ms", f"{options.batch_wait_ms:g}"),
    ):
        assert f"`{name} {value}" in DOCUMENT
