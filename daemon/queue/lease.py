"""The lease on one job: the fenced transaction, and the right to go on.

Promise 1 lives here: `Lease.fenced()` is the single door through which anything is written on
behalf of a job. Its first statement proves that the lease epoch still matches and renews the lease;
when it does not, nothing in the transaction happens. `fenced_at_the_end()` is the same door for the
one thing too large to be short. `Lease.check()` is asked before anything that costs money: it ends
the work early when this worker can no longer be sure of the lease.

The heartbeat (`heartbeat.py`) renews leases from a thread of its own and tells them what it learns.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from daemon.database import database_errors
from daemon.errors import Cancelled, Draining, LeaseLost, Stop

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from uuid import UUID

    from daemon.database import Connection, Pool

_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def clock() -> float:
    """Seconds of a clock that only moves forward and keeps moving during suspend (promise 5)."""
    return time.clock_gettime(_CLOCK)


class Lease:
    """One held lease.

    Held (`check` passes, `fenced` writes) until the first of: the database says it is lost or
    cancelled; no renewal was acknowledged within the trust window. Draining is apart: what is in
    flight may still be written, but nothing new may start.

    Attributes are single words written by one thread and read by others, which Python makes atomic.
    """

    def __init__(
        self,
        pool: Pool,
        *,
        job_id: UUID,
        epoch: int,
        lease_seconds: float,
        sent_at: float | None = None,
    ) -> None:
        """`sent_at` is the clock's reading when the claim was sent."""
        self._pool = pool
        self.job_id = job_id
        self.epoch = epoch
        self.lease_seconds = lease_seconds
        self._trusted_until = 0.0
        self._ended: Stop | None = None
        self._draining = False
        # One writing transaction a job at a time: others would wait at its row's lock anyway, and
        # hold connections that receipts need.
        self._writing = asyncio.Lock()
        self._when_over: Callable[[], None] | None = None
        self.last_progress = clock()
        self.renewed(self.last_progress if sent_at is None else sent_at)

    def renewed(self, sent_at: float) -> None:
        """Note an acknowledged renewal that was sent at `sent_at`.

        The database counted from a later moment, so the window, less a tenth as a margin for clocks
        that drift, ends before the lease could be given away.
        """
        self._trusted_until = max(self._trusted_until, sent_at + self.lease_seconds * 0.9)

    def lost(self) -> None:
        """Another holder may exist: end the work."""
        self._ended = self._ended or LeaseLost(f"the lease on job {self.job_id} is lost")

    def cancel(self) -> None:
        """End the work because cancellation was asked for; what is saved stays."""
        self._ended = self._ended or Cancelled(f"job {self.job_id} was cancelled")

    def given_back(self) -> None:
        """Note that the job was released over the head of its work: end that, wherever it hangs."""
        self.lost()
        if self._when_over is not None:
            self._when_over()

    def when_given_back(self, call: Callable[[], None]) -> None:
        """Call this, from any thread, when the job is released over the head of its work."""
        self._when_over = call

    @property
    def over(self) -> bool:
        """Whether it is known that the job is not to be worked on any more."""
        return self._ended is not None

    def progressed(self) -> None:
        """Note progress that is no fenced write: a receipt."""
        self.last_progress = clock()

    def drain(self) -> None:
        """Start nothing new; what is in flight may land."""
        self._draining = True

    @property
    def trusted(self) -> bool:
        """Whether the last acknowledged renewal still covers this moment."""
        return clock() < self._trusted_until

    def check(self) -> None:
        """Raise the reason not to start anything new: LeaseLost, Cancelled or Draining."""
        if self._ended is not None:
            raise self._ended
        if not self.trusted:
            raise LeaseLost(
                f"no renewal of the lease on job {self.job_id} was acknowledged in time"
            )
        if self._draining:
            raise Draining

    @asynccontextmanager
    async def fenced_at_the_end(self) -> AsyncIterator[Connection]:
        """Open a transaction that proves the lease just before its commit; roll back on error.

        For what cannot be made short: nobody sees any of it before the proof, and the job's row is
        locked for the moment of the proof only, so that beats go on meanwhile. Each statement in it
        is short all the same; call `check` between them. Raises as `fenced` does.
        """
        if isinstance(self._ended, LeaseLost):
            raise self._ended
        limit_ms = str(int(self.lease_seconds * 500))
        with database_errors():
            async with (
                self._writing,
                self._pool.acquire(timeout=self.lease_seconds / 2) as connection,
                connection.transaction(),
            ):
                await connection.execute(
                    "select set_config('statement_timeout', $1, true), "
                    "set_config('lock_timeout', $1, true), "
                    "set_config('idle_in_transaction_session_timeout', $1, true)",
                    limit_ms,
                )
                yield connection  # type: ignore[misc]
                # Here the job's row comes last in the order of locks. Whoever holds it and waits
                # for what this transaction wrote (an erasure) is let through, before Postgres would
                # see a deadlock and might choose the other.
                await connection.execute("select set_config('lock_timeout', '400', true)")
                await connection.execute(
                    "select from public.processing_jobs where id = $1 for no key update",
                    self.job_id,
                )
                sent_at = clock()
                await connection.execute(
                    "select fullpass.hold($1, $2, $3)",
                    self.job_id,
                    self.epoch,
                    self.lease_seconds,
                )
        self.renewed(sent_at)
        self.last_progress = clock()

    @asynccontextmanager
    async def fenced(self, *, progress: bool = True) -> AsyncIterator[Connection]:
        """Open a transaction that holds the lease; commit on exit, roll back on error.

        Raises LeaseLost or Cancelled when the job is no longer to be worked on, Systemic when the
        database is in trouble; in each case nothing was written (a commit whose answer got lost may
        have happened: steps are written to be repeated). Never hold it across an LLM call.
        `progress` False: what is written is no sign that the work goes on (promise 6).
        """
        if isinstance(self._ended, LeaseLost):
            raise self._ended
        with database_errors():
            async with (
                self._writing,
                self._pool.acquire(timeout=self.lease_seconds / 2) as connection,
                connection.transaction(),
            ):
                sent_at = clock()
                await connection.execute(
                    "select fullpass.hold($1, $2, $3)",
                    self.job_id,
                    self.epoch,
                    self.lease_seconds,
                )
                yield connection  # type: ignore[misc]
        self.renewed(sent_at)
        if progress:
            self.last_progress = clock()
