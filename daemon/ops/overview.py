"""The whole queue at a glance, ready for JSON: is it healthy, what is stuck, what did it cost.

Asks the ops views (sql/migrations/0030), so that a screen, a dashboard and psql never disagree, and
puts their answer into one sentence. Writes nothing; answers at once with a million ended jobs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from daemon.ops.plain import plain

if TYPE_CHECKING:
    from daemon.database import Connection

_SHOWN = 20
_POOR_SUCCESS = 0.9
"""Below this share of passes that succeed, something is wrong that is not one export's fault."""

_QUEUE = """
select (select count(*) from public.processing_jobs where status = 'pending') as pending,
       d.due, d.oldest_due_seconds,
       (select count(*) from public.processing_jobs
        where status = 'pending' and run_at > now()) as later,
       (select count(*) from public.processing_jobs where status = 'processing') as processing,
       (select count(*) from fullpass.ops_stuck) as stuck
from (
    select count(*) as due, extract(epoch from now() - min(run_at))::float8 as oldest_due_seconds
    from public.processing_jobs
    where status = 'pending' and coalesce(run_at, '-infinity') <= now()
) as d
"""
_WAITING = """
select j.id, j.storage_path, p.waiting_for, p.waiting_since,
       case when isfinite(j.run_at) then j.run_at end as run_at
from public.processing_jobs j join fullpass.passes p on p.job_id = j.id
where j.status = 'pending' and p.waiting_for is not null
order by p.waiting_since limit 10
"""
_DAY = """
select count(*) filter (where status = 'complete') as complete,
       count(*) filter (where status = 'failed') as failed,
       count(*) filter (where status = 'cancelled') as cancelled
from public.processing_jobs where completed_at > now() - interval '24 hours'
"""
_FAILURES = """
select id, storage_path, error_message as error, completed_at
from public.processing_jobs
where status = 'failed' and completed_at > now() - interval '24 hours'
order by completed_at desc limit 10
"""
# By whole hours: the last 24 of them, and the one that is running.
_SPEND = """
select coalesce(sum(calls) filter (where hour > now() - interval '25 hours'), 0)::bigint as calls,
       coalesce(sum(cost_usd) filter (where hour > now() - interval '25 hours'), 0)::float8
           as cost_usd,
       coalesce(sum(unpriced_calls) filter (where hour > now() - interval '25 hours'), 0)::bigint
           as calls_of_unknown_price,
       coalesce(sum(cost_usd), 0)::float8 as cost_usd_30_days
from fullpass.hourly_costs
where hour >= date_trunc('day', now(), 'UTC') - interval '29 days'
"""


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
    """Return the whole queue as one consistent document; docs/operating.md names its keys."""

    async def rows(query: str) -> list[dict[str, Any]]:
        return [dict(row) for row in await connection.fetch(query)]

    async with connection.transaction(isolation="repeatable_read", readonly=True):
        document: dict[str, Any] = {
            "queue": (await rows(_QUEUE))[0],
            "running": await rows(
                "select * from fullpass.ops_running order by age_seconds desc nulls last "
                f"limit {_SHOWN}"
            ),
            "stuck": await rows(
                f"select * from fullpass.ops_stuck order by seconds desc nulls last limit {_SHOWN}"
            ),
            "waiting": await rows(_WAITING),
            "workers": await rows(
                "select * from fullpass.ops_workers where beat_age_seconds < 600 "
                f"order by alive desc, started_at desc limit {_SHOWN}"
            ),
            "last_24_hours": {
                **(await rows(_DAY))[0],
                **(await rows(_SPEND))[0],
                "failures": await rows(_FAILURES),
            },
        }
    healthy, verdict = _verdict(document)
    told: dict[str, Any] = plain({"healthy": healthy, "verdict": verdict, **document})
    return told


def _verdict(now: dict[str, Any]) -> tuple[bool, str]:
    """Say in one sentence whether it works, and if not, what to do first."""
    queue, day = now["queue"], now["last_24_hours"]
    alive = [worker for worker in now["workers"] if worker["alive"]]
    if not alive and queue["due"] + queue["processing"]:
        waits = _jobs(queue["due"] + queue["processing"])
        return False, f"No worker is alive and {waits}: start `fullpass worker`."
    paused = [worker for worker in alive if worker["waiting_for"]]
    if paused:
        told = paused[0]["waiting_for"].rstrip(".")
        return False, f"{len(paused)} of {_count(len(alive), 'worker')} paused: {told}."
    if now["stuck"]:
        first = now["stuck"][0]
        more = f" ({queue['stuck']} are stuck)" if queue["stuck"] > 1 else ""
        return False, f"{first['job_id']} is stuck: {first['reason']}; {first['remedy']}{more}."
    ended = day["complete"] + day["failed"]
    if day["failed"] and day["complete"] < _POOR_SUCCESS * ended:
        return False, f"{day['failed']} of {ended} passes failed in the last 24 hours."
    if now["waiting"]:
        told = now["waiting"][0]["waiting_for"].rstrip(".")
        return True, f"It works; {_count(len(now['waiting']), 'job')} waiting, first for: {told}."
    if not alive:
        return True, "Nothing is due; no worker is alive."
    busy = f"{queue['processing']} running, {queue['due']} due"
    return True, f"It works: {_count(len(alive), 'worker')} alive, {busy}."


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}" + ("" if number == 1 else "s")


def _jobs(number: int) -> str:
    return "1 job waits" if number == 1 else f"{number} jobs wait"
