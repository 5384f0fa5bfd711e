"""Keeping house: what grows old goes, what is promised to stay stays, and nobody is held up."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING
from uuid import UUID, uuid4

from daemon.database import connect
from daemon.fullpass.chunks import CHUNKING_VERSION
from daemon.queue.housekeeping import keep_house
from tests.support.cli import EXAMPLE, Cli, ask

if TYPE_CHECKING:
    from pathlib import Path

    from daemon.database import Pool
    from tests.support.storage_server import StorageServer
    from tests.support.telling import Db

PATH = "exports/one/conversations.json"

OLD = """
insert into processing_jobs (id, user_id, storage_path, status)
values ('00000000-0000-0000-0000-000000000001', gen_random_uuid(), 'e/a', 'complete'),
       ('00000000-0000-0000-0000-000000000002', gen_random_uuid(), 'e/b', 'pending');
insert into fullpass.llm_calls (call_key, user_id, job_id, purpose, provider, model, prompt_version,
                                input_tokens, cost_usd, usable, response, request_id, created_at)
select 'key', gen_random_uuid(), j.id, 'extract', 'p', 'm', 'v', 10, 0.5, true, 'words', 'r', t.at
from processing_jobs j cross join times t;
insert into fullpass.job_events (job_id, at, event)
select j.id, t.at, 'step.started' from processing_jobs j cross join times t;
insert into fullpass.windows (user_id, source, content_hashes, token_count, state, created_at)
select gen_random_uuid(), 'chatgpt', '{a}', 1, s.state, t.at
from (values ('planned'), ('done')) as s (state) cross join times t;
insert into fullpass.outbox (channel, event, at) select 'notify', 'completed', t.at from times t;
insert into fullpass.workers (worker_id, last_beat_at)
select 'w-' || extract(epoch from t.at), t.at from times t;
insert into fullpass.chunk_outcomes (user_id, content_hash, job_id, chunk_id, source, extractor,
                                     outcome, created_at)
