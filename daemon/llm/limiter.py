"""How many model calls run at once in this process: one limit for all of its jobs.

The ceiling is FACT_EXTRACTION_CONCURRENCY; below it the memory really available decides, re-read
while running (promise 7). Owns the count; leaves to the gauge what memory there is.
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from daemon.logs import get_logger

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

_log = get_logger()
_REREAD_SECONDS = 0.25


class CallLimiter:
    """Admits calls while fewer than `limit` are in flight.

    `allowed` is given the size in bytes of the largest request plus reply seen so far and returns
    how many calls memory allows right now, at least 1.
    """

    def __init__(self, *, ceiling: int, allowed: Callable[[int], int]) -> None:
        self._ceiling = ceiling
        self._allowed = allowed
        self._freed = asyncio.Condition()
        self._read_at = float("-inf")
        self._limit = ceiling
        self.in_flight = 0
        self.largest_exchange_bytes = 0

    @property
    def limit(self) -> int:
        """The limit in force, re-read at most a few times a second; changes are logged."""
        now = asyncio.get_running_loop().time()
        if now - self._read_at >= _REREAD_SECONDS:
            self._read_at = now
            limit = max(1, min(self._ceiling, self._allowed(self.largest_exchange_bytes)))
            if limit != self._limit:
                _log.info("llm.limit", limit=limit, was=self._limit, ceiling=self._ceiling)
            self._limit = limit
        return self._limit

    @property
    def last_limit(self) -> int:
        """The limit as last read: for other threads, which must not read the gauge."""
        return self._limit

    @asynccontextmanager
    async def slot(self) -> AsyncIterator[None]:
        """Wait for a place, and hold it."""
        async with self._freed:
            while self.in_flight >= self.limit:
                # Memory may come free without any call ending: look again before long.
                try:
                    await asyncio.wait_for(self._freed.wait(), timeout=1.0)
                except TimeoutError:
                    continue
            self.in_flight += 1
        try:
            yield
        finally:
            async with self._freed:
                self.in_flight -= 1
                self._freed.notify()

    def seen(self, exchange_bytes: int) -> None:
        """Note the size of one request plus its reply."""
        self.largest_exchange_bytes = max(self.largest_exchange_bytes, exchange_bytes)
