"""The daemon: claim, run, beat, drain.

    idle ──claim──▶ running ──▶ complete | failed | waiting | released | cancelled
      ▲                │
      └── paused ◀─────┘  something every job would meet: back off, use no attempt, resume

Owns what an error means for a job and for the worker; what a pass does is `fullpass/`, what a lease
is `queue/`. On SIGTERM it stops claiming, lets paid calls land, releases its jobs and returns; a
second signal ends the process at once, which the fence makes safe.
"""

from __future__ import annotations

import asyncio
import os
import random
import secrets
import signal
import socket
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import psutil

from daemon import __version__
from daemon.database import database_errors, first_line, is_transaction_pooler, open_pool
from daemon.errors import Cancelled, Draining, GiveUp, LeaseLost, Systemic, Wait
from daemon.fullpass.chunks import tiers_for
from daemon.fullpass.context import Pass
from daemon.fullpass.steps import full_pass
from daemon.fullpass.tiers import accepted_tiers
from daemon.llm.caller import Caller
from daemon.llm.ledger import Ledger
from daemon.llm.limiter import CallLimiter
from daemon.llm.providers import provider_from
from daemon.logs import bind_job, get_logger, masked
from daemon.memory_gauge import Gauge, allowed_calls, read_gauge
from daemon.queue import jobs
from daemon.queue.heartbeat import Heartbeat
from daemon.queue.lease import Lease
from daemon.queue.wakeup import Wakeup

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from uuid import UUID

    from daemon.database import Pool
    from daemon.queue.jobs import Job
    from daemon.settings import Settings

_log = get_logger()

_LONGEST_ERROR = 500
_NEAR_RETRY_SECONDS = 60.0
_LONGEST_PAUSE_SECONDS = 300.0
_ROOM_FOR_A_JOB_BYTES = 96 * 1024 * 1024
_LAG_PROBE_SECONDS = 0.5


@dataclass(slots=True)
class Tally:
    """What became of the jobs of one worker's run."""

    completed: list[UUID] = field(default_factory=list)
    failed: dict[UUID, str] = field(default_factory=dict)
    left: dict[UUID, str] = field(default_factory=dict)
    """Jobs given back to the queue, and why."""


