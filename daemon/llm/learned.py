"""How many requests a minute a server seems to allow that tells of no allowance.

Some platforms and most compatible servers refuse with a bare 429. What they answered within the
last minute says what they allow: a refusal sets the rate a little below that, and from there it
grows, first slowly, then ever faster, until the next refusal (decision 0090). Nothing is learned in
the first minute, when a full bucket hides the rate; and never less than half of the best minute of
late, so that a few refusals by chance do not starve the account.
"""

from __future__ import annotations

from collections import deque

_BELOW = 0.9
_STEPS_A_MINUTE = 6
_GROWTH = 0.005
"""Each step without a refusal grows the rate by so much more than the one before."""
_BEST_MINUTES = 10
_BOUNDLESS = 4.0
"""A rate so many times above what is used holds nothing back, and is given up."""


class LearnedRate:
    """The learned rate of one model's requests; times are monotonic seconds."""

    def __init__(self, *, minute_seconds: float) -> None:
        self._minute = minute_seconds
        self._began: float | None = None
        self._answered: deque[float] = deque()
        self._minutes: deque[tuple[float, int]] = deque(maxlen=_BEST_MINUTES)
        self._per_second: float | None = None
        self._cut_at = float("-inf")
        self._step_at = 0.0
        self._steps = 0
        self._next_at = float("-inf")

    def wait_seconds(self, now: float) -> float:
        """Seconds until the next request may go."""
        if self._per_second is None:
            return 0.0
        self._grow(now)
        return max(0.0, self._next_at - now)

    def sent(self, now: float) -> None:
        """Note that a request goes now."""
        if self._began is None:
            self._began = now
        if self._per_second is not None:
            self._next_at = max(now, self._next_at) + 1 / self._per_second

    def answered(self, sent_at: float, now: float) -> None:
        """Note an answer to a request sent at that time."""
        self._answered.append(sent_at)
        self._count(now)

    def refused(self, sent_at: float, now: float) -> None:
        """Note a refusal that told of no allowance."""
        if self._began is None or now - self._began < self._minute or sent_at < self._cut_at:
            return
        count = self._count(now)
        best = max((n for _, n in self._minutes), default=count)
        self._per_second = max(1.0, _BELOW * count, best / 2) / self._minute
        self._cut_at = self._step_at = now
        self._steps = 0

    def _count(self, now: float) -> int:
        """Return how many requests of the last minute were answered."""
        while self._answered and self._answered[0] < now - self._minute:
            self._answered.popleft()
        count = len(self._answered)
        if not self._minutes or now - self._minutes[-1][0] >= self._minute:
            self._minutes.append((now, count))
        return count

    def _grow(self, now: float) -> None:
        while (
            self._per_second is not None and now - self._step_at >= self._minute / _STEPS_A_MINUTE
        ):
            self._step_at += self._minute / _STEPS_A_MINUTE
            self._steps += 1
            self._per_second *= 1 + _GROWTH * self._steps
            if self._per_second * self._minute > _BOUNDLESS * max(1, self._count(now)):
                self._per_second = None
