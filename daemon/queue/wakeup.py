"""When to look for work: NOTIFY where a direct connection can hear it, polling always.

Correct with no LISTEN at all (promise 8): a notice only shortens a wait that would end anyway.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from typing import TYPE_CHECKING

from daemon.database import connect, database_errors
from daemon.errors import FullpassError
from daemon.logs import get_logger

if TYPE_CHECKING:
    from daemon.database import Connection

_log = get_logger()
_CHANNEL = "fullpass_jobs"


class Wakeup:
    """Waits for a notice or the poll interval, whichever is first."""

    def __init__(self, listen_url: str | None, *, poll_seconds: float) -> None:
        self._listen_url = listen_url
        self._poll_seconds = poll_seconds
        self._event = asyncio.Event()
        self._connection: Connection | None = None

    def wake(self) -> None:
        """End the current wait, or the next one at once."""
        self._event.set()

    async def wait(self, *, seconds: float | None = None) -> None:
        """Return on a notice, or after the (jittered) poll interval or `seconds`."""
        await self._listen()
        pause = seconds if seconds is not None else self._poll_seconds * random.uniform(0.8, 1.2)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._event.wait(), timeout=pause)
        self._event.clear()

    async def close(self) -> None:
        """Drop the listening connection."""
        if self._connection is not None:
            self._connection.terminate()
            self._connection = None

    async def _listen(self) -> None:
        """Listen if possible; a failure costs nothing but latency."""
        if self._listen_url is None:
            return
        if self._connection is not None and not self._connection.is_closed():
            return
        try:
            self._connection = await connect(self._listen_url)
            with database_errors():
                await self._connection.add_listener(_CHANNEL, lambda *_: self._event.set())
        except FullpassError as error:
            _log.warning("listen.failed", error=str(error))
            self._connection = None
