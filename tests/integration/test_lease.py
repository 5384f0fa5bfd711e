"""The lease protocol on a real Postgres: who may write, who takes over, what is counted."""

from __future__ import annotations

import asyncio
import threading
import uuid
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest

from daemon.database import open_pool
from daemon.errors import Cancelled, Draining, LeaseLost
from daemon.queue import jobs
from daemon.queue.heartbeat import Heartbeat
from daemon.queue.lease import Lease

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from daemon.database import Pool


@pytest.fixture
async def pool(database_url: str) -> AsyncIterator[Pool]:
    opened = await open_pool(database_url, size=4)
    yield opened
    await opened.close()


async def inserted(pool: Pool, user: uuid.UUID | None = None, **columns: Any) -> uuid.UUID:
    given = {"user_id": user or uuid.uuid4(), "storage_path": f"exports/{uuid.uuid4()}", **columns}
    names = ", ".join(given)
    places = ", ".join(f"${n}" for n in range(1, len(given) + 1))
    return await pool.fetchval(
        f"insert into processing_jobs ({names}) values ({places}) returning id", *given.values()
    )


async def claimed(
    pool: Pool, worker: str = "w1", *, lease_seconds: float = 60.0
) -> jobs.Job | None:
    claimed = await jobs.claim(pool, worker_id=worker, lease_seconds=lease_seconds, version="test")
    return claimed[0] if claimed else None


def lease_on(pool: Pool, job: jobs.Job, *, lease_seconds: float = 60.0) -> Lease:
    return Lease(pool, job_id=job.id, epoch=job.lease_epoch, lease_seconds=lease_seconds)


async def expire(pool: Pool, job_id: uuid.UUID) -> None:
    await pool.execute(
        "update processing_jobs set lease_expires_at = clock_timestamp() - interval '1 second' "
        "where id = $1",
        job_id,
    )


async def row_of(pool: Pool, job_id: uuid.UUID) -> asyncpg.Record:
    row = await pool.fetchrow("select * from processing_jobs where id = $1", job_id)
    assert row is not None
    return row


async def test_a_zombie_matches_nothing_once_another_worker_holds_the_job(pool: Pool) -> None:
    await inserted(pool)
    old = await claimed(pool, "old")
    assert old is not None
    zombie = lease_on(pool, old)
    await expire(pool, old.id)
    new = await claimed(pool, "new")
    assert new is not None
    assert new.id == old.id
    assert new.lease_epoch > old.lease_epoch
    with pytest.raises(LeaseLost):
        async with zombie.fenced() as connection:
            await connection.execute("update processing_jobs set current_step = 'zombie was here'")
    for ending in (
        jobs.complete(pool, old, result={}, cost={}),
        jobs.fail(pool, old, error="late", retry=True),
        jobs.release(pool, old, seconds=0, reason="late", max_wait_hours=1),
        jobs.yield_cancelled(pool, old),
    ):
        with pytest.raises(LeaseLost):
            await ending
    row = await row_of(pool, old.id)
    assert (row["status"], row["worker_id"], row["current_step"]) == ("processing", "new", None)


async def test_every_end_of_a_lease_raises_the_epoch(pool: Pool) -> None:
    async def cycle(ending: Any) -> None:
        await inserted(pool)
        job = await claimed(pool)
        assert job is not None
        await ending(job)
        assert (await row_of(pool, job.id))["lease_epoch"] > job.lease_epoch
        await pool.execute("delete from processing_jobs where id = $1", job.id)

    await cycle(lambda j: jobs.complete(pool, j, result={}, cost={}))
    await cycle(lambda j: jobs.fail(pool, j, error="e", retry=True))
    await cycle(lambda j: jobs.fail(pool, j, error="e", retry=False))
    await cycle(lambda j: jobs.release(pool, j, seconds=0, reason="r", max_wait_hours=1))
    await cycle(lambda j: jobs.yield_cancelled(pool, j))

    async def swept(job: jobs.Job) -> None:
        await expire(pool, job.id)
        await pool.execute("select fullpass.sweep()")

    await cycle(swept)


