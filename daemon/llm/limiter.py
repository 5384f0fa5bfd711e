"""How many model calls run at once in this process: one limit for all of its jobs.

    ceiling        FACT_EXTRACTION_CONCURRENCY
    ∧ memory       what the gauge allows right now (promise 7)
    ∧ window       starts small, grows with each reply, halves when the server is overloaded
    ∧ pace         the account's allowances a minute, model by model (`pace.py`)

A call waits for its place in its own job's queue; the job with the fewest calls in flight is served
next, so that a large job cannot keep a small one waiting. A refusal that a used-up allowance
explains corrects the pace and nothing else; any other one says that there are too many calls at
once, and halves the window (decision 0090). Owns the counts; leaves repeating to `caller.py`.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, Any, Literal, Self

from daemon.errors import Wait
from daemon.llm.pace import MINUTE_SECONDS, PACED_SECONDS, Pace
from daemon.llm.rate_limits import Throttled
from daemon.logs import get_logger

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

    from daemon.errors import CallFailed
    from daemon.llm.pace import Sent
    from daemon.llm.request import Reply

HeldBy = Literal["ceiling", "memory", "rate"]

_log = get_logger()
_REREAD_SECONDS = 0.5
_LOOK_SECONDS = 0.5
"""While calls wait: how often their jobs are asked whether to go on, and memory is looked at."""
_FIRST_WINDOW = 4.0
_IDLE_SECONDS = 60.0
_LOG_SECONDS = 5.0
LONGEST_HOLD_SECONDS = 60.0
"""Longest wait that a job is held for; a longer one releases it."""
LONGEST_PAUSE_SECONDS = 900.0
"""A released job is tried again after so long at most, whatever a server asks for."""


@dataclass(eq=False, slots=True)
class _Waiting:
    """A call that waits for its place."""

    job: Hashable
    model: str
    characters: int
    check: Callable[[], None]
    admitted: asyncio.Future[Sent]


@dataclass(slots=True)
class _Line:
    """The calls of one job: how many are in flight, and who waits, first come first served."""

    in_flight: int = 0
    served: int = 0
    """When it was last served, as a number that grows."""
    waiting: deque[_Waiting] = field(default_factory=deque)


class Place:
    """A call's place under the limit, held while it is entered; told how the call went."""

    __slots__ = ("_handed_over", "_limiter", "_one", "_pace", "_sent")

    def __init__(self, limiter: CallLimiter, one: _Waiting, pace: Pace) -> None:
        self._limiter = limiter
        self._one = one
        self._pace = pace
        self._sent: Sent | None = None
        self._handed_over = False

    async def __aenter__(self) -> Self:
        self._sent = await self._limiter.admitted(self._one)
        return self

    async def __aexit__(self, *_raised: object) -> None:
        if self._sent is not None:  # nothing was heard of the call: take back what was assumed
            self._pace.failed(self._sent)
            self._sent = None
        if not self._handed_over:
            self._limiter.free(self._one.job)

    def hand_over(self) -> Callable[[], None]:
        """Keep the place beyond this block; return what gives it back, to be called once."""
        self._handed_over = True
        return partial(self._limiter.free, self._one.job)

    def landed(self, reply: Reply) -> None:
        """Learn from an answer."""
        if self._sent is not None:
            self._limiter.landed(self._pace, self._sent, reply)
            self._sent = None

    def failed(self, error: CallFailed) -> None:
        """Learn from a failure in passing."""
        if self._sent is not None:
            self._limiter.failed(self._pace, self._sent, error)
            self._sent = None


