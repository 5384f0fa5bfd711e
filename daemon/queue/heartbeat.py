"""The heartbeat: an OS thread with its own event loop and its own connection.

It renews every lease of this worker in one statement, reports the worker's vitals, and passes on
what the database answers. A busy event loop or a slow pool in the rest of the process cannot delay
it (promise 6). When the database cannot be reached it keeps trying with jittered back-off; the
leases notice by themselves that no renewal came (`Lease.check`).

Because it always runs, it is also the one to notice what beats and does not move: a job without
progress for longer than its patience is given back with a dump of all stacks, and a worker whose
loop does not even end its jobs when it is told to, or is blocked for good, is ended.
"""

from __future__ import annotations

import asyncio
import json
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from daemon.database import connect, database_errors
from daemon.errors import FullpassError, LeaseLost, Sick
from daemon.logs import get_logger
from daemon.queue.backoff import Backoff
from daemon.queue.lease import clock
from daemon.queue.liveness import LoopEcho, stacks

if TYPE_CHECKING:
    from collections.abc import Callable
    from uuid import UUID

    from daemon.database import Connection
    from daemon.queue.lease import Lease
    from daemon.queue.liveness import Pulse

_log = get_logger()
_TICK_SECONDS = 0.5
_STALLED_PAUSE_SECONDS = 30.0
_DEFECTS_TO_END = 5
_STACKS_ON_THE_TIMELINE = 6
_STILL_SECONDS = 30.0
"""A round holds at most a connect, of ten seconds, and two commands of half a lease."""


@dataclass(frozen=True, slots=True)
class _Kept:
    """A lease that is renewed, and how long its job may go without progress."""

    lease: Lease
    patience_seconds: Callable[[], float] | None


