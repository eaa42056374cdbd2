"""The page in a browser: a prompt is typed, pictures are seen, the slider moves, a vote is kept."""

import pytest
import torch

from fewstep.jobs.align.votes import read_votes
from fewstep.serving.models import Served, served

from ..browsing import Browser
from .test_app import Drawing, serving, when_ready


@pytest.mark.browser
def test_a_visitor_draws_looks_and_votes(tmp_path, chromium):
    columns = served("emoji-student", "w8a8", steps=2)
    with serving(lambda: columns, tmp_path / "votes.jsonl") as base:
        browser = Browser(chromium, tmp_path / "profile")
        try:
            browser.tell("Page.navigate", url=when_ready(base))
            browser.until("document.readyState === 'complete' && !!document.getElementById('prompt')")
            browser.value("document.getElementById('prompt').select(), document.getElementById('prompt').focus()")
            browser.tell("Input.insertText", text="red heart")
            browser.value("document.getElementById('previews').click(), document.getElementById('draw').click()")
            images = "[...document.querySelectorAll('figure img')]"
            browser.until(f"{images}.length === 4 && {images}.every(i => i.naturalWidth === 64)")
            assert "red heart" in browser.value("document.getElementById('status').textContent")
            first = browser.value(f"{images}[0].src")
            slide = "s = document.getElementById('slider'); s.value = 1; s.dispatchEvent(new Event('input'))"
            browser.value(slide)
            assert browser.value(f"{images}[0].src") != first
            for kind in ("keyDown", "keyUp"):
                browser.tell("Input.dispatchKeyEvent", type=kind, key="2", text="2" if kind == "keyDown" else "")
            typed = browser.value("document.getElementById('prompt').value")
            assert typed == "red heart2"  # in the field a digit is a digit
            browser.value("document.activeElement.blur()")
            browser.press("2")
            browser.until("document.querySelectorAll('figure')[1].classList.contains('chosen')")
        finally:
            browser.close()
        prompts, chosen, _ = read_votes(str(tmp_path / "votes.jsonl"), 64)
    assert set(prompts) == {"red heart"}
    assert len(chosen) == 3


@pytest.mark.browser
def test_a_visitor_loads_a_point_of_the_front(tmp_path, chromium):
    point = {"plan": "own 2", "bytes": 1e6, "milliseconds": 30.0, "distance": 0.2, "chosen": False}
    points = [{**point, "name": "4 x none", "chosen": True}, {**point, "name": "2 x w4a8", "distance": 0.5}]

    def drawing(name):
        model = Drawing(lambda prompt: torch.zeros(1, 3, 8, 8))
        object.__setattr__(model, "name", name)
        return model

    found = Served([drawing("chosen")], points, lambda k: drawing(points[k]["name"]))
    with serving(lambda: found, tmp_path / "votes.jsonl") as base:
        browser = Browser(chromium, tmp_path / "profile")
        try:
            browser.tell("Page.navigate", url=when_ready(base))
            browser.until("document.querySelectorAll('#plot circle').length === 2")
            browser.value("document.querySelectorAll('#plot circle')[1].focus()")
            assert "2 x w4a8: 30 ms" in browser.value("document.getElementById('about').textContent")
            browser.press("Enter", 13)
            browser.until("document.querySelectorAll('figcaption b').length === 2")
            assert "2 x w4a8" in browser.value("document.querySelectorAll('figcaption b')[1].textContent")
        finally:
            browser.close()
