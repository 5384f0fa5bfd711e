"""How long a reply of the LLM server may be: far longer than any model speaks, and no longer.

The SDK reads a body whole, however long a server makes it, and so would the worker until it died of
it (promise 7). Here a body is counted as it comes, after it was decompressed, and given up at a
bound. A reply of status 200 that is given up may have been paid, so it is one that cannot be used,
with a receipt like any other (promise 2); an error's is trouble in passing. Imports the SDK's HTTP
library: itself imported only where a platform is set up.

The same holds for a reply that comes packed as nobody here can unpack it, though none was asked to
be: asked for again and again as if it had never come, each would be paid. And one that has begun to
come was answered, also where the link breaks before its end: it leaves a receipt, and is asked for
again.
"""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING

import anthropic
import httpx2

from daemon.errors import CallFailed, UselessReply

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from daemon.errors import CallError

MOST_BYTES = 4 * 1024 * 1024
"""Of one reply, or one line of a batch's results: more than the 20,000 tokens that the longest
reply we ask for may hold, were each of them 200 bytes long as JSON."""
_PIECE_BYTES = 65_536
_GZIP_OR_ZLIB = 47
"""zlib's `wbits` for either, told by its header."""
_LINES_ACCEPTED = "application/binary"
"""How the SDK asks for a batch's results, wherever the server says they lie."""
_INFLATED = frozenset({"gzip", "x-gzip", "deflate"})


def bounded_client() -> httpx2.AsyncClient:
    """Return the SDK's own HTTP client with a bound on replies; the SDK's client closes it."""
    # Compressed, a reply of kilobytes gains little, and gigabytes come as megabytes.
    return anthropic.DefaultAsyncHttpxClient(
        headers={"accept-encoding": "identity"}, event_hooks={"response": [_bound]}
    )


async def _bound(response: httpx2.Response) -> None:
    """Put the count between the wire and whoever reads the body."""
    encoding = response.headers.get("content-encoding", "identity").strip().lower()
    if encoding in _INFLATED:
        del response.headers["content-encoding"]
    elif encoding not in {"", "identity"}:
        raise _unread(
            f"the LLM server's reply is compressed as {encoding[:20]!r}, unasked", response
        )
    stream = response.stream
    assert isinstance(stream, httpx2.AsyncByteStream)  # noqa: S101 - of an async client
    response.stream = _Bounded(
        stream,
        error=_unread(
            f"the server's reply, of status {response.status_code}, did not end within "
            f"{MOST_BYTES:,} bytes",
            response,
        ),
        spoilt=_unread("the server's reply cannot be unpacked", response),
        torn=CallFailed(
            f"the server's reply, of status {response.status_code}, broke off",
            perhaps_paid=response.status_code < 400,
        ),
        inflate=encoding in _INFLATED,
        # Only a batch's results are asked for so, and only those are read line by line: an error in
        # their place is read whole, like any reply.
        by_line=response.status_code == 200
        and response.request.headers.get("accept") == _LINES_ACCEPTED,
    )


def _unread(said: str, response: httpx2.Response) -> CallError:
    return UselessReply(said) if response.status_code < 400 else CallFailed(said)


class _Bounded(httpx2.AsyncByteStream):
    """A body that raises `error` when it grows too long; `by_line`, when one of its lines does.

    It raises `spoilt` when it is not packed as it says, `torn` when the link breaks before its end.
    """

    def __init__(
        self,
        stream: httpx2.AsyncByteStream,
        *,
        error: CallError,
        spoilt: CallError,
        torn: CallError,
        inflate: bool,
        by_line: bool,
    ) -> None:
        self._stream = stream
        self._error = error
        self._spoilt = spoilt
        self._torn = torn
        self._zlib = zlib.decompressobj(_GZIP_OR_ZLIB) if inflate else None
        self._by_line = by_line

    async def __aiter__(self) -> AsyncIterator[bytes]:
        held = 0
        async for chunk in self._whole():
            if self._zlib is not None and self._zlib.eof:
                # Behind the end of what was packed: counted, and not kept, as zlib would.
                held += len(chunk)
                if held > MOST_BYTES:
                    raise self._error
                continue
            for piece in self._pieces(chunk):
                held += len(piece)
                if self._by_line and (line_end := piece.rfind(b"\n")) >= 0:
                    held = len(piece) - line_end - 1
                if held > MOST_BYTES:
                    raise self._error
                yield piece

    async def _whole(self) -> AsyncIterator[bytes]:
        """Yield what comes over the wire, or say that not all of it came."""
        try:
            async for chunk in self._stream:
                yield chunk
        except httpx2.TransportError as error:
            raise self._torn from error

    def _pieces(self, chunk: bytes) -> Iterator[bytes]:
        """Yield what a chunk of the wire holds, never much at a time."""
        if self._zlib is None:
            yield chunk
            return
        try:
            while chunk:
                yield self._zlib.decompress(chunk, _PIECE_BYTES)
                chunk = self._zlib.unconsumed_tail
        except zlib.error as error:
            raise self._spoilt from error

    async def aclose(self) -> None:
        """Let go of the connection."""
        await self._stream.aclose()
