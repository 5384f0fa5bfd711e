"""A small HTTP/1.1 server on loopback whose wire can be made to fail exactly.

It owns sockets, framing (h11), keep-alive, one thread with its own event loop, and the ways a link
breaks: a reset before the reply, a connection closed after N bytes, a stall, a trickle, a lying
Content-Length. What is answered belongs to the subclass that implements `handle`. A client that
goes away ends its request at once, so "completely sent" means what it says.

A bug in a subclass is never swallowed: it answers 500 and fails the `with` block of the test.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
import time
import traceback
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self, TypeVar
from urllib.parse import parse_qsl, unquote, urlsplit

import h11
import msgspec

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator, Mapping
    from pathlib import Path
    from types import TracebackType

T = TypeVar("T")

READ_BYTES = 65_536
PIECE_BYTES = 262_144
STATUS_WITHOUT_BODY = frozenset({204, 304})


@dataclass(frozen=True, slots=True)
class Request:
    """One request as it came; header names are lower-case."""

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        """Parse the body; raises `msgspec.DecodeError` when it is no JSON."""
        return msgspec.json.decode(self.body)


@dataclass(frozen=True, slots=True)
class FileSlice:
    """Bytes `start` (inclusive) to `stop` (exclusive) of a file, read as they are sent."""

    path: Path
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True, slots=True)
class Reply:
    """One reply and how the wire treats it. Byte counts are of the body."""

    status: int = 200
    body: bytes | FileSlice = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    reset: bool = False
    """Reset the connection (TCP RST) instead of answering."""
    close_after_bytes: int | None = None
    stall_after_bytes: int | None = None
    stall_seconds: float = 3_600.0
    bytes_per_second: float | None = None
    declared_length: int | None = None
    """A Content-Length that is not the body's; the connection closes after the body."""
    on_sent: Callable[[bool], None] | None = None
    """Told True just before the last byte goes out, so that whoever holds the reply finds it
    recorded, and False when the client had gone or the wire failed, even after a True."""


def json_reply(
    value: object, *, status: int = 200, headers: Mapping[str, str] | None = None
) -> Reply:
    """Answer with a JSON document."""
    return Reply(
        status,
        msgspec.json.encode(value),
        {"content-type": "application/json", **(headers or {})},
    )


class LoopbackServer:
    """Serve `handle` on 127.0.0.1 in a thread; use as a context manager.

    `url` is known once started. `failures` holds the traceback of every bug met while answering.
    """

    def __init__(self, *, port: int = 0) -> None:
        self.url = ""
        self.failures: list[str] = []
        self._port = port
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._started = threading.Event()
        self._start_error: OSError | None = None
        self._stopping = asyncio.Event()
        self._changed = asyncio.Event()
        self._connections: set[asyncio.Task[None]] = set()

    async def handle(self, request: Request) -> Reply:
        """Answer one request; runs on the server's loop."""
        raise NotImplementedError

    # Life

    def start(self) -> Self:
        """Listen and serve in a thread; raises OSError when the port is taken."""
        self._thread = threading.Thread(target=self._run, name=type(self).__name__, daemon=True)
        self._thread.start()
        self._started.wait()
        if self._start_error is not None:
            self._thread.join()
            raise self._start_error
        return self

    def close(self) -> None:
        """Cut every connection and end the thread. Harmless when repeated."""
        if self._loop is None or self._thread is None:
            return
        with contextlib.suppress(RuntimeError):  # the loop has already ended
            self._loop.call_soon_threadsafe(self._stopping.set)
        self._thread.join()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
        if self.failures and error is None:
            raise AssertionError("the loopback server itself failed:\n" + self.failures[0])

    def on_loop(self, coroutine: Coroutine[Any, Any, T], *, timeout_seconds: float | None) -> T:
        """Run a coroutine on the server's loop from another thread and wait for its result."""
        assert self._loop is not None, "the server is not started"
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(timeout_seconds)

    # Waiting for something to become true

    def changed(self) -> None:
        """Wake everyone in `until_true`; call on the loop after any change they may watch."""
        self._changed.set()
        self._changed = asyncio.Event()

    async def until_true(self, predicate: Callable[[], bool], timeout_seconds: float) -> bool:
        """Wait on the loop for the predicate; False when the deadline passed first."""
        deadline = time.monotonic() + timeout_seconds
        while not predicate():
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), left)
        return True

    # The thread

    def _run(self) -> None:
        asyncio.run(self._main())

    async def _main(self) -> None:
        self._loop = asyncio.get_running_loop()
        try:
            server = await asyncio.start_server(
                self._accept, "127.0.0.1", self._port, backlog=1_024
            )
        except OSError as error:
            self._start_error = error
            self._started.set()
            return
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        self._started.set()
        await self._stopping.wait()
        server.close()
        for task in tuple(self._connections):
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.ensure_future(self._connection(reader, writer))
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # High water 0: drain() returns only when the kernel has every byte.
        writer.transport.set_write_buffer_limits(high=0)
        connection = _Connection(self, reader, writer)
        try:
            with contextlib.suppress(ConnectionError, h11.RemoteProtocolError):
                while await connection.exchange():
                    pass
        finally:
            connection.abandon()
            writer.close()


