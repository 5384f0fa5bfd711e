"""The line of users: fair, in order of priority and due time, and as quick however long it is."""

from __future__ import annotations

import asyncio
import json
import statistics
import time
import uuid
from typing import TYPE_CHECKING, Any

import pytest

from daemon.database import open_pool
from daemon.queue import jobs

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from daemon.database import Pool
    from daemon.queue.jobs import Job


@pytest.fixture
async def pool(database_url: str) -> AsyncIterator[Pool]:
    opened = await open_pool(database_url, size=4)
    yield opened
    await opened.close()


async def insert(pool: Pool, user: uuid.UUID, count: int = 1, **columns: Any) -> None:
    names = "".join(f", {name}" for name in columns)
    values = "".join(f", ${n}" for n in range(3, 3 + len(columns)))
    await pool.execute(
        f"insert into processing_jobs (user_id, storage_path{names}) "
        f"select $1, 'exports/' || gen_random_uuid(){values} from generate_series(1, $2)",
        user,
        count,
        *columns.values(),
    )


async def claim(pool: Pool, worker: str = "w", **options: Any) -> Job | None:
    claimed = await jobs.claim(pool, worker_id=worker, lease_seconds=60.0, version="t", **options)
    return claimed[0] if claimed else None


async def finish(pool: Pool, job: Job) -> None:
    await jobs.complete(pool, job, result={}, cost={})


async def serve(pool: Pool, count: int, **options: Any) -> list[uuid.UUID]:
    """Run jobs one by one; return whose they were."""
    served = []
    for _ in range(count):
        job = await claim(pool, **options)
        if job is None:
            break
        served.append(job.user_id)
        await finish(pool, job)
    return served


# Fairness


async def test_a_user_with_many_rows_takes_turns_with_users_who_have_few(pool: Pool) -> None:
    busy, others = uuid.uuid4(), [uuid.uuid4() for _ in range(3)]
    await insert(pool, busy, 500)
    for other in others:
        await insert(pool, other, 2)
    served = await serve(pool, 12)
    # Two rounds of four, then the busy user's rest.
    assert set(served[:4]) == set(served[4:8]) == {busy, *others}
    assert served[8:] == [busy] * 4


async def test_rows_inserted_one_by_one_hold_one_place_in_line_too(pool: Pool) -> None:
    busy, other = uuid.uuid4(), uuid.uuid4()
    for _ in range(30):
        await insert(pool, busy)
    await insert(pool, other)
    assert await serve(pool, 3) == [busy, other, busy]
    assert await pool.fetchval("select count(*) from fullpass.tickets") <= 2


async def test_while_a_users_job_runs_their_other_rows_are_in_nobodys_way(pool: Pool) -> None:
    busy, other = uuid.uuid4(), uuid.uuid4()
    await insert(pool, busy, 50)
    running = await claim(pool)
    assert running is not None
    assert await claim(pool) is None
    await insert(pool, busy, 5)
    await insert(pool, other)
    second = await claim(pool)
    assert second is not None
    assert second.user_id == other
    assert await claim(pool) is None
    await finish(pool, running)
    third = await claim(pool)
    assert third is not None
    assert third.user_id == busy


async def test_a_job_deleted_while_it_runs_gives_its_user_the_next_turn(pool: Pool) -> None:
    user = uuid.uuid4()
    await insert(pool, user, 2)
    job = await claim(pool)
    assert job is not None
    assert await claim(pool) is None
    await pool.execute("delete from processing_jobs where id = $1", job.id)
    assert await claim(pool) is not None


@pytest.mark.parametrize(("memory", "shown"), [(None, "pending"), ("## Preferences", "complete")])
async def test_a_job_deleted_while_it_runs_leaves_no_profile_that_says_so_for_ever(
    pool: Pool, memory: str | None, shown: str
) -> None:
    user = uuid.uuid4()
    await insert(pool, user, 2)
    job = await claim(pool)
    assert job is not None
    status = "select full_pass_status from user_profiles where user_id = $1"
    await pool.execute("update user_profiles set memory_md = $2 where user_id = $1", user, memory)
    await pool.execute("delete from processing_jobs where id = $1", job.id)
    assert await pool.fetchval(status, user) == "processing"  # the other one waits
    await pool.execute("delete from processing_jobs where user_id = $1", user)
    assert await pool.fetchval(status, user) == shown


async def test_a_profile_that_cannot_be_corrected_keeps_nobody_from_deleting_a_job(
    pool: Pool,
) -> None:
    user = uuid.uuid4()
    await insert(pool, user, 2)
    job = await claim(pool)
    assert job is not None
    await pool.execute(
        """
        create function refuse() returns trigger language plpgsql as $$
        begin
            raise exception 'no change today';
        end $$;
        create trigger refuse before update on user_profiles
        for each row execute function refuse();
        """
    )
    await pool.execute("delete from processing_jobs where user_id = $1", user)
    assert await pool.fetchval("select count(*) from processing_jobs") == 0


