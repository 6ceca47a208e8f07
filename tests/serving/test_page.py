"""The page in a real browser: Debian's Chromium, driven by Playwright."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from videomar.config import SamplingConfig
from videomar.quality import at_quality

playwright = pytest.importorskip("playwright.sync_api", reason="needs the package playwright: pip install playwright")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium")
UNNAMED = """[...document.querySelectorAll('button, input, textarea, video, progress')]
    .filter(e => !(e.textContent.trim() || e.getAttribute('aria-label') || (e.labels && e.labels.length)))
    .map(e => e.outerHTML)"""
MINUTES = 120_000.0  # milliseconds, on a machine that is busy with other things


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        flags = ["--no-sandbox", "--autoplay-policy=no-user-gesture-required"]  # root has no sandbox in a container
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=flags)
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser: Any, server: Any) -> Iterator[Any]:
    """The page, at whose end there must have been no error of a script and no request to elsewhere."""
    context = browser.new_context(viewport={"width": 390, "height": 844}, reduced_motion="reduce")
    context.set_default_timeout(MINUTES)
    page = context.new_page()
    wrong: list[str] = []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", lambda m: wrong.append(m.text) if "Content Security Policy" in m.text else None)
    page.on("request", lambda r: None if r.url.startswith((server.url, "blob:", "data:")) else wrong.append(r.url))
    page.goto(server.url)
    page.wait_for_selector("#knobs input", state="attached")
    yield page
    context.close()
    assert wrong == []


def png() -> bytes:
    import cv2
    import numpy as np

    return cv2.imencode(".png", np.random.default_rng(0).integers(0, 256, (16, 24, 3), np.uint8))[1].tobytes()


def until(page: Any, true: str) -> None:
    """Wait for an expression; Playwright's own way would have the page evaluate text, which its policy forbids."""
    end = time.monotonic() + MINUTES / 1000
    while not page.evaluate(true):
        assert time.monotonic() < end, true
        page.wait_for_timeout(20)


def ask(page: Any, prompt: str = "a red circle falls") -> None:
    page.set_input_files("#file", {"name": "start.png", "mimeType": "image/png", "buffer": png()})
    page.fill("#prompt", prompt)
    page.click("#make")


def test_a_clip_plays_while_it_is_made_and_is_then_there_to_download(page: Any, server: Any, tmp_path: Path) -> None:
    server.gate.shut()
    ask(page)
    page.wait_for_selector("#working:not([hidden])")
    (id,) = (job.id for job in server.site.store.page(None, 1, True)[0])
    server.gate.let(server.get(id)["steps"] - 1)
    until(page, "document.getElementById('video').currentTime > 0.1")
    assert server.get(id)["status"] == "in_progress"
    assert "step" in page.inner_text("#state")
    server.gate.open()
    page.wait_for_selector("#finished:not([hidden])")
    with page.expect_download() as download:
        page.click("#download")
    assert Path(download.value.path()).read_bytes() == server.http.get(f"/v1/videos/{id}/content").content
    page.wait_for_selector("#gallery img[src^='blob:']")


def test_cancelling_stops_the_clip_and_says_so(page: Any, server: Any) -> None:
    server.gate.shut()
    ask(page)
    page.click("#cancel")
    until(page, "document.getElementById('idle').textContent === 'Cancelled.'")
    assert page.is_hidden("#cancel")
    server.gate.open()


def test_rubbish_is_told_beside_the_picture_and_an_empty_prompt_beside_the_prompt(page: Any) -> None:
    page.click("#make")
    assert "picture" in page.inner_text("#file-wrong")
    page.set_input_files("#file", {"name": "a.png", "mimeType": "image/png", "buffer": b"rubbish" * 100})
    page.click("#make")
    assert "what happens" in page.inner_text("#prompt-wrong")
    page.fill("#prompt", "a red circle falls")
    page.click("#make")
    page.wait_for_selector("#file-wrong:not([hidden])")
    assert "not a picture" in page.inner_text("#file-wrong")
    assert page.is_enabled("#make")


