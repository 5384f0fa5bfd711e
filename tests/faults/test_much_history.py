"""A year of work: views and status over a million ended jobs, tables after 100,000 real ones."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import pytest

from daemon.database import connect, open_pool
from daemon.queue import jobs
from tests.support.dashboard import dashboard, quickest_ms
from tests.support.history import views_are_quick

if TYPE_CHECKING:
    from daemon.database import Pool

JOBS = 100_000
WORKERS = 8
PAGE_MS, PAGE_BYTES = 100, 100_000


@pytest.mark.history
@pytest.mark.timeout(1800)
async def test_every_view_the_status_screen_and_the_dashboard_stay_quick_with_a_million_jobs(
    database_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    times = await views_are_quick(database_url, jobs=1_000_000)
    with dashboard(database_url) as at:
        for page in ("", "past"):
            times[f"dashboard /{page}"], size = await asyncio.to_thread(
                quickest_ms, f"{at}/{page}", limit_ms=PAGE_MS
            )
            assert size <= PAGE_BYTES
            assert times[f"dashboard /{page}"] <= PAGE_MS
    with capsys.disabled():
        print("\nmilliseconds:", ", ".join(f"{name} {ms:.1f}" for name, ms in times.items()))


@pytest.mark.history
@pytest.mark.timeout(3600)
async def test_tables_stay_as_small_as_what_they_hold_after_100_000_jobs(
    database_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each job is claimed, beats, moves three times and is completed, by eight workers at once."""
    pool = await open_pool(database_url, size=WORKERS, command_timeout_seconds=300)
    try:
        await pool.execute(
            "insert into public.processing_jobs (user_id, storage_path) "
            "select gen_random_uuid(), 'exports/' || n from generate_series(1, $1) n",
            JOBS,
        )
        await asyncio.gather(*(work(pool, f"w-{n}") for n in range(WORKERS)))
        assert JOBS == await pool.fetchval(
            "select count(*) from processing_jobs where status = 'complete'"
        )
        await settled(pool)
        rows = await pool.fetch(
            """
            select relid::regclass::text as name, pg_relation_size(relid) as bytes,
                   n_live_tup as live, n_dead_tup as dead, n_tup_upd as updated,
                   n_tup_hot_upd as hot
            from pg_stat_user_tables where n_tup_ins > 0 order by 2 desc
            """
        )
    finally:
        await pool.close()
    packed = await connect(database_url, command_timeout_seconds=600)
    try:
        await packed.execute("vacuum full")
        sizes = dict(
            await packed.fetch(
                "select relid::regclass::text, pg_relation_size(relid) from pg_stat_user_tables"
            )
        )
    finally:
        await packed.close()
    with capsys.disabled():
        print(f"\n{'table':<28}{'MB':>8}{'packed':>8}{'dead':>8}{'HOT':>7}")
        for row in rows:
            hot = f"{row['hot'] / row['updated']:.0%}" if row["updated"] else ""
            mb, least = row["bytes"] / 2**20, sizes[row["name"]] / 2**20
            print(f"{row['name']:<28}{mb:>8.1f}{least:>8.1f}{row['dead']:>8}{hot:>7}")
    for row in rows:
        if sizes[row["name"]] > 2**20:
            assert row["bytes"] < 2 * sizes[row["name"]], row["name"]
            assert row["dead"] < 0.1 * row["live"] + 2000, row["name"]
        else:
            assert row["bytes"] < 16 * 2**20, row["name"]


async def work(pool: Pool, worker: str) -> None:
    """Do jobs as a worker does, without what is in them."""
    while claimed := await jobs.claim(
        pool, worker_id=worker, lease_seconds=60, version="x", limit=10
    ):
        for job in claimed:
            for percent in (20, 50, 80):
                async with pool.acquire() as connection, connection.transaction():
                    await connection.execute(
                        "select fullpass.hold($1, $2, 60)", job.id, job.lease_epoch
                    )
                    await connection.execute(
                        "select fullpass.progress($1, 'extract_facts', $2, 'x')", job.id, percent
                    )
            await pool.execute(
                "select fullpass.beat($1, array[$2::uuid], array[$3::bigint], 60, '{}')",
                worker,
                job.id,
                job.lease_epoch,
            )
            await jobs.complete(pool, job, result={}, cost={})


async def settled(pool: Pool) -> None:
    """Let autovacuum come round: it wakes once a minute."""
    deadline = time.monotonic() + 300  # the deadline for autovacuum
    while time.monotonic() < deadline:
        behind = await pool.fetchval(
            "select count(*) from pg_stat_user_tables where n_dead_tup > 0.1 * n_live_tup + 2000"
        )
        if not behind:
            return
        await asyncio.sleep(2)  # polled until the deadline
