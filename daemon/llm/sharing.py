"""Workers of one account tell each other how much of its rate limits they use.

Every couple of seconds, and only while it makes calls, a worker writes one row of its own and reads
those of the others: no row is written by two, so none is hot, and an idle worker asks nothing. From
what the others use follows this worker's share of the account's pace (decision 0091). The account
is told apart by a fingerprint of provider, address and key; the key itself is nowhere (promise 11).
When the database does not answer, the last known share stays: a limit is no reason to stop.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING

from daemon.database import database_errors
from daemon.errors import Systemic
from daemon.llm.pace import MINUTE_SECONDS
from daemon.llm.rate_limits import KINDS
from daemon.logs import get_logger

if TYPE_CHECKING:
    import asyncpg

    from daemon.database import Pool
    from daemon.llm.limiter import CallLimiter
    from daemon.llm.pace import Pace
    from daemon.llm.rate_limits import Kind
    from daemon.settings import Settings

_log = get_logger()
_EVERY_SECONDS = 2.0
_STALE_BEATS = 5
"""A worker silent for so many exchanges takes no part."""
_LEAST_STALE_SECONDS = 2.0
_LINGER_SECONDS = 10.0
"""So long after its last call a worker still says that it uses nothing."""


def account_of(settings: Settings) -> str:
    """Return a fingerprint of the account that calls are billed to; says nothing of the key."""
    key = settings.anthropic_api_key
    parts = [
        settings.llm_provider,
        settings.anthropic_base_url or "",
        settings.aws_region or "",
        key.get_secret_value() if key else "",
        settings.aws_access_key_id or "",
        settings.anthropic_vertex_project_id or "",
    ]
    return sha256("\0".join(parts).encode()).hexdigest()[:16]


@dataclass(slots=True)
class _Measured:
    """What was used of an account at a moment, and how fast of late."""

    at: float
    used: dict[Kind, float]
    per_minute: dict[Kind, float]


class Sharing:
    """Keeps the share of every pace of one limiter; `close()` it with the worker."""

    def __init__(
        self,
        pool: Pool,
        limiter: CallLimiter,
        *,
        worker_id: str,
        account: str,
        minute_seconds: float = MINUTE_SECONDS,
    ) -> None:
        self._pool = pool
        self._limiter = limiter
        self._worker_id = worker_id
        self._account = account
        self._minute_seconds = minute_seconds
        self._every_seconds = _EVERY_SECONDS * minute_seconds / MINUTE_SECONDS
        self._measured: dict[str, _Measured] = {}
        self._exchanging: asyncio.Task[None] | None = None
        limiter.when_looked = self._wake

    async def close(self) -> None:
        """Stop, and leave the whole account to the others."""
        self._limiter.when_looked = lambda: None
        if self._exchanging is None:
            return
        self._exchanging.cancel()
        await asyncio.gather(self._exchanging, return_exceptions=True)
        try:
            with database_errors():
                await self._pool.execute(
                    "delete from fullpass.account_use where worker_id = $1", self._worker_id,
                    timeout=1.0,
                )  # fmt: skip
        except Systemic as error:  # the row grows stale within seconds
            _log.debug("llm.sharing_left", error=str(error))

    def _wake(self) -> None:
        if self._exchanging is None or self._exchanging.done():
            self._exchanging = asyncio.create_task(self._exchange_while_calling())

    async def _exchange_while_calling(self) -> None:
        last_busy = time.monotonic()
        while time.monotonic() - last_busy < _LINGER_SECONDS:
            if self._limiter.busy:
                last_busy = time.monotonic()
            try:
                for model, pace in list(self._limiter.paces.items()):
                    await self._exchange(model, pace)
            except Systemic as error:
                _log.debug("llm.sharing_waits", error=str(error))
            await asyncio.sleep(self._every_seconds)

    async def _exchange(self, model: str, pace: Pace) -> None:
        now = time.monotonic()
        mine = self._measure(model, pace, now)
        pause = pace.paused_until - now
        with database_errors():
            others = await self._pool.fetch(
                "select * from fullpass.share_use($1, $2, $3, $4, $5, $6, $7, $8, $9)",
                self._worker_id,
                self._account,
                model,
                pace.wants(now),
                *(mine[kind] for kind in KINDS),
                max(0.0, pause),
                max(_LEAST_STALE_SECONDS, self._every_seconds * _STALE_BEATS),
            )
        share = _share(pace, others)
        if abs(share - pace.share) > 0.1:
            _log.info("llm.share", model=model, share=round(share, 2), workers=len(others) + 1)
        pace.share = share
        asked = max((row["pause_seconds"] for row in others), default=0.0)
        if asked > 0:
            pace.pause(time.monotonic() + asked)

    def _measure(self, model: str, pace: Pace, now: float) -> dict[Kind, float]:
        """Return what is used a minute, half of it what was used since the last look."""
        used = pace.used
        was = self._measured.get(model)
        if was is None or now <= was.at:
            self._measured[model] = _Measured(now, used, dict.fromkeys(KINDS, 0.0))
            return self._measured[model].per_minute
        minutes = (now - was.at) / self._minute_seconds
        rates: dict[Kind, float] = {
            kind: 0.5 * was.per_minute[kind] + 0.5 * max(0.0, used[kind] - was.used[kind]) / minutes
            for kind in KINDS
        }
        self._measured[model] = _Measured(now, used, rates)
        return rates


def _share(pace: Pace, others: list[asyncpg.Record]) -> float:
    """Return this worker's part: what the others leave, and never less than an equal one.

    One that would use more if it could counts with an equal part at least, so that a newcomer finds
    its part free as soon as it is told of.
    """
    equal = 1.0 / (len(others) + 1)
    limits = pace.limits_per_minute
    left = 1.0
    for row in others:
        uses = max((row[kind] / limit for kind, limit in limits.items()), default=equal)
        left -= max(uses, equal) if row["wants"] else uses
    return max(equal, min(1.0, left))
