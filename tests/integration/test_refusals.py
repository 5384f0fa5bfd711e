"""What the database refuses to write stops one job with a clear word, no worker and no neighbour."""

from __future__ import annotations

import asyncio
import json
import struct
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING

import asyncpg
import pytest
from structlog.testing import capture_logs

from daemon.database import connect, open_pool
from daemon.errors import OutOfReach, Wait
from daemon.queue import jobs
from daemon.queue.ending import Endings, Tally
from daemon.queue.lease import Lease

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from daemon.database import Pool

LARGEST = 2**63 - 1


@pytest.fixture
async def pool(database_url: str) -> AsyncIterator[Pool]:
    opened = await open_pool(database_url, size=4)
    yield opened
    await opened.close()


async def inserted(pool: Pool, user: uuid.UUID | None = None, path: str = "") -> uuid.UUID:
    return await pool.fetchval(
        "insert into processing_jobs (user_id, storage_path) values ($1, $2) returning id",
        user or uuid.uuid4(),
        path or f"exports/{uuid.uuid4()}",
    )


async def claimed(pool: Pool, worker: str = "w1", *, lease_seconds: float = 60.0) -> list[jobs.Job]:
    return await jobs.claim(
        pool, limit=9, worker_id=worker, lease_seconds=lease_seconds, version="test"
    )


async def row_of(pool: Pool, job_id: uuid.UUID) -> asyncpg.Record:
    row = await pool.fetchrow("select * from processing_jobs where id = $1", job_id)
    assert row is not None
    return row


async def profile_of(pool: Pool, user: uuid.UUID) -> asyncpg.Record:
    row = await pool.fetchrow("select * from user_profiles where user_id = $1", user)
    assert row is not None
    return row


@pytest.mark.parametrize("column", ["lease_epoch", "attempts"])
async def test_a_row_with_a_number_that_cannot_grow_fails_alone_and_can_be_retried(
    pool: Pool, column: str
) -> None:
    bad, good = await inserted(pool), await inserted(pool)
    largest = LARGEST if column == "lease_epoch" else 2**31 - 1
    await pool.execute(f"update processing_jobs set {column} = $2 where id = $1", bad, largest)
    assert [job.id for job in await claimed(pool)] == [good]
    row = await row_of(pool, bad)
    assert row["status"] == "failed"
    assert "out of range" in row["error_message"]
    assert (await profile_of(pool, row["user_id"]))["full_pass_status"] == "failed"
    assert await pool.fetchval("select fullpass.retry($1)", bad)
    (again,) = await claimed(pool)
    assert again.id == bad


async def test_a_running_row_that_cannot_be_recovered_fails_alone_and_its_epoch_still_fences(
    pool: Pool,
) -> None:
    bad, good = await inserted(pool), await inserted(pool)
    given = {job.id: job.lease_epoch for job in await claimed(pool)}
    await pool.execute(
        "update processing_jobs set lease_epoch = case id when $1 then $2 else lease_epoch end, "
        "lease_expires_at = clock_timestamp() - interval '1 second'",
        bad,
        LARGEST,
    )
    assert [job.id for job in await claimed(pool, "w2")] == [good]
    row = await row_of(pool, bad)
    assert row["status"] == "failed"
    assert row["lease_epoch"] > given[bad]


async def test_an_app_whose_profile_cannot_be_made_fails_that_job_and_no_other(pool: Pool) -> None:
    known = uuid.uuid4()
    await pool.execute("insert into user_profiles (user_id) values ($1)", known)
    await pool.execute("alter table user_profiles add column email text default 'a@b'")
    await pool.execute("alter table user_profiles alter column email drop default")
    await pool.execute("alter table user_profiles alter column email set not null")
    bad, good = await inserted(pool), await inserted(pool, known)
    assert [job.id for job in await claimed(pool)] == [good]
    row = await row_of(pool, bad)
    assert row["status"] == "failed"
    assert '"email"' in row["error_message"]


