"""How many different things a person says: of so many statements read, and of all there will be.

People say again what matters to them, and consolidation makes that one fact; so the work after
extraction follows from the different statements. What was said once, and what was said twice, tells
how much is still unsaid (the extrapolation of Good, Turing and Chao). Memory is bounded: of many
statements a fixed share is looked at, chosen by hash, and counts for all.
"""

from __future__ import annotations

from collections import Counter
from hashlib import blake2b

_MOST_HELD = 4_096
_BITS = 64


class Repeats:
    """Statements as they come, counted by what they say."""

    def __init__(self) -> None:
        self._held: Counter[int] = Counter()
        self._below = 1 << _BITS
        self.said = 0
        """Statements in all."""

    def add(self, statement: str) -> None:
        """Note one statement."""
        self.said += 1
        folded = " ".join(statement.casefold().split()).rstrip(".!。")
        digest = blake2b(folded.encode("utf-8", "surrogatepass"), digest_size=_BITS // 8).digest()
        key = int.from_bytes(digest)
        if key < self._below:
            self._held[key] += 1
        while len(self._held) > _MOST_HELD:
            self._below >>= 1
            self._held = Counter({k: n for k, n in self._held.items() if k < self._below})

    def different(self, *, of: float) -> float:
        """Return how many different ones `of` statements hold, which begin with those noted."""
        if not self.said:
            return of
        share = self._below / (1 << _BITS)
        known = len(self._held) / share
        more = of - self.said
        if more <= 0 or not self._held:
            return min(known or of, max(of, 0.0))
        once = sum(n == 1 for n in self._held.values())
        # One pair is chance: it tells nothing of how many there are.
        twice = max(0, sum(n == 2 for n in self._held.values()) - 1)
        fresh = once / sum(self._held.values())  # so many of the next statements are new
        if not (once and twice):
            return known + fresh * more
        unsaid = once**2 / (2 * twice) / share
        return float(known + unsaid * (1 - (1 - min(1.0, fresh / unsaid)) ** more))
