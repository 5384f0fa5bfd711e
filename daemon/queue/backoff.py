"""How long to wait before trying again: doubling, bounded, and never in step with others."""

from __future__ import annotations

import random


class Backoff:
    """Pauses that double from `first_seconds` to `longest_seconds`, each 25% off at random.

    The jitter matters after a restart of the database: all workers lose it in the same instant and
    must not come back in the same instant.
    """

    def __init__(self, *, first_seconds: float = 0.2, longest_seconds: float = 30.0) -> None:
        self._first = first_seconds
        self._longest = longest_seconds
        self.failures = 0

    def next_seconds(self) -> float:
        """Count a failure and return the pause that follows it."""
        # The exponent is bounded too: a power that overflows would end what must never end.
        doubled: float = self._first * 2.0 ** min(self.failures, 20)
        self.failures += 1
        return min(self._longest, doubled) * random.uniform(0.75, 1.25)

    def reset(self) -> None:
        """Start over: it worked."""
        self.failures = 0
