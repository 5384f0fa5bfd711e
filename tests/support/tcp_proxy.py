"""A TCP proxy whose link can freeze, break and come back: what a network does to Postgres.

with TcpProxy(database_url) as proxy:
    worker = start(proxy.url)
    proxy.freeze()     # accepted, acknowledged, never answered; no FIN
    proxy.reset()      # every link ends by RST, frozen ones too
    proxy.thaw()
    proxy.lose()       # the server is gone: links are reset, and no new one is answered
    proxy.find()       # it is there again
    proxy.swallow()    # what goes there arrives, what comes back does not; until reset()
"""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Self
from urllib.parse import urlsplit, urlunsplit

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

_NOWHERE = ("127.0.0.1", 1)  # a port of the system's own, where nobody listens
_RST = struct.pack("ii", 1, 0)  # SO_LINGER with no time to linger


class TcpProxy:
    """Forwards a loopback port to the host and port of `url`; a context manager."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._target = self._given = (parts.hostname or "127.0.0.1", parts.port or 5432)
        self._parts = parts
        self._loop = asyncio.new_event_loop()
        self._flowing: asyncio.Event | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._thread = threading.Thread(target=self._run, name="tcp-proxy", daemon=True)
        self._started = threading.Event()
        self._stop: asyncio.Event | None = None
        self.port = 0
        self._swallows = False
        self.swallowed = threading.Event()
        """Set once an answer was lost."""

    def __enter__(self) -> Self:
        self._thread.start()
        self._started.wait(10)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._stop is not None:
            self._call(self._stop.set)
        self._thread.join(10)

    @property
    def url(self) -> str:
        """The URL given, by way of this proxy."""
        login = self._parts.netloc.rpartition("@")[0]
        netloc = f"{login}@127.0.0.1:{self.port}" if login else f"127.0.0.1:{self.port}"
        return urlunsplit(self._parts._replace(netloc=netloc))

    def freeze(self) -> None:
        """Forward nothing more, on old links and new ones, and close none."""
        assert self._flowing is not None
        self._call(self._flowing.clear)

    def thaw(self) -> None:
        """Forward again, what was held back first."""
        assert self._flowing is not None
        self._call(self._flowing.set)

    def swallow(self) -> None:
        """Bring the server what it is sent, and lose its answers, until the links are reset."""
        self.swallowed.clear()
        self._swallows = True

    def reset(self) -> None:
        """End every link by RST."""
        self._swallows = False
        self._call(self._reset)

    def lose(self) -> None:
        """Have no server: every link ends by RST, new ones are turned away."""
        self._target = _NOWHERE
        self.reset()

    def find(self) -> None:
        """Have the server again that was given."""
        self._target = self._given

    def retarget(self, url: str) -> None:
        """Send new links to another server, or to the same on its new port."""
        parts = urlsplit(url)
        self._target = (parts.hostname or "127.0.0.1", parts.port or 5432)

    def _call(self, action: Callable[[], object]) -> None:
        done = threading.Event()

        def act() -> None:
            action()
            done.set()

        self._loop.call_soon_threadsafe(act)
        done.wait(5)

    def _reset(self) -> None:
        for writer in list(self._writers):
            link: socket.socket | None = writer.get_extra_info("socket")
            if link is not None:
                with suppress(OSError):  # it was closed meanwhile
                    link.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RST)
            writer.transport.abort()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._serve())
        self._loop.close()

    async def _serve(self) -> None:
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._stop = asyncio.Event()
        server = await asyncio.start_server(self._link, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        self._started.set()
        await self._stop.wait()
        server.close()
        self._reset()
        # Links end by themselves once their sockets are gone and nothing holds data back.
        self._flowing.set()
        while others := asyncio.all_tasks() - {asyncio.current_task()}:
            await asyncio.wait(others)

    async def _link(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            back_reader, back_writer = await asyncio.open_connection(*self._target)
        except OSError:
            writer.transport.abort()
            return
        ours = {writer, back_writer}
        self._writers |= ours
        flows = [
            asyncio.ensure_future(self._forward(reader, back_writer)),
            asyncio.ensure_future(self._forward(back_reader, writer, back=True)),
        ]
        try:
            await asyncio.wait(flows, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for flow in flows:
                flow.cancel()
            for each in ours:
                each.transport.abort()
            self._writers -= ours

    async def _forward(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, back: bool = False
    ) -> None:
        assert self._flowing is not None
        try:
            while piece := await reader.read(65536):
                await self._flowing.wait()
                if back and self._swallows:
                    self.swallowed.set()
                    continue
                writer.write(piece)
                await writer.drain()
        except OSError:
            return