class Worker:
    """One worker process. `run()` serves until drained; `run(once=True)` until nothing is due."""

    def __init__(self, settings: Settings, url: str, *, only: UUID | None = None) -> None:
        self._settings = settings
        self._url = url
        self._only = only
        # Fresh at every boot: a restarted worker must never be taken for the one before.
        self.worker_id = f"{socket.gethostname()[:32]}-{os.getpid()}-{secrets.token_hex(3)}"
        self.tally = Tally()
        self._running: dict[asyncio.Task[None], Lease] = {}
        self._draining = asyncio.Event()
        self._paused_until = 0.0
        self._pauses = 0
        self._waiting_for: str | None = None
        self._loop_lag_ms = 0.0
        self._gauge: Gauge = read_gauge(memory_limit_mb=settings.memory_limit_mb)
        self._process = psutil.Process()
        # Built here, so that a missing key or a wrong provider ends the command before any claim.
        self._provider = provider_from(settings)
        self._limiter = CallLimiter(
            ceiling=settings.fact_extraction_concurrency, allowed=self._allowed_calls
        )

    # -- life ------------------------------------------------------------------------------------

    async def run(self, *, once: bool = False) -> Tally:
        """Serve jobs. Raises UsageError when the settings or the schema cannot work."""
        self._listen_to_signals()
        settings = self._settings
        pool = await self._connected()
        if pool is None:
            return self.tally
        listen_url = settings.database_listen_url or (
            None if is_transaction_pooler(self._url) else self._url
        )
        wakeup = Wakeup(None if once else listen_url, poll_seconds=settings.poll_interval_seconds)
        heartbeat = Heartbeat(
            self._url,
            worker_id=self.worker_id,
            beat_seconds=settings.heartbeat_seconds,
            lease_seconds=settings.lease_seconds,
            vitals=self._vitals,
        )
        lag_probe = asyncio.create_task(self._probe_lag())
        drain_watch = asyncio.create_task(self._wake_on_drain(wakeup))
        try:
            tiers = tiers_for(settings, accepted := await accepted_tiers(pool))
            caller = Caller(self._provider, Ledger(pool), self._limiter)
            heartbeat.start()
            _log.info(
                "worker.started", worker_id=self.worker_id, version=__version__,
                provider=self._provider.name, memory_limit_mb=self._gauge.limit_bytes >> 20,
                memory_limit_from=self._gauge.source, llm_limit=self._limiter.limit,
            )  # fmt: skip

            def start(job: Job) -> asyncio.Task[None]:
                lease = Lease(
                    pool, job_id=job.id, epoch=job.lease_epoch,
                    lease_seconds=settings.lease_seconds,
                )  # fmt: skip
                heartbeat.add(lease)
                work = Pass(job, lease, pool, settings, caller, tiers, accepted["medium"])
                task = asyncio.create_task(self._run_job(work))
                self._running[task] = lease

                def ended(done: asyncio.Task[None]) -> None:
                    heartbeat.remove(lease)
                    self._running.pop(done, None)
                    wakeup.wake()

                task.add_done_callback(ended)
                return task

            await self._serve(pool, wakeup, start, once=once)
            await self._drain()
        finally:
            lag_probe.cancel()
            drain_watch.cancel()
            await asyncio.to_thread(heartbeat.stop)
            await wakeup.close()
            await self._provider.aclose()
            with suppress(TimeoutError):
                await asyncio.wait_for(pool.close(), timeout=2.0)
            pool.terminate()
        _log.info("worker.stopped", worker_id=self.worker_id)
        return self.tally

    async def _connected(self) -> Pool | None:
        """Open the pool, however long the database takes to come up; None when drained first."""
        failures = 0
        while not self._draining.is_set():
            try:
                return await open_pool(self._url)
            except Systemic as error:
                failures += 1
                pause = min(30.0, 0.5 * 2**failures) * random.uniform(0.75, 1.25)
                _log.warning("worker.waiting", waits_for=str(error), seconds=round(pause, 1))
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._draining.wait(), timeout=pause)
        return None

    async def _serve(
        self,
        pool: Pool,
        wakeup: Wakeup,
        start: Callable[[Job], asyncio.Task[None]],
        *,
        once: bool,
    ) -> None:
        """Claim and start jobs until drained or, with `once`, until nothing is due or near."""
        while not self._draining.is_set():
            pause: float | None = None
            try:
                while self._admits():
                    job = await self._claim(pool)
                    if job is None:
                        break
                    start(job)
                if self._waiting_for is not None and time.monotonic() >= self._paused_until:
                    self._waiting_for = None
                if once and not self._running:
                    if self._waiting_for is not None:
                        return  # every further job would meet the same
                    if (pause := await self._seconds_to_next(pool)) is None:
                        return
            except Systemic as error:
                self._pause(error)
            if self._waiting_for is not None:
                pause = max(0.05, self._paused_until - time.monotonic())
            await wakeup.wait(seconds=pause)

    def _admits(self) -> bool:
        """Whether another job may start now: a place, no pause, and memory for it."""
        if len(self._running) >= self._settings.max_concurrent_jobs or self._draining.is_set():
            return False
        if time.monotonic() < self._paused_until:
            return False
        if not self._running:
            return True
        self._gauge = read_gauge(memory_limit_mb=self._settings.memory_limit_mb)
        return self._gauge.available_bytes >= _ROOM_FOR_A_JOB_BYTES

    async def _claim(self, pool: Pool) -> Job | None:
        settings = self._settings
        tally = self.tally
        ended = {*tally.completed, *tally.failed, *tally.left}
        if self._only is not None and (self._running or self._only in ended):
            return None  # its one job had its turn
        return await jobs.claim(
            pool,
            worker_id=self.worker_id,
            lease_seconds=settings.lease_seconds,
            version=__version__,
            rollout_percent=settings.rollout_percent if self._only is None else 100,
            daily_limit=settings.max_jobs_per_user_per_day if self._only is None else None,
            only=self._only,
        )

    async def _seconds_to_next(self, pool: Pool) -> float | None:
        """With `once`: seconds to wait for a job due soon, or None when there is none."""
        if self._only is not None:
            return None
        with database_errors():
            seconds: float | None = await pool.fetchval(
                """
                select extract(epoch from min(
                    case status when 'pending' then run_at else lease_expires_at end
                ) - clock_timestamp())::float8
                from public.processing_jobs
                where status = 'pending' or (status = 'processing' and lease_epoch > 0)
                """
            )
        if seconds is None or seconds > _NEAR_RETRY_SECONDS:
            return None
        return max(0.1, min(seconds + 0.05, self._settings.poll_interval_seconds))

    # -- one job ---------------------------------------------------------------------------------

    async def _run_job(self, work: Pass) -> None:
        """Run one claimed job and end it truthfully, whatever happens."""
        job = work.job
        with bind_job(
            job_id=job.id, user_id=job.user_id, attempt=job.attempt,
            lease_epoch=job.lease_epoch, worker_id=self.worker_id,
        ):  # fmt: skip
            _log.info("job.claimed")
            try:
                result, cost = await full_pass(work)
            except asyncio.CancelledError:
                over = Draining("the shutdown grace is over")
                await self._end(work, lambda: self._give_back(work, over))
                raise
            except Exception as error:  # noqa: BLE001 - every outcome is told apart below
                raised = error
                await self._end(work, lambda: self._conclude(work, raised))
            else:
                await self._end(work, lambda: self._complete(work, result, cost))

    async def _end(self, work: Pass, ending: Callable[[], Awaitable[None]]) -> None:
        """Write a job's ending, through short database trouble, while the lease is ours."""
        failures = 0
        while True:
            try:
                await ending()
            except Systemic as error:
                failures += 1
                if not work.lease.trusted:
                    _log.warning("job.abandoned", error=str(error))  # the sweep recovers it
                    return
                await asyncio.sleep(min(2.0, 0.1 * 2**failures))
            except LeaseLost:
                _log.warning("job.lost", step=work.step)
                self.tally.left.setdefault(work.job.id, "another worker has it")
                return
            else:
                return

    async def _complete(self, work: Pass, result: dict[str, Any], cost: dict[str, Any]) -> None:
        await jobs.complete(work.pool, work.job, result=result, cost=cost)
        self._pauses = 0
        self.tally.left.pop(work.job.id, None)
        self.tally.completed.append(work.job.id)
        _log.info("job.completed", cost_usd=cost["cost_usd"], calls=cost["calls"])

    async def _conclude(self, work: Pass, error: Exception) -> None:
        """End an attempt that raised."""
        match error:
            case LeaseLost():
                raise error
            case Cancelled():
                await jobs.yield_cancelled(work.pool, work.job)
                _log.info("job.cancelled", step=work.step)
            case Wait():
                if isinstance(error, Systemic):
                    self._pause(error)
                await self._give_back(work, error)
            case _:
                await self._fail(work, error)

    async def _give_back(self, work: Pass, error: Wait) -> None:
        outcome = await jobs.release(
            work.pool,
            work.job,
            seconds=error.seconds,
            reason=masked(str(error))[:_LONGEST_ERROR],
            max_wait_hours=self._settings.max_wait_hours,
        )
        if outcome == "failed":
            self.tally.failed[work.job.id] = str(error)
        else:
            self.tally.left[work.job.id] = masked(str(error))
        _log.info(f"job.{outcome}", step=work.step, reason=str(error))

    async def _fail(self, work: Pass, error: Exception) -> None:
        said = masked(f"{work.step}: {_told(error)}")[:_LONGEST_ERROR]
        _log.error("job.error", exc_info=error, step=work.step)
        outcome = await jobs.fail(
            work.pool, work.job, error=said, retry=not isinstance(error, GiveUp)
        )
        if outcome == "retry":
            self.tally.left[work.job.id] = said
        else:
            self.tally.left.pop(work.job.id, None)
            self.tally.failed[work.job.id] = said

    # -- pausing and draining --------------------------------------------------------------------

    def _pause(self, error: Systemic) -> None:
        """Claim nothing for a while: every job would meet this."""
        self._pauses += 1
        doubled = max(1.0, error.seconds) * 2 ** min(self._pauses - 1, 6)
        seconds = min(_LONGEST_PAUSE_SECONDS, doubled)
        self._paused_until = time.monotonic() + seconds * random.uniform(0.9, 1.1)
        self._waiting_for = masked(str(error))
        _log.error("worker.paused", waits_for=self._waiting_for, seconds=round(seconds, 1))

    def _listen_to_signals(self) -> None:
        loop = asyncio.get_running_loop()

        def received(name: str) -> None:
            if self._draining.is_set():
                # Safe: what is written is written under the fence, what was paid is in the ledger.
                os._exit(1)
            _log.info("worker.draining", signal=name, running=len(self._running))
            self._draining.set()

        for sig in (signal.SIGTERM, signal.SIGINT):
            with suppress(NotImplementedError):
                loop.add_signal_handler(sig, received, sig.name)

    async def _wake_on_drain(self, wakeup: Wakeup) -> None:
        await self._draining.wait()
        for lease in self._running.values():
            lease.drain()
        wakeup.wake()

    async def _drain(self) -> None:
        """Let running jobs come to their next stop, at most for the grace period."""
        tasks = set(self._running)
        for lease in self._running.values():
            lease.drain()
        if not tasks:
            return
        _, late = await asyncio.wait(tasks, timeout=self._settings.shutdown_grace_seconds)
        for task in late:
            task.cancel()
        if late:
            await asyncio.wait(late, timeout=2.0)

    # -- vitals ----------------------------------------------------------------------------------

    def _allowed_calls(self, largest_exchange_bytes: int) -> int:
        self._gauge = read_gauge(memory_limit_mb=self._settings.memory_limit_mb)
        return allowed_calls(
            self._gauge,
            ceiling=self._settings.fact_extraction_concurrency,
            largest_exchange_bytes=largest_exchange_bytes,
        )

    def _vitals(self) -> dict[str, Any]:
        """Read on the heartbeat's thread: plain attributes only."""
        return {
            "version": __version__,
            "rss_bytes": self._process.memory_info().rss,
            "memory_limit_bytes": self._gauge.limit_bytes,
            "loop_lag_ms": self._loop_lag_ms,
            "llm_in_flight": self._limiter.in_flight,
            "llm_limit": self._limiter.last_limit,
            "waiting_for": self._waiting_for,
        }

    async def _probe_lag(self) -> None:
        """Measure how late the loop wakes: the most of the last two probes."""
        loop = asyncio.get_running_loop()
        previous = 0.0
        while True:
            before = loop.time()
            await asyncio.sleep(_LAG_PROBE_SECONDS)
            lag = max(0.0, (loop.time() - before - _LAG_PROBE_SECONDS) * 1000)
            self._loop_lag_ms = round(max(lag, previous), 1)
            previous = lag


def _told(error: Exception) -> str:
    """Return an error in one line for people: its message, with its type when it is a defect."""
    if isinstance(error, GiveUp) or type(error).__module__.startswith("daemon."):
        return first_line(error)
    return f"unexpected {type(error).__name__}: {first_line(error)}"
