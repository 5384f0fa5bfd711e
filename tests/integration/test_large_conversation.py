"""A large conversation is stored in slices and seen at once: never half of it (promises 1, 7, 10)."""

from __future__ import annotations

import asyncio
import json
import sys
import uuid
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import asyncpg
import msgspec
import pytest

from daemon.database import open_pool
from daemon.errors import LeaseLost, OutOfReach
from daemon.fullpass.handover import Batch, Part, Row
from daemon.fullpass.staging import Staging
from daemon.queue.lease import Lease
from daemon.settings import load_settings
from daemon.worker import Worker
from tests.support.exports import conversation
from tests.support.worker_process import environment, work_once, worker_process

if TYPE_CHECKING:
    from pathlib import Path

    from daemon.fullpass.context import Pass

Turns = list[tuple[str, str]]
# More than two slices, and a lease in which one transaction could not hold the row for all of it.
TURNS: Turns = [("assistant" if n % 2 else "user", f"Turn {n}. " + "wind and rain " * 400) for n in range(600)]  # fmt: skip


async def enqueue(db: Any, path: Path, turns: Turns, user: uuid.UUID) -> uuid.UUID:
    path.write_text(json.dumps([conversation(0, turns)]), encoding="utf-8")
    job: uuid.UUID = await db.fetchval(
        "insert into processing_jobs (user_id, storage_path) values ($1, $2) returning id",
        user, f"file://{path}",
    )  # fmt: skip
    return job


async def ingested(url: str) -> None:
    """Run a real worker that only ingests, with a lease of six seconds."""
    worker = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m", "tests.support.ingest_worker",
        env=environment(url, None, llm_provider="offline", lease_seconds=6, heartbeat_seconds=1),
        stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    assert await worker.wait() == 0


async def stored(db: Any, user: uuid.UUID) -> list[asyncpg.Record]:
    return await db.fetch(
        "select c.id, c.chunk_index, c.total_chunks, c.content_hash, "
        "  (select count(*) from fullpass.chunk_messages m where m.chunk_id = c.id) as messages "
        "from conversation_chunks c where c.user_id = $1 order by c.chunk_index",
        user,
    )


async def test_a_reader_sees_all_of_a_large_conversation_or_none_of_it(
    db: Any, database_url: str, tmp_path: Path
) -> None:
    user = uuid.uuid4()
    seen: set[tuple[int, ...]] = set()

    async def watch() -> None:
        eye = await asyncpg.connect(database_url, statement_cache_size=0)
        try:
            while True:
                rows = await eye.fetch(
                    "select total_chunks, count(*) as n from conversation_chunks "
                    "where user_id = $1 group by 1",
                    user,
                )
                seen.update((row["total_chunks"], row["n"]) for row in rows)
                assert len(rows) <= 1
                await asyncio.sleep(0.005)  # a polled deadline: the end of the test
        finally:
            await eye.close()

    watching = asyncio.create_task(watch())
    job = await enqueue(db, tmp_path / "c.json", TURNS, user)
    await ingested(database_url)
    first = await stored(db, user)
    # The person edits the beginning: every chunk is another.
    changed: Turns = [("user", "Before all this. " + "snow " * 900), *TURNS]
    await enqueue(db, tmp_path / "c.json", changed, user)
    await ingested(database_url)
    second = await stored(db, user)
    watching.cancel()
    with pytest.raises(asyncio.CancelledError):
        await watching
    assert len(first) > 300
    assert {row["content_hash"] for row in first}.isdisjoint(
        row["content_hash"] for row in second[:-2]
    )
    assert seen == {(len(first), len(first)), (len(second), len(second))}
    for rows in (first, second):
        assert [row["chunk_index"] for row in rows] == list(range(len(rows)))
        assert all(row["messages"] for row in rows)
    assert await db.fetchval("select count(*) from fullpass.staged_chunks") == 0
    # It came in slices, each a progress of its own, and none of them waited or failed.
    row = await db.fetchrow("select status, attempts, error_message from processing_jobs where id = $1", job)  # fmt: skip
    assert tuple(row) == ("complete", 1, None)


