"""The dashboard over real HTTP: in a thread of the test, or in a process as people start it."""

from __future__ import annotations

import asyncio
import re
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import httpx

from daemon.cli.dashboard.guard import Access
from daemon.cli.dashboard.serve import bound, serve_on

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable, Iterator

    from tests.support.cli import Cli


@contextmanager
def dashboard(
    url: str,
    *,
    token: str | None = None,
    names: tuple[str, ...] = (),
    clock: Callable[[], float] = time.time,
) -> Iterator[str]:
    """Serve the dashboard of a database and give its address; `clock` says when logins end."""
    ready = threading.Event()
    held: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = []

    async def serve() -> None:
        stop = asyncio.Event()
        held.append((asyncio.get_running_loop(), stop))
        ready.set()
        await serve_on(url, listener, Access(frozenset(names), token, clock), stop)

    with bound("127.0.0.1", 0) as listener:
        thread = threading.Thread(target=lambda: asyncio.run(serve()))
        thread.start()
        try:
            assert ready.wait(20)
            # The socket listens already: a first request waits until it is served.
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            loop, stop = held[0]
            loop.call_soon_threadsafe(stop.set)
            thread.join(20)
    assert not thread.is_alive()


@contextmanager
def dashboard_process(
    cli: Cli, *arguments: object, **settings: object
) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """Start `fullpass dashboard` on a free port; give its address and the process."""
    output = cli.folder / "output.txt"
    process = cli.start("dashboard", "--port", 0, *arguments, **settings)
    try:
        deadline = time.monotonic() + 30
        while (at := re.search(r"dashboard on (http://[^ /]+)/", output.read_text())) is None:
            assert process.poll() is None, output.read_text()
            assert time.monotonic() < deadline, output.read_text()
            time.sleep(0.02)  # polled until the deadline
        yield at[1].replace("0.0.0.0", "127.0.0.1"), process
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()


def quickest_ms(url: str, *, limit_ms: float) -> tuple[float, int]:
    """Ask for a page nine times, or until it is quick enough; give the best time and its bytes."""
    best, size = float("inf"), 0
    with httpx.Client(verify=False) as client:
        for turn in range(60):
            if turn >= 9 and best <= limit_ms:
                break
            started = time.perf_counter()
            answer = client.get(url)
            best = min(best, (time.perf_counter() - started) * 1000)
            assert answer.status_code == 200, answer.text
            size = len(answer.content)
    return best, size
