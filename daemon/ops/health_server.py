"""A port that a platform, a probe and Prometheus may ask: /healthz, /readyz, /metrics.

Runs on a thread and a loop of its own, so that it answers, truthfully, while the worker's loop is
blocked, and so that no visitor can slow the worker down. Promises to read nothing but the first
lines of a request, to hold no connection longer than a few seconds and no more than a few of them,
and to change nothing. Leaves what the answers say to `vital_signs` and `metrics`.
"""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING

from daemon.errors import UsageError
from daemon.logs import get_logger
from daemon.ops.metrics import Metrics

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from daemon.ops.vital_signs import Sign, VitalSigns
    from daemon.settings import Settings

_log = get_logger()

HEAD_BYTES = 8 * 1024
CONNECTIONS = 32
EXCHANGE_SECONDS = 3.0
"""For a whole exchange: a request that trickles in, or an answer that nobody fetches, ends then."""
_READ_AFTERWARDS_BYTES = 64 * HEAD_BYTES
_JSON = "application/json"
_TEXT = "text/plain; charset=utf-8"


@dataclass(frozen=True, slots=True)
class _Answer:
    status: HTTPStatus
    body: bytes
    content_type: str = _TEXT


@contextmanager
def health_port(settings: Settings, signs: VitalSigns) -> Iterator[None]:
    """Answer on HEALTH_PORT, where that is set, for as long as this is open.

    Raises UsageError when the port cannot be had: a worker that its platform cannot probe would be
    taken for dead.
    """
    if settings.health_port is None:
        yield
        return
    with _bound(settings.health_port) as listener:
        server = _HealthServer(listener, signs)
        server.start()
        _log.info("health.listening", port=settings.health_port)
        try:
            yield
        finally:
            server.stop()


def _bound(port: int) -> socket.socket:
    """Bind on every interface: whoever probes comes from outside."""
    both = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both else socket.AF_INET
    try:
        return socket.create_server(("", port), family=family, backlog=64, dualstack_ipv6=both)
    except OSError as error:
        raise UsageError(
            f"HEALTH_PORT: port {port} cannot be listened on ({error.strerror}); free it, choose "
            "another, or set HEALTH_PORT=off"
        ) from error


class _HealthServer:
    """Serves from `start()` to `stop()`."""

    def __init__(self, listener: socket.socket, signs: VitalSigns) -> None:
        self._listener = listener
        self._signs = signs
        self._metrics = Metrics(signs)
        self._open: dict[asyncio.Task[None], None] = {}  # in order of arrival
        self._loop = asyncio.new_event_loop()
        self._stopping = asyncio.Event()
        self._thread = threading.Thread(target=self._run, name="health", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        with suppress(RuntimeError):  # it ended by itself, and said so
            self._loop.call_soon_threadsafe(self._stopping.set)
        self._thread.join(timeout=2)

    def _run(self) -> None:
        try:
            self._loop.run_until_complete(self._serve())
        except Exception:  # noqa: BLE001 - a worker goes on without being asked how it is
            _log.exception("health.broken")
        finally:
            self._loop.close()

    async def _serve(self) -> None:
        server = await asyncio.start_server(self._visit, sock=self._listener, limit=HEAD_BYTES)
        await self._stopping.wait()
        server.close()
        for task in self._open:
            task.cancel()
        await asyncio.gather(*self._open, return_exceptions=True)

    async def _visit(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection, which is for one request."""
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - the server runs each visit as one
        # Room for the newest: a probe is done in a moment, what has been here longest only sits.
        for oldest in list(self._open)[: len(self._open) - CONNECTIONS + 1]:
            del self._open[oldest]
            oldest.cancel()
        self._open[task] = None
        try:
            async with asyncio.timeout(EXCHANGE_SECONDS):
                await self._exchange(reader, writer)
        except (OSError, TimeoutError, asyncio.IncompleteReadError):
            return  # the visitor's own business
        except asyncio.CancelledError:
            return  # the server stops, or needs the place
        finally:
            self._open.pop(task, None)
            writer.transport.abort()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head_only = False
        try:
            first = await _first_line(reader)
        except asyncio.LimitOverrunError:
            answer = _plain(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
        else:
            method, path = _asked(first)
            head_only = method == "HEAD"
            try:
                answer = await self._answer(method, path)
            except Exception:  # noqa: BLE001 - a defect must not look like a dead worker
                _log.exception("health.unanswered", path=path)
                answer = _plain(HTTPStatus.INTERNAL_SERVER_ERROR)
        head = (
            f"HTTP/1.1 {answer.status.value} {answer.status.phrase}\r\n"
            f"Content-Type: {answer.content_type}\r\n"
            f"Content-Length: {len(answer.body)}\r\n"
            "Cache-Control: no-store\r\n"
            "Connection: close\r\n\r\n"
        )
        writer.write(head.encode() + (b"" if head_only else answer.body))
        writer.write_eof()
        await writer.drain()
        # What was sent is on its way only when the visitor has closed too; an abort would take it
        # back. Nothing of what still comes is kept, and of who never ends nothing more is read.
        left = _READ_AFTERWARDS_BYTES
        while left > 0 and (more := await reader.read(HEAD_BYTES)):
            left -= len(more)

    async def _answer(self, method: str, path: str) -> _Answer:
        if method not in {"GET", "HEAD"}:
            return _plain(HTTPStatus.METHOD_NOT_ALLOWED if method else HTTPStatus.BAD_REQUEST)
        match path:
            case "/healthz":
                return _told(self._signs.alive())
            case "/readyz":
                return _told(self._signs.ready())
            case "/metrics":
                body, content_type = await self._metrics.page()
                return _Answer(HTTPStatus.OK, body, content_type)
        return _plain(HTTPStatus.NOT_FOUND)


async def _first_line(reader: asyncio.StreamReader) -> bytes:
    """Read a request's head and return its first line. Raises LimitOverrunError."""
    first = await reader.readuntil(b"\n")
    left = HEAD_BYTES - len(first)
    while (line := await reader.readuntil(b"\n")).strip():
        left -= len(line)
        if left < 0:
            raise asyncio.LimitOverrunError("the head is too long", HEAD_BYTES)
    return first


def _asked(line: bytes) -> tuple[str, str]:
    """Return method and path of a request's first line; empty texts when it is none."""
    words = line.decode("ascii", "replace").split()
    if len(words) != 3 or not words[2].startswith("HTTP/1."):
        return "", ""
    return words[0], words[1].partition("?")[0]


def _plain(status: HTTPStatus) -> _Answer:
    return _Answer(status, f"{status.phrase}\n".encode())


def _told(signs: Sequence[Sign]) -> _Answer:
    well = all(sign.well for sign in signs)
    body = {"ok": well, "signs": {s.name: {"ok": s.well, "says": s.said} for s in signs}}
    status = HTTPStatus.OK if well else HTTPStatus.SERVICE_UNAVAILABLE
    return _Answer(status, json.dumps(body).encode() + b"\n", _JSON)
