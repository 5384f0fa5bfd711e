"""A real browser without a driver: Chromium, spoken to over a pipe in its own DevTools protocol.

Found by CHROMIUM or on the path; `BROWSER` is None where there is none, and the tests that need one
say so. Each `Tab` is a private context of its own.
"""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

BROWSER = os.environ.get("CHROMIUM") or next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
_PATIENCE_SECONDS = 30.0
_OPTIONS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--hide-scrollbars", "--remote-debugging-pipe",
)  # fmt: skip


class Browser:
    """A running Chromium; `command` waits for its answer, and keeps what it tells meanwhile."""

    def __init__(self, orders: int, answers: int) -> None:
        self._orders = orders
        self._answers = answers
        self._read = b""
        self._last = 0
        self.events: list[dict[str, Any]] = []

    def command(self, method: str, session: str | None = None, **params: Any) -> dict[str, Any]:
        """Send one command and return its result."""
        self._last += 1
        order: dict[str, Any] = {"id": self._last, "method": method, "params": params}
        if session is not None:
            order["sessionId"] = session
        os.write(self._orders, json.dumps(order).encode() + b"\0")
        while True:
            told = self._next()
            if told.get("id") == self._last:
                assert "error" not in told, (method, told["error"])
                result: dict[str, Any] = told["result"]
                return result
            self.events.append(told)

    def wait_for(self, method: str, session: str) -> dict[str, Any]:
        """Return the first event of this kind, told already or to come."""
        while True:
            for event in self.events:
                if event.get("method") == method and event.get("sessionId") == session:
                    self.events.remove(event)
                    return event
            self.events.append(self._next())

    def _next(self) -> dict[str, Any]:
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while b"\0" not in self._read:
            left = deadline - time.monotonic()
            ready, _, _ = select.select([self._answers], [], [], max(0.0, left))
            assert ready, "the browser does not answer"
            part = os.read(self._answers, 1 << 20)
            assert part, "the browser ended"
            self._read += part
        told, _, self._read = self._read.partition(b"\0")
        event: dict[str, Any] = json.loads(told)
        return event


@contextmanager
def browser(folder: Path) -> Iterator[Browser]:
    """Start Chromium with a fresh profile in `folder`."""
    assert BROWSER is not None
    its_orders, orders = os.pipe()
    answers, its_answers = os.pipe()
    # It reads descriptor 3 and writes 4; a shell that knows two-digit ones puts them there.
    process = subprocess.Popen(
        ["bash", "-c", f'exec "$@" 3<&{its_orders} 4>&{its_answers}', "bash", BROWSER, *_OPTIONS,
         f"--user-data-dir={folder}"],
        pass_fds=(its_orders, its_answers), stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    os.close(its_orders)
    os.close(its_answers)
    try:
        yield Browser(orders, answers)
    finally:
        os.close(orders)
        os.close(answers)
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


class Tab:
    """One page in a private context: nothing of another tab's cookies."""

    def __init__(
        self, shown_in: Browser, *, width: int = 1280, height: int = 900, dark: bool = False,
        script: bool = True,
    ) -> None:  # fmt: skip
        self._browser = shown_in
        context = shown_in.command("Target.createBrowserContext")["browserContextId"]
        target = shown_in.command(
            "Target.createTarget", url="about:blank", browserContextId=context
        )["targetId"]
        attached = shown_in.command("Target.attachToTarget", targetId=target, flatten=True)
        self._session: str = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self._do(f"{domain}.enable")
        self._do(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1,
            mobile=width < 600,
        )  # fmt: skip
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._do("Emulation.setEmulatedMedia", features=[scheme])
        self._do("Emulation.setScriptExecutionDisabled", value=not script)

    def open(self, url: str) -> None:
        """Go to an address and wait until the page is loaded."""
        self._forget("Page.loadEventFired")
        self._do("Page.navigate", url=url)
        self._browser.wait_for("Page.loadEventFired", self._session)

    def evaluate(self, expression: str) -> Any:
        """Return the value of an expression in the page; promises are awaited."""
        found = self._do(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def until(self, expression: str) -> None:
        """Wait until an expression in the page is true."""
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while not self.evaluate(expression):
            assert time.monotonic() < deadline, expression
            time.sleep(0.05)  # polled until the deadline

    def picture(self, *, height: int | None = None) -> bytes:
        """Return the page as a PNG, from its top; so high, or all of it."""
        size = self._do("Page.getLayoutMetrics")["cssContentSize"]
        clip = {
            "x": 0, "y": 0, "width": size["width"], "height": height or size["height"], "scale": 1,
        }  # fmt: skip
        taken = self._do(
            "Page.captureScreenshot", format="png", captureBeyondViewport=True, clip=clip
        )
        return base64.b64decode(taken["data"])

    def complaints(self) -> list[str]:
        """Return what the browser complained of so far: refused loads, errors of scripts."""
        told = []
        for event in self._browser.events:
            if event.get("sessionId") != self._session:
                continue
            if event["method"] == "Log.entryAdded":
                told.append(event["params"]["entry"]["text"])
            elif event["method"] == "Runtime.exceptionThrown":
                told.append(str(event["params"]["exceptionDetails"]))
        return told

    def asked_for(self) -> list[str]:
        """Return every address that the page asked for so far."""
        return [
            event["params"]["request"]["url"]
            for event in self._browser.events
            if event.get("sessionId") == self._session
            and event["method"] == "Network.requestWillBeSent"
        ]

    def heard(self) -> list[tuple[str, str]]:
        """Return the page as those who hear it meet it: each node's role and name."""
        nodes = self._do("Accessibility.getFullAXTree")["nodes"]
        return [
            (node["role"]["value"], node.get("name", {}).get("value", ""))
            for node in nodes
            if not node.get("ignored")
        ]

    def _forget(self, method: str) -> None:
        self._browser.events = [
            e
            for e in self._browser.events
            if (e.get("method"), e.get("sessionId")) != (method, self._session)
        ]

    def _do(self, method: str, **params: Any) -> dict[str, Any]:
        return self._browser.command(method, self._session, **params)
