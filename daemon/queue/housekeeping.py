"""What only needs doing about once an hour: users back in line, what grew old out of the tables.

Any worker does it, a bounded amount at a time; two that do it at once only share the work. The
rules stand in SQL (`mend_queue`, `prune`).
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from daemon.database import database_errors
from daemon.logs import get_logger

if TYPE_CHECKING:
    from daemon.database import Pool

_log = get_logger()
_PRUNED_AT_ONCE = 1000
_PRUNINGS = 20


async def keep_house(pool: Pool, *, retention_days: int) -> None:
    """Put users back in line who have jobs and no place; drop reply bodies and events by age."""
    with database_errors(protocol=True):
        missing = await pool.fetchval("select fullpass.mend_queue()")
    if missing:
        _log.warning("queue.mended", users=missing)
    for _ in range(_PRUNINGS):
        dropped = await prune(pool, retention_days=retention_days)
        if any(dropped.values()):
            _log.info("pruned", **dropped)
        if max(dropped.values()) < _PRUNED_AT_ONCE:
            return


async def prune(pool: Pool, *, retention_days: int) -> dict[str, int]:
    """Drop the bodies of at most a thousand replies, and as many events of ended jobs.

    Totals of tokens and cost stay (PIPELINE_RETENTION_DAYS). Returns how many of each were dropped.
    """
    with database_errors(protocol=True):
        dropped: dict[str, int] = json.loads(
            await pool.fetchval("select fullpass.prune($1, $2)", retention_days, _PRUNED_AT_ONCE)
        )
    return dropped