async def test_a_user_whose_row_cannot_even_be_set_aside_holds_nobody_up(pool: Pool) -> None:
    bad, good = await inserted(pool), await inserted(pool)
    await pool.execute(
        "create function refuse() returns trigger language plpgsql as "
        "$$ begin raise exception 'not this one'; end $$"
    )
    await pool.execute(
        "create trigger refuse before update on processing_jobs for each row "
        f"when (new.id = '{bad}') execute function refuse()"
    )
    assert [job.id for job in await claimed(pool)] == [good]
    assert (await row_of(pool, bad))["status"] == "pending"


# Endings


@dataclass(frozen=True)
class Attempt:
    """As much of an attempt as its ending asks for."""

    job: jobs.Job
    lease: Lease
    step: str = "save_memory"


async def attempt(pool: Pool) -> tuple[Attempt, Endings, Tally]:
    (job,) = await claimed(pool)
    tally = Tally()
    lease = Lease(pool, job_id=job.id, epoch=job.lease_epoch, lease_seconds=60)
    endings = Endings(pool, worker_id="w1", max_wait_hours=1.0, tally=tally)
    return Attempt(job, lease), endings, tally


async def test_a_completion_that_is_refused_uses_an_attempt_and_says_why(pool: Pool) -> None:
    await inserted(pool)
    work, endings, tally = await attempt(pool)
    await endings.completed(work, {"x": "a\x00b"}, {})
    row = await row_of(pool, work.job.id)
    assert (row["status"], row["attempts"]) == ("pending", 1)
    assert "the database refused" in row["error_message"]
    assert not tally.completed


@pytest.mark.parametrize("text", ["a\x00b", "a\udc80b"])
async def test_an_error_whose_text_postgres_refuses_ends_the_attempt_all_the_same(
    pool: Pool, text: str
) -> None:
    await inserted(pool)
    work, endings, _ = await attempt(pool)
    await endings.raised(work, ValueError(text))
    row = await row_of(pool, work.job.id)
    assert (row["status"], row["attempts"]) == ("pending", 1)
    assert "unexpected ValueError: a" in row["error_message"]


async def test_an_attempt_that_ends_badly_after_a_cancellation_counts_as_cancelled(
    pool: Pool,
) -> None:
    for error in (ValueError("late"), Wait("late")):
        job_id = await inserted(pool)
        work, endings, tally = await attempt(pool)
        assert await pool.fetchval("select fullpass.cancel($1)", job_id)
        await endings.raised(work, error)
        assert (await row_of(pool, job_id))["status"] == "cancelled"
        assert (tally.failed, tally.left) == ({}, {})


async def test_what_an_erasure_leaves_of_a_job_is_no_error_of_it(pool: Pool) -> None:
    user = uuid.uuid4()
    for erased in (True, False):
        job_id = await inserted(pool, user)
        work, endings, _ = await attempt(pool)
        if erased:
            assert await pool.fetchval("select fullpass.forget($1)", user)
        with capture_logs() as said:
            await endings.raised(work, KeyError(3))  # the rows it was about to read are gone
        told = [(line["log_level"], line["event"]) for line in said if "KeyError" in str(line)]
        assert told == [("warning", "job.moot") if erased else ("error", "job.error")]
        row = await row_of(pool, job_id)
        assert (row["status"], row["error_message"] is None) == (
            ("cancelled", True) if erased else ("pending", False)
        )


@pytest.mark.parametrize(("prompt", "clocks"), [("extract@1", 2), ("probe", 1)])
async def test_a_job_that_only_probes_the_server_waits_on(
    pool: Pool, prompt: str, clocks: int
) -> None:
    job_id = await inserted(pool)
    since = "select waiting_since from fullpass.passes where job_id = $1"
    waits = []
    for _ in range(2):
        await pool.execute("update processing_jobs set run_at = now() where id = $1", job_id)
        work, endings, _ = await attempt(pool)
        await endings.raised(work, Wait("the server does not answer"))
        waits.append(await pool.fetchval(since, job_id))
        await pool.execute(
            "insert into fullpass.llm_calls (user_id, job_id, purpose, provider, model, "
            "prompt_version, usable) values ($1, $2, 'extract', 'anthropic', 'm', $3, true)",
            work.job.user_id, job_id, prompt,
        )  # fmt: skip
    assert None not in waits
    assert len(set(waits)) == clocks


