"""How every queue is measured: one clock, the same questions; only the driving of it differs.

    python peer_NAME.py install|throughput|pick_up|idle URL [--jobs N] [--samples N] [--seconds S]

Runs in the environment of the queue that it measures, so it imports nothing but asyncpg. A
`peer_*.py` beside it says how its queue is installed, worked and filled; this module asks, counts
and prints one JSON object. The worker runs in this process, with one connection of the harness's
own beside it, whose statements are not counted. What the figures mean together is
`bench_queue.py`'s business.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import sys
import time
from typing import TYPE_CHECKING, Any, Protocol

import asyncpg

if TYPE_CHECKING:
    from collections.abc import Callable

CONCURRENCY = 10
_WARM_UP_JOBS = 10
_PATIENCE_SECONDS = 90.0
# For what a start or the warm-up leaves to be done in the background.
_SETTLE_SECONDS = 0.5
_STOP_SECONDS = 5.0
# Backends tell pg_stat_database their counts once a second.
_REPORTED_SECONDS = 1.2


class Queue(Protocol):
    """One queue's way of doing what each of them can do."""

    unfinished: str
    """SQL: how many jobs are not recorded as done yet; asked once all have begun."""

    poll_seconds: float
    """How long its idle worker looks away; 0 where it listens."""

    async def install(self, url: str) -> None:
        """Make its schema in an empty database."""

    async def start(self, url: str, ran: Callable[[], None]) -> None:
        """Start one worker of CONCURRENCY jobs at a time, each of which only calls `ran`."""

    async def enqueue(self, count: int) -> None:
        """Queue jobs in one transaction."""

    async def stop(self) -> None:
        """Let the worker end in its own way."""


class Meter:
    """Reads the server's counters; knows what it asked itself."""

    def __init__(self, db: asyncpg.Connection[asyncpg.Record], *, statements: bool) -> None:
        self._db = db
        self._asked = 0
        self._statements = statements

    @classmethod
    async def connect(cls, url: str) -> Meter:
        """Count statements where the server has pg_stat_statements, else transactions."""
        db = await asyncpg.connect(url, statement_cache_size=0)
        try:
            await db.fetchval("select count(*) from pg_stat_statements(false)")
        except asyncpg.PostgresError:
            meter = cls(db, statements=False)
        else:
            meter = cls(db, statements=True)
        if meter._statements:
            # What came before is nobody's; this connection's two questions among it.
            meter._asked = -await meter._calls() + 1
        return meter

    @property
    def counted(self) -> str:
        """What `requests` counts."""
        return "statements" if self._statements else "transactions"

    async def ask(self, query: str, *arguments: Any) -> Any:
        """Fetch one value."""
        value = await self._db.fetchval(query, *arguments)
        self._asked += 1
        return value

    async def requests(self) -> int:
        """Count what others than this connection asked of the database so far."""
        asked = self._asked
        if self._statements:
            count = await self._calls() - asked
            self._asked += 1
            return count
        await asyncio.sleep(_REPORTED_SECONDS)
        count = await self._db.fetchval(
            "select xact_commit + xact_rollback from pg_stat_database "
            "where datname = current_database()"
        )
        self._asked += 1
        return int(count) - asked

    async def close(self) -> None:
        """Let go of the connection."""
        await self._db.close()

    async def _calls(self) -> int:
        return int(
            await self._db.fetchval(
                "select coalesce(sum(calls), 0)::bigint from pg_stat_statements(false) "
                "where dbid = (select oid from pg_database where datname = current_database())"
            )
        )


