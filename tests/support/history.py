"""A database that has worked for a year: finished jobs by the thousand, made by generate_series."""

from __future__ import annotations

import json
import time
from functools import partial
from typing import TYPE_CHECKING, Any

from daemon.database import connect
from daemon.ops.overview import overview

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    import asyncpg

VIEWS = (
    "overview", "running", "stuck", "durations", "errors", "hourly", "costs", "workers", "steps",
    "waiting", "ended", "now",
)  # fmt: skip
BIG = {"processing_jobs", "passes", "job_events", "llm_calls", "job_costs"}
LIMIT_MS = 50

_JOBS = """
insert into public.processing_jobs (
    user_id, storage_path, status, progress, attempts, lease_epoch, pipeline_version, worker_id,
    created_at, run_at, started_at, completed_at, current_step, error_message)
select md5((n % greatest(1, $1 / 3))::text)::uuid, 'exports/' || n || '.zip',
       case when n % 50 = 0 then 'failed' when n % 97 = 0 then 'cancelled' else 'complete' end,
       100, 1, 2, case when n % 2 = 0 then '0.1.0' else '0.0.9' end, 'gone-1-abc',
       at - interval '5 minutes', at - interval '5 minutes', at - interval '4 minutes',
       at, 'complete', case when n % 50 = 0 then 'save_chunks: export.zip: it is empty' end
from generate_series(1, $1) as n
cross join lateral (select now() - n * interval '365 days' / $1 as at) as t
"""
_REST = """
insert into fullpass.passes (job_id, user_id, source, claimed_at, last_progress_at)
select id, user_id, 'chatgpt', started_at, completed_at from public.processing_jobs;
insert into fullpass.job_events (job_id, at, event, step, data)
select id, completed_at, case status when 'complete' then 'completed' else status end,
       'save_chunks', jsonb_strip_nulls(jsonb_build_object('error', error_message))
from public.processing_jobs order by completed_at;
alter table fullpass.llm_calls disable trigger user;
insert into fullpass.llm_calls (
    user_id, job_id, purpose, provider, model, prompt_version, input_tokens, output_tokens,
    cost_usd, usable, created_at)
select user_id, id, 'extract', 'anthropic', 'claude-haiku-5-5', 'v1', 8000, 900, 0.00125, true,
       completed_at
from public.processing_jobs;
alter table fullpass.llm_calls enable trigger user;
insert into fullpass.job_costs
select job_id, purpose, model, 1, 0, input_tokens, output_tokens, 0, cost_usd, 0
from fullpass.llm_calls;
insert into fullpass.hourly_costs
select date_trunc('hour', created_at, 'UTC'), purpose, model, 0, count(*), 0, sum(input_tokens),
       sum(output_tokens), 0, sum(cost_usd), 0
from fullpass.llm_calls group by 1, 2, 3;
insert into fullpass.workers (worker_id, started_at, last_beat_at, version, rss_bytes)
select 'w-' || n, now() - n * interval '1 hour', now() - n * interval '1 hour', '0.1.0', 90000000
from generate_series(0, 500) as n;
"""
_LIVE = """
with fresh as (
    insert into public.processing_jobs (user_id, storage_path, run_at)
    select gen_random_uuid(), 'exports/live.zip', now() - n * interval '1 minute'
    from generate_series(1, 60) as n returning id
)
select count(*) from fresh
"""


async def a_year_of_jobs(db: asyncpg.Connection[asyncpg.Record], jobs: int) -> None:
    """Fill the database with `jobs` ended jobs and what belongs to them, and 60 pending ones."""
    await db.execute("alter table public.processing_jobs disable trigger user")
    await db.execute(_JOBS.replace("$1", str(jobs)))
    await db.execute("alter table public.processing_jobs enable trigger user")
    await db.execute(_REST)
    await db.execute(_LIVE)
    for table in ("public.processing_jobs", "fullpass.passes", "fullpass.job_events",
                  "fullpass.llm_calls", "fullpass.job_costs", "fullpass.hourly_costs",
                  "fullpass.workers", "fullpass.tickets"):  # fmt: skip
        await db.execute(f"vacuum analyze {table}")


async def views_are_quick(url: str, *, jobs: int) -> dict[str, float]:
    """Fill a database, then hold every view and the status screen to their limit; give the times.

    No view may read a whole table that grows with the jobs.
    """
    db = await connect(url, command_timeout_seconds=1200)
    try:
        await a_year_of_jobs(db, jobs)
        times: dict[str, float] = {}
        for view in VIEWS:
            query = f"select * from fullpass.ops_{view}"
            (plan,) = json.loads(await db.fetchval(f"explain (format json) {query}"))
            scanned = {
                node.get("Relation Name")
                for node in _walked(plan["Plan"])
                if node["Node Type"] == "Seq Scan"
            }
            assert not scanned & BIG, f"ops_{view} reads a whole table: {scanned}"
            times[view] = await _quickest_ms(partial(db.fetch, query))
        times["status"] = await _quickest_ms(partial(overview, db))
        now = await overview(db)
        assert now["queue"]["pending"] == 60, now["queue"]
        assert now["last_24_hours"]["complete"] > jobs / 400, now["last_24_hours"]
    finally:
        await db.close()
    slow = {name: ms for name, ms in times.items() if ms > LIMIT_MS}
    assert not slow, slow
    return times


def _walked(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for inner in plan.get("Plans", []):
        yield from _walked(inner)


async def _quickest_ms(ask: Callable[[], Awaitable[object]]) -> float:
    """Take the best of nine, or of a hundred: what else this machine does is not the query's."""
    best = float("inf")
    for turn in range(100):
        if turn >= 9 and best <= LIMIT_MS:
            break
        started = time.perf_counter()
        await ask()
        best = min(best, (time.perf_counter() - started) * 1000)
    return best