class CallLimiter:
    """Admits the calls of all jobs of a process.

    `allowed` is given the size in bytes of the largest request plus reply seen so far and returns
    how many calls memory allows right now, at least 1. `minute_seconds` is a minute of the server's
    allowances; only tests and benchmarks, whose servers have shorter ones, set it.
    """

    def __init__(
        self,
        *,
        ceiling: int,
        allowed: Callable[[int], int],
        minute_seconds: float = MINUTE_SECONDS,
    ) -> None:
        self._ceiling = ceiling
        self._allowed = allowed
        self._minute_seconds = minute_seconds
        self._paces: dict[str, Pace] = {}
        self._lines: dict[Hashable, _Line] = {}
        self._serial = count(1)
        self._alarm: asyncio.TimerHandle | None = None
        self._by_memory = ceiling
        self._read_at = float("-inf")
        self._window = min(_FIRST_WINDOW, ceiling)
        self._threshold = float(ceiling)
        self._cut_at = float("-inf")
        self._used_at = float("-inf")
        self._paced_at = float("-inf")
        self._asked_at = float("-inf")
        self._logged: tuple[int, HeldBy] = (0, "ceiling")
        self._logged_at = float("-inf")
        self.in_flight = 0
        self.largest_exchange_bytes = 0
        self.when_looked: Callable[[], None] = lambda: None
        """Called now and then while calls are made or wait."""

    @property
    def limit(self) -> int:
        """How many calls may be in flight now; memory is read at most twice a second."""
        now = time.monotonic()
        if now - self._read_at >= _REREAD_SECONDS:
            self._read_at = now
            self._by_memory = max(1, self._allowed(self.largest_exchange_bytes))
            self._say(now)
        return self.last_limit

    @property
    def last_limit(self) -> int:
        """The limit as last read: for other threads, which must not read the gauge."""
        return max(1, min(self._ceiling, self._by_memory, int(self._window)))

    @property
    def held_by(self) -> HeldBy:
        """What keeps more calls from being made."""
        paced = time.monotonic() - self._paced_at < PACED_SECONDS
        if paced or self._window < min(self._ceiling, self._by_memory):
            return "rate"
        return "memory" if self._by_memory < self._ceiling else "ceiling"

    @property
    def vitals(self) -> dict[str, Any]:
        """This room's columns of fullpass.workers: plain attributes, for any thread."""
        return {
            "llm_in_flight": self.in_flight,
            "llm_limit": self.last_limit,
            "llm_held_by": self.held_by,
        }

    @property
    def busy(self) -> bool:
        """Whether a call is in flight or waits for its place."""
        return self.in_flight > 0 or bool(self._lines)

    @property
    def crowded(self) -> bool:
        """Whether calls wait for their places: the next one to come has time."""
        return any(line.waiting for line in self._lines.values())

    @property
    def paces(self) -> dict[str, Pace]:
        """The pace of each model that was called."""
        return self._paces

    def slot(self, job: Hashable, model: str, characters: int, check: Callable[[], None]) -> Place:
        """Return a place to be entered (`async with`), which waits for it and holds it.

        While it waits `check` is called about twice a second; what that raises ends the wait.
        Raises Wait when the account is to be left alone for longer than a job is held for.
        """
        admitted = asyncio.get_running_loop().create_future()
        return Place(self, _Waiting(job, model, characters, check, admitted), self._pace(model))

    async def admitted(self, one: _Waiting) -> Sent:
        """Wait for a place."""
        self._lines.setdefault(one.job, _Line()).waiting.append(one)
        self._admit()
        try:
            return await one.admitted
        except BaseException:  # above all a cancellation: nobody's place must stay taken
            self._give_up(one)
            raise

    def free(self, job: Hashable) -> None:
        """Give a place back, and let the next ones in."""
        line = self._lines[job]
        line.in_flight -= 1
        self.in_flight -= 1
        if not line.waiting and not line.in_flight:
            del self._lines[job]
        self._admit()

    def seen(self, exchange_bytes: int) -> None:
        """Note the size of one request plus its reply."""
        self.largest_exchange_bytes = max(self.largest_exchange_bytes, exchange_bytes)

    def restart(self) -> None:
        """Begin again with a single call: it is not known whether any can succeed."""
        self._window = 1.0

    # -- learning --------------------------------------------------------------------------------

    def landed(self, pace: Pace, sent: Sent, reply: Reply) -> None:
        """Learn from an answer: one more at once, if as many as may were really made."""
        now = time.monotonic()
        pace.landed(sent, reply.usage, reply.limits, now)
        if self.in_flight >= int(self._window) and self._window < self._ceiling:
            more = 1.0 if self._window < self._threshold else 1.0 / self._window
            self._window = min(float(self._ceiling), self._window + more)

    def failed(self, pace: Pace, sent: Sent, error: CallFailed) -> None:
        """Learn from a failure: slow down when the server asks for it."""
        if not isinstance(error, Throttled):
            pace.failed(sent)
            return
        now = time.monotonic()
        explained = pace.refused(sent, error.limits, now)
        if error.retry_after_seconds is not None and (explained or error.limits is None):
            # Of all jobs, and by sharing of all workers: no word of a server stops them for a day.
            pace.pause(now + min(LONGEST_PAUSE_SECONDS, error.retry_after_seconds))
        if explained:
            return
        if sent.at >= self._cut_at:  # calls sent before the last cut tell nothing new
            self._window = self._threshold = max(1.0, min(self._window, self.in_flight) / 2)
            self._cut_at = now
            self._say(now)

    def _pace(self, model: str) -> Pace:
        pace = self._paces.get(model)
        if pace is None:
            pace = self._paces[model] = Pace(minute_seconds=self._minute_seconds)
        return pace

    def _say(self, now: float) -> None:
        """Log the limit when it fell, or rose some while ago."""
        says = (self.last_limit, self.held_by)
        was, _ = self._logged
        if says != self._logged and (says[0] < was or now - self._logged_at >= _LOG_SECONDS):
            _log.info("llm.limit", limit=says[0], held_by=says[1], was=was, ceiling=self._ceiling)
            self._logged, self._logged_at = says, now

    # -- places ----------------------------------------------------------------------------------

    def _admit(self) -> None:
        """Let in whoever may go now, the job with the fewest calls in flight first."""
        now = time.monotonic()
        if not self.in_flight and now - self._used_at > _IDLE_SECONDS:
            self._window = min(self._window, _FIRST_WINDOW)  # sharp ramps draw refusals
        soonest = _LOOK_SECONDS
        paced: set[str] = set()
        while self.in_flight < self.limit:
            for line in self._lines.values():
                while line.waiting and line.waiting[0].admitted.done():  # ended, not yet awake
                    line.waiting.popleft()
            lines = [
                line
                for line in self._lines.values()
                if line.waiting and line.waiting[0].model not in paced
            ]
            if not lines:
                break
            line = min(lines, key=lambda line: (line.in_flight, line.served))
            one = line.waiting[0]
            pace = self._pace(one.model)
            if (wait := pace.wait_seconds(one.characters, now)) > 0:
                # Nobody overtakes: small calls would for ever take what a large one waits for.
                paced.add(one.model)
                self._paced_at = pace.paced_at = now
                soonest = min(soonest, wait)
                if wait > LONGEST_HOLD_SECONDS:
                    self._turn_away(one.model, wait)
                continue
            line.waiting.popleft()
            line.in_flight += 1
            line.served = next(self._serial)
            self.in_flight += 1
            self._used_at = now
            one.admitted.set_result(pace.sent(one.characters, now))
        self._look_again(soonest)
        self.when_looked()

    def _turn_away(self, model: str, seconds: float) -> None:
        """Send all that wait for a model's allowance back to the queue."""
        for line in self._lines.values():
            for one in line.waiting:
                if one.model == model and not one.admitted.done():
                    one.admitted.set_exception(
                        Wait(
                            f"the account's rate limit leaves nothing for {seconds:.0f} s",
                            seconds=min(LONGEST_PAUSE_SECONDS, seconds),
                        )
                    )
            line.waiting = deque(one for one in line.waiting if not one.admitted.done())

    def _look_again(self, seconds: float) -> None:
        """Look before long whether those who wait may go, or should go on waiting at all.

        Memory and allowances come free without any call ending, and leases end at any time.
        """
        if not self.crowded:
            return  # an alarm that is still set finds nobody
        loop = asyncio.get_running_loop()
        at = loop.time() + max(0.001, seconds)
        if self._alarm is not None:
            if self._alarm.when() <= at:
                return  # it looks again from there
            self._alarm.cancel()
        self._alarm = loop.call_at(at, self._look)

    def _look(self) -> None:
        self._alarm = None
        now = time.monotonic()
        if now - self._asked_at >= _LOOK_SECONDS:
            self._asked_at = now
            for line in self._lines.values():
                for one in line.waiting:
                    try:
                        one.check()
                    except Exception as error:  # noqa: BLE001 - it belongs to the one who waits
                        if not one.admitted.done():
                            one.admitted.set_exception(error)
                line.waiting = deque(one for one in line.waiting if not one.admitted.done())
        self._admit()

    def _give_up(self, one: _Waiting) -> None:
        """Take back a wait that was ended, also when it was granted in the same moment."""
        admitted = one.admitted
        if admitted.done() and not admitted.cancelled() and admitted.exception() is None:
            self._pace(one.model).failed(admitted.result())
            self.free(one.job)
            return
        line = self._lines.get(one.job)
        if line is not None:
            if one in line.waiting:
                line.waiting.remove(one)
            if not line.waiting and not line.in_flight:
                del self._lines[one.job]