async def test_a_job_interrupted_is_resumed_before_any_that_never_ran(pool: Pool) -> None:
    users = [uuid.uuid4() for _ in range(4)]
    for user in users:
        await insert(pool, user, 2)
    job = await claim(pool)
    assert job is not None
    await jobs.release(pool, job, seconds=0, reason="drain", max_wait_hours=1)
    again = await claim(pool)
    assert again is not None
    assert again.id == job.id


# Order


async def test_priority_is_honoured_also_when_it_is_raised_or_comes_due_later(pool: Pool) -> None:
    low, raised, later = uuid.uuid4(), uuid.uuid4(), uuid.uuid4()
    for user in (low, raised, later):
        await insert(pool, user, priority=0)
    await insert(pool, later, priority=9)
    await pool.execute(
        "update processing_jobs set run_at = now() + interval '1 hour' where priority = 9"
    )
    await pool.execute("update processing_jobs set priority = 5 where user_id = $1", raised)
    assert await serve(pool, 1) == [raised]
    assert await serve(pool, 1) == [low]
    await insert(pool, low, priority=3)
    await pool.execute("update processing_jobs set run_at = now() where priority = 9")
    assert await serve(pool, 3) == [later, low, later]


async def test_a_later_urgent_job_comes_due_while_its_user_stands_in_line(pool: Pool) -> None:
    user, other = uuid.uuid4(), uuid.uuid4()
    await insert(pool, user, priority=0)
    await insert(pool, user, priority=7)
    await pool.execute(
        "update processing_jobs set run_at = clock_timestamp() + interval '1 hour' "
        "where priority = 7"
    )
    await insert(pool, other, priority=1)
    assert await serve(pool, 1) == [other]
    await insert(pool, other, 2, priority=1)
    await pool.execute("update processing_jobs set run_at = now() where priority = 7")
    await pool.execute("update fullpass.tickets set due_at = now() where not ready")
    assert (await serve(pool, 4))[0] == user


async def test_nulls_in_old_rows_hide_no_job(pool: Pool) -> None:
    user = uuid.uuid4()
    await pool.execute(
        "insert into processing_jobs (user_id, storage_path, run_at, priority, attempts, "
        "max_attempts, crashes, lease_epoch, progress) "
        "values ($1, null, null, null, null, null, null, null, null)",
        user,
    )
    job = await claim(pool)
    assert job is not None
    assert (job.attempt, job.max_attempts, job.lease_epoch) == (1, 5, 1)
    assert await jobs.fail(pool, job, error="extract_facts: x", retry=True) == "retry"


async def test_a_part_of_the_users_is_served_at_a_part_of_the_rollout(pool: Pool) -> None:
    users = [uuid.uuid4() for _ in range(60)]
    for user in users:
        await insert(pool, user)
    share = await pool.fetch(
        "select user_id from processing_jobs where fullpass.bucket_of(user_id) < 30"
    )
    served = await serve(pool, 60, rollout_percent=30)
    assert sorted(served) == sorted(row["user_id"] for row in share)
    assert await serve(pool, 1, rollout_percent=0) == []
    assert len(await serve(pool, 60)) == 60 - len(served)


async def test_of_many_rows_beyond_the_days_allowance_none_is_run_and_one_ticket_waits(
    pool: Pool,
) -> None:
    busy, other = uuid.uuid4(), uuid.uuid4()
    await insert(pool, busy, 300)
    await insert(pool, other, 1)
    assert sorted(await serve(pool, 1, daily_limit=2)) == [busy]
    assert sorted(await serve(pool, 1, daily_limit=2)) == [other]
    # A job that ran today already is not one more when it is resumed.
    job = await claim(pool, daily_limit=2)
    for _ in range(2):
        assert job is not None
        assert job.user_id == busy
        await jobs.release(pool, job, seconds=0, reason="drain", max_wait_hours=1)
        job = await claim(pool, daily_limit=2)
    assert job is not None
    await finish(pool, job)
    assert await serve(pool, 3, daily_limit=2) == []
    waiting = await pool.fetchrow(
        "select count(*) as tickets, min(due_at) > now() as later, bool_or(ready) as ready "
        "from fullpass.tickets"
    )
    assert waiting is not None
    assert tuple(waiting) == (1, True, False)


# Nothing is lost from the line


async def test_inserts_that_commit_late_and_in_any_order_are_all_served(pool: Pool) -> None:
    users = [uuid.uuid4() for _ in range(3)]

    async def app(n: int) -> None:
        async with pool.acquire() as connection, connection.transaction():
            await connection.execute(
                "insert into processing_jobs (user_id, storage_path) values ($1, $2)",
                users[n % 3],
                f"exports/{n}",
            )
            # So that they commit in another order than they were written in.
            await connection.execute("select pg_sleep($1)", (n % 4) / 200)

    served = 0

    async def work(worker: str) -> None:
        nonlocal served
        deadline = time.monotonic() + 20
        while served < 60:
            assert time.monotonic() < deadline
            job = await claim(pool, worker)
            if job is None:
                await asyncio.sleep(0.01)  # polled until the deadline
                continue
            await finish(pool, job)
            served += 1

    await asyncio.gather(*(app(n) for n in range(60)), work("a"), work("b"), work("c"))
    assert await pool.fetchval("select count(*) from processing_jobs where status='complete'") == 60