async def test_a_failed_write_leaves_nothing_and_a_held_one_renews_the_lease(pool: Pool) -> None:
    await inserted(pool)
    job = await claimed(pool, lease_seconds=5.0)
    assert job is not None
    before = (await row_of(pool, job.id))["lease_expires_at"]
    lease = lease_on(pool, job)
    with pytest.raises(ZeroDivisionError):
        async with lease.fenced() as connection:
            await connection.execute("update processing_jobs set current_step = 'half'")
            raise ZeroDivisionError
    assert (await row_of(pool, job.id))["current_step"] is None
    async with lease.fenced() as connection:
        timeouts = await connection.fetchrow(
            "select current_setting('statement_timeout') as a, "
            "current_setting('idle_in_transaction_session_timeout') as b"
        )
        assert timeouts is not None
        assert (timeouts["a"], timeouts["b"]) == ("30s", "30s")
    assert (await row_of(pool, job.id))["lease_expires_at"] > before
    assert await pool.fetchval("select current_setting('statement_timeout')") == "0"


async def test_one_user_runs_one_job_at_a_time_and_others_do_not_wait_for_it(pool: Pool) -> None:
    busy, other = uuid.uuid4(), uuid.uuid4()
    for _ in range(3):
        await inserted(pool, busy)
    third = await inserted(pool, other)
    first = await claimed(pool)
    second = await claimed(pool)
    assert first is not None
    assert second is not None
    assert {first.user_id, second.user_id} == {busy, other}
    assert third in {first.id, second.id}
    assert await claimed(pool) is None


async def test_workers_that_claim_at_once_never_share_a_job(pool: Pool) -> None:
    users = [uuid.uuid4() for _ in range(5)]
    for n in range(20):
        await inserted(pool, users[n % 5])
    taken = await asyncio.gather(*(claimed(pool, f"w{n}") for n in range(12)))
    held = [job for job in taken if job is not None]
    assert len({job.id for job in held}) == len(held) == 5
    assert {job.user_id for job in held} == set(users)


async def test_priority_comes_first_and_the_future_waits(pool: Pool) -> None:
    low = await inserted(pool)
    high = await inserted(pool, priority=5)
    await pool.execute(
        "insert into processing_jobs (user_id, storage_path, run_at) "
        "values (gen_random_uuid(), 'later', now() + interval '1 hour')"
    )
    order = [job.id for job in (await claimed(pool), await claimed(pool)) if job is not None]
    assert order == [high, low]
    assert await claimed(pool) is None


async def test_a_users_jobs_beyond_the_days_allowance_wait_until_tomorrow_and_say_so(
    pool: Pool,
) -> None:
    user = uuid.uuid4()
    for _ in range(3):
        await inserted(pool, user)
    for _ in range(2):
        (job,) = await jobs.claim(pool, worker_id="w", lease_seconds=60, version="t", daily_limit=2)
        await jobs.complete(pool, job, result={}, cost={})
    assert await jobs.claim(pool, worker_id="w", lease_seconds=60, version="t", daily_limit=2) == []
    row = await pool.fetchrow("select * from processing_jobs where status = 'pending'")
    assert row is not None
    assert row["attempts"] == 0
    assert row["run_at"] > row["created_at"]
    assert "2 jobs a day" in row["current_step"]


async def test_errors_use_attempts_and_the_last_one_is_final(pool: Pool) -> None:
    job_id = await inserted(pool, max_attempts=2)
    job = await claimed(pool)
    assert job is not None
    assert await jobs.fail(pool, job, error="extract_facts: no", retry=True) == "retry"
    row = await row_of(pool, job_id)
    assert (row["status"], row["attempts"], row["error_message"]) == (
        "pending", 1, "extract_facts: no",
    )  # fmt: skip
    assert row["run_at"] > row["updated_at"]
    profile = await pool.fetchrow("select * from user_profiles where user_id = $1", row["user_id"])
    assert profile is not None
    assert profile["full_pass_status"] == "pending"
    await pool.execute("update processing_jobs set run_at = now()")
    job = await claimed(pool)
    assert job is not None
    assert await jobs.fail(pool, job, error="extract_facts: no", retry=True) == "failed"
    profile = await pool.fetchrow("select * from user_profiles where user_id = $1", row["user_id"])
    assert profile is not None
    assert profile["full_pass_status"] == "failed"
    assert profile["full_pass_error"] == "extract_facts: no"