class Heartbeat:
    """Beats for all leases of one worker from `start()` to `stop()`.

    `vitals` is called on the beat's own thread and must be quick and thread-safe; its keys are the
    columns of fullpass.workers. `echo` watches the loop that does the work, `pulse` the one in it
    that claims; `end_process` ends a worker in which one of them will not move again.
    """

    def __init__(
        self,
        url: str,
        *,
        worker_id: str,
        beat_seconds: float,
        lease_seconds: float,
        vitals: Callable[[], dict[str, Any]],
        max_wait_hours: float = 48.0,
        echo: LoopEcho | None = None,
        pulse: Pulse | None = None,
        end_process: Callable[[], None] | None = None,
    ) -> None:
        self._url = url
        self._worker_id = worker_id
        self._beat_seconds = beat_seconds
        self._lease_seconds = lease_seconds
        self._vitals = vitals
        self._max_wait_hours = max_wait_hours
        self._echo = echo
        self._pulse = pulse
        self._end_process = end_process
        self._kept: dict[UUID, _Kept] = {}
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._woken: asyncio.Event | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._connection: Connection | None = None
        self._drain_deadline: float | None = None
        self._wedged_since: float | None = None
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)
        self._turned_at = time.monotonic()
        self.last_acknowledged: float | None = None

    def start(self) -> None:
        """Start beating."""
        self._turned_at = time.monotonic()
        self._thread.start()

    @property
    def beating(self) -> bool:
        """Whether the thread is there and goes round, whatever the database answers it."""
        still_seconds = time.monotonic() - self._turned_at
        return self._thread.is_alive() and still_seconds < _STILL_SECONDS + self._lease_seconds

    def require(self) -> None:
        """Raise Sick when nothing beats any more: what claims next could not keep its leases."""
        if not self.beating:
            raise Sick("the heartbeat's thread has stopped: no lease of this worker can be kept")

    @property
    def acknowledged_age_seconds(self) -> float | None:
        """How long ago the database last acknowledged a beat; None: never yet."""
        at = self.last_acknowledged
        return None if at is None else clock() - at

    @property
    def jobs(self) -> int:
        """How many leases are kept."""
        return len(self._kept)

    def stop(self) -> None:
        """Stop beating and wait for the thread, a second if it hangs on a frozen link."""
        self._stopped.set()
        loop, woken = self._loop, self._woken
        if loop is not None and woken is not None and not loop.is_closed():
            loop.call_soon_threadsafe(woken.set)
        self._thread.join(timeout=1)

    def add(self, lease: Lease, *, patience_seconds: Callable[[], float] | None = None) -> None:
        """Renew this lease from the next beat on.

        `patience_seconds` is asked again each time: it differs from step to step.
        """
        with self._lock:
            self._kept[lease.job_id] = _Kept(lease, patience_seconds)

    def remove(self, lease: Lease) -> None:
        """Stop renewing this lease."""
        with self._lock:
            kept = self._kept.get(lease.job_id)
            if kept is not None and kept.lease is lease:
                del self._kept[lease.job_id]

    def drain_by(self, deadline: float) -> None:
        """Give every job back and end the process if the loop has not done so by then."""
        self._drain_deadline = deadline

    # -- the thread ------------------------------------------------------------------------------

    def _run(self) -> None:
        """Beat; begin again after a defect, and end a worker that cannot beat at all."""
        defects = 0
        while defects < _DEFECTS_TO_END:
            acknowledged = self.last_acknowledged
            try:
                asyncio.run(self._beat_and_hang_up())
            except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001 - whatever it was:
                # without beats every job of this worker is lost, again and again.
                defects = 1 if self.last_acknowledged != acknowledged else defects + 1
                _log.critical("beat.broken", exc_info=error, defects=defects)
                if not self._stopped.wait(min(self._beat_seconds, 1.0)):
                    continue
            return
        if self._end_process is not None:
            self._end_process()

    async def _beat_and_hang_up(self) -> None:
        try:
            await self._beat_until_stopped()
        finally:
            self._drop_connection()

    async def _beat_until_stopped(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._woken = asyncio.Event()
        backoff = Backoff(longest_seconds=max(self._beat_seconds, 1.0))
        next_beat = clock()
        while not self._stopped.is_set():
            self._turned_at = time.monotonic()
            if self._echo is not None:
                self._echo.ask()
            try:
                if clock() >= next_beat:
                    await self._beat(await self._connected())
                    backoff.reset()
                    next_beat = clock() + self._beat_seconds
                await self._look_for_stalls()
                await self._look_for_the_end()
            except FullpassError as error:
                self._drop_connection()
                pause = backoff.next_seconds()
                next_beat = clock() + pause
                _log.warning("beat.failed", error=str(error), failures=backoff.failures)
            pause = min(max(0.0, next_beat - clock()), _TICK_SECONDS)
            try:
                async with asyncio.timeout(pause):
                    await self._woken.wait()
            except TimeoutError:
                continue

    async def _connected(self) -> Connection:
        if self._connection is None or self._connection.is_closed():
            self._connection = await connect(
                self._url, command_timeout_seconds=max(1.0, self._lease_seconds / 4)
            )
        return self._connection

    def _drop_connection(self) -> None:
        if self._connection is not None:
            self._connection.terminate()
            self._connection = None

    def _all_kept(self) -> dict[UUID, _Kept]:
        with self._lock:
            return dict(self._kept)

    async def _beat(self, connection: Connection) -> None:
        leases = {job_id: kept.lease for job_id, kept in self._all_kept().items()}
        vitals = self._vitals()
        if self._echo is not None:
            vitals["loop_lag_ms"] = self._echo.take_lag_ms()
        sent_at = clock()
        with database_errors(protocol=True):
            rows = await connection.fetch(
                "select job_id, verdict from fullpass.beat($1, $2, $3, $4, $5)",
                self._worker_id,
                list(leases),
                [lease.epoch for lease in leases.values()],
                self._lease_seconds,
                json.dumps(vitals),
            )
        self.last_acknowledged = clock()
        for row in rows:
            lease = leases[row["job_id"]]
            if row["verdict"] == "lost":
                lease.lost()
            else:
                lease.renewed(sent_at)
                if row["verdict"] == "cancel":
                    lease.cancel()

    # -- what beats and does not move ------------------------------------------------------------

    async def _look_for_stalls(self) -> None:
        """Give back each job that made no progress within its patience."""
        for kept in self._all_kept().values():
            lease = kept.lease
            if kept.patience_seconds is None or lease.over:
                continue
            idle_seconds = clock() - lease.last_progress
            if idle_seconds > kept.patience_seconds():
                await self._give_back(
                    lease,
                    pause_seconds=_STALLED_PAUSE_SECONDS,
                    reason=f"no progress for {idle_seconds:.0f} s",
                    stalled=True,
                )

    async def _look_for_the_end(self) -> None:
        """End a process whose loop can end nothing any more."""
        if self._echo is None or self._end_process is None:
            return
        blocked = self._echo.silent_seconds > max(1.0, 2 * _TICK_SECONDS)
        stuck = self._pulse is not None and self._pulse.stuck
        if not (blocked or stuck):
            self._wedged_since = None
            return
        drained_late = self._drain_deadline is not None and clock() > self._drain_deadline
        if drained_late:
            for kept in self._all_kept().values():
                await self._give_back(kept.lease, pause_seconds=0.0, reason="shutdown")
        elif any(not kept.lease.over for kept in self._all_kept().values()):
            return  # their patience decides
        elif self._wedged_since is None:
            self._wedged_since = clock()
            return
        elif clock() - self._wedged_since < self._lease_seconds:
            return
        _log.critical(
            "worker.wedged",
            silent_seconds=round(self._echo.silent_seconds, 1),
            claims_late_seconds=round(self._pulse.late_seconds, 1) if self._pulse else None,
            stacks=stacks(self._echo.loop),
        )
        self._end_process()

    async def _give_back(
        self, lease: Lease, *, pause_seconds: float, reason: str, stalled: bool = False
    ) -> None:
        """Release a job from this thread: its own loop may not be able to."""
        where = [] if self._echo is None else stacks(self._echo.loop)
        if stalled:
            _log.error("job.stalled", job_id=lease.job_id, reason=reason, stacks=where)
        connection = await self._connected()
        try:
            with database_errors():
                async with connection.transaction():
                    if stalled:
                        await connection.execute(
                            "select fullpass.note_event("
                            "fullpass.grip($1, $2), 'stalled', null, $3)",
                            lease.job_id,
                            lease.epoch,
                            json.dumps({"stacks": where[:_STACKS_ON_THE_TIMELINE]}),
                        )
                    await connection.execute(
                        "select fullpass.release($1, $2, $3, $4, $5)",
                        lease.job_id,
                        lease.epoch,
                        pause_seconds,
                        reason,
                        self._max_wait_hours * 3600,
                    )
        except LeaseLost:
            lease.lost()
        else:
            lease.given_back()
