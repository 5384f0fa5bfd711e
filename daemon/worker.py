"""The daemon: claim, run, beat, drain.

    idle ──claim──▶ running ──▶ complete | failed | waiting | released | cancelled
      ▲                │
      └── paused ◀─────┘  something every job would meet: back off, use no attempt, resume

Owns what an error means for a job and for the worker. What a pass does is `fullpass/`, what a lease
is `queue/`; there too are what this worker takes on (`intake.py`), what keeps it alive and awake
(`lifelines.py`) and what it waits for (`pausing.py`). On SIGTERM it stops claiming, lets paid calls
land, releases its jobs and returns; a second signal ends the process at once, which the fence makes
safe.
"""

from __future__ import annotations

import asyncio
import os
import random
import secrets
import socket
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from daemon import __version__
from daemon.database import open_pool
from daemon.errors import OutOfReach, Systemic
from daemon.fullpass.chunks import tiers_for
from daemon.fullpass.context import Pass
from daemon.fullpass.outcomes import read_reply
from daemon.fullpass.steps import full_pass
from daemon.fullpass.tiers import accepted_tiers
from daemon.instruments import JOBS_CLAIMED, span
from daemon.llm.batches import batches_of
from daemon.llm.caller import Caller
from daemon.llm.ledger import Ledger
from daemon.llm.limiter import CallLimiter
from daemon.llm.providers import provider_from
from daemon.llm.sharing import Sharing, account_of
from daemon.logs import bind_job, get_logger
from daemon.ops.doctor import at_start
from daemon.ops.telling import Teller
from daemon.ops.vital_signs import Attended, VitalSigns
from daemon.queue.ending import Endings, Tally
from daemon.queue.housekeeping import keep_house
from daemon.queue.intake import Intake
from daemon.queue.lease import Lease, clock
from daemon.queue.lifelines import Lifelines, lifelines
from daemon.queue.liveness import patience_seconds
from daemon.queue.pausing import Pausing
from daemon.queue.shutdown import Shutdown

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from uuid import UUID

    from daemon.database import Pool
    from daemon.fullpass.turns import Tier
    from daemon.llm.batches import Batches
    from daemon.llm.patience import Patience
    from daemon.ops.alerts import Alarm
    from daemon.queue.jobs import Job
    from daemon.queue.wakeup import Wakeup
    from daemon.settings import Settings

__all__ = ["Tally", "Worker"]

T = TypeVar("T")
RunPass: TypeAlias = "Callable[[Pass], Awaitable[tuple[dict[str, Any], dict[str, Any]]]]"

_log = get_logger()

_MEND_SECONDS = 3600.0
"""Between two rounds of keeping house, which a worker makes besides claiming."""
_LATE_SECONDS = 2.0
"""Beyond the grace, until the heartbeat's thread ends what the loop has not."""


@dataclass(frozen=True, slots=True)
class _Serving:
    """What a connected worker serves with."""

    pool: Pool
    lifelines: Lifelines
    endings: Endings
    caller: Caller
    tiers: tuple[Tier, ...]
    medium: str
    batches: Batches | None


