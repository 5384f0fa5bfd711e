"""The allowances of an account, a minute each, as token buckets that refill continuously.

Buckets start full. `minute_seconds` scales time for tests: an allowance of 60 a minute of 6 seconds
refills ten times as fast. The headers' `reset` says when the bucket will be full again.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.support.anthropic_behaviour import Behaviour

NOMINAL = {"requests": 4_000, "input-tokens": 4_000_000, "output-tokens": 800_000}
"""Limits told in headers where none is enforced."""


@dataclass(slots=True)
class Bucket:
    """One allowance. `level` may go below zero where a cost is known only afterwards."""

    per_minute: int
    minute_seconds: float
    capacity: float
    level: float
    at: float

    def refill(self, now: float) -> None:
        """Add what has flowed in since the last look."""
        flowed = (now - self.at) * self.per_minute / self.minute_seconds
        self.level = min(self.capacity, self.level + flowed)
        self.at = now

    def seconds_until(self, amount: float) -> float:
        """Time until the level reaches the amount; the whole bucket suffices for more than it."""
        missing = min(amount, self.capacity) - self.level
        return max(0.0, missing * self.minute_seconds / self.per_minute)


class Allowances:
    """Requests, input tokens and output tokens of one account."""

    def __init__(self) -> None:
        self._buckets: dict[str, Bucket] = {}
        self._settings: tuple[object, ...] = ()

    def refused(self, how: Behaviour, input_tokens: int) -> tuple[str, float] | None:
        """Take a request and its input; or name the exceeded limit and the seconds to wait."""
        self._follow(how)
        costs = {"requests": 1.0, "input-tokens": float(input_tokens), "output-tokens": 1.0}
        now = time.monotonic()
        waits = {}
        for name, bucket in self._buckets.items():
            bucket.refill(now)
            waits[name] = bucket.seconds_until(costs[name])
        worst = max(waits, key=lambda name: waits[name], default="")
        if worst and waits[worst] > 0:
            return worst, waits[worst]
        for name, bucket in self._buckets.items():
            if name != "output-tokens":
                bucket.level -= costs[name]
        return None

    def spend_output(self, output_tokens: int) -> None:
        """Charge what a reply turned out to hold."""
        bucket = self._buckets.get("output-tokens")
        if bucket is not None:
            bucket.level -= output_tokens

    def headers(self, how: Behaviour) -> dict[str, str]:
        """Give the anthropic-ratelimit headers as they stand, none where they are not told."""
        self._follow(how)
        if not how.limits_told:
            return {}
        now = time.monotonic()
        told = {}
        for name, nominal in NOMINAL.items():
            bucket = self._buckets.get(name)
            wait = 0.0
            limit = remaining = nominal
            if bucket is not None:
                bucket.refill(now)
                limit, remaining = bucket.per_minute, max(0, math.floor(bucket.level))
                wait = bucket.seconds_until(bucket.capacity)
            reset = datetime.now(UTC) + timedelta(seconds=wait)
            prefix = f"anthropic-ratelimit-{name}"
            told[f"{prefix}-limit"] = str(limit)
            told[f"{prefix}-remaining"] = str(remaining)
            told[f"{prefix}-reset"] = reset.isoformat(timespec="milliseconds").replace(
                "+00:00", "Z"
            )
        return told

    def _follow(self, how: Behaviour) -> None:
        """Make new buckets whenever the limits in force were changed."""
        limits = {
            "requests": how.requests_per_minute,
            "input-tokens": how.input_tokens_per_minute,
            "output-tokens": how.output_tokens_per_minute,
        }
        settings = (*limits.values(), how.minute_seconds, how.burst_share)
        if settings == self._settings:
            return
        self._settings = settings
        now = time.monotonic()
        self._buckets = {
            name: Bucket(
                per_minute=limit,
                minute_seconds=how.minute_seconds,
                capacity=max(1.0, limit * how.burst_share),
                level=max(1.0, limit * how.burst_share),
                at=now,
            )
            for name, limit in limits.items()
            if limit is not None
        }


def retry_after(seconds: float, how: Behaviour) -> str:
    """Whole seconds as the real service says; decimals where time is scaled."""
    return str(math.ceil(seconds)) if how.minute_seconds >= 60 else f"{seconds:.3f}"