async def test_an_ending_waits_for_no_pool_that_is_closed(database_url: str) -> None:
    pool = await open_pool(database_url, size=1)
    await inserted(pool)
    work, endings, _ = await attempt(pool)
    await pool.close()
    await asyncio.wait_for(endings.completed(work, {}, {}), timeout=5)


# A claim whose answer got lost


async def lease_within(pool: Pool, job_id: uuid.UUID, *, seconds: float) -> None:
    """Wait until no more than so much of the job's lease is left, by the database's clock."""
    deadline = asyncio.get_running_loop().time() + 5
    while not await pool.fetchval(
        "select lease_expires_at < clock_timestamp() + make_interval(secs => $2) "
        "from processing_jobs where id = $1",
        job_id, seconds,
    ):  # fmt: skip
        assert asyncio.get_running_loop().time() < deadline
        await asyncio.sleep(0.01)  # polled: only the database's clock tells; the deadline is above


async def test_a_claim_that_a_live_worker_never_heard_of_is_no_crash(pool: Pool) -> None:
    job_id = await inserted(pool)
    beat = "select * from fullpass.beat('deaf', '{}', '{}', 0.3, $1)"
    vitals = json.dumps({"version": "test"})
    for _ in range(3):
        assert await claimed(pool, "deaf", lease_seconds=0.3)
        await lease_within(pool, job_id, seconds=0.1)
        await pool.execute(beat, vitals)  # the worker beats on, without the job
        await lease_within(pool, job_id, seconds=0)
        await pool.execute("select fullpass.sweep()")
    row = await row_of(pool, job_id)
    assert (row["status"], row["crashes"], row["attempts"]) == ("pending", 0, 0)
    # One that fell silent before the job's lease began died with it.
    assert await claimed(pool, "deaf", lease_seconds=0.3)
    await lease_within(pool, job_id, seconds=0)
    await pool.execute("select fullpass.sweep()")
    assert (await row_of(pool, job_id))["crashes"] == 1


# What a user sees of a cancellation


async def test_cancelling_a_waiting_job_leaves_the_profile_to_the_one_that_runs(
    pool: Pool,
) -> None:
    user = uuid.uuid4()
    await inserted(pool, user)
    assert await claimed(pool)
    waiting = await inserted(pool, user)
    before = await profile_of(pool, user)
    assert await pool.fetchval("select fullpass.cancel($1)", waiting)
    after = await profile_of(pool, user)
    assert after["full_pass_status"] == "processing"
    assert after["import_stage"] == before["import_stage"]


async def test_retrying_a_cancelled_job_leaves_the_profile_to_the_one_that_runs(pool: Pool) -> None:
    user = uuid.uuid4()
    cancelled = await inserted(pool, user)
    assert await pool.fetchval("select fullpass.cancel($1)", cancelled)
    await inserted(pool, user)
    assert await claimed(pool)
    before = await profile_of(pool, user)
    assert await pool.fetchval("select fullpass.retry($1)", cancelled)
    assert await profile_of(pool, user) == before


async def test_cancelling_puts_back_the_memory_of_then_and_not_its_time_of_completion(
    pool: Pool,
) -> None:
    user = uuid.uuid4()
    await pool.execute(
        "insert into user_profiles (user_id, memory_md, full_pass_status, full_pass_completed_at) "
        "values ($1, '# MEMORY', 'complete', '2020-01-01')",
        user,
    )
    job_id = await inserted(pool, user)
    assert await pool.fetchval("select fullpass.cancel($1)", job_id)
    profile = await profile_of(pool, user)
    assert profile["full_pass_status"] == "complete"
    assert profile["full_pass_completed_at"].year == 2020


# A pooler's own words


async def test_a_pooler_that_is_full_is_waited_for_whatever_code_it_says_so_with() -> None:
    refusal = (
        b"SFATAL\0VFATAL\0CXX000\0MMaxClientsInSessionMode: max clients reached - in Session mode "
        b"max clients are limited to pool_size\0\0"
    )

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        (length,) = struct.unpack("!I", await reader.readexactly(4))
        await reader.readexactly(length - 4)
        writer.write(b"E" + struct.pack("!I", len(refusal) + 4) + refusal)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(refuse, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server:
        with pytest.raises(OutOfReach, match="max clients reached"):
            await connect(f"postgresql://u:p@127.0.0.1:{port}/d?sslmode=disable")
