"""Many workers, restarts and drains: each job exactly once, no attempt used, nobody starved."""

from __future__ import annotations

import asyncio
import signal
import time
import uuid
from collections import Counter
from contextlib import ExitStack
from typing import TYPE_CHECKING

import asyncpg
import pytest

from tests.support.queue_checks import Queue, queue_at, until
from tests.support.queue_worker import queue_worker

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path


@pytest.fixture
async def queue(database_url: str) -> AsyncIterator[Queue]:
    async with queue_at(database_url) as opened:
        yield opened


async def deadlocks(queue: Queue) -> int:
    await queue.db.execute("select pg_stat_clear_snapshot()")
    count: int = await queue.db.fetchval(
        "select deadlocks from pg_stat_database where datname = current_database()"
    )
    return count


@pytest.mark.parametrize(
    ("workers", "users", "jobs"),
    [(3, 20, 100), pytest.param(8, 60, 500, marks=pytest.mark.long)],
)
async def test_many_workers_run_every_job_of_many_users_exactly_once_and_in_turns(
    queue: Queue, workers: int, users: int, jobs: int
) -> None:
    people = [uuid.UUID(int=n + 1) for n in range(users)]
    few = 3 if users < 60 else 5
    for n, user in enumerate(people):
        many = few + (jobs - few * users) // 4
        await queue.add("steps=1", user=user, count=many if n < 4 else few)
    with ExitStack() as started:
        for _ in range(workers):
            started.enter_context(queue_worker(queue.url, lease_seconds=5, heartbeat_seconds=1))
        await queue.all_done(seconds=60)
    counts = await queue.db.fetchrow(
        "select count(*) as effects, count(distinct job_id) as jobs from effects"
    )
    assert counts is not None
    assert tuple(counts) == (jobs, jobs)
    assert await queue.db.fetchval("select bool_and(attempts = 1) from processing_jobs")
    assert await deadlocks(queue) == 0
    # In turns: by the time anybody has had one more than the many had in all, they are done.
    order = await queue.db.fetch("select user_id from processing_jobs order by started_at")
    had: Counter[uuid.UUID] = Counter()
    for row in order:
        had[row["user_id"]] += 1
        if had[row["user_id"]] == few + 1:
            break
    assert min(had[user] for user in people) >= few - 1, had


@pytest.mark.long
async def test_rolling_restarts_under_load_use_no_attempt_and_lose_no_step(
    queue: Queue, tmp_path: Path
) -> None:
    jobs = await queue.add("steps=14,ms=200", count=16)
    calls = tmp_path / "calls"
    with ExitStack() as workers:

        def start():
            return workers.enter_context(queue_worker(queue.url, calls=calls, lease_seconds=5))

        running, restarts = [start(), start()], 0
        await queue.until("select count(*) = 2 from fullpass.workers")
        deadline = time.monotonic() + 60
        while await queue.db.fetchval(
            "select exists (select from processing_jobs where status <> 'complete')"
        ):
            assert time.monotonic() < deadline
            # Old and new overlap, as at a deploy.
            running.append(start())
            await queue.until(
                "select count(*) = $1 from fullpass.workers", 2 + (restarts := restarts + 1)
            )
            old = running.pop(0)
            old.send_signal(signal.SIGTERM)
            assert await asyncio.to_thread(old.wait, 10) == 0
    assert await queue.doubled() == 0
    rows = await queue.db.fetch("select attempts, crashes from processing_jobs")
    assert {tuple(row) for row in rows} == {(1, 0)}
    # What was called was kept: a drained step is never called again.
    assert len(calls.read_text().splitlines()) == 14 * len(jobs)
    assert await queue.db.fetchval(
        "select count(*) > 0 from fullpass.job_events where event = 'released'"
    )


async def test_a_drain_ends_with_the_call_in_flight_and_the_next_worker_goes_on_at_once(
    queue: Queue, tmp_path: Path
) -> None:
    (job,) = await queue.add("steps=20,ms=300")
    calls = tmp_path / "calls"
    with queue_worker(queue.url, calls=calls, poll_interval_seconds=30) as old:
        await queue.until("select exists (select from effects where step >= 1)")
        with queue_worker(queue.url, calls=calls, poll_interval_seconds=30):
            await queue.until("select count(*) = 2 from fullpass.workers")
            asked_at = time.monotonic()
            old.send_signal(signal.SIGTERM)
            assert await asyncio.to_thread(old.wait, 10) == 0
            assert time.monotonic() - asked_at < 2.3
            await queue.until("select count(distinct worker) = 2 from effects", seconds=10)
            gap = await queue.db.fetchval(
                "select extract(epoch from max(at) filter (where event = 'claimed') "
                "- max(at) filter (where event = 'released')) from fullpass.job_events"
            )
            assert float(gap) < 2.0
    called = [line.split()[2] for line in calls.read_text().splitlines()]
    assert called == [str(n) for n in range(len(called))]
    assert (await queue.row(job))["attempts"] == 1


