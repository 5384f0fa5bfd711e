"""Jobs in and out of a worker's hands: thin, typed calls of the SQL lease protocol.

What each call does and guarantees stands once, in sql/migrations/0003_lease.sql.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, cast

from daemon.database import database_errors

if TYPE_CHECKING:
    from datetime import datetime
    from uuid import UUID

    from daemon.database import Pool


@dataclass(frozen=True, slots=True)
class Job:
    """A claimed job, as the claim returned it."""

    id: UUID
    user_id: UUID
    storage_path: str | None
    file_type: str | None
    attempt: int
    max_attempts: int
    lease_epoch: int
    started_at: datetime


async def claim(
    pool: Pool,
    *,
    worker_id: str,
    lease_seconds: float,
    version: str,
    rollout_percent: int = 100,
    daily_limit: int | None = None,
    only: UUID | None = None,
    limit: int = 1,
) -> list[Job]:
    """Take up to `limit` due jobs, each of another user; `only` that one, due or not.

    Expired leases are swept first.
    """
    with database_errors(protocol=True):
        rows = await pool.fetch(
            """
            select id, user_id, storage_path, file_type, attempts, max_attempts, lease_epoch,
                   started_at
            from fullpass.claim($1, $2, $3, $4, $5, $6, $7)
            """,
            worker_id,
            lease_seconds,
            version,
            rollout_percent,
            daily_limit,
            only,
            limit,
        )
    return [
        Job(
            id=row["id"],
            user_id=row["user_id"],
            storage_path=row["storage_path"],
            file_type=row["file_type"],
            attempt=row["attempts"],
            max_attempts=row["max_attempts"] or 5,
            lease_epoch=row["lease_epoch"],
            started_at=row["started_at"],
        )
        for row in rows
    ]


async def complete(pool: Pool, job: Job, *, result: dict[str, Any], cost: dict[str, Any]) -> None:
    """End the job as complete. Raises LeaseLost."""
    with database_errors():
        await pool.execute(
            "select fullpass.complete($1, $2, $3, $4)",
            job.id,
            job.lease_epoch,
            json.dumps(result),
            json.dumps(cost),
        )


async def fail(
    pool: Pool, job: Job, *, error: str, retry: bool, result: dict[str, Any] | None = None
) -> Literal["retry", "failed", "cancelled"]:
    """End this attempt with an error of the job's own. Raises LeaseLost."""
    with database_errors():
        outcome = await pool.fetchval(
            "select fullpass.fail($1, $2, $3, $4, $5)",
            job.id,
            job.lease_epoch,
            error,
            retry,
            None if result is None else json.dumps(result),
        )
    return cast("Literal['retry', 'failed', 'cancelled']", outcome)


async def release(
    pool: Pool, job: Job, *, seconds: float, reason: str, max_wait_hours: float
) -> Literal["released", "cancelled", "failed"]:
    """Give the job back with its attempt, due in `seconds`. Raises LeaseLost."""
    with database_errors():
        outcome = await pool.fetchval(
            "select fullpass.release($1, $2, $3, $4, $5)",
            job.id,
            job.lease_epoch,
            seconds,
            reason,
            max_wait_hours * 3600,
        )
    return cast("Literal['released', 'cancelled', 'failed']", outcome)


async def await_batches(
    pool: Pool, job: Job, *, seconds: float, reason: str, stage: str
) -> Literal["released", "cancelled"]:
    """Give the job back with its attempt until its batches are looked at. Raises LeaseLost."""
    with database_errors():
        outcome = await pool.fetchval(
            "select fullpass.await_batches($1, $2, $3, $4, $5)",
            job.id,
            job.lease_epoch,
            seconds,
            reason,
            stage,
        )
    return cast("Literal['released', 'cancelled']", outcome)


async def yield_cancelled(pool: Pool, job: Job) -> None:
    """End the job as cancelled, as was asked. Raises LeaseLost."""
    with database_errors():
        await pool.execute("select fullpass.yield_cancelled($1, $2)", job.id, job.lease_epoch)


async def excuse(pool: Pool, job: Job, *, worker_id: str) -> None:
    """Say that the worker which lost this job is alive: its lost lease was no crash."""
    with database_errors():
        await pool.execute("select fullpass.excuse($1, $2, $3)", worker_id, job.id, job.lease_epoch)


async def enqueue(
    pool: Pool, *, user_id: UUID, storage_path: str, file_type: str | None = None
) -> UUID:
    """Queue an export; a live job for the same path is returned instead of a second."""
    with database_errors():
        job_id = await pool.fetchval(
            "select fullpass.enqueue($1, $2, p_file_type => $3)", user_id, storage_path, file_type
        )
    return cast("UUID", job_id)


async def seconds_to_next(pool: Pool) -> float | None:
    """Return when the next job may be claimed, pending or left by a dead worker; None: never."""
    with database_errors():
        seconds: float | None = await pool.fetchval(
            """
            select extract(epoch from least(
                (select min(run_at) from public.processing_jobs where status = 'pending'),
                (select min(lease_expires_at) from public.processing_jobs
                 where status = 'processing' and lease_epoch > 0)
            ) - clock_timestamp())::float8
            """
        )
    return seconds