async def test_a_large_conversation_that_grew_keeps_its_rows(
    db: Any, database_url: str, tmp_path: Path
) -> None:
    user = uuid.uuid4()
    await enqueue(db, tmp_path / "c.json", TURNS, user)
    await ingested(database_url)
    before = await stored(db, user)
    # What a crash between the switch and the last slice of the map leaves: it is done again.
    await db.execute("update fullpass.conversations set content_hash = ''")
    await db.execute(
        "delete from fullpass.chunk_maps where chunk_id in "
        "(select id from conversation_chunks where chunk_index > 100)"
    )
    await db.execute(
        """
        insert into fullpass.staged_chunks (job_id, conversation_id, tier, chunk_index,
            total_chunks, content, message_count, created_at, is_recent, token_count, content_hash,
            messages)
        select gen_random_uuid(), 'conv-0', 'medium', 0, 1, 'left behind', 1, now(), false, 1, 'x', '[]'
        """
    )
    await enqueue(db, tmp_path / "c.json", [*TURNS, ("user", "One more.")], user)
    await ingested(database_url)
    after = await stored(db, user)
    assert [row["id"] for row in after[: len(before) - 1]] == [row["id"] for row in before[:-1]]
    assert [r["messages"] for r in after[: len(before) - 1]] == [r["messages"] for r in before[:-1]]
    assert await db.fetchval("select count(*) from fullpass.staged_chunks") == 0


async def test_a_large_conversation_switched_in_before_a_crash_is_known_to_be_there(
    db: Any, database_url: str, tmp_path: Path
) -> None:
    """Else an export without it, whole and newer, would leave it for ever."""
    user = uuid.uuid4()
    # What happens after the switch does not: as if the worker died there, again and again.
    await db.execute(
        """
        create function dies() returns trigger language plpgsql as
            $$ begin raise exception 'dies' using errcode = 'crash_shutdown'; end $$;
        create trigger dies before insert or update on fullpass.conversations
            for each row when (new.content_hash <> '') execute function dies()
        """
    )
    job = await enqueue(db, tmp_path / "c.json", TURNS, user)
    with worker_process(database_url, None, llm_provider="offline"):
        async with asyncio.timeout(60):  # a deadline; leaving kills the worker
            while not await stored(db, user):
                await asyncio.sleep(0.05)  # until the deadline
    await db.execute(
        "update processing_jobs set status = 'cancelled', lease_epoch = lease_epoch + 1 where id = $1", job,
    )  # fmt: skip
    await db.execute("drop trigger dies on fullpass.conversations; drop function dies()")
    path = tmp_path / "newer.json"
    path.write_text(json.dumps([conversation(1, [("user", "I moved to Porto.")])]), "utf-8")
    await db.execute("insert into processing_jobs (user_id, storage_path) values ($1, $2)", user, f"file://{path}")  # fmt: skip
    await ingested(database_url)
    left = await db.fetch("select distinct conversation_id from conversation_chunks where user_id = $1", user)  # fmt: skip
    assert [row[0] for row in left] == ["conv-1"]


async def test_staged_rows_that_a_crash_of_the_server_took_are_missed(db: Any) -> None:
    with pytest.raises(asyncpg.CrashShutdownError, match="of 3 staged chunks 0 are left"):
        await db.execute(
            "select fullpass.switch_staged($1, $2, 'chatgpt', 3)", uuid.uuid4(), uuid.uuid4()
        )


async def held(db: Any, url: str) -> tuple[Any, Lease]:
    job = await db.fetchval(
        "insert into processing_jobs (user_id, storage_path, status, lease_epoch, "
        "lease_expires_at, started_at) values (gen_random_uuid(), 'a/b', 'processing', 1, "
        "now() + interval '1 minute', now()) returning id"
    )
    pool = await open_pool(url)
    return pool, Lease(pool, job_id=job, epoch=1, lease_seconds=6)


