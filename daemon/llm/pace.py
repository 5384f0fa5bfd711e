"""How fast calls to one model may go: the account's allowances as this worker knows them.

An allowance is a bucket that refills all the time. Each reply says what was left in it when the
call came; from that, less what was sent since, plus what has flowed in since, follows what may be
sent now. A small reserve stays in the bucket for what cannot be known yet: what others of the same
account send, and what replies in flight will hold. Since every reply corrects the account, errors
do not add up, and the whole refill is used without draining the bucket (decision 0090).

Where servers tell of no allowance there is no bucket here, and what they refuse teaches a rate
(`learned.py`). Leaves the order of callers to the limiter.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from daemon.llm.learned import LearnedRate
from daemon.llm.rate_limits import KINDS, RateLimits

if TYPE_CHECKING:
    from daemon.llm.rate_limits import Allowance, Kind
    from daemon.llm.request import Usage

MINUTE_SECONDS = 60.0
PACED_SECONDS = 5.0
"""So long after a call had to wait for its allowance, the allowance counts as what holds it."""
_RESERVE_SHARE = 0.1
"""Of an allowance, left in the bucket: six seconds' worth of the whole account's use."""
_TOKENS_PER_CHARACTER = 0.3
_OUTPUT_TOKENS = 500.0
"""What is assumed of requests and replies until the first reply says more."""
_WEIGHT_OF_NEWEST = 0.1
_FULL_MARGIN_SECONDS = 1.0
"""Resets are told in whole seconds."""


@dataclass(frozen=True, slots=True)
class Sent:
    """One call on its way: what it took from the allowances, and what was taken before."""

    at: float
    characters: int
    cost: dict[Kind, float]
    spent_before: dict[Kind, float]


@dataclass(slots=True)
class _Bucket:
    """What this worker may take of one allowance."""

    limit: float
    """The whole account's, a minute."""
    level: float
    at: float
    seen: float = 0.0
    """The most that was ever left in it: what it holds when full need not be a minute's worth."""
    full_at: float = float("inf")
    told_at: float = float("-inf")
    """When the call was sent whose reply the level follows, and what was spent by then."""
    told_spent: float = 0.0

    def reserve(self, largest: float) -> float:
        """Return how much is left alone.

        Of a small bucket not more than half, or it would often be full and its refill lost; and
        never so much that the largest call could not go.
        """
        return min(_RESERVE_SHARE * self.limit, self.seen / 2, max(0.0, self.seen - largest))


