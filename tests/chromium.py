"""A headless Chromium that a test looks at and types into, over the DevTools protocol on two pipes.

    with Chromium(folder) as browser:
        page = browser.open("http://127.0.0.1:8000/")
        page.wait("document.querySelector('.hit')")
        page.press("j")

Chromium resolves no other name than 127.0.0.1, so a page that asked somebody else would fail.
"""

import base64
import itertools
import json
import os
import subprocess
import time
from contextlib import suppress
from pathlib import Path

from parity.javascript import browser

KEYS = {"ArrowDown": 40, "ArrowUp": 38, "ArrowLeft": 37, "ArrowRight": 39, "Enter": 13, "Escape": 27, "Tab": 9}


class Chromium:
    """One process. `events` are what pages said that nobody asked for, such as console messages."""

    def __init__(self, folder: Path) -> None:
        command = [
            browser(), "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
            "--remote-debugging-pipe", f"--user-data-dir={folder / 'chromium'}",
            "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1", "about:blank",
        ]  # fmt: skip
        (child_in, self._out), (self._in, child_out) = os.pipe(), os.pipe()
        # Chromium reads from descriptor 3 and writes to 4. Those may be taken here, so a shell moves them.
        shell = f'exec "$0" "$@" 3<&{child_in} 4>&{child_out}'
        with (folder / "chromium.log").open("wb") as log:
            self._process = subprocess.Popen(
                ["bash", "-c", shell, *command], pass_fds=(child_in, child_out), stdout=log, stderr=log
            )
        os.close(child_in)
        os.close(child_out)
        self._numbers, self._rest, self.events = itertools.count(1), b"", []

    def __enter__(self):
        return self

    def __exit__(self, *error):
        with suppress(OSError):
            self.send("Browser.close")
        self._process.wait(timeout=20)
        os.close(self._in)
        os.close(self._out)

    def send(self, method, session=None, **parameters):
        """The result of one command."""
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": parameters} | ({"sessionId": session} if session else {})
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._read()
            if answer.get("id") == number:
                assert "error" not in answer, f"{method}: {answer['error']}"
                return answer["result"]
            self.events.append(answer)

    def _read(self):
        while b"\0" not in self._rest:
            chunk = os.read(self._in, 1 << 16)
            assert chunk, "Chromium ended"
            self._rest += chunk
        message, _, self._rest = self._rest.partition(b"\0")
        return json.loads(message)

    def open(self, url, *, width=1200, height=900, scheme="light"):
        """A page in a window of its own."""
        page = Page(self)
        page.send(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        page.send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        page.go(url)
        return page


class Page:
    """A tab."""

    def __init__(self, chromium):
        self.chromium = chromium
        context = chromium.send("Target.createBrowserContext")["browserContextId"]
        target = chromium.send("Target.createTarget", url="about:blank", browserContextId=context)["targetId"]
        self._session = chromium.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.send(f"{domain}.enable")
        self.send("Emulation.setFocusEmulationEnabled", enabled=True)

    def send(self, method, **parameters):
        """The result of one command about this page."""
        return self.chromium.send(method, self._session, **parameters)

    def go(self, url):
        """Loads `url`."""
        self.send("Page.navigate", url=url)
        self.wait("document.readyState === 'complete' && location.href !== 'about:blank'")

    def value(self, expression):
        """What a JavaScript expression is worth, as JSON; promises are awaited."""
        found = self.send("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def wait(self, expression, seconds=10):
        """Waits until an expression is true, and returns what it is worth."""
        end = time.monotonic() + seconds
        while not (
            found := self.value(f"(() => {{ const found = ({expression}); return found instanceof Node || found; }})()")
        ):
            assert time.monotonic() < end, f"never: {expression}\n{self.value('document.body?.innerText')}"
            time.sleep(0.01)
        return found

    def type(self, text):
        """Inserts text where the focus is, as an input method does."""
        self.send("Input.insertText", text=text)

    def press(self, key):
        """One key, down and up."""
        code = {"windowsVirtualKeyCode": KEYS.get(key) or ord(key.upper())}
        text = {"Enter": "\r"}.get(key, key if len(key) == 1 else "")
        self.send("Input.dispatchKeyEvent", type="keyDown", key=key, text=text, **code)
        self.send("Input.dispatchKeyEvent", type="keyUp", key=key, **code)

    def screenshot(self, path):
        """What is seen, as PNG."""
        path.write_bytes(base64.b64decode(self.send("Page.captureScreenshot")["data"]))
