"""How an attempt ends: what each error means for the job, and writing that truthfully.

Owns the way from "the work returned or raised" to the row that says so, through whatever trouble
the database has meanwhile. Every write is fenced by the epoch, so trying again is always safe and
trying late changes nothing. Leaves to the worker what an error means for the worker itself.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from daemon.database import first_line
from daemon.errors import (
    AwaitsBatch,
    Cancelled,
    Draining,
    GiveUp,
    LeaseLost,
    Systemic,
    TryAgain,
    Wait,
)
from daemon.instruments import JOBS_ENDED, report
from daemon.logs import get_logger, masked
from daemon.queue import jobs
from daemon.queue.backoff import Backoff

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from uuid import UUID

    from daemon.database import Pool
    from daemon.queue.jobs import Job
    from daemon.queue.lease import Lease

_log = get_logger()
_LONGEST_ERROR = 500


class Work(Protocol):
    """What is known here of an attempt at a job."""

    @property
    def job(self) -> Job: ...  # noqa: D102
    @property
    def lease(self) -> Lease: ...  # noqa: D102
    @property
    def step(self) -> str: ...  # noqa: D102


@dataclass(slots=True)
class Tally:
    """What became of the jobs of one worker's run."""

    completed: list[UUID] = field(default_factory=list)
    failed: dict[UUID, str] = field(default_factory=dict)
    left: dict[UUID, str] = field(default_factory=dict)
    """Jobs given back to the queue, and why."""
    awaiting: dict[UUID, float] = field(default_factory=dict)
    """Of those, the ones that wait for a batch: seconds until the next look."""

    def done_with(self, job_id: UUID) -> bool:
        """Whether there is nothing more to do for a job now."""
        return job_id in self.completed or job_id in self.awaiting