async def test_waiting_uses_no_attempt_but_does_not_last_for_ever(pool: Pool) -> None:
    job_id = await inserted(pool)
    for _ in range(7):
        job = await claimed(pool)
        assert job is not None
        said = await jobs.release(pool, job, seconds=30, reason="outage", max_wait_hours=1)
        assert said == "released"
        row = await row_of(pool, job_id)
        assert (row["status"], row["attempts"]) == ("pending", 0)
        await pool.execute("update processing_jobs set run_at = now()")
    await pool.execute("update fullpass.passes set waiting_since = now() - interval '2 hours'")
    job = await claimed(pool)
    assert job is not None
    said = await jobs.release(pool, job, seconds=30, reason="outage", max_wait_hours=1)
    assert said == "failed"
    assert "outage" in (await row_of(pool, job_id))["error_message"]


async def die(pool: Pool, *job_ids: uuid.UUID) -> None:
    """Let the leases of a dead worker run out, and sweep."""
    for job_id in job_ids:
        await expire(pool, job_id)
    await pool.execute(
        "update fullpass.workers set last_beat_at = last_beat_at - interval '1 hour'"
    )
    await pool.execute("select fullpass.sweep()")


async def events_of(pool: Pool, job_id: uuid.UUID) -> list[str]:
    rows = await pool.fetch(
        "select event from fullpass.job_events where job_id = $1 order by id", job_id
    )
    return [row["event"] for row in rows]


async def test_two_deaths_alone_without_progress_quarantine_a_job_and_progress_forgives_one(
    pool: Pool,
) -> None:
    job_id = await inserted(pool)
    for n, progressed in enumerate([False, True, False]):
        job = await claimed(pool)
        assert job is not None
        # Entering a step is no progress, however high its percent: each attempt enters it again.
        async with lease_on(pool, job).fenced() as connection:
            await connection.execute(
                "select fullpass.progress($1, 'extract_facts', $2, 'x', p_advanced => $3)",
                job_id, 30 + n, progressed,
            )  # fmt: skip
        await die(pool, job_id)
        row = await row_of(pool, job_id)
        assert row["status"] == "pending"
        assert (row["attempts"], row["crashes"]) == (0, 0 if progressed else 1), n
    job = await claimed(pool)
    assert job is not None
    await pool.execute(
        "select * from fullpass.beat('w1', $1, $2, 60, $3)",
        [job.id], [job.lease_epoch],
        '{"rss_bytes": 100000000, "peak_rss_bytes": 522190848, "memory_limit_bytes": 536870912}',
    )  # fmt: skip
    await die(pool, job_id)
    row = await row_of(pool, job_id)
    assert row["status"] == "failed"
    for evidence in ("extract_facts:", "died twice", "w1", "498 MB of 512 MB", "out of memory"):
        assert evidence in row["error_message"]
    events = await events_of(pool, job_id)
    assert events.count("recovered") == 3
    assert events[-1] == "quarantined"


async def test_after_a_death_that_jobs_shared_each_runs_alone_and_only_then_can_it_be_blamed(
    pool: Pool,
) -> None:
    poison, innocent = await inserted(pool), await inserted(pool)
    for _ in range(2):
        assert await claimed(pool, "both") is not None
    await die(pool, poison, innocent)
    for job_id in (poison, innocent):
        row = await row_of(pool, job_id)
        assert (row["status"], row["attempts"], row["crashes"]) == ("pending", 0, 0)
    # A worker that runs something waits to be empty; it takes nothing else meanwhile.
    bystander = await inserted(pool, priority=9)
    beside = await claimed(pool, "busy")
    assert beside is not None
    assert beside.id == bystander
    assert await claimed(pool, "busy") is None
    third = await inserted(pool)
    assert await claimed(pool, "busy") is None
    # Another busy one leaves the reserved job to it and takes what is left, or reserves the other.
    await jobs.complete(pool, beside, result={}, cost={})
    lone = await claimed(pool, "busy")
    assert lone is not None
    assert lone.id in (poison, innocent)
    assert await claimed(pool, "busy") is None  # nothing beside it
    second = await claimed(pool, "idle")
    assert second is not None
    assert {lone.id, second.id} == {poison, innocent}
    assert await claimed(pool, "idle") is None
    other = await claimed(pool, "third")
    assert other is not None
    assert other.id == third
    # The innocent one completes; the other dies alone, twice.
    by_id = {lone.id: lone, second.id: second}
    await jobs.complete(pool, by_id[innocent], result={}, cost={})
    await die(pool, poison)
    assert (await row_of(pool, poison))["crashes"] == 1
    assert await claimed(pool, "fresh") is not None
    await die(pool, poison)
    assert (await row_of(pool, poison))["status"] == "failed"
    assert (await row_of(pool, innocent))["status"] == "complete"


