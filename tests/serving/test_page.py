"""The page in a browser: a prompt is typed, pictures are seen, the slider moves, a vote is kept."""

import itertools
import json
import os
import subprocess
import time

import pytest

from fewstep.jobs.align.votes import read_votes
from fewstep.serving.models import served_models

from .test_app import serving, when_ready


class Browser:
    """Chromium, told by its debugging protocol over two pipes."""

    def __init__(self, chromium, folder):
        there, self._out = os.pipe()
        self._in, back = os.pipe()

        def pipes():  # Chromium reads from 3 and writes to 4
            os.dup2(there, 63), os.dup2(back, 64)
            os.dup2(63, 3), os.dup2(64, 4)

        flags = "--headless --no-sandbox --disable-gpu --remote-debugging-pipe --no-first-run --disable-sync"
        quiet = "--disable-background-networking --disable-component-update"
        self._process = subprocess.Popen(
            [chromium, *flags.split(), *quiet.split(), f"--user-data-dir={folder}", "about:blank"],
            preexec_fn=pipes, close_fds=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(there), os.close(back)
        self._count, self._session, self._rest = itertools.count(1), None, b""
        target = next(t for t in self.tell("Target.getTargets")["targetInfos"] if t["type"] == "page")
        self._session = self.tell("Target.attachToTarget", targetId=target["targetId"], flatten=True)["sessionId"]

    def tell(self, method, **params):
        number = next(self._count)
        message = {"id": number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while True:
            while b"\0" not in self._rest:
                part = os.read(self._in, 1 << 16)
                assert part, "the browser has gone"
                self._rest += part
            line, _, self._rest = self._rest.partition(b"\0")
            found = json.loads(line)
            if found.get("id") == number:
                assert "error" not in found, found
                return found["result"]

    def value(self, script):
        found = self.tell("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def until(self, script, seconds=60):
        end = time.monotonic() + seconds
        while not (found := self.value(script)):
            assert time.monotonic() < end, f"never true: {script}"
            time.sleep(0.05)
        return found

    def close(self):
        self._process.kill()
        self._process.wait()
        os.close(self._in), os.close(self._out)


@pytest.mark.browser
def test_a_visitor_draws_looks_and_votes(tmp_path, chromium):
    columns = served_models("emoji-student", "w8a8", steps=2)
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
            for kind in ("keyDown", "keyUp"):
                browser.tell("Input.dispatchKeyEvent", type=kind, key="2")
            browser.until("document.querySelectorAll('figure')[1].classList.contains('chosen')")
        finally:
            browser.close()
        prompts, chosen, _ = read_votes(str(tmp_path / "votes.jsonl"), 64)
    assert set(prompts) == {"red heart"}
    assert len(chosen) == 3
