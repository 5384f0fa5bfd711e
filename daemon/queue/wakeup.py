"""When to look for work: NOTIFY where a direct connection can hear it, polling always.

Correct with no LISTEN at all (promise 8): a notice only shortens a wait that would end anyway. The
listening connection is on its own task, so that no trouble with it ever delays a poll, and it is
asked for an echo now and then: a listener that went deaf looks exactly like a quiet queue.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import secrets
from typing import TYPE_CHECKING

from daemon.database import connect, database_errors, pools_transactions
from daemon.errors import FullpassError
from daemon.logs import get_logger
from daemon.queue.backoff import Backoff

if TYPE_CHECKING:
    from daemon.database import Connection, Pool

_log = get_logger()
_CHANNEL = "fullpass_jobs"
_ECHO_SECONDS = 30.0
_ECHO_TIMEOUT_SECONDS = 5.0
_COMMAND_TIMEOUT_SECONDS = 10.0


class Wakeup:
    """Waits for a notice or the poll interval, whichever is first.

    With `pool`, an echo is sent through it every `echo_seconds` and must be heard; a listener that
    stays deaf is replaced. `shares_url`: whether the pool leads to where it listens, so that one of
    its connections saves another.
    """

    def __init__(
        self,
        listen_url: str | None,
        *,
        poll_seconds: float,
        pool: Pool | None = None,
        shares_url: bool = False,
        echo_seconds: float = _ECHO_SECONDS,
    ) -> None:
        self._listen_url = listen_url
        self._poll_seconds = poll_seconds
        self._pool = pool
        self._shares_url = shares_url
        self._echo_seconds = echo_seconds
        self._echo_channel = f"fullpass_echo_{secrets.token_hex(6)}"
        self._event = asyncio.Event()
        self._heard = asyncio.Event()
        self._broken = asyncio.Event()
        self._connection: Connection | None = None
        self._listening: asyncio.Task[None] | None = None
        self.echoing = False
        """Whether the last echo was heard; with no pool to send one by, whether it listens."""

    @property
    def listening(self) -> bool:
        """Whether notices are heard right now."""
        return self._connection is not None and not self._connection.is_closed()

    def wake(self) -> None:
        """End the current wait, or the next one at once."""
        self._event.set()

    async def wait(self, *, seconds: float | None = None) -> None:
        """Return on a notice, or after the (jittered) poll interval or `seconds`."""
        if self._listening is None and self._listen_url is not None:
            self._listening = asyncio.create_task(self._keep_listening(self._listen_url))
        pause = seconds if seconds is not None else self._poll_seconds * random.uniform(0.75, 1.0)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(pause):
                await self._event.wait()
        self._event.clear()

    async def close(self) -> None:
        """Drop the listening connection."""
        while self._listening is not None and not self._listening.done():
            # Told until it obeys: a wait that ends at this very moment may swallow a cancellation.
            self._listening.cancel()
            await asyncio.wait({self._listening}, timeout=0.2)
        self._drop()

    def _drop(self) -> None:
        self.echoing = False
        if self._connection is not None:
            self._connection.terminate()
            self._connection = None

    async def _keep_listening(self, url: str) -> None:
        """Listen for as long as the worker lives; a failure costs nothing but latency."""
        backoff = Backoff(longest_seconds=60.0)
        while True:
            try:
                if await self._is_pooled(url):
                    _log.warning(
                        "listen.off",
                        error="a transaction pooler cannot pass notices on; set "
                        "DATABASE_LISTEN_URL to a direct connection for quicker pick-up",
                    )
                    return
                await self._listen(url)
                self._event.set()  # what came while nobody listened
                while await self._echoed():
                    backoff.reset()
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(self._echo_seconds * random.uniform(0.8, 1.2)):
                            await self._broken.wait()
                _log.warning("listen.deaf")
            except FullpassError as error:
                _log.warning("listen.failed", error=str(error))
            except Exception:  # noqa: BLE001
                # Whatever it was: a listener that is gone for good would look like a quiet queue.
                _log.exception("listen.broken")
            self._drop()
            await asyncio.sleep(backoff.next_seconds())

    async def _is_pooled(self, url: str) -> bool:
        if self._pool is None or not self._shares_url:
            return await pools_transactions(url)
        with database_errors():  # a pool without a connection left opens one here
            async with self._pool.acquire() as connection:
                return await pools_transactions(url, connection)  # type: ignore[arg-type]

    async def _listen(self, url: str) -> None:
        self._broken.clear()
        self._connection = await connect(url, command_timeout_seconds=_COMMAND_TIMEOUT_SECONDS)
        self._connection.add_termination_listener(lambda *_: self._broken.set())
        with database_errors():
            await self._connection.add_listener(_CHANNEL, lambda *_: self._event.set())
            await self._connection.add_listener(self._echo_channel, lambda *_: self._heard.set())

    async def _echoed(self) -> bool:
        """Whether a notice sent by way of the pool arrives here."""
        if not self.listening:
            return False
        if self._pool is None:
            self.echoing = True
            return True
        self._heard.clear()
        with database_errors():
            await self._pool.execute("select pg_notify($1, '')", self._echo_channel)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_ECHO_TIMEOUT_SECONDS):
                await self._heard.wait()
        self.echoing = self._heard.is_set()
        return self.echoing
