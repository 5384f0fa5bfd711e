"""Workers that stop and come back: what a zombie does is refused, and nobody waits for it."""

from __future__ import annotations

import asyncio
import signal
import time
from typing import TYPE_CHECKING

import pytest

from tests.support.queue_checks import Queue, queue_at
from tests.support.queue_worker import queue_worker

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path


@pytest.fixture
async def queue(database_url: str) -> AsyncIterator[Queue]:
    async with queue_at(database_url) as opened:
        yield opened


async def test_a_worker_frozen_past_its_lease_writes_nothing_when_it_wakes(
    queue: Queue, tmp_path: Path
) -> None:
    (job,) = await queue.add("steps=6,ms=150")
    calls = tmp_path / "calls"
    with queue_worker(queue.url, calls=calls) as zombie:
        await queue.until("select exists (select from effects where step >= 1)")
        zombie.send_signal(signal.SIGSTOP)
        held_by = (await queue.row(job))["worker_id"]
        with queue_worker(queue.url):
            await queue.all_done()
            finished = await queue.row(job)
            zombie.send_signal(signal.SIGCONT)
            # It is back, and has learned of its loss, when it beats again.
            await queue.until(
                "select last_beat_at > $2 from fullpass.workers where worker_id = $1",
                held_by,
                finished["completed_at"],
            )
            await queue.until(
                "select count(*) >= 1 from fullpass.job_events where event = 'excused'"
            )
    assert await queue.doubled() == 0
    effects = await queue.effects(job)
    assert [e["step"] for e in effects] == list(range(6))
    zombies_epoch = effects[0]["epoch"]
    first_of_the_next = next(n for n, e in enumerate(effects) if e["worker"] != held_by)
    assert all(e["epoch"] > zombies_epoch for e in effects[first_of_the_next:])
    row = await queue.row(job)
    assert (row["status"], row["attempts"], row["lease_epoch"]) == (
        "complete", 1, finished["lease_epoch"],
    )  # fmt: skip


async def test_a_worker_frozen_inside_a_transaction_does_not_hold_its_job_up(queue: Queue) -> None:
    (job,) = await queue.add("steps=3,ms=10,hold=1:30")
    with queue_worker(queue.url) as zombie:
        await queue.until(
            "select exists (select from pg_stat_activity where datname = current_database() "
            "and state = 'idle in transaction' "
            "and query like '%fullpass.progress%')"
        )
        zombie.send_signal(signal.SIGSTOP)
        frozen_at = time.monotonic()
        held_by = (await queue.row(job))["worker_id"]
        # The server ends what the frozen worker left open; the next one need not hold it open too.
        await queue.until(
            "select not exists (select from pg_stat_activity "
            "where datname = current_database() and state = 'idle in transaction' "
            "and query like '%fullpass.progress%')",
            seconds=5,
        )
        await queue.db.execute(
            "update processing_jobs set storage_path = 'jobs/steps=3,ms=10' where id = $1", job
        )
        with queue_worker(queue.url):
            await queue.all_done(seconds=15)
            assert time.monotonic() - frozen_at < 12
            zombie.send_signal(signal.SIGCONT)
            await queue.until(
                "select last_beat_at > clock_timestamp() - interval '0.5 s' "
                "from fullpass.workers where worker_id = $1",
                held_by,
            )
    assert await queue.doubled() == 0
    assert [e["step"] for e in await queue.effects(job)] == [0, 1, 2]
    assert (await queue.row(job))["attempts"] == 1


async def test_a_blocked_event_loop_neither_loses_the_lease_nor_looks_well(queue: Queue) -> None:
    (job,) = await queue.add("steps=2,ms=10,block=1:5")
    with queue_worker(queue.url), queue_worker(queue.url):
        lag_ms = await queue.until(
            "select max(loop_lag_ms) from fullpass.workers having max(loop_lag_ms) > 1500"
        )
        assert lag_ms > 1500
        await queue.all_done()
    assert await queue.doubled() == 0
    assert (await queue.events(job)).count("claimed") == 1
    assert len({e["epoch"] for e in await queue.effects(job)}) == 1


@pytest.mark.long
async def test_code_that_holds_the_interpreter_may_lose_the_lease_but_doubles_nothing(
    queue: Queue,
) -> None:
    (job,) = await queue.add("steps=2,ms=10,gil=1:3")
    with queue_worker(queue.url), queue_worker(queue.url):
        await queue.until(
            "select coalesce(bool_and(step = 1), false) from effects where step = 1", seconds=40
        )
        await queue.all_done(seconds=40)
    assert await queue.doubled() == 0
    assert [e["step"] for e in await queue.effects(job)] == [0, 1]


@pytest.mark.parametrize("how", ["hang", "block"])
async def test_a_job_that_beats_but_does_not_move_is_given_back_with_its_stacks(
    queue: Queue, tmp_path: Path, how: str
) -> None:
    (job,) = await queue.add(f"steps=2,ms=10,{how}=1:60")
    log = tmp_path / "log"
    with queue_worker(queue.url, log=log, llm_timeout_seconds=0.3) as worker:
        await queue.until("select exists (select from fullpass.job_events where event = 'stalled')")
        row = await queue.row(job)
        assert (row["status"], row["attempts"]) == ("pending", 0)
        if how == "block":
            # Nothing can be done in that process any more: it ends itself.
            deadline = time.monotonic() + 10
            while worker.poll() is None:
                assert time.monotonic() < deadline
                await asyncio.sleep(0.05)  # polled until the deadline
            assert worker.returncode == 1
        else:
            # The loop is free: the same worker goes on with other jobs.
            (other,) = await queue.add("steps=1")
            await queue.until(
                "select status = 'complete' from processing_jobs where id = $1", other
            )
    assert (await queue.events(job))[-2:] == ["stalled", "waited"]
    said = log.read_text()
    assert "job.stalled" in said
    assert "queue_worker.py" in said
    assert "short_pass" in said