class _Connection:
    """One client's connection: requests in, replies out, its end noticed at any moment."""

    def __init__(
        self, server: LoopbackServer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._server = server
        self._reader = reader
        self._writer = writer
        self._wire = h11.Connection(h11.SERVER)
        self._reading: asyncio.Task[bytes] | None = None

    def abandon(self) -> None:
        if self._reading is not None:
            self._reading.cancel()

    async def exchange(self) -> bool:
        """Serve one request; True when the connection can carry another."""
        request = await self._receive()
        if request is None:
            return False
        serving = asyncio.ensure_future(self._serve(request))
        try:
            await asyncio.wait({serving, self._read_ahead()}, return_when=asyncio.FIRST_COMPLETED)
            if not serving.done() and self._client_left():
                return False
            keep = await serving
        finally:
            if not serving.done():
                serving.cancel()
                await asyncio.gather(serving, return_exceptions=True)
        if not keep or self._wire.our_state is not h11.DONE:
            return False
        if self._wire.their_state is not h11.DONE:
            return False
        self._wire.start_next_cycle()
        return True

    def _read_ahead(self) -> asyncio.Task[bytes]:
        """Give the one pending read: the next request's bytes, or the client's end."""
        if self._reading is None:
            self._reading = asyncio.ensure_future(self._reader.read(READ_BYTES))
        return self._reading

    def _client_left(self) -> bool:
        task = self._reading
        if task is None or not task.done():
            return False
        return task.exception() is not None or task.result() == b""

    async def _receive(self) -> Request | None:
        head: h11.Request | None = None
        body = bytearray()
        while True:
            event = self._wire.next_event()
            if event is h11.NEED_DATA:
                if self._wire.they_are_waiting_for_100_continue:
                    go_on = h11.InformationalResponse(status_code=100, headers=[])
                    self._writer.write(self._wire.send(go_on))
                data = await self._read_ahead()
                self._reading = None
                self._wire.receive_data(data)
            elif isinstance(event, h11.Request):
                head = event
            elif isinstance(event, h11.Data):
                body += event.data
            elif isinstance(event, h11.EndOfMessage):
                assert head is not None
                return _request(head, bytes(body))
            else:
                return None

    async def _serve(self, request: Request) -> bool:
        try:
            reply = await self._server.handle(request)
        except Exception:  # noqa: BLE001 - kept whole in `failures`, which fails the test
            account = traceback.format_exc()
            self._server.failures.append(account)
            reply = Reply(500, account.encode(), {"content-type": "text/plain"})
        complete = False
        try:
            # One turn of the loop: a client's end that already arrived is seen before we send.
            await asyncio.sleep(0)
            complete = not self._client_left() and await self._send(request, reply)
        finally:
            if reply.on_sent is not None and not complete:
                reply.on_sent(False)
        return complete and reply.declared_length is None

    async def _send(self, request: Request, reply: Reply) -> bool:
        if reply.reset:
            self._reset()
            return False
        true_length = len(reply.body)
        length = true_length if reply.declared_length is None else reply.declared_length
        headers = [("content-length", str(length)), *reply.headers.items()]
        if reply.declared_length is not None:
            headers.append(("connection", "close"))
        head = self._wire.send(h11.Response(status_code=reply.status, headers=headers))
        bodiless = request.method == "HEAD" or reply.status in STATUS_WITHOUT_BODY
        sent = 0
        last_byte = 0 if bodiless else true_length
        whole = reply.close_after_bytes is None or reply.close_after_bytes > last_byte
        if reply.on_sent is not None and whole and last_byte == 0:
            reply.on_sent(True)
        self._writer.write(head)
        for piece in () if bodiless else _pieces(reply):
            sent += len(piece)
            if reply.on_sent is not None and whole and piece and sent == last_byte:
                reply.on_sent(True)
            # A lying length would be refused by h11, so those bytes go out as they are.
            lying = reply.declared_length is not None
            self._writer.write(piece if lying else self._wire.send(h11.Data(data=piece)) or b"")
            await self._writer.drain()
            if sent == reply.stall_after_bytes:
                await asyncio.sleep(reply.stall_seconds)  # the fault: a server that falls silent
            if sent == reply.close_after_bytes:
                return False
            if reply.bytes_per_second is not None:
                await asyncio.sleep(len(piece) / reply.bytes_per_second)  # a narrow link
        if reply.declared_length is None:
            self._writer.write(self._wire.send(h11.EndOfMessage()) or b"")
        await self._writer.drain()
        return True

    def _reset(self) -> None:
        raw = self._writer.get_extra_info("socket")
        # Linger of zero seconds: close() sends RST, which the client reads as a reset.
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._writer.transport.abort()


def _request(head: h11.Request, body: bytes) -> Request:
    target = urlsplit(head.target.decode("latin-1"))
    return Request(
        method=head.method.decode("latin-1"),
        path=unquote(target.path),
        query=dict(parse_qsl(target.query, keep_blank_values=True)),
        headers={
            name.decode("latin-1").lower(): value.decode("latin-1") for name, value in head.headers
        },
        body=body,
    )


def _pieces(reply: Reply) -> Iterator[bytes]:
    """Cut the body where the wire is to do something, and otherwise at a comfortable size."""
    size = PIECE_BYTES
    if reply.bytes_per_second is not None:
        size = max(1, min(size, int(reply.bytes_per_second / 20)))
    stops = sorted(
        stop for stop in (reply.close_after_bytes, reply.stall_after_bytes) if stop is not None
    )
    total = len(reply.body)
    at = 0
    # A stop at 0 is met by an empty first piece: the head goes out, then the wire acts.
    if 0 in stops:
        yield b""
    with contextlib.ExitStack() as stack:
        body = reply.body
        file = stack.enter_context(body.path.open("rb")) if isinstance(body, FileSlice) else None
        if file is not None and isinstance(body, FileSlice):
            file.seek(body.start)
        while at < total:
            until = min([at + size, total, *(stop for stop in stops if stop > at)])
            piece = body[at:until] if isinstance(body, bytes) else file.read(until - at)  # type: ignore[union-attr]
            if not piece:
                return
            yield piece
            at += len(piece)