async def test_two_busy_workers_do_not_both_empty_themselves_for_one_job(pool: Pool) -> None:
    suspect = await inserted(pool)
    assert await claimed(pool, "dead") is not None
    await die(pool, suspect)
    await inserted(pool, priority=1)
    await inserted(pool, priority=1)
    assert await claimed(pool, "a") is not None
    assert await claimed(pool, "b") is not None
    assert await claimed(pool, "a") is None  # reserves it
    extra = await inserted(pool)
    job = await claimed(pool, "b")
    assert job is not None
    assert job.id == extra
    # The one that reserved it is gone: the reservation ends with its lease.
    await pool.execute("update fullpass.tickets set reserved_until = now() where alone")
    await inserted(pool)
    assert await claimed(pool, "b") is None
    idle = await claimed(pool, "c")
    assert idle is not None
    assert idle.id == suspect


async def test_a_live_workers_lost_lease_is_no_crash(pool: Pool) -> None:
    job_id = await inserted(pool)
    for _ in range(3):
        job = await claimed(pool, "frozen")
        assert job is not None
        await die(pool, job_id)
        assert (await row_of(pool, job_id))["crashes"] == 1
        verdicts = await pool.fetch(
            "select * from fullpass.beat('frozen', $1, $2, 60, '{}')", [job_id], [job.lease_epoch]
        )
        assert [v["verdict"] for v in verdicts] == ["lost"]
        row = await row_of(pool, job_id)
        assert (row["status"], row["attempts"], row["crashes"]) == ("pending", 0, 0)
    assert "excused" in await events_of(pool, job_id)


async def test_a_quarantine_on_the_word_of_a_worker_that_was_alive_is_lifted(pool: Pool) -> None:
    job_id = await inserted(pool)
    assert await claimed(pool, "dead") is not None
    await die(pool, job_id)
    job = await claimed(pool, "frozen")
    assert job is not None
    await die(pool, job_id)
    assert (await row_of(pool, job_id))["status"] == "failed"
    await pool.execute(
        "select * from fullpass.beat('frozen', $1, $2, 60, '{}')", [job_id], [job.lease_epoch]
    )
    assert (await row_of(pool, job_id))["status"] == "pending"
    assert await claimed(pool, "next") is not None


@pytest.mark.parametrize("epoch", [None, 0, 1, 999])
async def test_a_tampered_epoch_stops_the_holder_and_the_job_runs_again(
    pool: Pool, epoch: int | None
) -> None:
    job_id = await inserted(pool)
    for _ in range(3):  # so that the true epoch is above what it is set to
        job = await claimed(pool)
        assert job is not None
        await jobs.release(pool, job, seconds=0, reason="r", max_wait_hours=1)
    job = await claimed(pool)
    assert job is not None
    await pool.execute("update processing_jobs set lease_epoch = $1 where id = $2", epoch, job_id)
    with pytest.raises(LeaseLost):
        async with lease_on(pool, job).fenced():
            pass
    await die(pool, job_id)
    again = await claimed(pool)
    assert again is not None
    assert again.id == job_id
    assert again.lease_epoch > job.lease_epoch


