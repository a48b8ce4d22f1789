"""The page in a real browser: scrubbed by keyboard and pointer, no wider than a phone, and nothing in it acts."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from trainer.core.progress import Silence
from trainer.reporting.page import write_report
from trainer.reporting.record import RunRecord

playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install playwright")

MakeRun = Callable[..., Path]
Open = Callable[..., Any]
pytestmark = pytest.mark.slow
EVIL = ("<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "</script><script>alert(1)</script>")
PROGRAM = shutil.which("chromium") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium without a window; that of the system where there is one."""
    with playwright.sync_playwright() as driver:
        flags = ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
        try:
            one = driver.chromium.launch(executable_path=PROGRAM, args=flags)
        except playwright.Error:
            pytest.skip("there is no Chromium here: playwright install chromium")
        yield one
        one.close()


@pytest.fixture
def shown(browser: Any) -> Iterator[Open]:
    """Opens the page of a run; at the end, it has asked for nothing, shown no dialog and logged no error."""
    troubles: list[str] = []
    contexts: list[Any] = []

    def make(root: Path, **wishes: Any) -> Any:
        path = root / "report.html"
        write_report(RunRecord.read(root), path, Silence(), examined=False)
        contexts.append(browser.new_context(**{"viewport": {"width": 1200, "height": 900}, **wishes}))
        tab = contexts[-1].new_page()
        listen(tab, path, troubles)
        tab.goto(path.as_uri())
        tab.wait_for_timeout(100)
        return tab

    yield make
    for context in contexts:
        context.close()
    assert troubles == []


def listen(tab: Any, path: Path, troubles: list[str]) -> None:
    """Note whatever a page does that it should not."""

    def logged(message: Any) -> None:
        troubles.append(message.text)

    def failed(error: Any) -> None:
        troubles.append(str(error))

    def asked(dialog: Any) -> None:
        troubles.append("a dialog")
        dialog.dismiss()

    def requested(request: Any) -> None:
        if request.url != path.as_uri() and not request.url.startswith("data:"):
            troubles.append(f"a request: {request.url}")

    for event, heard in (("console", logged), ("pageerror", failed), ("dialog", asked), ("request", requested)):
        tab.on(event, heard)


def picture(tab: Any, place: int = 0) -> str:
    return tab.locator(".film .now img").nth(place).get_attribute("src")


def frames(tab: Any, place: int = 0) -> dict[str, Any]:
    return json.loads(tab.locator(f"#film-{place}").text_content())


def test_previews_are_scrubbed_by_keyboard_and_pointer(run_folder: MakeRun, shown: Open) -> None:
    tab = shown(run_folder(drawn=(0, 10, 20, 30, 40)))
    pictures = frames(tab)["pictures"]
    assert picture(tab) == pictures[3]
    slider = tab.locator(".film input").first
    slider.focus()
    for key, place in (("ArrowLeft", 2), ("Home", 0), ("ArrowRight", 1), ("End", 3)):
        tab.keyboard.press(key)
        assert picture(tab) == pictures[place]
        assert slider.get_attribute("aria-valuetext") == f"step {(place + 1) * 10}"
    assert picture(tab, 1) == frames(tab, 1)["pictures"][3]

    tab.locator("#master").focus()
    tab.keyboard.press("Home")
    assert [picture(tab, place) for place in (0, 1)] == [frames(tab, place)["pictures"][0] for place in (0, 1)]
    assert tab.locator("#at").text_content() == "step 10"

    box = tab.locator(".film .now img").first.bounding_box()
    middle = box["y"] + box["height"] / 2
    tab.mouse.move(box["x"] + 2, middle)
    tab.mouse.down()
    tab.mouse.move(box["x"] + box["width"] * 0.66, middle)
    assert picture(tab) == pictures[2]
    tab.mouse.up()
    tab.mouse.move(box["x"] + 2, middle)
    assert picture(tab) == pictures[2]


def test_curves_are_drawn_and_smoothed(run_folder: MakeRun, shown: Open) -> None:
    tab = shown(run_folder())
    assert tab.locator(".plot canvas").count() == 5
    inked = "canvas => new Set(canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data).size"
    canvas = tab.locator("#plot-loss canvas")
    assert canvas.evaluate(inked) > 2
    before = canvas.evaluate("canvas => canvas.toDataURL()")
    tab.locator("#smoothing").focus()
    for _ in range(10):
        tab.keyboard.press("ArrowRight")
    assert tab.locator("#smoothed").text_content() == "16 %"
    assert canvas.evaluate("canvas => canvas.toDataURL()") != before


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_shows_it_without_scrolling_sideways(
    run_folder: MakeRun, evaluation: dict[str, Any], shown: Open, scheme: str
) -> None:
    root = run_folder(previews={"prompts": ["a_very_long_word" * 40, "b"]}, name="w" * 90)
    (root / "evaluation.json").write_text(json.dumps(evaluation), encoding="utf-8")
    tab = shown(root, viewport={"width": 390, "height": 844}, color_scheme=scheme)
    assert tab.evaluate("document.documentElement.scrollWidth") == 390
    light = tab.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (light == "rgb(251, 250, 247)") == (scheme == "light")
    tab.set_viewport_size({"width": 1200, "height": 900})
    tab.wait_for_timeout(200)
    assert tab.locator("#plot-loss .uplot").bounding_box()["width"] > 390


def test_hostile_words_do_nothing(run_folder: MakeRun, evaluation: dict[str, Any], shown: Open) -> None:
    evaluation["runs"][0]["findings"] = [{"what": words, "names": [words]} for words in EVIL]
    root = run_folder(previews={"prompts": list(EVIL)}, prompts=3)
    (root / "evaluation.json").write_text(json.dumps(evaluation), encoding="utf-8")
    tab = shown(root)
    tab.locator("#master").focus()
    tab.keyboard.press("Home")
    assert tab.locator(".film figcaption").first.text_content() == EVIL[0]
    assert tab.evaluate("document.querySelectorAll('script').length") == 2 + 2 + 3


def test_it_can_be_printed(run_folder: MakeRun, shown: Open) -> None:
    tab = shown(run_folder(), color_scheme="dark")
    paper = tab.pdf(format="A4")
    assert paper.startswith(b"%PDF")
    tab.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert tab.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(251, 250, 247)"
    tab.evaluate("dispatchEvent(new Event('afterprint'))")
    assert tab.evaluate("getComputedStyle(document.body).backgroundColor") != "rgb(251, 250, 247)"
