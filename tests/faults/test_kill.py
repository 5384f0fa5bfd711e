"""kill -9 in the middle of a pass, under a 256 MB memory limit: same facts, nothing paid twice.

Moments are chosen by calls paid, not by seconds: the model's server holds every call after the
first N, so the kill meets exactly that state (and the calls in flight then, which no one can save).
"""

from __future__ import annotations

import asyncio
import json
import random
import re
import signal
import uuid
from typing import TYPE_CHECKING

import asyncpg
import pytest

from daemon.fullpass.context import STEPS
from tests.support.anthropic_server import AnthropicServer
from tests.support.exports import PlantedExport, conversation, planted_export
from tests.support.memory_limit import limited
from tests.support.worker_process import worker_process

if TYPE_CHECKING:
    from pathlib import Path

CONCURRENCY = 3
WINDOWS, CALLS = 12, 14
"""Calls of extraction that the export of the random kills takes, and all calls of its pass."""
MIB = 1024 * 1024


def finish(database_url: str, llm_url: str) -> None:
    """Run a worker process to its end; it must succeed."""
    with (
        worker_process(
            database_url, llm_url, "--once", fact_extraction_concurrency=CONCURRENCY
        ) as worker,
        limited(worker.pid, 256 * MIB),
    ):
        _, err = worker.communicate(timeout=90)
        assert worker.returncode == 0, err.decode()[-3000:]


async def facts_and_memory(database_url: str, user: uuid.UUID) -> tuple[list[object], str]:
    db = await asyncpg.connect(database_url)
    try:
        facts = await db.fetch(
            "select id, category, statement, evidence, superseded_by from fullpass.facts "
            "where user_id = $1 order by id",
            user,
        )
        memory = await db.fetchval("select memory_md from user_profiles where user_id = $1", user)
        return [tuple(f) for f in facts], memory
    finally:
        await db.close()


async def enqueue(database_url: str, export: PlantedExport, path: Path, user: uuid.UUID) -> None:
    db = await asyncpg.connect(database_url)
    await db.execute(
        "insert into processing_jobs (user_id, storage_path) values ($1, $2)",
        user,
        f"file://{export.write(path)}",
    )
    await db.close()


async def receipts(database_url: str) -> int:
    """Count the ledger's rows."""
    db = await asyncpg.connect(database_url)
    try:
        count: int = await db.fetchval("select count(*) from fullpass.llm_calls")
        return count
    finally:
        await db.close()


SHORT, HUNDRED = range(2), range(2, 100)


@pytest.mark.parametrize(
    "seed", [*SHORT, *(pytest.param(seed, marks=pytest.mark.long) for seed in HUNDRED)]
)
async def test_a_pass_killed_at_a_random_call_ends_as_an_undisturbed_one_and_pays_nothing_twice(
    database_url: str, tmp_path: Path, seed: int
) -> None:
    dice = random.Random(seed)
    export = planted_export(conversations=24, filler_words=400, seed=seed)
    user = uuid.UUID(int=seed + 1)
    await enqueue(database_url, export, tmp_path / "c.json", user)
    with AnthropicServer(truth=export.truth) as server:
        paid = dice.randrange(0, CALLS)
        server.hold(after_calls=paid)
        with (
            worker_process(
                database_url, server.url, "--once", fact_extraction_concurrency=CONCURRENCY
            ) as worker,
            limited(worker.pid, 256 * MIB),
        ):
            in_flight = dice.randint(1, max(1, min(CONCURRENCY, WINDOWS - paid)))
            await server.until(in_flight=in_flight, timeout_seconds=40)
            worker.send_signal(signal.SIGKILL)
            worker.wait()
        # In flight: begun, and no receipt yet; of those, some had been answered to the last byte.
        known = await receipts(database_url)
        answered = len(server.record.completed())
        assert len(server.record.calls) - known <= CONCURRENCY
        server.release()
        await asyncio.to_thread(finish, database_url, server.url)
        assert len(server.record.paid_again()) <= answered - known
    disturbed = await facts_and_memory(database_url, user)
    assert len(disturbed[0]) == len(export.truth)
    assert all(p.statement in disturbed[1] for p in export.truth)


BOUNDARIES = [(step, f"step.{side}") for step in STEPS for side in ("started", "finished")]
SHORT_BOUNDARIES = {("save_chunks", "step.finished"), ("save_memory", "step.started")}
A_LOCK = 4_711