select gen_random_uuid(), 'h', j.id, gen_random_uuid(), 'chatgpt', 'llm', 'ok', t.at
from processing_jobs j cross join times t;
"""


async def grown_old(db: Db) -> None:
    """Two jobs, one ended, with rows of each kind of today and of forty days ago."""
    await db.execute(
        "create table times as select now() - n * interval '40 days' as at "
        "from generate_series(0, 1) n"
    )
    await db.execute(OLD)
    await db.execute("drop table times")


async def test_what_is_old_goes_and_what_was_promised_stays(
    db: Db, tmp_path: Path, database_url: str
) -> None:
    await grown_old(db)
    cli = Cli(tmp_path, DATABASE_URL=database_url)
    pruned = cli.json("prune", "--json")
    assert pruned == {
        "older_than_days": 30,
        # The timeline of a job that has not ended is kept whole, and so is a plan not carried out.
        "dropped": {
            "llm_bodies": 2,
            "job_events": 1,
            "windows": 1,
            "workers": 1,
            "outbox": 1,
        },
    }
    calls = await db.fetch("select * from fullpass.llm_calls order by created_at")
    assert [call["response"] for call in calls] == [None, None, "words", "words"]
    assert [call["call_key"] for call in calls] == [None, None, "key", "key"]
    assert sum(call["cost_usd"] for call in calls) == 2
    assert await db.fetchval("select sum(cost_usd) from fullpass.job_costs") == 2
    assert await db.fetchval("select count(*) from fullpass.chunk_outcomes") == 4
    again = cli.run("prune", PIPELINE_RETENTION_DAYS=50)
    assert again.returncode == 0
    assert "Nothing of these is older than 50 days" in again.stdout


async def test_a_worker_prunes_by_itself_a_bounded_amount_at_a_time(pool: Pool) -> None:
    await pool.execute(
        "insert into fullpass.job_events (job_id, at, event) "
        "select gen_random_uuid(), now() - interval '40 days', 'step.started' "
        "from generate_series(1, 2500)"
    )
    counts = json.loads(await pool.fetchval("select fullpass.prune(30, 1000)"))
    assert counts["job_events"] == 1000
    await keep_house(pool, retention_days=30)
    assert await pool.fetchval("select count(*) from fullpass.job_events") == 0


async def test_pruning_finds_what_is_old_without_reading_what_is_not(db: Db) -> None:
    await db.execute(
        "insert into fullpass.job_events (job_id, event) "
        "select gen_random_uuid(), 'step.started' from generate_series(1, 50000)"
    )
    await db.execute(
        "insert into fullpass.llm_calls (user_id, purpose, provider, model, prompt_version, "
        "usable, response) select gen_random_uuid(), 'x', 'p', 'm', 'v', true, 'words' "
        "from generate_series(1, 20000)"
    )
    await db.execute("analyze")
    best = float("inf")
    for _ in range(5):
        started = time.perf_counter()
        await db.fetchval("select fullpass.prune(30)")
        best = min(best, time.perf_counter() - started)
    assert best < 0.02


async def test_a_prune_waits_for_nobody(db: Db, database_url: str) -> None:
    app = await connect(database_url)
    try:
        await grown_old(db)
        async with app.transaction():
            await app.execute("select from fullpass.llm_calls where usable for update")
            await app.execute("select from public.processing_jobs for update")
            counts = json.loads(await db.fetchval("select fullpass.prune(30)"))
        assert counts["llm_bodies"] == 0, "left for the next time"
        assert counts["job_events"] == 1
        assert json.loads(await db.fetchval("select fullpass.prune(30)"))["llm_bodies"] == 2
    finally:
        await app.close()


def test_backfill_reads_again_what_an_older_algorithm_cut_once_and_last(
    tmp_path: Path, database_url: str, storage_server: StorageServer
) -> None:
    cli = Cli(
        tmp_path, DATABASE_URL=database_url, LLM_PROVIDER="offline",
        SUPABASE_URL=storage_server.url, SUPABASE_SERVICE_KEY=storage_server.key,
    )  # fmt: skip
    storage_server.put(PATH, EXAMPLE.read_bytes())
    people = sorted(uuid4() for _ in range(3))
    for person in people:
        ask(database_url, "select fullpass.enqueue($1, $2)", person, PATH)
    assert cli.run("worker", "--once").returncode == 0
    assert cli.json("backfill", "--json")["queued"] == [], "all are of the newest version"

    outdated = "update conversation_chunks set chunking_version = 1 where user_id = any ($1)"
    ask(database_url, outdated, people[1:])
    ask(
        database_url,
        "insert into conversation_chunks (user_id, content, created_at) values ($1, 'x', now())",
        stranger := uuid4(),
    )
    first = cli.json("backfill", "--limit", "1", "--json")
    assert len(first["queued"]) == 1
    rest = cli.json("backfill", "--json")
    assert rest["chunking_version"] == CHUNKING_VERSION
    assert (len(rest["queued"]), rest["without_export"]) == (1, 1)
    queued = ask(
        database_url,
        "select user_id, priority, storage_path from processing_jobs where id = any ($1) "
        "order by user_id",
        [UUID(job) for job in first["queued"] + rest["queued"]],
    )
    assert [row["user_id"] for row in queued] == people[1:]
    assert {(row["priority"], row["storage_path"]) for row in queued} == {(-100, PATH)}

    assert cli.run("worker", "--once").returncode == 0
    versions = ask(
        database_url,
        "select distinct chunking_version from conversation_chunks where user_id <> $1",
        stranger,
    )
    assert [row["chunking_version"] for row in versions] == [CHUNKING_VERSION]
    # What no export holds any more stays as it is, and does not bring its owner back for ever.
    ask(database_url, outdated, people[1:])
    assert cli.json("backfill", "--json")["queued"] == []


def test_our_tables_are_vacuumed_by_what_they_go_through(database_url: str) -> None:
    options = ask(
        database_url,
        "select relname, reloptions from pg_class "
        "where relnamespace in ('fullpass'::regnamespace, 'public'::regnamespace) "
        "and relkind = 'r'",
    )
    set_for = {r["relname"] for r in options if "autovacuum" in str(r["reloptions"])}
    assert set_for >= {
        "processing_jobs", "passes", "workers", "tickets", "job_events", "llm_calls", "windows",
        "job_costs", "hourly_costs", "staged_chunks", "staged_facts",
    }  # fmt: skip


async def test_no_message_goes_while_it_may_still_be_told(db: Db) -> None:
    await db.execute(
        "insert into fullpass.outbox (channel, event, at) "
        "select 'notify', 'completed', now() - d * interval '1 day' from unnest(array[2, 5]) d"
    )
    pruned = json.loads(await db.fetchval("select fullpass.prune(1)"))
    assert pruned["outbox"] == 1
    assert await db.fetchval("select at > now() - interval '3 days' from fullpass.outbox")