class Measured:
    """A running worker, its jobs' starts by the process's clock, and the meter."""

    def __init__(self, queue: Queue, meter: Meter) -> None:
        self.queue = queue
        self.meter = meter
        self.starts: list[float] = []

    def ran(self) -> None:
        """Note a job's first line; called from whatever thread the queue runs jobs in."""
        self.starts.append(time.perf_counter())

    async def finish(self, count: int, *, every_seconds: float = 0.002) -> None:
        """Wait until so many jobs have run and the database says that all are done."""
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while len(self.starts) < count or await self.meter.ask(self.queue.unfinished):
            if time.monotonic() > deadline:
                raise TimeoutError(f"{len(self.starts)} of {count} jobs ran in time")
            await asyncio.sleep(every_seconds)
        if len(self.starts) != count:
            raise RuntimeError(f"{count} jobs ran {len(self.starts)} times")

    async def throughput(self, jobs: int) -> dict[str, float | str]:
        """From the commit that queued all jobs to the last one recorded as done."""
        requests = await self.meter.requests()
        lsn = await self.meter.ask("select pg_current_wal_insert_lsn()::text")
        before = len(self.starts)
        await self.queue.enqueue(jobs)
        started = time.perf_counter()
        await self.finish(before + jobs)
        seconds = time.perf_counter() - started
        wal_bytes = await self.meter.ask(
            "select pg_wal_lsn_diff(pg_current_wal_insert_lsn(), $1::text::pg_lsn)::float8", lsn
        )
        return {
            "jobs_per_second": jobs / seconds,
            "wal_bytes_per_job": wal_bytes / jobs,
            "requests_per_job": (await self.meter.requests() - requests) / jobs,
            "counted": self.meter.counted,
        }

    async def pick_up(self, samples: int) -> dict[str, list[float]]:
        """From one job's commit to its first line, and from sending its insert; the worker idle.

        The first is the worker's own: a job can be seen no earlier, and what an insert costs is
        its sender's.
        """
        from_commit, from_insert = [], []
        for _ in range(samples):
            # Not in step with the worker's poll, or every sample would wait equally long.
            await asyncio.sleep(random.uniform(0.01, 0.03 + self.queue.poll_seconds))
            before = len(self.starts)
            sent = time.perf_counter()
            await self.queue.enqueue(1)
            committed = time.perf_counter()
            await self.finish(before + 1)
            from_commit.append(1000 * (self.starts[before] - committed))
            from_insert.append(1000 * (self.starts[before] - sent))
        return {"from_commit_ms": from_commit, "from_insert_ms": from_insert}

    async def idle(self, seconds: float) -> dict[str, float | str]:
        """Count what a worker with nothing to do asks of the server and of its own core."""
        await asyncio.sleep(2.0)  # what a start does once is over: the idle worker alone is counted
        requests, cpu, started = await self.meter.requests(), _cpu_seconds(), time.perf_counter()
        await asyncio.sleep(seconds)
        took = time.perf_counter() - started
        used = _cpu_seconds() - cpu
        return {
            "requests_per_second": (await self.meter.requests() - requests) / took,
            "share_of_a_core_percent": 100 * used / took,
            "counted": self.meter.counted,
        }


def _cpu_seconds() -> float:
    times = os.times()
    return times.user + times.system


async def _run(queue: Queue, given: argparse.Namespace) -> dict[str, Any]:
    if given.what == "install":
        await queue.install(given.url)
        return {}
    meter = await Meter.connect(given.url)
    measured = Measured(queue, meter)
    await queue.start(given.url, measured.ran)
    await asyncio.sleep(_SETTLE_SECONDS)
    await queue.enqueue(_WARM_UP_JOBS)
    await measured.finish(_WARM_UP_JOBS)
    await asyncio.sleep(_SETTLE_SECONDS)
    if given.what == "throughput":
        found: dict[str, Any] = await measured.throughput(given.jobs)
    elif given.what == "pick_up":
        found = await measured.pick_up(given.samples)
    else:
        found = await measured.idle(given.seconds)
    try:
        await asyncio.wait_for(queue.stop(), timeout=_STOP_SECONDS)
    except TimeoutError:
        found["stopped"] = False
    return found


def main(queue: Queue, run: Callable[[Any], Any] = asyncio.run) -> None:
    """Measure one queue as the command line says; `run` is the event loop that it recommends."""
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=["install", "throughput", "pick_up", "idle"])
    parser.add_argument("url")
    parser.add_argument("--jobs", type=int, default=1000)
    parser.add_argument("--samples", type=int, default=40)
    parser.add_argument("--seconds", type=float, default=15.0)
    given = parser.parse_args()

    async def measure() -> None:
        print(json.dumps(await _run(queue, given)), flush=True)
        # Measured and said: what a queue leaves running must not hold the benchmark up.
        sys.stderr.flush()
        os._exit(0)

    run(measure())
