"""What a worker takes on: how many jobs it has room for, which those are, and how many LLM calls.

Owns the look at the memory gauge that both numbers follow (promise 7), and the terms on which this
worker claims: its share of users, their daily limit, or one job only. Leaves to the worker when to
claim, and whether it may at all: it may be draining, or pausing for what every job would meet.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import psutil

from daemon import __version__
from daemon.memory_gauge import MIB, Gauge, allowed_calls, peak_rss_bytes, read_gauge
from daemon.queue import jobs

if TYPE_CHECKING:
    from uuid import UUID

    from daemon.database import Pool
    from daemon.queue.ending import Tally
    from daemon.queue.jobs import Job
    from daemon.settings import Settings

ROOM_FOR_A_JOB_BYTES = 96 * MIB
"""What must be free before one more job may start beside another."""
_REREAD_SECONDS = 0.2
"""A burst of claims is served by one look at the gauge."""
_NEAR_RETRY_SECONDS = 60.0
"""With `--once`, a retry due within this is waited for; one due later is left to another worker."""


class Intake:
    """What one worker may take on, by its settings and by the memory that there is.

    `only` is the one job it serves, if any: due or not, whoever's it is, however many were before.
    """

    def __init__(
        self, settings: Settings, *, worker_id: str, only: UUID | None, tally: Tally
    ) -> None:
        self._settings = settings
        self._worker_id = worker_id
        self._only = only
        self._tally = tally
        self._process = psutil.Process()
        self.gauge: Gauge
        self._look()

    def room(self, *, running: int) -> int:
        """How many more jobs may start beside those that run: places, and memory for them."""
        if self._only is not None and (running or self._tally.done_with(self._only)):
            return 0  # its one job runs, or had its turn
        places = self._settings.max_concurrent_jobs - running
        if places <= 0:
            return 0
        # An idle worker's memory stands still: what the last beat read will do, and is quicker.
        if running and time.monotonic() >= self._looked_at + _REREAD_SECONDS:
            self._look()
        # One job runs in whatever memory there is; more need room.
        least = 0 if running else 1
        return min(places, max(least, self.gauge.available_bytes // ROOM_FOR_A_JOB_BYTES))

    def allowed_calls(self, largest_exchange_bytes: int) -> int:
        """How many LLM calls may be under way at once, with memory as it is now."""
        self._look()
        return allowed_calls(
            self.gauge,
            ceiling=self._settings.fact_extraction_concurrency,
            largest_exchange_bytes=largest_exchange_bytes,
        )

    async def claim(self, pool: Pool, *, room: int) -> list[Job]:
        """Claim due jobs, at most as many as there is room for."""
        settings = self._settings
        return await jobs.claim(
            pool,
            limit=room,
            worker_id=self._worker_id,
            lease_seconds=settings.lease_seconds,
            version=__version__,
            rollout_percent=settings.rollout_percent if self._only is None else 100,
            daily_limit=settings.max_jobs_per_user_per_day if self._only is None else None,
            only=self._only,
        )

    async def seconds_to_next(self, pool: Pool) -> float | None:
        """With `--once`: seconds to wait for a job due soon, or None when there is none."""
        if self._only is not None:
            return None
        seconds = await jobs.seconds_to_next(pool)
        if seconds is None or seconds > _NEAR_RETRY_SECONDS:
            return None
        return max(0.1, min(seconds + 0.05, self._settings.poll_interval_seconds))

    def vitals(self) -> dict[str, Any]:
        """Report this process's memory; any thread may ask."""
        self._look()
        return {
            "rss_bytes": self._process.memory_info().rss,
            "memory_limit_bytes": self.gauge.limit_bytes,
            "peak_rss_bytes": peak_rss_bytes(),
        }

    def _look(self) -> None:
        self.gauge = read_gauge(memory_limit_mb=self._settings.memory_limit_mb)
        self._looked_at = time.monotonic()
