"""Drives Chromium without a window over its DevTools protocol, through a pipe.

with chromium() as browser:
    with browser.open("http://127.0.0.1:8000/") as page:
        page.run("document.title")
"""

import base64
import contextlib
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome")
SECONDS = 60.0
ELSEWHERE = "elsewhere.test"
"""A name of this machine that browsers do not take for it: its pages are not secure."""
ARGUMENTS = (
    "--headless",
    "--remote-debugging-pipe",
    "--no-sandbox",  # which root cannot have
    "--no-first-run",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--hide-scrollbars",
    f"--host-resolver-rules=MAP {ELSEWHERE} 127.0.0.1",
)


def find() -> str | None:
    """The path of the browser, or None where there is none."""
    return next(filter(None, map(shutil.which, NAMES)), None)


class Browser:
    """A running browser."""

    def __init__(self, read: int, write: int) -> None:
        self._read, self._write = read, write
        self._rest = b""
        self._count = 0
        self.events: list[dict[str, Any]] = []

    def send(self, method: str, session: str | None = None, **params: Any) -> dict[str, Any]:
        """Call a method of the protocol and return its result."""
        self._count += 1
        message = {"id": self._count, "method": method, "params": params}
        if session:
            message["sessionId"] = session
        content = json.dumps(message).encode() + b"\0"
        while content:
            content = content[os.write(self._write, content) :]
        number = self._count
        while True:
            answer = self._receive()
            if answer.get("id") == number:
                assert "error" not in answer, f"{method}: {answer['error']}"
                return dict(answer["result"])
            self.events.append(answer)

    def _receive(self) -> dict[str, Any]:
        end = time.monotonic() + SECONDS
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._read], [], [], max(0.0, end - time.monotonic()))
            piece = os.read(self._read, 1 << 20) if ready else b""
            assert piece, "the browser does not answer"
            self._rest += piece
        message, _, self._rest = self._rest.partition(b"\0")
        return dict(json.loads(message))

    @contextlib.contextmanager
    def open(self, url: str, **emulated: Any) -> Iterator["Page"]:
        """A new tab with a page, closed with the block; `emulated` is its width and so on."""
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        page = Page(self, session)
        for domain in ("Page", "Runtime", "Log"):
            page.send(f"{domain}.enable")
        page.look_like(**emulated)
        page.send("Page.navigate", url=url)
        yield page
        self.send("Target.closeTarget", targetId=target)


class Page:
    """A tab."""

    def __init__(self, browser: Browser, session: str) -> None:
        self._browser, self._session = browser, session

    def send(self, method: str, **params: Any) -> dict[str, Any]:
        """Call a method of the protocol for this tab."""
        return self._browser.send(method, self._session, **params)

    def look_like(
        self, width: int = 1280, height: int = 900, *, dark: bool = False, phone: bool = False
    ) -> None:
        """Take the size and the colours of a screen."""
        self.send(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=2 if phone else 1,
            mobile=phone,
        )
        self.send("Emulation.setTouchEmulationEnabled", enabled=phone)
        features = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.send("Emulation.setEmulatedMedia", features=features)

    def run(self, script: str) -> Any:
        """The value of an expression, of its promise as well; AssertionError for what it throws."""
        found = self.send(
            "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True
        )
        thrown = found.get("exceptionDetails")
        assert thrown is None, thrown.get("exception", {}).get("description", thrown["text"])
        return found["result"].get("value")

    def wait(self, condition: str) -> None:
        """Look again and again until an expression is true."""
        end = time.monotonic() + SECONDS
        while not self.run(condition):
            assert time.monotonic() < end, f"{condition} never became true"
            time.sleep(0.02)

    def errors(self) -> list[str]:
        """What the page said of errors, violated policies and failed requests, so far."""
        self.run("0")
        found = []
        for event in self._browser.events:
            if event.get("sessionId") != self._session:
                continue
            method, params = event["method"], event["params"]
            if method == "Log.entryAdded" and params["entry"]["level"] == "error":
                found.append(f"{params['entry']['text']} {params['entry'].get('url', '')}")
            if method == "Runtime.exceptionThrown":
                found.append(str(params["exceptionDetails"]))
            if method == "Runtime.consoleAPICalled" and params["type"] == "error":
                found.append(" ".join(str(one.get("value", "")) for one in params["args"]))
        return found

    def screenshot(self, path: Path) -> None:
        """Save what is to be seen as a PNG."""
        content = self.send("Page.captureScreenshot", format="png")["data"]
        path.write_bytes(base64.b64decode(content))


@contextlib.contextmanager
def chromium(program: str | None = None) -> Iterator[Browser]:
    """A browser with a new profile, which ends with the block."""
    ours, write = os.pipe()
    read, theirs = os.pipe()
    with tempfile.TemporaryDirectory() as profile:
        command = [program or find() or "chromium", *ARGUMENTS, f"--user-data-dir={profile}"]
        # The protocol is spoken on the descriptors 3 and 4.
        script = f'exec 30<&{ours} 31>&{theirs}; exec "$@" 3<&30 4>&31 30<&- 31>&-'
        process = subprocess.Popen(
            ["bash", "-c", script, "bash", *command, "about:blank"],
            pass_fds=(ours, theirs),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        os.close(ours)
        os.close(theirs)
        browser = Browser(read, write)
        try:
            yield browser
        finally:
            with contextlib.suppress(AssertionError, OSError):
                browser.send("Browser.close")
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(10)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, 9)
            process.wait()
            os.close(read)
            os.close(write)