async def test_what_proves_its_lease_at_the_end_leaves_the_row_free_until_then(
    db: Any, database_url: str
) -> None:
    pool, lease = await held(db, database_url)
    async with lease.fenced_at_the_end() as connection:
        await connection.execute(
            "insert into fullpass.erasures (user_id) values (gen_random_uuid())"
        )
        # A heartbeat, or the app, finds the row free.
        await db.execute("set lock_timeout = '100ms'")
        await db.execute("update processing_jobs set priority = 1")
    assert await db.fetchval("select count(*) from fullpass.erasures") == 1
    await pool.close()


async def test_what_lost_its_lease_meanwhile_writes_nothing(db: Any, database_url: str) -> None:
    pool, lease = await held(db, database_url)
    with pytest.raises(LeaseLost):
        async with lease.fenced_at_the_end() as connection:
            await connection.execute("insert into fullpass.erasures (user_id) values (gen_random_uuid())")  # fmt: skip
            await db.execute("update processing_jobs set lease_epoch = 2")
    assert await db.fetchval("select count(*) from fullpass.erasures") == 0
    await pool.close()


async def test_whoever_holds_the_row_goes_first(db: Any, database_url: str) -> None:
    pool, lease = await held(db, database_url)
    other = db.transaction()
    await other.start()
    await db.execute("update processing_jobs set priority = 1")
    with pytest.raises(OutOfReach):
        async with lease.fenced_at_the_end() as connection:
            await connection.execute("insert into fullpass.erasures (user_id) values (gen_random_uuid())")  # fmt: skip
    await other.rollback()
    assert await db.fetchval("select count(*) from fullpass.erasures") == 0
    await pool.close()


async def test_a_whole_pass_over_a_large_conversation(
    db: Any, database_url: str, tmp_path: Path
) -> None:
    user = uuid.uuid4()
    turns = [*TURNS[:200], ("user", "I prefer tea over coffee.")]
    await enqueue(db, tmp_path / "c.json", turns, user)
    await work_once(database_url, None)
    memory = await db.fetchval("select memory_md from user_profiles where user_id = $1", user)
    assert "tea over coffee" in memory


async def test_a_conversation_given_up_half_way_leaves_nothing_in_the_way_of_the_next(
    db: Any, database_url: str
) -> None:
    def sliced(own_id: str, *counts: int) -> list[Part]:
        row = Row("medium", 0, 2, "User: rain", 1, 3, own_id, "[]")
        at = datetime(2025, 1, 1, tzinfo=UTC)
        return [
            Part(own_id, "", own_id, 2, 4, True, at, at,
                 [msgspec.structs.replace(row, index=n, content_hash=f"{own_id}{n}")] if count else [],
                 count, n == 0, n == len(counts) - 1)
            for n, count in enumerate(counts)
        ]  # fmt: skip

    async def saving(work: Pass) -> tuple[dict[str, Any], dict[str, Any]]:
        staging = Staging(work)
        work.source = "chatgpt"
        for part in [*sliced("given up", 1, 0), *sliced("whole", 1, 2)]:
            await staging.save(Batch("chatgpt", [part], 1, 2, 0.5))
        return {}, {}

    await db.execute("insert into processing_jobs (user_id, storage_path) values (gen_random_uuid(), 'a/b')")  # fmt: skip
    settings = load_settings(database_url=database_url, llm_provider="offline")
    tally = await Worker(settings, database_url, run_pass=saving).run(once=True)
    assert not tally.failed
    assert not tally.left
    stored = await db.fetch(
        "select conversation_id, chunk_index from conversation_chunks order by 2"
    )
    assert [tuple(row) for row in stored] == [("whole", 0), ("whole", 1)]
    assert await db.fetchval("select count(*) from fullpass.staged_chunks") == 0
