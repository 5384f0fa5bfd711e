"""What a second connection sees while a pass runs is true at every moment."""

from __future__ import annotations

import asyncio
import time
import uuid
from typing import TYPE_CHECKING, Any

import asyncpg

from daemon.fullpass.context import STEPS
from daemon.fullpass.steps import _time_told
from daemon.settings import load_settings
from daemon.worker import Worker
from tests.support.anthropic_server import AnthropicServer
from tests.support.exports import planted_export
from tests.support.worker_process import QUICK, work_once

if TYPE_CHECKING:
    from pathlib import Path

    from daemon.fullpass.context import Pass

SEEN = """
    select j.status, j.current_step, j.progress, p.full_pass_status, p.progress_percent,
           p.memory_md is not null as has_memory, p.full_pass_started_at = j.started_at as started,
           p.full_pass_completed_at is not null as finished,
           (select count(*) from fullpass.chunk_outcomes) as outcomes,
           (select count(*) from fullpass.windows where state = 'planned') as planned,
           (select count(*) from fullpass.extracted_facts) as facts,
           (select count(*) from (
                select from conversation_chunks group by conversation_id
                having count(*) <> max(total_chunks)) as partial) as half_conversations
    from processing_jobs j left join user_profiles p using (user_id)
"""


async def test_status_progress_and_profile_agree_at_every_moment(
    database_url: str, tmp_path: Path
) -> None:
    export = planted_export(conversations=40, filler_words=300)
    db = await asyncpg.connect(database_url)
    await db.execute(
        "insert into processing_jobs (user_id, storage_path) values ($1, $2)",
        uuid.uuid4(),
        f"file://{export.write(tmp_path / 'c.json')}",
    )
    seen: list[asyncpg.Record] = []
    done = asyncio.Event()

    async def watch() -> None:
        while not done.is_set():
            row = await db.fetchrow(SEEN)
            assert row is not None
            if not seen or dict(seen[-1]) != dict(row):
                seen.append(row)
            await asyncio.sleep(0.002)  # polled until done, the pass's own deadline

    watching = asyncio.create_task(watch())
    with AnthropicServer(truth=export.truth) as server:
        server.behave(latency_seconds=0.05)
        await work_once(database_url, server.url)
    done.set()
    await watching
    seen.append(await db.fetchrow(SEEN))
    await db.close()

    assert len(seen) > 10
    steps = [r["current_step"] for r in seen if r["status"] == "processing" and r["current_step"]]
    order = [STEPS.index(s) for s in steps if s in STEPS]
    assert order == sorted(order)
    assert len(set(order)) >= 6
    percents = [r["progress"] for r in seen]
    assert percents == sorted(percents)
    for r in seen:
        assert r["half_conversations"] == 0
        match r["status"]:
            case "pending":
                assert r["full_pass_status"] in {None, "pending"}
            case "processing":
                assert r["full_pass_status"] == "processing"
                assert r["progress_percent"] == r["progress"] < 100
                assert r["started"]
                assert not r["finished"]
                # MEMORY is there exactly from the step that saves it.
                if r["current_step"] == "regenerate_sections":
                    assert r["has_memory"]
                elif r["current_step"] != "save_memory":
                    assert not r["has_memory"]
            case "complete":
                assert (r["full_pass_status"], r["progress_percent"]) == ("complete", 100)
                assert r["finished"]
                assert r["has_memory"]
    assert seen[-1]["status"] == "complete"
    assert seen[-1]["planned"] == 0


async def test_a_word_of_the_time_left_that_hangs_holds_up_no_end_of_a_step(
    database_url: str,
) -> None:
    db = await asyncpg.connect(database_url)
    await db.execute("select fullpass.enqueue($1, 'exports/a.json')", uuid.uuid4())
    took_seconds: list[float] = []

    async def run_pass(work: Pass) -> tuple[dict[str, Any], dict[str, Any]]:
        work.step = "regenerate_sections"
        work.left.tell(1e6)  # what people read is far off, so it is told anew
        async with db.transaction():
            await db.execute("select from processing_jobs for update")
            async with _time_told(work):
                waits = "select exists (select from pg_locks where not granted)"
                deadline = time.monotonic() + 5
                while not await db.fetchval(waits):
                    assert time.monotonic() < deadline
                    await asyncio.sleep(0.02)  # polled until the deadline
                left = time.monotonic()
            took_seconds.append(time.monotonic() - left)
        return {}, {}

    settings = load_settings(
        **{**QUICK, "lease_seconds": 30.0, "llm_provider": "offline", "database_url": database_url}
    )
    tally = await Worker(settings, database_url, run_pass=run_pass).run(once=True)
    await db.close()
    assert len(tally.completed) == 1
    assert took_seconds[0] < 3