class Worker:
    """One worker process. `run()` serves until drained; `run(once=True)` until nothing is due.

    `run_pass` is what is done with a claimed job; the full pass unless a test or a benchmark of the
    queue alone says otherwise.
    """

    def __init__(
        self,
        settings: Settings,
        url: str,
        *,
        only: UUID | None = None,
        run_pass: RunPass = full_pass,
        patience: Patience | None = None,
    ) -> None:
        self._settings = settings
        self._url = url
        self._run_pass = run_pass
        self._patience = patience
        # Fresh at every boot: a restarted worker must never be taken for the one before.
        self.worker_id = f"{socket.gethostname()[:32]}-{os.getpid()}-{secrets.token_hex(3)}"
        self.tally = Tally()
        self._running: dict[asyncio.Task[None], Lease] = {}
        self._shutdown = Shutdown()
        self._draining = self._shutdown.asked
        # A worker of one job only is a person's `fullpass run`: they see how it ends.
        self._teller = Teller(settings, worker_id=self.worker_id, silent=only is not None)
        self._pausing = Pausing(self._teller.alarm)
        self._mend_at = 0.0
        self._intake = Intake(settings, worker_id=self.worker_id, only=only, tally=self.tally)
        # A command that takes longer than a lease has lost its purpose.
        self._command_seconds = min(60.0, max(5.0, settings.lease_seconds))
        self.signs = VitalSigns(settings, vitals=self._vitals)
        # Built here, so that a missing key or a wrong provider ends the command before any claim.
        self._provider = provider_from(settings)
        self._limiter = CallLimiter(
            ceiling=settings.fact_extraction_concurrency, allowed=self._intake.allowed_calls
        )

    @property
    def alarm(self) -> Alarm:
        """Who is told of what stops this worker, also before it serves."""
        return self._teller.alarm

    # -- life ------------------------------------------------------------------------------------

    async def run(self, *, once: bool = False) -> Tally:
        """Serve jobs. Raises UsageError when the settings or the schema cannot work."""
        self._shutdown.listen()
        try:
            pool = await self._patiently(self._open_pool)
            if pool is None:
                return self.tally
            try:
                accepted = await self._patiently(lambda: accepted_tiers(pool))
                opened = await self._patiently(lambda: self._teller.open(pool))
                if accepted is not None and opened:
                    await self._serve_with(pool, accepted, once=once)
            finally:
                with suppress(TimeoutError):
                    async with asyncio.timeout(1):
                        await pool.close()
                pool.terminate()
        finally:
            self._shutdown.close()
            await self._provider.aclose()
        _log.info("worker.stopped", worker_id=self.worker_id)
        return self.tally

    async def _open_pool(self) -> Pool:
        return await open_pool(self._url, command_timeout_seconds=self._command_seconds)

    async def _serve_with(self, pool: Pool, accepted: dict[str, str], *, once: bool) -> None:
        settings = self._settings
        lines = lifelines(
            pool,
            settings,
            url=self._url,
            worker_id=self.worker_id,
            command_seconds=self._command_seconds,
            vitals=self._vitals,
            once=once,
        )
        heartbeat, wakeup = lines.heartbeat, lines.wakeup
        ledger = Ledger(pool, landed=self._receipt_landed)
        serving = _Serving(
            pool=pool,
            lifelines=lines,
            endings=Endings(
                pool,
                worker_id=self.worker_id,
                max_wait_hours=settings.max_wait_hours,
                tally=self.tally,
                waits=self._pausing.ending,
            ),
            caller=Caller(
                self._provider,
                ledger,
                self._limiter,
                patience=self._patience,
                alarm=self._pausing.take,
            ),
            tiers=tiers_for(settings, accepted),
            medium=accepted["medium"],
            batches=batches_of(self._provider, pool, settings, read=read_reply),
        )
        # Should the loop be blocked then, the heartbeat's thread ends what it cannot.
        self._shutdown.at_once = lambda now: heartbeat.drain_by(
            now + settings.shutdown_grace_seconds + _LATE_SECONDS
        )
        sharing = Sharing(
            pool, self._limiter, worker_id=self.worker_id, account=account_of(settings)
        )
        beside = [asyncio.create_task(self._wake_on_drain(wakeup))]
        if serving.batches is not None:
            beside.append(asyncio.create_task(serving.batches.keep_tending()))
        beside.append(asyncio.create_task(at_start(None if once else pool, settings)))
        self._teller.start()
        heartbeat.start()
        self.signs.attend(Attended(heartbeat, lines.pulse, lines.echo, wakeup, pool))
        _log.info(
            "worker.started", worker_id=self.worker_id, version=__version__,
            provider=self._provider.name, memory_limit_mb=self._intake.gauge.limit_bytes >> 20,
            memory_limit_from=self._intake.gauge.source, llm_limit=self._limiter.limit,
        )  # fmt: skip
        try:
            await self._shutdown.cut_short(self._serve(serving, once=once))
        finally:
            await self._drain()
            for task in beside:
                task.cancel()
            await self._teller.finish(seconds=15.0 if once else 1.0)
            ended = asyncio.to_thread(heartbeat.stop)
            closing = sharing.close(), ended, wakeup.close(), ledger.settle()
            await asyncio.wait([asyncio.ensure_future(c) for c in closing], timeout=1.0)

    async def _patiently(self, call: Callable[[], Awaitable[T]]) -> T | None:
        """Call until the database is there, however long it takes; None when drained first."""
        while not self._draining.is_set():
            try:
                return await call()
            except OutOfReach as error:
                pause = self._pausing.lost_the_queue(error)
                with suppress(TimeoutError):
                    async with asyncio.timeout(pause):
                        await self._draining.wait()
        return None

    async def _serve(self, serving: _Serving, *, once: bool) -> None:
        """Claim and start jobs until drained or, with `once`, until nothing is due or near."""
        pausing, lines = self._pausing, serving.lifelines
        while not self._draining.is_set():
            pause: float | None = None
            lines.pulse.expect(0.0)
            lines.heartbeat.require()
            try:
                await self._claim_all(serving)
                pausing.try_again()
                if once and not self._running:
                    if pausing.troubled:
                        return  # every further job would meet the same
                    if (pause := await self._intake.seconds_to_next(serving.pool)) is None:
                        return
                pausing.reached_the_queue()
            except OutOfReach as error:
                # The queue itself is out of reach: not a job's trouble, so no pause for them.
                pause = pausing.lost_the_queue(error)
            if pausing.troubled:
                pause = max(0.05, pausing.seconds_left)
            lines.pulse.expect(self._settings.poll_interval_seconds if pause is None else pause)
            await lines.wakeup.wait(seconds=pause)

    async def _claim_all(self, serving: _Serving) -> None:
        """Start due jobs for as long as there is room for one more."""
        if time.monotonic() >= self._mend_at:
            await keep_house(serving.pool, retention_days=self._settings.pipeline_retention_days)
            self._mend_at = time.monotonic() + _MEND_SECONDS * random.uniform(0.8, 1.2)
        while room := self._room():
            sent_at = clock()
            claimed = await self._intake.claim(serving.pool, room=room)
            for job in claimed:
                JOBS_CLAIMED.inc()
                self._start(serving, job, sent_at)
            if len(claimed) < room:
                return

    def _start(self, serving: _Serving, job: Job, sent_at: float) -> None:
        settings, lines = self._settings, serving.lifelines
        lease = Lease(
            serving.pool, job_id=job.id, epoch=job.lease_epoch,
            lease_seconds=settings.lease_seconds, sent_at=sent_at,
        )  # fmt: skip
        work = Pass(
            job, lease, serving.pool, settings, serving.caller, serving.tiers, serving.medium,
            batches=serving.batches,
        )  # fmt: skip
        lines.heartbeat.add(lease, patience_seconds=lambda: patience_seconds(work.step, settings))
        task = asyncio.create_task(self._run_job(work, serving.endings), name=f"job {job.id}")
        self._running[task] = lease
        if self._draining.is_set():
            lease.drain()
        loop = asyncio.get_running_loop()

        def cancel() -> None:
            loop.call_soon_threadsafe(task.cancel)

        lease.when_given_back(cancel)

        def ended(done: asyncio.Task[None]) -> None:
            lines.heartbeat.remove(lease)
            self._running.pop(done, None)
            lines.wakeup.wake()
            self._teller.wake()

        task.add_done_callback(ended)

    def _room(self) -> int:
        """How many more jobs may start now."""
        if self._draining.is_set() or self._pausing.seconds_left:
            return 0
        return self._intake.room(running=len(self._running))

    # -- one job ---------------------------------------------------------------------------------

    async def _run_job(self, work: Pass, endings: Endings) -> None:
        """Run one claimed job and end it truthfully, whatever happens."""
        job = work.job
        with bind_job(
            job_id=job.id, user_id=job.user_id, attempt=job.attempt,
            lease_epoch=job.lease_epoch, worker_id=self.worker_id,
        ):  # fmt: skip
            _log.info("job.claimed")
            try:
                with span(
                    "full_pass", job_id=str(job.id), user_id=str(job.user_id),
                    attempt=job.attempt,
                ):  # fmt: skip
                    result, cost = await self._run_pass(work)
            except asyncio.CancelledError:
                await endings.interrupted(work)
                raise
            except Exception as error:  # noqa: BLE001 - every outcome is told apart there
                if isinstance(error, Systemic) and not isinstance(error, OutOfReach):
                    self._pausing.take(error)
                await endings.raised(work, error)
            else:
                await endings.completed(work, result, cost)
                self._pausing.worked()

    def _receipt_landed(self, job_id: UUID) -> None:
        for lease in self._running.values():
            if lease.job_id == job_id:
                lease.progressed()

    # -- draining -------------------------------------------------------------------------------

    async def _wake_on_drain(self, wakeup: Wakeup) -> None:
        await self._draining.wait()
        self.signs.draining = True
        for lease in self._running.values():
            lease.drain()
        wakeup.wake()

    async def _drain(self) -> None:
        """Let running jobs come to their next stop, at most for the grace."""
        tasks = set(self._running)
        for lease in self._running.values():
            lease.drain()
        if tasks:
            await self._shutdown.see_off(tasks, self._settings.shutdown_grace_seconds)

    # -- vitals ----------------------------------------------------------------------------------

    def _vitals(self) -> dict[str, Any]:
        """Report this worker; asked on the heartbeat's thread, so plain attributes only."""
        return {
            "version": __version__,
            **self._intake.vitals(),
            **self._limiter.vitals,
            "waiting_for": self._pausing.waits_for,
        }
