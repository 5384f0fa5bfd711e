"""What an account may still do, as the server's reply says: the anthropic-ratelimit headers.

Owns reading them and nothing else; `pace.py` decides what follows. A header that is missing or
unreadable is left out, so any server may send all, some or none of them.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Literal, get_args

from daemon.errors import CallFailed

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

Kind = Literal["requests", "input_tokens", "output_tokens"]
KINDS: tuple[Kind, ...] = get_args(Kind)
_MOST = 10**12
"""Above it an allowance is no number to reckon with."""


@dataclass(frozen=True, slots=True)
class Allowance:
    """One allowance: `limit` a minute, `remaining` now, full again in `reset_seconds`."""

    limit: int
    remaining: int
    reset_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class RateLimits:
    """The allowances that a reply told of; None where it did not."""

    requests: Allowance | None = None
    input_tokens: Allowance | None = None
    output_tokens: Allowance | None = None

    def of(self, kind: Kind) -> Allowance | None:
        """Return one of them."""
        allowance: Allowance | None = getattr(self, kind)
        return allowance


class Throttled(CallFailed):
    """The server asks for fewer calls (429, 529): repeat later, and all of us more slowly."""

    def __init__(
        self,
        message: str,
        *,
        retry_after_seconds: float | None = None,
        limits: RateLimits | None = None,
    ) -> None:
        super().__init__(message, retry_after_seconds=retry_after_seconds)
        self.limits = limits


def rate_limits_from(headers: Mapping[str, str]) -> RateLimits | None:
    """Read the headers of a reply or an error; None when they tell of no allowance."""
    found: dict[str, Allowance] = {}
    for kind in KINDS:
        prefix = f"anthropic-ratelimit-{kind.replace('_', '-')}"
        with suppress(KeyError, ValueError):
            limit, remaining = int(headers[f"{prefix}-limit"]), int(headers[f"{prefix}-remaining"])
            if 0 < limit <= _MOST and abs(remaining) <= _MOST:
                reset = _seconds_until(headers.get(f"{prefix}-reset"), headers.get("date"))
                found[kind] = Allowance(limit, remaining, reset)
    return RateLimits(**found) if found else None


def retry_after_seconds(headers: Mapping[str, str]) -> float | None:
    """Read how long to stay away, told as seconds or, by some proxies, as a date."""
    given = headers.get("retry-after", "")
    try:
        seconds: float | None = float(given)
    except ValueError:
        seconds = _seconds_until(given, headers.get("date"), read=parsedate_to_datetime)
    return None if seconds is None else max(0.0, seconds)


def server_time(headers: Mapping[str, str], otherwise: datetime) -> datetime:
    """Return the time by the server's own clock, or `otherwise` where it does not tell it."""
    try:
        told = parsedate_to_datetime(headers.get("date", ""))
    except (ValueError, TypeError, OverflowError):
        return otherwise
    return otherwise if told.tzinfo is None else told


def _seconds_until(
    told: str | None,
    date: str | None,
    *,
    read: Callable[[str], datetime] = datetime.fromisoformat,
) -> float | None:
    """Seconds from the server's own clock, where it tells it, to the time that it told."""
    try:
        now = parsedate_to_datetime(date) if date else datetime.now(UTC)
        return (read(told or "") - now).total_seconds()
    except (ValueError, TypeError, OverflowError):  # no time, or one without a zone
        return None