HOLD_AT_THE_BOUNDARY = f"""
    create function hold_at_the_boundary() returns trigger language plpgsql as $$
    begin
        perform pg_advisory_xact_lock_shared({A_LOCK});
        return new;
    end $$;
    create trigger hold_at_the_boundary before insert on fullpass.job_events
    for each row when (new.step = '{{step}}' and new.event = '{{event}}')
    execute function hold_at_the_boundary();
"""


@pytest.mark.parametrize(
    ("step", "event"),
    [pytest.param(*b, marks=[] if b in SHORT_BOUNDARIES else pytest.mark.long) for b in BOUNDARIES],
)
async def test_a_pass_killed_at_a_boundary_between_steps_ends_as_an_undisturbed_one(
    database_url: str, tmp_path: Path, step: str, event: str
) -> None:
    export = planted_export(conversations=12, filler_words=100, seed=7)
    undisturbed, disturbed = uuid.uuid4(), uuid.uuid4()
    with AnthropicServer(truth=export.truth) as server:
        await enqueue(database_url, export, tmp_path / "a.json", undisturbed)
        await asyncio.to_thread(finish, database_url, server.url)
        calls = len(server.record.calls)

        await enqueue(database_url, export, tmp_path / "b.json", disturbed)
        db = await asyncpg.connect(database_url)
        await db.execute(HOLD_AT_THE_BOUNDARY.format(step=step, event=event))
        await db.execute("select pg_advisory_lock($1)", A_LOCK)
        with worker_process(database_url, server.url, "--once") as worker:
            deadline = asyncio.get_running_loop().time() + 40
            while not await db.fetchval(
                "select exists (select from pg_locks l join pg_database d on d.oid = l.database "
                "where l.locktype = 'advisory' and not l.granted "
                "and d.datname = current_database())"
            ):
                assert asyncio.get_running_loop().time() < deadline, "the boundary was never met"
                await asyncio.sleep(0.02)  # polled: the deadline above bounds it
            worker.kill()
            worker.wait()
        await db.execute("select pg_advisory_unlock($1)", A_LOCK)
        await db.execute("drop function hold_at_the_boundary() cascade")
        await db.close()
        await asyncio.to_thread(finish, database_url, server.url)
        # The same text for two people: each call once for either, and none open at a boundary.
        asked = [call.purpose for call in server.record.calls]
        assert sorted(asked[calls:]) == sorted(asked[:calls])
        assert set(server.record.paid_again().values()) == {2}
    assert await rows_of(database_url, disturbed) == await rows_of(database_url, undisturbed)


async def rows_of(database_url: str, user: uuid.UUID) -> list[object]:
    """Read all that a pass leaves for its person, without the ids that rows happen to have."""
    db = await asyncpg.connect(database_url)
    chunks = await db.fetch(
        "select source, conversation_id, chunk_tier, chunk_index, content_hash, created_at, "
        "(select count(*) from fullpass.chunk_messages m where m.chunk_id = c.id) as messages "
        "from conversation_chunks c where user_id = $1 order by 1, 2, 3, 4",
        user,
    )
    outcomes = await db.fetch(
        "select content_hash, outcome from fullpass.chunk_outcomes where user_id = $1 order by 1",
        user,
    )
    facts = await db.fetch(
        "select category, statement, evidence, observed_at, superseded_by is null "
        "from fullpass.facts where user_id = $1 order by 1, 2",
        user,
    )
    profile = await db.fetchrow(
        "select memory_md, soul_md, identity_md, user_md, agents_md, tools_md, full_pass_status, "
        "progress_percent from user_profiles where user_id = $1",
        user,
    )
    await db.close()
    assert chunks
    assert outcomes
    assert facts
    assert profile is not None
    rows: list[object] = [*map(tuple, chunks), *map(tuple, outcomes), *map(tuple, facts)]
    # Facts have ids of their own in each person's MEMORY.
    return [*rows, *(re.sub(r"\[f:\w+\]", "", str(value)) for value in profile)]


async def test_a_conversation_too_large_for_the_memory_is_left_out_and_said_not_fatal(
    database_url: str, tmp_path: Path
) -> None:
    export = planted_export(conversations=4)
    giant = conversation(9, [("user", "word " * 11_000_000)])
    export.conversations.insert(2, giant)
    user = uuid.uuid4()
    await enqueue(database_url, export, tmp_path / "c.json", user)
    with AnthropicServer(truth=export.truth) as server:
        await asyncio.to_thread(finish, database_url, server.url)
    db = await asyncpg.connect(database_url)
    told = await db.fetchval("select result->'export' from processing_jobs")
    await db.close()
    assert json.loads(told)["damaged"] == 1
    assert "item 3" in json.loads(told)["damages"][0]
    assert len((await facts_and_memory(database_url, user))[0]) == len(export.truth)