async def test_a_job_deleted_while_it_runs_is_lost_to_its_holder_and_nothing_else(
    pool: Pool,
) -> None:
    await inserted(pool)
    other = await inserted(pool)
    job = await claimed(pool)
    assert job is not None
    await pool.execute("delete from processing_jobs where id = $1", job.id)
    with pytest.raises(LeaseLost):
        async with lease_on(pool, job).fenced():
            pass
    with pytest.raises(LeaseLost):
        await jobs.complete(pool, job, result={}, cost={})
    verdicts = await pool.fetch(
        "select * from fullpass.beat('w1', $1, $2, 60, '{}')", [job.id], [job.lease_epoch]
    )
    assert [v["verdict"] for v in verdicts] == ["lost"]
    left = await claimed(pool)
    assert left is not None
    assert left.id in {job.id, other} - {job.id}


async def test_rows_never_leased_are_never_swept(pool: Pool) -> None:
    await pool.execute(
        "insert into processing_jobs (user_id, status, lease_expires_at) "
        "values (gen_random_uuid(), 'processing', now() - interval '1 day')"
    )
    assert await pool.fetchval("select fullpass.sweep()") == 0


async def test_cancelling_stops_a_pending_job_at_once_and_a_running_one_at_its_next_write(
    pool: Pool,
) -> None:
    waiting = await inserted(pool)
    assert await pool.fetchval("select fullpass.cancel($1)", waiting)
    assert (await row_of(pool, waiting))["status"] == "cancelled"
    running = await inserted(pool)
    job = await claimed(pool)
    assert job is not None
    assert await pool.fetchval("select fullpass.cancel($1)", running)
    with pytest.raises(Cancelled):
        async with lease_on(pool, job).fenced():
            pass
    await jobs.yield_cancelled(pool, job)
    row = await row_of(pool, running)
    assert row["status"] == "cancelled"
    profile = await pool.fetchrow("select * from user_profiles where user_id = $1", row["user_id"])
    assert profile is not None
    assert profile["full_pass_status"] == "pending"
    assert await pool.fetchval("select fullpass.retry($1)", running)
    again = await claimed(pool)
    assert again is not None
    assert again.id == running


async def test_enqueue_returns_the_live_job_instead_of_a_second(pool: Pool) -> None:
    user = uuid.uuid4()
    ids = await asyncio.gather(
        *(jobs.enqueue(pool, user_id=user, storage_path="exports/x.zip") for _ in range(4))
    )
    assert len(set(ids)) == 1
    with pytest.raises(asyncpg.UniqueViolationError):
        await inserted(pool, user, storage_path="exports/x.zip")


async def test_the_heartbeat_renews_reports_and_learns_of_loss_and_cancellation(
    pool: Pool, database_url: str
) -> None:
    await inserted(pool)
    await inserted(pool)
    first, second = await claimed(pool, lease_seconds=1.5), await claimed(pool, lease_seconds=1.5)
    assert first is not None
    assert second is not None
    kept, lost = lease_on(pool, first, lease_seconds=1.5), lease_on(pool, second, lease_seconds=1.5)
    heartbeat = Heartbeat(
        database_url, worker_id="w1", beat_seconds=0.1, lease_seconds=1.5,
        vitals=lambda: {"rss_bytes": 123},
    )  # fmt: skip
    heartbeat.add(kept)
    heartbeat.add(lost)
    heartbeat.start()
    try:
        await pool.execute(
            "update processing_jobs set lease_epoch = lease_epoch + 1 where id = $1", second.id
        )
        await until(lambda: _raises(lost, LeaseLost))
        # Well past the length of a lease, the other is still held.
        since = kept.last_progress
        await until(lambda: asyncio.get_running_loop().time() > since + 2.0 or not kept.trusted)
        kept.check()
        assert (
            await pool.fetchval("select rss_bytes from fullpass.workers where worker_id = 'w1'")
            == 123
        )
        await pool.execute("select fullpass.cancel($1)", first.id)
        await until(lambda: _raises(kept, Cancelled))
    finally:
        await asyncio.to_thread(heartbeat.stop)


