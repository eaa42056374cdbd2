"""A browser for tests of pages."""

import itertools
import json
import os
import subprocess
import time


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
        self.tell("Emulation.setFocusEmulationEnabled", enabled=True)

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

    def press(self, key, code=0):
        for kind in ("keyDown", "keyUp"):
            self.tell("Input.dispatchKeyEvent", type=kind, key=key, windowsVirtualKeyCode=code)

    def close(self):
        self._process.kill()
        self._process.wait()
        os.close(self._in), os.close(self._out)