class Pace:
    """The pace of the calls to one model. Times are of the caller's monotonic clock, in seconds.

    `share` is this worker's part of the account, 1.0 when it is alone (`sharing.py` sets it).
    """

    def __init__(self, *, minute_seconds: float = MINUTE_SECONDS) -> None:
        self._minute_seconds = minute_seconds
        self._buckets: dict[Kind, _Bucket] = {}
        self._learned = LearnedRate(minute_seconds=minute_seconds)
        self._spent: dict[Kind, float] = dict.fromkeys(KINDS, 0.0)
        self._flying_output = 0.0
        self._tokens_per_character = _TOKENS_PER_CHARACTER
        self._output_tokens = _OUTPUT_TOKENS
        self._largest: dict[Kind, float] = dict.fromkeys(KINDS, 0.0)
        self.share = 1.0
        self.paused_until = 0.0
        self.paced_at = float("-inf")
        """When a call last had to wait."""

    def cost(self, characters: int) -> dict[Kind, float]:
        """Estimate what a request of so many characters takes."""
        return {
            "requests": 1.0,
            "input_tokens": characters * self._tokens_per_character,
            "output_tokens": self._output_tokens,
        }

    def wait_seconds(self, characters: int, now: float) -> float:
        """Seconds until such a request may be sent; 0.0 is now."""
        wait = max(0.0, self.paused_until - now)
        if not self._buckets:
            return max(wait, self._learned.wait_seconds(now))
        for kind, cost in self.cost(characters).items():
            bucket = self._buckets.get(kind)
            if bucket is None:
                continue
            # No bucket ever holds more than a minute's worth: a larger call goes when it is full.
            needed = min(cost, (1 - _RESERVE_SHARE) * bucket.limit * self.share)
            self._refill(kind, bucket, needed, now)
            if bucket.level < needed:
                wait = max(wait, (needed - bucket.level) / self._per_second(bucket))
        return wait

    def sent(self, characters: int, now: float) -> Sent:
        """Take a request's cost from the buckets as it is sent."""
        cost = self.cost(characters)
        sent = Sent(now, characters, cost, dict(self._spent))
        self._learned.sent(now)
        self._spent["requests"] += cost["requests"]
        self._spent["input_tokens"] += cost["input_tokens"]
        self._flying_output += cost["output_tokens"]
        for kind, bucket in self._buckets.items():
            bucket.level -= cost[kind]
        for kind in KINDS:
            self._largest[kind] = max(self._largest[kind], cost[kind])
        return sent

    def landed(
        self, sent: Sent, usage: Usage | None, limits: RateLimits | None, now: float
    ) -> None:
        """Learn from a reply: what the call really took, and what is left."""
        took = dict(sent.cost)
        if usage is not None:
            # What was read from a cache does not count against the allowance.
            took["input_tokens"] = float(usage.input_tokens + usage.cache_write_tokens)
            took["output_tokens"] = float(usage.output_tokens)
            share = took["input_tokens"] / max(1, sent.characters)
            self._tokens_per_character += _WEIGHT_OF_NEWEST * (share - self._tokens_per_character)
            more = took["output_tokens"] - self._output_tokens
            self._output_tokens += _WEIGHT_OF_NEWEST * more
        self._settle(sent, took)
        self._told(sent, took, limits, now)
        self._learned.answered(sent.at, now)

    def refused(self, sent: Sent, limits: RateLimits | None, now: float) -> bool:
        """Learn from a 429 or 529; return whether a used-up allowance explains it."""
        self.failed(sent)
        if limits is None:
            self._learned.refused(sent.at, now)
        self._told(sent, dict.fromkeys(KINDS, 0.0), limits, now)
        return limits is not None and any(
            (left := limits.of(kind)) is not None
            and left.remaining <= max(sent.cost[kind], _RESERVE_SHARE * left.limit / 2)
            for kind in KINDS
        )

    def failed(self, sent: Sent) -> None:
        """Give back what a call did not take: it was refused, or nobody knows of it."""
        self._settle(sent, dict.fromkeys(KINDS, 0.0))

    def pause(self, until: float) -> None:
        """Send nothing until then: the server named a time."""
        self.paused_until = max(self.paused_until, until)

    def wants(self, now: float) -> bool:
        """Whether more would be used if it might."""
        return now - self.paced_at < PACED_SECONDS * self._minute_seconds / MINUTE_SECONDS

    @property
    def used(self) -> dict[Kind, float]:
        """What was taken since the beginning, replies in flight as estimated."""
        return {**self._spent, "output_tokens": self._spent["output_tokens"] + self._flying_output}

    @property
    def limits_per_minute(self) -> dict[Kind, float]:
        """The whole account's allowances, as far as they are known."""
        return {kind: bucket.limit for kind, bucket in self._buckets.items()}

    def _per_second(self, bucket: _Bucket) -> float:
        return bucket.limit * self.share / self._minute_seconds

    def _settle(self, sent: Sent, took: dict[Kind, float]) -> None:
        """Put what a call took in the place of what was assumed."""
        self._flying_output -= sent.cost["output_tokens"]
        for kind in KINDS:
            paid_before = 0.0 if kind == "output_tokens" else sent.cost[kind]
            self._spent[kind] += took[kind] - paid_before
            bucket = self._buckets.get(kind)
            if bucket is not None:
                bucket.level += sent.cost[kind] - took[kind]

    def _told(
        self, sent: Sent, took: dict[Kind, float], limits: RateLimits | None, now: float
    ) -> None:
        """Follow what the server said was left when the call came."""
        for kind in KINDS:
            left = None if limits is None else limits.of(kind)
            if left is None:
                continue
            bucket = self._buckets.setdefault(kind, _Bucket(left.limit, 0.0, now))
            if sent.at >= bucket.told_at:  # else a later call has told newer things
                # Output is charged as it is spoken: a reply's own is not yet in what it tells.
                own = 0.0 if kind == "output_tokens" else took[kind]
                bucket.told_at, bucket.told_spent = sent.at, sent.spent_before[kind] + own
                bucket.seen = max(bucket.seen, left.remaining + own)
                self._follow(bucket, kind, left, now)

    def _follow(self, bucket: _Bucket, kind: Kind, left: Allowance, now: float) -> None:
        bucket.limit = float(left.limit)
        above = left.remaining - bucket.reserve(self._largest[kind])
        flowed = self._per_second(bucket) * (now - bucket.told_at)
        mine = above * self.share if above > 0 else above
        bucket.level = mine + flowed - self._since(bucket, kind)
        bucket.at = now
        if left.reset_seconds is not None:
            bucket.full_at = bucket.told_at + left.reset_seconds + _FULL_MARGIN_SECONDS

    def _since(self, bucket: _Bucket, kind: Kind) -> float:
        """Return what was spent since the bucket was told of, and will be by what is in flight."""
        flying = self._flying_output if kind == "output_tokens" else 0.0
        return self._spent[kind] - bucket.told_spent + flying

    def _refill(self, kind: Kind, bucket: _Bucket, needed: float, now: float) -> None:
        """Let flow in what did since the last look."""
        most = max(needed, self.share * (bucket.seen - bucket.reserve(self._largest[kind])))
        if bucket.level < most:
            bucket.level = min(most, bucket.level + self._per_second(bucket) * (now - bucket.at))
        if now >= bucket.full_at:  # a server that refills all at once says when
            bucket.level = max(bucket.level, most - self._since(bucket, kind))
            bucket.full_at = float("inf")
        bucket.at = now
