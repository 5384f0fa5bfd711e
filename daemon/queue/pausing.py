"""What a worker is waiting for: something every job would meet, or the queue itself out of reach.

Owns how long no job is claimed, and the words that `workers.waiting_for` and `fullpass status`
show. Leaves to the worker when to look, and to the job's ending that no attempt is used.
"""

from __future__ import annotations

import random
import time
from typing import TYPE_CHECKING, Protocol

from daemon.logs import get_logger, masked
from daemon.queue.backoff import Backoff

if TYPE_CHECKING:
    from daemon.errors import OutOfReach, Systemic

_log = get_logger()

_LONGEST_PAUSE_SECONDS = 300.0
_SOON_OVER_SECONDS = 30.0


class Alarm(Protocol):
    """Who is told of what stops a worker."""

    def stopped(self, trouble: str) -> None: ...  # noqa: D102
    def worked(self) -> None: ...  # noqa: D102
    def out_of_reach(self, trouble: str) -> None: ...  # noqa: D102
    def reached(self) -> None: ...  # noqa: D102


class Pausing:
    """Pauses for all jobs of a worker; each is taken once, however many jobs meet the trouble."""

    def __init__(self, alarm: Alarm) -> None:
        self._alarm = alarm
        self._until = 0.0
        self._count = 0
        self._trouble: str | None = None
        self._out_of_reach: str | None = None
        self._ending_waits_for: str | None = None
        self._backoff = Backoff()

    @property
    def waits_for(self) -> str | None:
        """What it is, in words; None when nothing is in the way."""
        return self._trouble or self._out_of_reach or self._ending_waits_for

    @property
    def troubled(self) -> bool:
        """Whether the last job met what every other would, and none has shown that it is over."""
        return self._trouble is not None

    @property
    def seconds_left(self) -> float:
        """How long nothing is to be claimed."""
        return max(0.0, self._until - time.monotonic())

    def take(self, error: Systemic) -> None:
        """Claim nothing for a while: every job would meet this."""
        if self.seconds_left:
            return  # the same trouble, met by one more of the jobs that ran
        self._count += 1
        doubled = max(1.0, error.seconds) * 2 ** min(self._count - 1, 6)
        seconds = min(_LONGEST_PAUSE_SECONDS, doubled)
        self._until = time.monotonic() + seconds * random.uniform(0.9, 1.1)
        self._trouble = masked(str(error))
        _log.error("worker.paused", alert=True, waits_for=self._trouble, seconds=round(seconds, 1))
        if self._count > 1 or error.seconds >= _SOON_OVER_SECONDS:
            self._alarm.stopped(self._trouble)

    def try_again(self) -> None:
        """Call the pause over once its time is up, whatever the next job will meet."""
        if self._trouble is not None and not self.seconds_left:
            _log.info("worker.resumed", waited_for=self._trouble)
            self._trouble = None

    def worked(self) -> None:
        """Take the next trouble for a new one: a job went through."""
        self._count = 0
        self._alarm.worked()

    def ending(self, trouble: str | None) -> None:
        """Note what keeps the end of a job from being written; None: it is written.

        A database with a full disk still answers, so that the queue seems well (53100); and while
        every place is taken the queue is asked nothing, so this alone shows that it is away.
        """
        self._ending_waits_for = None if trouble is None else masked(trouble)
        if self._ending_waits_for is not None:
            self._alarm.out_of_reach(self._ending_waits_for)

    def lost_the_queue(self, error: OutOfReach) -> float:
        """Return how long to wait for the database before asking again."""
        self._out_of_reach = masked(str(error))
        seconds = self._backoff.next_seconds()
        _log.warning("worker.waiting", waits_for=self._out_of_reach, seconds=round(seconds, 1))
        self._alarm.out_of_reach(self._out_of_reach)
        return seconds

    def reached_the_queue(self) -> None:
        """Note that the database answered, or was not asked."""
        if self._out_of_reach is not None:
            _log.info("worker.reconnected", failures=self._backoff.failures)
            self._out_of_reach = None
            self._backoff.reset()
        if self._ending_waits_for is None:
            self._alarm.reached()
