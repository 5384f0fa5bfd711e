"""A loopback server as a process of its own: its main loop, and how a test starts and steers one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import httpx
import msgspec

if TYPE_CHECKING:
    from tests.support.loopback import LoopbackServer


def serve_until_signalled(server: LoopbackServer, *, with_parent: bool) -> None:
    """Start, print the URL as one line, serve until SIGTERM or SIGINT (or the parent's end)."""
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    parent = os.getppid()
    with server:
        sys.stdout.write(server.url + "\n")
        sys.stdout.flush()
        # The wait is cut in seconds to notice an orphan: a test killed with -9 cannot stop us.
        while not stop.wait(1.0):
            if with_parent and os.getppid() != parent:
                return


class ServerProcess:
    """A loopback server in a process of its own, steered through its control endpoint.

    `ServerProcess("tests.support.anthropic_server", "--record", path)` as a context manager.
    """

    def __init__(self, module: str, *arguments: str) -> None:
        self._command = [sys.executable, "-m", module, "--with-parent", *arguments]
        self.url = ""
        self.process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        root = Path(__file__).resolve().parents[2]
        self.process = subprocess.Popen(
            self._command, stdout=subprocess.PIPE, text=True, cwd=root, start_new_session=True
        )
        assert self.process.stdout is not None
        self.url = self.process.stdout.readline().strip()
        if not self.url:
            self._end()
            raise RuntimeError(f"{' '.join(self._command)} ended before it served")
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def _end(self) -> None:
        assert self.process is not None
        self.process.terminate()
        self.process.wait(10)
        assert self.process.stdout is not None
        self.process.stdout.close()

    def control(self, **order: object) -> dict[str, Any]:
        """POST /control and give the answer; raises with the server's words when refused."""
        return self._call("POST", "/control", order)

    def wait_until(self, *, timeout_seconds: float = 10.0, **counts: int) -> None:
        """Wait for `in_flight=`, `calls=` or `completed=` at least that many."""
        order = {"timeout_seconds": timeout_seconds, **counts}
        self._call("POST", "/control/wait", order, timeout_seconds=timeout_seconds + 5)

    def record(self) -> dict[str, Any]:
        """GET /control/record."""
        return self._call("GET", "/control/record", None)

    def _call(
        self, method: str, path: str, body: object, *, timeout_seconds: float = 10.0
    ) -> dict[str, Any]:
        content = None if body is None else msgspec.json.encode(body)
        with httpx.Client(trust_env=False, timeout=timeout_seconds) as client:
            answer = client.request(method, self.url + path, content=content)
        if answer.status_code != 200:
            raise RuntimeError(f"{method} {path}: {answer.status_code} {answer.text}")
        value: dict[str, Any] = answer.json()
        return value