class Endings:
    """Ends the attempts of one worker and keeps its tally."""

    def __init__(
        self,
        pool: Pool,
        *,
        worker_id: str,
        max_wait_hours: float,
        tally: Tally,
        waits: Callable[[str | None], None] = lambda _: None,
    ) -> None:
        """Let `waits` know what keeps an ending from being written; None when nothing does."""
        self._pool = pool
        self._waits = waits
        self._worker_id = worker_id
        self._max_wait_hours = max_wait_hours
        self._tally = tally

    async def completed(self, work: Work, result: dict[str, Any], cost: dict[str, Any]) -> None:
        """End the job as complete."""
        await self._write(work, lambda: self._complete(work, result, cost))

    async def raised(self, work: Work, error: Exception) -> None:
        """End an attempt by what it raised."""
        await self._write(work, lambda: self._conclude(work, error))

    async def interrupted(self, work: Work) -> None:
        """End an attempt whose task was cancelled: the grace is over, or it was given back."""
        if work.lease.over:
            self._tally.left.setdefault(work.job.id, "it was given back")
            _log.warning("job.interrupted", step=work.step)
            return
        over = Draining("the shutdown grace is over")
        await self._write(work, lambda: self._give_back(work, over))

    async def _write(self, work: Work, ending: Callable[[], Awaitable[None]]) -> None:
        """Write an ending, for as long as the database keeps us from it."""
        try:
            await self._written(work, ending)
        finally:
            self._waits(None)

    async def _written(self, work: Work, ending: Callable[[], Awaitable[None]]) -> None:
        backoff = Backoff(longest_seconds=5.0)
        refused = False
        while True:
            try:
                await ending()
            except Systemic as error:
                if self._pool.is_closing():
                    return  # this worker is gone: the lease runs out by itself
                _log.warning("job.ending_waits", error=str(error), failures=backoff.failures)
                self._waits(str(error))
                await asyncio.sleep(backoff.next_seconds())
            except LeaseLost:
                ending = self._excuser(work)
            except Exception as error:  # noqa: BLE001 - logged, and told as the job's ending
                # Not trouble: what is written here is refused (a trigger, a constraint, a text).
                _log.exception("job.ending_refused", step=work.step)
                if refused:
                    return
                refused = True
                ending = self._refusal(work, error)
            else:
                return

    def _refusal(self, work: Work, error: Exception) -> Callable[[], Awaitable[None]]:
        said = f"the database refused to note how this ended: {_storable(first_line(error))}"
        return lambda: self._fail(work, TryAgain(said))

    def _excuser(self, work: Work) -> Callable[[], Awaitable[None]]:
        async def excuse() -> None:
            # We are alive to say so: the sweep that took the job saw no crash (promise 9).
            await jobs.excuse(self._pool, work.job, worker_id=self._worker_id)
            JOBS_ENDED.inc("lost")
            _log.warning("job.lost", step=work.step)
            self._tally.left.setdefault(work.job.id, "another worker has it")

        return excuse

    async def _complete(self, work: Work, result: dict[str, Any], cost: dict[str, Any]) -> None:
        await jobs.complete(self._pool, work.job, result=result, cost=cost)
        self._tally.left.pop(work.job.id, None)
        self._tally.completed.append(work.job.id)
        JOBS_ENDED.inc("complete")
        _log.info("job.completed", cost_usd=cost.get("cost_usd"), calls=cost.get("calls"))

    async def _conclude(self, work: Work, error: Exception) -> None:
        match error:
            case Cancelled():
                await jobs.yield_cancelled(self._pool, work.job)
                JOBS_ENDED.inc("cancelled")
                _log.info("job.cancelled", step=work.step)
            case LeaseLost():
                # Perhaps only out of touch for too long; if the lease is ours still, nobody has to
                # wait for it to run out.
                await self._give_back(work, Wait(str(error), seconds=0.0))
            case Wait():
                await self._give_back(work, error)
            case _:
                await self._fail(work, error)

    async def _give_back(self, work: Work, error: Wait) -> None:
        reason = _storable(masked(str(error)))[:_LONGEST_ERROR]
        outcome: str
        if isinstance(error, AwaitsBatch):
            outcome = await jobs.await_batches(
                self._pool, work.job, seconds=error.seconds, reason=reason, stage=error.stage
            )
            self._tally.awaiting[work.job.id] = error.seconds
        else:
            outcome = await jobs.release(
                self._pool,
                work.job,
                seconds=error.seconds,
                reason=reason,
                max_wait_hours=self._max_wait_hours,
            )
        if outcome == "failed":
            self._tally.failed[work.job.id] = str(error)
        elif outcome == "released":
            self._tally.left[work.job.id] = masked(str(error))
        JOBS_ENDED.inc("failed" if outcome == "failed" else "released")
        _log.info(f"job.{outcome}", step=work.step, reason=str(error))

    async def _fail(self, work: Work, error: Exception) -> None:
        said = _storable(masked(f"{work.step}: {_told(error)}"))[:_LONGEST_ERROR]
        lost = False
        try:
            outcome = await jobs.fail(
                self._pool, work.job, error=said, retry=not isinstance(error, GiveUp)
            )
        except LeaseLost:
            # Whoever took the job may have taken its rows too, as an erasure does: no defect.
            lost = True
            _log.warning("job.moot", exc_info=error, step=work.step)
            raise
        finally:
            if not lost:
                _log.error("job.error", exc_info=error, step=work.step)
                report(error, job_id=str(work.job.id), step=work.step, attempt=work.job.attempt)
        self._tally.left.pop(work.job.id, None)
        JOBS_ENDED.inc(outcome)
        if outcome == "retry":
            self._tally.left[work.job.id] = said
        elif outcome == "failed":
            self._tally.failed[work.job.id] = said


def _told(error: Exception) -> str:
    """Return an error in one line for people: its message, with its type when it is a defect."""
    if isinstance(error, GiveUp) or type(error).__module__.startswith("daemon."):
        return first_line(error)
    return f"unexpected {type(error).__name__}: {first_line(error)}"


def _storable(text: str) -> str:
    """Return a text that Postgres takes: it refuses NUL and lone surrogates."""
    return text.replace("\x00", "").encode("utf-8", "replace").decode()