async def test_an_open_transaction_of_an_app_holds_up_its_own_user_only(
    pool: Pool, database_url: str
) -> None:
    held, other = uuid.uuid4(), uuid.uuid4()
    await pool.execute("insert into user_profiles (user_id) values ($1)", held)
    await insert(pool, held)
    await insert(pool, other)
    app = await open_pool(database_url, size=1)
    try:
        async with app.acquire() as connection, connection.transaction():
            await connection.execute("update user_profiles set soul_md = '{}'")
            await connection.execute(
                "insert into processing_jobs (user_id, storage_path) values ($1, 'x/y')", held
            )
            job = await asyncio.wait_for(claim(pool), timeout=2)
            assert job is not None
            assert job.user_id == other
            assert await asyncio.wait_for(claim(pool), timeout=2) is None
    finally:
        await app.close()
    await pool.execute("update fullpass.tickets set due_at = now() where not ready")
    job = await claim(pool)
    assert job is not None
    assert job.user_id == held


async def test_a_line_lost_with_its_triggers_off_is_mended(pool: Pool) -> None:
    user = uuid.uuid4()
    await insert(pool, user, 3)
    await pool.execute("truncate fullpass.tickets")
    assert await claim(pool) is None
    assert await pool.fetchval("select fullpass.mend_queue()") == 1
    assert await pool.fetchval("select fullpass.mend_queue()") == 0
    assert await claim(pool) is not None


async def test_tickets_of_deleted_users_are_dropped_in_bounded_work(pool: Pool) -> None:
    await pool.execute(
        "insert into processing_jobs (user_id, storage_path) "
        "select gen_random_uuid(), 'a/' || n from generate_series(1, 450) n"
    )
    await pool.execute("delete from processing_jobs")
    last = uuid.uuid4()
    await insert(pool, last)
    served = [await claim(pool) for _ in range(3)]
    assert [job.user_id for job in served if job is not None] == [last]
    assert await pool.fetchval("select count(*) from fullpass.tickets") == 0


# Cost


async def _claim_cost(pool: Pool, user: uuid.UUID) -> tuple[float, int]:
    """Return the median milliseconds and the pages touched of a claim that finds a job."""
    seconds, pages = [], []
    for _ in range(15):
        await insert(pool, user)
        async with pool.acquire() as connection:
            started = time.perf_counter()
            plan = await connection.fetchval(
                "explain (analyze, buffers, format json) "
                "select * from fullpass.claim('cost', 60, 't', 100, 100000)"
            )
            seconds.append(time.perf_counter() - started)
        top = json.loads(plan)[0]["Plan"]
        assert top["Actual Rows"] == 1
        pages.append(top["Shared Hit Blocks"] + top["Shared Read Blocks"])
        await pool.execute(
            "select fullpass.complete(id, lease_epoch, '{}', '{}') from processing_jobs "
            "where worker_id = 'cost' and status = 'processing'"
        )
    return statistics.median(seconds) * 1000, int(statistics.median(pages))


async def test_a_claim_costs_the_same_beside_50000_rows_of_a_busy_user_and_100000_finished(
    pool: Pool,
) -> None:
    user, busy = uuid.uuid4(), uuid.uuid4()
    empty_ms, empty_pages = await _claim_cost(pool, user)
    await pool.execute(
        "insert into processing_jobs (user_id, storage_path, status, lease_epoch, run_at) "
        "select gen_random_uuid(), 'done/' || n, 'complete', 1, now() - interval '1 day' "
        "from generate_series(1, 100000) n"
    )
    await insert(pool, busy, 50_000)
    running = await claim(pool, "other")
    assert running is not None
    assert running.user_id == busy
    full_ms, full_pages = await _claim_cost(pool, user)
    assert full_pages <= empty_pages * 1.5 + 30, (empty_pages, full_pages)
    assert full_ms <= empty_ms * 1.5 + 1.5, (empty_ms, full_ms)
    # An idle look costs as little.
    started = time.perf_counter()
    assert await claim(pool) is None
    assert time.perf_counter() - started < 0.05


async def test_heartbeats_and_progress_stay_heap_only(pool: Pool) -> None:
    await insert(pool, uuid.uuid4())
    job = await claim(pool)
    assert job is not None
    counts = (
        "select n_tup_upd, n_tup_hot_upd from pg_stat_user_tables where relname = 'processing_jobs'"
    )
    async with pool.acquire() as connection:
        await connection.execute("select pg_stat_force_next_flush()")
        before = await connection.fetchrow(counts)
        for n in range(200):
            await connection.fetch(
                "select * from fullpass.beat('w', $1, $2, 60, '{}')", [job.id], [job.lease_epoch]
            )
            await connection.execute(
                "select fullpass.progress($1, 'extract_facts', $2, 'x')", job.id, n // 4
            )
        await connection.execute("select pg_stat_force_next_flush()")
        after = await connection.fetchrow(counts)
    assert before is not None
    assert after is not None
    updates, hot = (after[n] - before[n] for n in (0, 1))
    assert updates == 400
    assert hot >= 0.95 * updates