async def test_a_heartbeat_survives_a_defect_and_ends_a_worker_that_cannot_beat(
    database_url: str,
) -> None:
    """A worker that runs and does not beat would lose each of its jobs, again and again."""
    readings = iter([1, None, 2, 3])
    ended = threading.Event()

    def vitals() -> dict[str, int]:
        reading = next(readings, None)
        if reading is None:
            raise AttributeError("a defect of ours")
        return {"rss_bytes": reading}

    heartbeat = Heartbeat(
        database_url, worker_id="w1", beat_seconds=0.05, lease_seconds=1.5, vitals=vitals,
        end_process=ended.set,
    )  # fmt: skip
    heartbeat.start()
    try:
        assert await asyncio.to_thread(ended.wait, 10)
    finally:
        await asyncio.to_thread(heartbeat.stop)
    db = await asyncpg.connect(database_url)
    beats = await db.fetchval("select rss_bytes from fullpass.workers where worker_id = 'w1'")
    await db.close()
    assert beats == 3  # it beat on after the first defect; only what never mends is the end


async def test_a_heartbeat_that_meets_its_own_workers_row_lock_counts_as_renewed(
    pool: Pool, database_url: str
) -> None:
    await inserted(pool)
    job = await claimed(pool)
    assert job is not None
    async with lease_on(pool, job).fenced():
        verdicts = await asyncio.wait_for(
            pool.fetch(
                "select * from fullpass.beat('w1', $1, $2, 60, '{}')", [job.id], [job.lease_epoch]
            ),
            timeout=5,
        )
    assert [v["verdict"] for v in verdicts] == ["held"]


async def test_a_worker_cut_off_from_the_database_stops_before_its_lease_could_be_given_away(
    pool: Pool,
) -> None:
    await inserted(pool)
    job = await claimed(pool, lease_seconds=0.5)
    assert job is not None
    lease = lease_on(pool, job, lease_seconds=0.5)
    lease.check()
    await until(lambda: _raises(lease, LeaseLost))
    assert await pool.fetchval(
        "select lease_expires_at > clock_timestamp() - interval '0.3 seconds' "
        "from processing_jobs where id = $1",
        job.id,
    )


async def test_a_draining_lease_starts_nothing_new_but_lets_results_land(pool: Pool) -> None:
    await inserted(pool)
    job = await claimed(pool)
    assert job is not None
    lease = lease_on(pool, job)
    lease.drain()
    with pytest.raises(Draining):
        lease.check()
    async with lease.fenced() as connection:
        await connection.execute("select fullpass.progress($1, 'extract_facts', 50, 'x')", job.id)
    assert (await row_of(pool, job.id))["progress"] == 50


async def test_forget_leaves_costs_and_nothing_else(pool: Pool) -> None:
    user = uuid.uuid4()
    await inserted(pool, user)
    job = await claimed(pool)
    assert job is not None
    call = (
        "select fullpass.tend_ledger(jsonb_build_array(jsonb_build_object('call_key', 'key', "
        "'user_id', $1::uuid, 'job_id', $2::uuid, 'purpose', 'extract', 'provider', 'anthropic', "
        "'model', 'm', 'prompt_version', 'v', 'cost_usd', '0.5', 'usable', true, 'response', "
        "'private text', 'request_id', 'req', 'age_ms', $3::int, 'batch', false)), null)"
    )
    await pool.execute(call, user, job.id, 10)
    await pool.fetchval("select fullpass.forget($1)", user)
    await pool.execute(call, user, job.id, 60_000)  # began before the erasure, landed after it
    rows = await pool.fetch("select * from fullpass.llm_calls where user_id = $1", user)
    assert [float(r["cost_usd"]) for r in rows] == [0.5, 0.5]
    assert all(r["response"] is None and r["call_key"] is None for r in rows)
    assert (await row_of(pool, job.id))["status"] == "cancelled"


def _raises(lease: Lease, kind: type[Exception]) -> bool:
    try:
        lease.check()
    except kind:
        return True
    return False


async def until(met: Any, *, seconds: float = 5.0) -> None:
    deadline = asyncio.get_running_loop().time() + seconds
    while not met():
        assert asyncio.get_running_loop().time() < deadline
        await asyncio.sleep(0.02)  # polled until the deadline
