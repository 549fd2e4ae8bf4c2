"""The web page in a real browser: classes and picture of an image, with nothing fetched from elsewhere."""

import re
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from tests.serving.test_api import LABELS, folder, picture  # noqa: F401

CHROMIUM = Path("/usr/bin/chromium")
ARGUMENTS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
PHONE = {"width": 390, "height": 844}


@pytest.fixture
def server(folder):  # noqa: F811
    pytest.importorskip("gradio", reason="gradio is not installed")
    command = [sys.executable, "-m", "scalablevit", "serve", str(folder), "--port", "0", "--device", "cpu"]
    with subprocess.Popen([*command, "--timeout-s", "60"], stdout=subprocess.PIPE, text=True) as process:
        yield re.findall(r"(http://127\.0\.0\.1:\d+)/", process.stdout.readline())[0]
        process.kill()


@pytest.fixture
def page():
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if not CHROMIUM.exists():
        pytest.skip(f"there is no {CHROMIUM}")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=str(CHROMIUM), args=list(ARGUMENTS), headless=True)
        yield browser.new_page(viewport=PHONE)
        browser.close()


@pytest.mark.slow
def test_an_image_is_classified_and_explained_on_a_phone(server, page, tmp_path):
    elsewhere = []
    page.on(
        "request",
        lambda request: None if request.url.startswith((server, "data:", "blob:")) else elsewhere.append(request.url),
    )
    (tmp_path / "image.png").write_bytes(picture(size=(200, 150)))
    page.goto(server, timeout=90_000)
    page.set_input_files("input[type=file]", tmp_path / "image.png", timeout=90_000)
    best = httpx.post(f"{server}/predict", content=picture(size=(200, 150)), timeout=60).json()["labels"][0]
    assert best in LABELS
    page.get_by_test_id("label-output-value").get_by_text(best).wait_for(timeout=90_000)
    drawn = page.locator("img[src*='file=']").nth(1)
    drawn.wait_for(timeout=90_000)
    page.wait_for_function("[...document.images].every(image => image.complete)", timeout=90_000)
    assert drawn.evaluate("image => image.naturalWidth") > 500
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    assert elsewhere == []
