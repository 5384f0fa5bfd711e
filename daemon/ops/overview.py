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

_QUEUE = ("pending", "due", "oldest_due_seconds", "later", "processing", "stuck")
_DAY = (
    "complete", "failed", "cancelled", "calls", "cost_usd", "calls_of_unknown_price",
    "cost_usd_30_days",
)  # fmt: skip


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
        (now,) = await rows("select * from fullpass.ops_now")
        document: dict[str, Any] = {
            "queue": {name: now[name] for name in _QUEUE},
            "running": await rows(
                "select * from fullpass.ops_running order by age_seconds desc nulls last "
                f"limit {_SHOWN}"
            ),
            "stuck": await rows(
                f"select * from fullpass.ops_stuck order by seconds desc nulls last limit {_SHOWN}"
            ),
            "waiting": await rows(
                "select job_id as id, storage_path, waiting_for, waiting_since, run_at "
                "from fullpass.ops_waiting limit 10"
            ),
            "workers": await rows(
                "select * from fullpass.ops_workers where beat_age_seconds < 600 "
                f"order by alive desc, started_at desc limit {_SHOWN}"
            ),
            "last_24_hours": {
                **{name: now[name] for name in _DAY},
                "failures": await rows(
                    "select job_id as id, storage_path, error, completed_at "
                    "from fullpass.ops_ended where status = 'failed' limit 10"
                ),
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
        return False, f"{len(paused)} of {counted(len(alive), 'worker')} paused: {told}."
    if now["stuck"]:
        first = now["stuck"][0]
        more = f" ({queue['stuck']} are stuck)" if queue["stuck"] > 1 else ""
        return False, f"{first['job_id']} is stuck: {first['reason']}; {first['remedy']}{more}."
    ended = day["complete"] + day["failed"]
    if day["failed"] and day["complete"] < _POOR_SUCCESS * ended:
        return False, f"{day['failed']} of {ended} passes failed in the last 24 hours."
    if now["waiting"]:
        told = now["waiting"][0]["waiting_for"].rstrip(".")
        return True, f"It works; {counted(len(now['waiting']), 'job')} waiting, first for: {told}."
    if not alive:
        return True, "Nothing is due; no worker is alive."
    busy = f"{queue['processing']} running, {queue['due']} due"
    return True, f"It works: {counted(len(alive), 'worker')} alive, {busy}."


def counted(number: int, noun: str) -> str:
    """Say how many of something there are."""
    plural = "" if number == 1 else "es" if noun.endswith("sh") else "s"
    return f"{number:,} {noun}{plural}"


def _jobs(number: int) -> str:
    return "1 job waits" if number == 1 else f"{number} jobs wait"
