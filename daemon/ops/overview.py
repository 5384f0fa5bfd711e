"""The whole queue at a glance, ready for JSON: what runs, waits and failed, and what it cost."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from daemon.ops.plain import plain

if TYPE_CHECKING:
    from daemon.database import Connection


async def due_jobs(connection: Connection, *, limit: int = 100) -> list[dict[str, Any]]:
    """Return jobs that are due and not at work, oldest first, each with the reason it waits for."""
    rows = await connection.fetch(
        """
        select j.id, j.storage_path,
               coalesce(p.waiting_for, j.error_message, 'due, and not claimed') as why
        from public.processing_jobs j left join fullpass.passes p on p.job_id = j.id
        where j.status = 'pending' and j.run_at <= clock_timestamp()
        order by j.priority desc, j.run_at limit $1
        """,
        limit,
    )
    return [plain(dict(row)) for row in rows]


async def overview(connection: Connection) -> dict[str, Any]:
    """Return the whole queue on one screen: counts, running jobs, workers, the last 24 hours."""
    async with connection.transaction(isolation="repeatable_read", readonly=True):
        queue = await connection.fetchrow(
            """
            select count(*) filter (where status = 'pending') as pending,
                   count(*) filter (where status = 'pending' and run_at <= now()) as due,
                   count(*) filter (where status = 'pending' and run_at > now()) as later,
                   count(*) filter (where status = 'processing') as processing,
                   extract(epoch from now() - min(run_at) filter (
                       where status = 'pending' and run_at <= now()))::float8 as oldest_due_seconds
            from public.processing_jobs where status in ('pending', 'processing')
            """
        )
        running = await connection.fetch(
            """
            select j.id, j.user_id, j.storage_path, j.current_step as step,
                   coalesce(j.progress, 0) as progress, j.worker_id, j.started_at,
                   extract(epoch from now() - p.claimed_at)::float8 as seconds,
                   extract(epoch from now() - w.last_beat_at)::float8 as beat_seconds,
                   j.lease_expires_at < now() as lease_expired,
                   (select coalesce(sum(cost_usd), 0)::float8 from fullpass.llm_calls l
                    where l.job_id = j.id) as cost_usd
            from public.processing_jobs j
            left join fullpass.passes p on p.job_id = j.id
            left join fullpass.workers w on w.worker_id = j.worker_id
            where j.status = 'processing' order by p.claimed_at limit 20
            """
        )
        waiting = await connection.fetch(
            """
            select j.id, j.storage_path, p.waiting_for, p.waiting_since,
                   case when isfinite(j.run_at) then j.run_at end as run_at
            from public.processing_jobs j join fullpass.passes p on p.job_id = j.id
            where j.status = 'pending' and p.waiting_for is not null
            order by p.waiting_since limit 10
            """
        )
        workers = await connection.fetch(
            """
            select worker_id, version, started_at, rss_bytes, memory_limit_bytes, loop_lag_ms,
                   llm_in_flight, llm_limit, llm_held_by, waiting_for,
                   extract(epoch from now() - last_beat_at)::float8 as beat_seconds,
                   (select count(*) from public.processing_jobs j
                    where j.status = 'processing' and j.worker_id = w.worker_id) as jobs
            from fullpass.workers w
            where last_beat_at > now() - interval '10 minutes'
            order by last_beat_at desc limit 20
            """
        )
        ended = await connection.fetch(
            """
            select status, count(*) as jobs from public.processing_jobs
            where completed_at > now() - interval '24 hours'
              and status in ('complete', 'failed', 'cancelled') group by 1
            """
        )
        failures = await connection.fetch(
            """
            select id, storage_path, error_message as error, completed_at
            from public.processing_jobs
            where status = 'failed' and completed_at > now() - interval '24 hours'
            order by completed_at desc limit 10
            """
        )
        spent = await connection.fetchrow(
            """
            select count(*) as calls, coalesce(sum(cost_usd), 0)::float8 as cost_usd,
                   count(*) filter (where cost_usd is null) as calls_of_unknown_price
            from fullpass.llm_calls where created_at > now() - interval '24 hours'
            """
        )
    by_status = {row["status"]: row["jobs"] for row in ended}
    document: dict[str, Any] = plain(
        {
            "queue": dict(queue or {}),
            "running": [dict(row) for row in running],
            "waiting": [dict(row) for row in waiting],
            "workers": [dict(row) for row in workers],
            "last_24_hours": {
                **{name: by_status.get(name, 0) for name in ("complete", "failed", "cancelled")},
                **dict(spent or {}),
                "failures": [dict(row) for row in failures],
            },
        }
    )
    return document
