"""Times that no client can read, as an app may write them: nothing that people watch goes away."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING

import httpx
import pytest

from daemon.database import connect
from daemon.ops.metrics import _QUEUE
from tests.support import postgres
from tests.support.cli import Cli
from tests.support.dashboard import dashboard

if TYPE_CHECKING:
    from pathlib import Path

    from daemon.database import Connection

TIMES = ("infinity", "-infinity", "0044-03-15 12:00:00 BC", "20000-01-01 00:00:00")
COLUMNS = ("created_at", "started_at", "completed_at", "run_at", "updated_at")
STATUSES = ("pending", "processing", "complete", "failed", "cancelled")


async def odd_jobs(db: Connection) -> list[str]:
    """Add a job of each status for each column of each odd time."""
    rows = await db.fetch(
        """
        insert into processing_jobs (
            user_id, storage_path, status, run_at, created_at, started_at, completed_at)
        select gen_random_uuid(), n || '.json', s, now() - interval '1 hour',
               now() - interval '1 hour',
               case when s <> 'pending' then now() - interval '1 hour' end,
               case when s not in ('pending', 'processing') then now() end
        from unnest($1::text[]) as s, generate_series(1, $2) as n
        returning id
        """,
        list(STATUSES), len(TIMES) * len(COLUMNS),
    )  # fmt: skip
    await db.execute("alter table processing_jobs disable trigger user")
    odd = [(column, at) for column in COLUMNS for at in TIMES]
    for n, row in enumerate(rows):
        column, at = odd[n % len(odd)]
        await db.execute(f"update processing_jobs set {column} = '{at}' where id = $1", row["id"])
    await db.execute("alter table processing_jobs enable trigger user")
    return [str(row["id"]) for row in rows]


@pytest.mark.parametrize("version", ["15", "18"])
def test_no_time_that_an_app_may_write_takes_a_page_a_view_or_a_figure_away(
    version: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    server = request.getfixturevalue(f"postgres_{version}_server")
    url = postgres.create_database(server, migrated=True)

    async def look() -> list[str]:
        db = await connect(url)
        try:
            jobs = await odd_jobs(db)
            views = await db.fetch("select viewname from pg_views where schemaname = 'fullpass'")
            assert len(views) >= 8
            for (view,) in views:
                rows = await db.fetch(f"select * from fullpass.{view}")
                assert view != "ops_running" or len(rows) == len(TIMES) * len(COLUMNS)
            (figures,) = await db.fetch(_QUEUE)
            assert figures["due"] > 0
            assert 0 <= figures["oldest_due_seconds"] < float("inf")
            return jobs
        finally:
            await db.close()

    try:
        jobs = asyncio.run(look())
        with dashboard(url) as at, httpx.Client(verify=False) as web:
            for page in ("/", "/past", *(f"/jobs/{job}" for job in jobs)):
                answer = web.get(at + page)
                assert answer.status_code == 200, (page, answer.text)
        cli = Cli(tmp_path, DATABASE_URL=url)
        for arguments in ((), (jobs[0],), (jobs[-1], "--json")) if version == "18" else ():
            told = cli.run("status", *arguments)
            assert told.returncode == 0, told.stderr
            assert "--json" not in arguments or json.loads(told.stdout)
    finally:
        postgres.drop_database(url)
