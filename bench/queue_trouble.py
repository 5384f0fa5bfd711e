"""What our queue does in trouble and under a backlog: kills, drains, blocked loops, full tables."""

from __future__ import annotations

import contextlib
import signal
import statistics
import time
import uuid
from typing import TYPE_CHECKING, Any

from bench.metrics import Metric
from daemon.database import open_pool
from daemon.queue import jobs
from tests.support.queue_checks import queue_at
from tests.support.queue_worker import queue_worker

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.support.queue_checks import Queue

FINISHED, PENDING = 1_000_000, 100_000
_CLAIMS = 200


async def recovery(url: str, rounds: int) -> list[Metric]:
    """Kill -9 until the job is claimed again, SIGTERM until it is released; real processes."""
    lease, poll = 2.0, 0.5
    quick: dict[str, Any] = {
        "lease_seconds": lease,
        "heartbeat_seconds": 0.5,
        "poll_interval_seconds": poll,
    }
    reruns, drains = [], []
    async with queue_at(url) as queue:
        for _ in range(rounds):
            await _empty(queue)
            await queue.add("steps=1000,ms=50")
            with queue_worker(url, **quick) as first:
                await queue.until("select exists (select from effects)")
                with queue_worker(url, **quick) as second:
                    await queue.until("select count(*) = 2 from fullpass.workers")
                    started = time.perf_counter()
                    first.kill()
                    await queue.until(
                        "select count(*) = 2 from fullpass.job_events where event = 'claimed'",
                        every=0.005,
                    )
                    reruns.append(time.perf_counter() - started)
                    # Only what does its work is a worker that can be drained.
                    await queue.until("select count(distinct worker) = 2 from effects")
                    started = time.perf_counter()
                    second.send_signal(signal.SIGTERM)
                    await queue.until(
                        "select exists (select from fullpass.job_events where event = 'released')",
                        every=0.005,
                    )
                    drains.append(time.perf_counter() - started)
    return [
        Metric("kill_to_rerun_seconds", max(reruns), "s", lease + poll, note="lease + poll"),
        Metric("sigterm_to_released_seconds", max(drains), "s", 2.0, note="a 50 ms call in flight"),
    ]


async def blocked(url: str, rounds: int) -> list[Metric]:
    """Block a worker's loop for four leases, another worker waiting for its jobs.

    Once by sleeping without the loop, which must not even lose the lease, and once by code that
    holds the interpreter, which may lose it but must double nothing.
    """
    lease = 1.2
    seconds = 4 * lease
    doubled = {"block": 0, "gil": 0}
    least_seconds = float("inf")
    claims = 0
    async with queue_at(url) as queue:
        for _ in range(rounds):
            for how in doubled:
                await _empty(queue)
                (job,) = await queue.add(f"steps=3,ms=10,{how}=1:{seconds}")
                # Beside it what the same worker has in hand, which is blocked along with it.
                await queue.add("steps=3,ms=400", count=3)
                async with _two_workers(queue, lease):
                    if how == "block":
                        await queue.all_done(seconds=60.0)
                    else:
                        await _settled(queue, job)
                doubled[how] += await queue.doubled()
                if how == "block":
                    claims += (await queue.events(job)).count("claimed")
                    least_seconds = min(
                        least_seconds,
                        await queue.db.fetchval(
                            "select extract(epoch from max(at) - min(at))::float8 from effects "
                            "where job_id = $1",
                            job,
                        ),
                    )
    if least_seconds < seconds:
        raise RuntimeError("the loop was not blocked as long as it should have been")
    return [
        Metric("blocked_loop_duplicates", doubled["block"], "effects", 0, note="4 leases asleep"),
        Metric("blocked_loop_claims_per_job", claims / rounds, "", 1, note="the lease was kept"),
        Metric("held_interpreter_duplicates", doubled["gil"], "effects", 0, note="4 leases in C"),
    ]


async def _settled(queue: Queue, job: uuid.UUID) -> None:
    """Wait until a job that holds the interpreter has ended, well or not.

    On a busy machine every attempt of it may outlast its lease, and two deaths alone put it aside.
    """
    await queue.until(
        "select status in ('complete', 'failed') from processing_jobs where id = $1",
        job,
        seconds=90.0,
    )


async def _empty(queue: Queue) -> None:
    """Forget the last round: events outlive their jobs, so they are named."""
    await queue.db.execute(
        "truncate processing_jobs, fullpass.tickets, fullpass.job_events, fullpass.workers, "
        "effects cascade"
    )


@contextlib.asynccontextmanager
async def _two_workers(queue: Queue, lease: float) -> AsyncIterator[None]:
    with queue_worker(queue.url, lease_seconds=lease), queue_worker(queue.url, lease_seconds=lease):
        await queue.until("select count(*) = 2 from fullpass.workers")
        yield


async def flat(empty_url: str, full_url: str, rounds: int) -> list[Metric]:
    """Time claims in an empty table and in a full one by turns: see FINISHED and PENDING."""
    empty_ms, full_ms = [], []
    async with queue_at(empty_url) as empty, queue_at(full_url) as full:
        await full.db.execute(
            "insert into processing_jobs (user_id, storage_path, status, lease_epoch, run_at) "
            "select gen_random_uuid(), 'done/' || n, 'complete', 1, now() - interval '1 day' "
            f"from generate_series(1, {FINISHED}) n",
            timeout=300,
        )
        # Every other one of a single user, who can run but one of them at a time.
        await full.db.execute(
            "insert into processing_jobs (user_id, storage_path) select case when n % 2 = 0 "
            "then $1 else gen_random_uuid() end, 'wait/' || n "
            f"from generate_series(1, {PENDING}) n",
            uuid.uuid4(),
            timeout=300,
        )
        # A million rows did not finish in a minute: autovacuum has seen them, and the server knows
        # how many there are. A table straight from a bulk load is not what is asked about.
        for queue in (empty, full):
            await queue.db.execute("vacuum analyze", timeout=300)
        for _ in range(rounds):
            empty_round_ms, full_round_ms = await _claims_ms(empty, full)
            empty_ms.append(empty_round_ms)
            full_ms.append(full_round_ms)
    before, after = statistics.median(empty_ms), statistics.median(full_ms)
    return [
        Metric("claim_ms_empty_table", before, "ms"),
        Metric("claim_ms_full_table", after, "ms", note="1,000,000 finished, 100,000 pending"),
        Metric("claim_full_over_empty", after / before, "×", 1.5),
    ]


async def _claims_ms(*queues: Queue) -> list[float]:
    """Return each queue's median time of a claim; one claim of each by turns."""
    took: list[list[float]] = [[] for _ in queues]
    async with contextlib.AsyncExitStack() as cleanup:
        pools = []
        for queue in queues:
            await queue.add("", count=_CLAIMS)
            pools.append(await cleanup.enter_async_context(await open_pool(queue.url, size=1)))
        for _ in range(_CLAIMS):
            for pool, seconds in zip(pools, took, strict=True):
                started = time.perf_counter()
                claimed = await jobs.claim(pool, worker_id="bench", lease_seconds=600, version="b")
                seconds.append(time.perf_counter() - started)
                if not claimed:
                    raise RuntimeError("a queue with pending jobs gave none")
                await jobs.complete(pool, claimed[0], result={}, cost={})
    return [1000 * statistics.median(seconds) for seconds in took]