@pytest.mark.parametrize("how", ["hang", "block"])
async def test_a_second_signal_exits_at_once_and_a_late_drain_still_gives_the_job_back(
    queue: Queue, tmp_path: Path, how: str
) -> None:
    (job,) = await queue.add(f"steps=1,{how}=0:60")
    calls = tmp_path / "calls"

    async def called(times: int) -> None:
        async def often_enough() -> bool:
            return calls.exists() and len(calls.read_text().splitlines()) == times

        await until(often_enough, seconds=10)

    with queue_worker(queue.url, calls=calls, shutdown_grace_seconds=20) as worker:
        await called(1)
        worker.send_signal(signal.SIGTERM)
        await asyncio.sleep(0.3)  # the first must have arrived; the deadline is the wait below
        worker.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(worker.wait, 2) == 1
    with queue_worker(queue.url, calls=calls, shutdown_grace_seconds=0.5) as worker:
        await called(2)
        worker.send_signal(signal.SIGTERM)
        await asyncio.to_thread(worker.wait, 10)
    row = await queue.row(job)
    assert (row["status"], row["attempts"]) == ("pending", 0)
    assert (await queue.events(job))[-1] == "released"


async def test_a_worker_that_ends_for_a_defect_gives_its_jobs_back_first(queue: Queue) -> None:
    (job,) = await queue.add("steps=600,ms=20")
    with queue_worker(queue.url, poll_interval_seconds=0.2, lease_seconds=60) as worker:
        await queue.until("select exists (select from effects)")
        await queue.db.execute(
            "create or replace function fullpass.sweep(p_limit int default 10) returns int "
            "language sql as 'select 1 / 0'"
        )
        assert await asyncio.to_thread(worker.wait, 10) == 1
    row = await queue.row(job)
    assert (row["status"], row["attempts"]) == ("pending", 0)
    assert (await queue.events(job))[-1] == "released"


async def test_a_killed_workers_job_runs_again_within_lease_and_poll(queue: Queue) -> None:
    (job,) = await queue.add("steps=40,ms=100")
    with (
        queue_worker(queue.url) as first,
        queue_worker(queue.url) as second,
    ):
        await queue.until("select count(*) = 2 from fullpass.workers")
        await queue.until("select exists (select from effects where step >= 1)")
        first_id = (await queue.row(job))["worker_id"]
        (first if f"-{first.pid}-" in first_id else second).kill()
        killed_at = time.monotonic()
        await queue.until("select count(distinct worker) = 2 from effects", seconds=5)
        assert time.monotonic() - killed_at < 1.2 + 0.1 * 1.2 + 0.5
    assert await queue.doubled() == 0


async def test_a_job_that_kills_its_worker_is_quarantined_and_its_neighbours_are_not(
    queue: Queue,
) -> None:
    (poison,) = await queue.add("steps=1,ms=300,die=0")
    innocent = await queue.add("steps=8,ms=100", count=2)
    deadline = time.monotonic() + 60
    deaths = 0
    while (await queue.row(poison))["status"] != "failed":
        assert time.monotonic() < deadline
        with queue_worker(queue.url, lease_seconds=0.6) as worker:
            worker_done = asyncio.to_thread(worker.wait, 20)
            failed = queue.until(
                "select status = 'failed' from processing_jobs where id = $1", poison
            )
            waits = [asyncio.ensure_future(worker_done), asyncio.ensure_future(failed)]
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            for wait in waits:
                wait.cancel()
            await asyncio.gather(*waits, return_exceptions=True)
            deaths += worker.poll() is not None
    with queue_worker(queue.url):
        await queue.until(
            "select count(*) = 2 from processing_jobs where status = 'complete'", seconds=15
        )
    row = await queue.row(poison)
    assert "died twice" in row["error_message"]
    assert deaths <= 3  # once shared, twice alone
    for job in innocent:
        assert (await queue.row(job))["crashes"] == 0


async def test_short_jobs_of_a_busy_app_survive_its_own_transactions(queue: Queue) -> None:
    """Apps lock profiles and insert in one transaction, in either order: no deadlock."""
    users = [uuid.uuid4() for _ in range(4)]
    for user in users:
        await queue.db.execute("insert into user_profiles (user_id) values ($1)", user)

    async def app(user: uuid.UUID, *, profile_first: bool) -> None:
        connection = await asyncpg.connect(queue.url, statement_cache_size=0)
        try:
            for n in range(25):
                statements = (
                    "update user_profiles set full_pass_status = 'pending' where user_id = $1",
                    f"insert into processing_jobs (user_id, storage_path) "
                    f"values ($1, 'jobs/{uuid.uuid4()}/steps=1,ms=5')",
                )
                async with connection.transaction():
                    for statement in statements if profile_first else statements[::-1]:
                        await connection.execute(statement, user)
                        await asyncio.sleep(0.001 * (n % 3))  # opens the race; no deadline needed
        finally:
            await connection.close()

    with queue_worker(queue.url), queue_worker(queue.url):
        await asyncio.gather(
            *(app(user, profile_first=first) for user in users for first in (True, False))
        )
        await queue.all_done(seconds=30)
    assert await deadlocks(queue) == 0
    assert await queue.doubled() == 0
