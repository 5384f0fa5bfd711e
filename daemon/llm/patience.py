"""How long a failing call is repeated, and when no job calls at all.

Three answers to a call that failed: repeat it after a pause, give the job back for a while, or stop
all jobs of this worker. A retry budget a job sees to it that a server that fails half of all calls
is not asked twice as often; an outage and a permanent error (wrong key, unknown model, spend limit)
close a gate for all jobs at once, which opens by itself and lets one call try (promise 9: waiting
uses no attempt). An input on which the server fails every time, while it answers others, ends as
one that it refuses, so that no job waits for days. Owns these rules; leaves the call itself to
`caller.py`.
"""

from __future__ import annotations

import random
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from daemon.errors import BadCall, CallFailed, Systemic, Wait
from daemon.llm.limiter import LONGEST_HOLD_SECONDS, LONGEST_PAUSE_SECONDS
from daemon.llm.rate_limits import Throttled
from daemon.logs import get_logger

if TYPE_CHECKING:
    from collections.abc import Callable

_log = get_logger()

_OTHERS_ANSWERED = 10
_OTHERS_FAILED_SHARE = 0.2
"""While all tries of an input fail, so many others answered, and no greater share of theirs failed,
show that it is the input: eight failures in a row by chance are then rarer than one in 100,000."""


@dataclass(frozen=True, slots=True)
class Patience:
    """The rules of repeating. `scale` shortens every time alike: for tests of long outages."""

    tries: int = 8
    first_pause_seconds: float = 0.5
    longest_pause_seconds: float = 30.0
    longest_hold_seconds: float = LONGEST_HOLD_SECONDS
    outage_seconds: float = 30.0
    """How long jobs are given back for when the server does not answer; doubled while it lasts."""
    longest_outage_pause_seconds: float = 300.0
    budget: float = 60.0
    """Repetitions that a job may be ahead of its answers."""
    scale: float = 1.0


@dataclass(frozen=True, slots=True)
class Begun:
    """When a call was first made, and how many calls had been answered and had failed by then."""

    at: float
    answers: int = 0
    failures: int = 0


class Gate:
    """Whether any job may call, and how long each failure is waited for."""

    def __init__(
        self, patience: Patience, *, alarm: Callable[[Systemic], None] | None = None
    ) -> None:
        self._patience = patience
        self._alarm = alarm
        self._shut_until = float("-inf")
        self._shut_by: Wait | None = None
        self._outages = 0
        self._answered_at = float("-inf")
        self._budgets: WeakKeyDictionary[object, float] = WeakKeyDictionary()
        self._answers = self._failures = 0

    def check(self) -> None:
        """Raise what shut the gate, while it is shut."""
        left = self._shut_until - time.monotonic()
        if self._shut_by is not None and left > 0:
            raise type(self._shut_by)(str(self._shut_by), seconds=left)

    @property
    def shut(self) -> bool:
        """Whether no job may call now."""
        return self._shut_by is not None and time.monotonic() < self._shut_until

    def begin(self) -> Begun:
        """Return what to hand to `pause_after` when the call that begins now fails."""
        return Begun(time.monotonic(), self._answers, self._failures)

    def answered(self, job: object) -> None:
        """Note that the server answered a call of this job."""
        self._answers += 1
        self._answered_at = time.monotonic()
        if self._outages or self._shut_by is not None:
            _log.info("llm.answers_again")
        self._outages = 0
        self._shut_by = None
        budget = self._patience.budget
        self._budgets[job] = min(budget, self._budgets.get(job, budget) + 1.0)

    def closed_by(self, error: Systemic) -> Systemic:
        """Shut the gate for all jobs; the alarm is told once for each time it is shut."""
        error = type(error)(str(error), seconds=error.seconds * self._patience.scale)
        if self._shut_by is None or time.monotonic() >= self._shut_until:
            # A little shorter than the worker's pause: what it claims then must not meet the gate.
            self._shut_until = time.monotonic() + 0.8 * error.seconds
            self._shut_by = error
            if self._alarm is not None:
                self._alarm(error)
        return error

    def pause_after(
        self, error: CallFailed, attempt: int, job: object, begun: Begun, probes: int = 0
    ) -> float:
        """Return the seconds to wait before repeating; `probes` were answered since it failed.

        Raises Wait when the job is to wait, BadCall when only this very input fails.
        """
        self._failures += 1
        p = self._patience
        self.check()
        left = self._budgets.get(job, p.budget) - 1.0
        self._budgets[job] = left
        pause = p.first_pause_seconds * 2.0 ** (attempt - 1)
        pause = min(p.longest_pause_seconds, pause) * random.uniform(0.75, 1.25)
        if error.retry_after_seconds is not None:
            # Never sooner than asked, and not all in the same instant.
            pause = max(pause, error.retry_after_seconds * random.uniform(1.0, 1.1))
        spent = self._spent(attempt)
        if spent and self._answered_at < begun.at:
            raise self._outage(error)
        if (
            spent
            and not isinstance(error, Throttled)
            and (probes >= _OTHERS_ANSWERED or self._alone(attempt, begun))
        ):
            raise BadCall(f"the LLM server fails on this input and on no other: {error}") from error
        if spent or pause > p.longest_hold_seconds or left < 0:
            raise Wait(
                f"the LLM server does not answer: {error}",
                seconds=min(LONGEST_PAUSE_SECONDS, max(pause, p.outage_seconds)) * p.scale,
            ) from error
        return pause * p.scale

    def _spent(self, attempt: int) -> bool:
        """Whether a call was made as often as makes sense for now."""
        return attempt >= (2 if self._outages else self._patience.tries)

    def doubts(self, error: CallFailed, attempt: int, begun: Begun, probes: int) -> bool:
        """Whether a call's tries are over, and others do not tell if it is its input's fault.

        Others may be such inputs too; so many probes that are all answered tell in any case: eight
        failures and ten answers in a row are as rare whatever share of its calls a server fails.
        """
        if isinstance(error, Throttled) or self.shut or not self._spent(attempt):
            return False
        # This failure is not counted yet, as `pause_after` has not seen it.
        return probes < _OTHERS_ANSWERED and not self._alone(attempt - 1, begun)

    def _alone(self, attempts: int, begun: Begun) -> bool:
        """Whether nearly all others were answered while every one of these attempts failed."""
        answered = self._answers - begun.answers
        failed = self._failures - begun.failures - attempts
        return answered >= _OTHERS_ANSWERED and failed <= _OTHERS_FAILED_SHARE * answered

    def _outage(self, error: CallFailed) -> Wait:
        """Shut the gate for all jobs: this call was repeated for as long as makes sense."""
        p = self._patience
        seconds = min(p.longest_outage_pause_seconds, p.outage_seconds * 2.0**self._outages)
        self._outages += 1
        asked = error.retry_after_seconds or 0.0
        seconds = min(LONGEST_PAUSE_SECONDS, max(seconds, asked)) * p.scale
        wait = Wait(f"the LLM server does not answer: {error}", seconds=seconds)
        self._shut_by, self._shut_until = wait, time.monotonic() + 0.8 * seconds
        _log.error("llm.outage", error=str(error), outages=self._outages, seconds=round(seconds, 1))
        return wait