def test_a_clip_is_made_again_with_another_seed_and_goes_on(page: Any, server: Any) -> None:
    page.click("#example")
    page.wait_for_selector("#shown img")
    page.fill("#prompt", "a red circle falls")
    page.click("#make")
    page.wait_for_selector("#finished:not([hidden])")
    first = server.site.store.page(None, 1, True)[0][0]
    page.click("#again")
    until(page, f"!document.getElementById('state').textContent.includes('seed {first.seed}')")
    page.wait_for_selector("#finished:not([hidden])")
    second = server.site.store.page(None, 1, True)[0][0]
    assert second.remix_of == first.id and second.seed != first.seed
    page.click("#go-on")
    page.click("#make")
    page.wait_for_selector("#working:not([hidden])", state="attached")
    until(page, "document.getElementById('bar').hidden")
    third = server.site.store.page(None, 1, True)[0][0]
    assert third.given == 9


def test_everything_can_be_reached_and_pressed_by_keyboard_and_has_a_name(page: Any) -> None:
    reached = []
    for _ in range(12):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.id || document.activeElement.tagName"))
    assert {"file", "example", "prompt", "SUMMARY", "make"} <= set(reached)
    assert page.evaluate(UNNAMED) == []


def test_nothing_is_wider_than_a_phone(page: Any) -> None:
    page.click("summary")
    for width in (320, 390, 1280):
        page.set_viewport_size({"width": width, "height": 800})
        assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_a_browser_that_cannot_play_a_growing_clip_shows_it_once_it_is_finished(browser: Any, server: Any) -> None:
    context = browser.new_context()
    context.set_default_timeout(MINUTES)
    context.add_init_script("delete self.MediaSource; delete self.ManagedMediaSource")
    page = context.new_page()
    page.goto(server.url)
    page.wait_for_selector("#knobs input", state="attached")
    assert page.evaluate("typeof MediaSource") == "undefined"
    server.gate.shut()
    ask(page, "a red circle moves right a red circle moves")
    page.wait_for_selector("#working:not([hidden])")
    assert page.is_hidden("#video") and "9 tokens" in page.inner_text("#note")
    server.gate.open()
    page.wait_for_selector("#finished:not([hidden])")
    until(page, "document.getElementById('video').currentTime > 0")
    context.close()


def test_a_key_is_asked_for_and_used(browser: Any, serve: Any) -> None:
    server = serve(keys=("a-key-of-20-letters!",))
    context = browser.new_context()
    page = context.new_page()
    page.goto(server.url)
    page.fill("#key-text", "wrong")
    page.click("#key button")
    page.wait_for_selector("#key-wrong:not([hidden])")
    page.fill("#key-text", "a-key-of-20-letters!")
    page.click("#key button")
    page.wait_for_selector("#knobs input", state="attached")
    assert page.is_hidden("#key")
    context.close()


def test_a_level_of_quality_is_asked_for_without_the_numbers_that_it_sets(page: Any, server: Any) -> None:
    page.click("summary")
    page.select_option("#knobs select[name=quality]", "draft")
    ask(page)
    page.wait_for_selector("#finished:not([hidden])")
    job = server.site.store.page(None, 1, True)[0][0]
    asked = SamplingConfig(**json.loads(job.sampling))
    assert asked == at_quality(server.site.pipe.config.sampling, "draft") and asked.dials


def test_a_picture_that_was_chosen_can_be_taken_away_again(page: Any, server: Any) -> None:
    before = page.inner_text("#shown")
    assert page.is_hidden("#without")
    page.set_input_files("#file", {"name": "start.png", "mimeType": "image/png", "buffer": png()})
    assert page.locator("#shown img").count() == 1
    page.click("#without")
    assert page.inner_text("#shown") == before and page.is_hidden("#without")
    page.fill("#prompt", "a red circle falls")
    page.click("#make")
    assert page.inner_text("#file-wrong").startswith("Choose a picture first")
    ask(page)
    page.wait_for_selector("#working:not([hidden]), #video")
