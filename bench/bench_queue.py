"""How quick the queue is, and how quick it is to recover.

    python bench/bench_queue.py [--database-url URL] [--rounds 5] [--only NAME]

Every round runs each measurement once beside a control on the same server: the bare claim and
complete statements through asyncpg, with no fence, no events and no profile. A table for people,
then one JSON line a metric; exit 1 when a limit is missed, 3 when the control was too noisy to tell.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import signal
import statistics
import sys
import tempfile
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import asyncpg
import psutil

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from daemon import migrations
from daemon.database import open_pool
from daemon.embedded import EmbeddedPostgres
from daemon.logs import configure_logs
from daemon.queue import jobs
from daemon.settings import load_settings
from daemon.worker import Worker
from tests.support.queue_checks import queue_at
from tests.support.queue_worker import queue_worker

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from daemon.fullpass.context import Pass

JOBS_A_ROUND = 1000
FINISHED, PENDING = 1_000_000, 100_000
NOISY_SHARE = 0.35
"""More spread than this in the control between rounds: the machine was busy with something else."""


@dataclass(frozen=True, slots=True)
class Metric:
    """One measured value and what it must keep to; `limit` None only informs."""

    name: str
    value: float
    unit: str
    limit: float | None = None
    at_least: bool = False

    @property
    def ok(self) -> bool:
        """Whether the value keeps to its limit."""
        if self.limit is None:
            return True
        return self.value >= self.limit if self.at_least else self.value <= self.limit


async def no_op(_work: Pass) -> tuple[dict[str, Any], dict[str, Any]]:
    return {}, {"cost_usd": 0.0, "calls": 0}


async def _until(ask: Callable[[], Awaitable[Any]], every: float) -> None:
    while not await ask():  # noqa: ASYNC110 - the answer is in the database
        await asyncio.sleep(every)


async def _completed(worker: Worker, count: int, *, every: float) -> None:
    async def enough() -> bool:
        return len(worker.tally.completed) >= count

    await _until(enough, every)


class Bench:
    """A database for one run of the benchmark."""

    def __init__(self, url: str, db: asyncpg.Connection[asyncpg.Record], rounds: int) -> None:
        self.url = url
        self.db = db
        self.rounds = rounds
        self.control: list[float] = []

    @contextlib.asynccontextmanager
    async def worker(self, **settings: Any) -> AsyncIterator[Worker]:
        """Run a worker of no-op jobs in this process."""
        configured = load_settings(
            **{
                "database_url": self.url,
                "llm_provider": "offline",
                "max_concurrent_jobs": 10,
                "max_jobs_per_user_per_day": None,
                **settings,
            }
        )
        worker = Worker(configured, self.url, run_pass=no_op)
        running = asyncio.create_task(worker.run())
        known = await self.db.fetchval("select count(*) from fullpass.workers")
        await _until(
            lambda: self.db.fetchval("select count(*) > $1 from fullpass.workers", known), 0.02
        )
        await asyncio.sleep(0.3)  # let it begin to listen
        try:
            yield worker
        finally:
            signal.raise_signal(signal.SIGTERM)
            await running

    async def insert(self, count: int) -> None:
        """Queue jobs of a user each."""
        await self.db.execute(
            "insert into processing_jobs (user_id, storage_path) "
            f"select gen_random_uuid(), 'bench/' || n from generate_series(1, {count}) n"
        )

    async def throughput(self) -> list[Metric]:
        """No-op jobs a second, one worker at 10 concurrent, the whole protocol on."""
        rates, wal_bytes, statements = [], [], []
        for _ in range(self.rounds):
            self.control.append(await self._bare())
            async with self.worker() as worker:
                lsn = await self.db.fetchval("select pg_current_wal_insert_lsn()::text")
                commits = await self._commits()
                await self.insert(JOBS_A_ROUND)
                started = time.perf_counter()
                await _completed(worker, JOBS_A_ROUND, every=0.005)
                rates.append(JOBS_A_ROUND / (time.perf_counter() - started))
                wal_bytes.append(
                    await self.db.fetchval(
                        "select pg_wal_lsn_diff(pg_current_wal_insert_lsn(), $1::text::pg_lsn)"
                        "::float8 / $2::int",
                        lsn,
                        JOBS_A_ROUND,
                    )
                )
                statements.append((await self._commits() - commits) / JOBS_A_ROUND)
        return [
            Metric("jobs_per_second", statistics.median(rates), "jobs/s", 740, at_least=True),
            Metric("control_bare_jobs_per_second", statistics.median(self.control), "jobs/s"),
            Metric("wal_bytes_per_job", statistics.median(wal_bytes), "bytes"),
            Metric("transactions_per_job", statistics.median(statements), ""),
        ]

    async def _commits(self) -> int:
        await asyncio.sleep(1.1)  # backends report their counts once a second
        await self.db.execute("select pg_stat_clear_snapshot()")
        count: int = await self.db.fetchval(
            "select xact_commit from pg_stat_database where datname = current_database()"
        )
        return count

    async def _bare(self) -> float:
        """Measure the control: claim and complete as two plain statements, 10 at once."""
        await self.db.execute(
            "create table if not exists bare "
            "(id bigserial primary key, status text default 'pending'); truncate bare"
        )
        await self.db.execute(
            f"insert into bare select n from generate_series(1, {JOBS_A_ROUND}) n"
        )
        pool = await open_pool(self.url, size=10)

        async def work() -> None:
            while job := await pool.fetchval(
                "update bare set status = 'running' where id = (select id from bare "
                "where status = 'pending' order by id limit 1 for update skip locked) returning id"
            ):
                await pool.execute("update bare set status = 'done' where id = $1", job)

        started = time.perf_counter()
        await asyncio.gather(*(work() for _ in range(10)))
        rate = JOBS_A_ROUND / (time.perf_counter() - started)
        await pool.close()
        return rate

    async def pick_up(self) -> list[Metric]:
        """From the insert's commit to the claim, the worker idle and listening."""
        async with self.worker(poll_interval_seconds=30) as worker:
            for n in range(40 * self.rounds):
                await self.insert(1)
                await _completed(worker, n + 1, every=0.001)
                await asyncio.sleep(0.01)
        rows = await self.db.fetch(
            "select extract(epoch from e.at - j.created_at)::float8 * 1000 as ms "
            "from fullpass.job_events e join processing_jobs j on j.id = e.job_id "
            "where e.event = 'claimed' order by e.id desc limit $1",
            40 * self.rounds,
        )
        ms = sorted(row["ms"] for row in rows)
        return [
            Metric("pick_up_p50_ms", ms[len(ms) // 2], "ms", 6.0),
            Metric("pick_up_p99_ms", ms[int(len(ms) * 0.99)], "ms", 50.0),
        ]

    async def idle(self) -> list[Metric]:
        """Measure what a worker with nothing to do asks of the server and of its own core."""
        seconds = 15.0
        async with self.worker():
            me = psutil.Process()
            commits, cpu = await self._commits(), sum(me.cpu_times()[:2])
            await asyncio.sleep(seconds)
            used = sum(me.cpu_times()[:2]) - cpu
            count = await self._commits() - commits - 3  # our own
        return [
            Metric("idle_statements_per_second", count / (seconds + 1.1), "1/s", 2.0),
            Metric("idle_share_of_a_core", 100 * used / seconds, "%", 0.5),
        ]

    async def flat(self) -> list[Metric]:
        """Time a claim beside a million finished and a hundred thousand pending rows."""
        pool = await open_pool(self.url, size=1)

        async def claims() -> float:
            await self.insert(200)
            took = []
            for _ in range(200):
                started = time.perf_counter()
                job = await jobs.claim(pool, worker_id="bench", lease_seconds=600, version="b")
                took.append(time.perf_counter() - started)
                assert job is not None
                await jobs.complete(pool, job, result={}, cost={})
            return statistics.median(took) * 1000

        before = [await claims() for _ in range(self.rounds)]
        await self.db.execute(
            "insert into processing_jobs (user_id, storage_path, status, lease_epoch, run_at) "
            "select gen_random_uuid(), 'done/' || n, 'complete', 1, now() - interval '1 day' "
            f"from generate_series(1, {FINISHED}) n",
            timeout=300,
        )
        busy = uuid.uuid4()
        await self.db.execute(
            "insert into processing_jobs (user_id, storage_path) select case when n % 2 = 0 "
            "then $1 else gen_random_uuid() end, 'wait/' || n "
            f"from generate_series(1, {PENDING}) n",
            busy,
            timeout=300,
        )
        after = [await claims() for _ in range(self.rounds)]
        await pool.close()
        empty_ms, full_ms = statistics.median(before), statistics.median(after)
        return [
            Metric("claim_ms_empty_table", empty_ms, "ms"),
            Metric("claim_ms_full_table", full_ms, "ms"),
            Metric("claim_full_over_empty", full_ms / empty_ms, "×", 1.5),
        ]

    async def recovery(self) -> list[Metric]:
        """Kill -9 to the next effect, and SIGTERM to released; real processes."""
        lease, poll = 2.0, 0.5
        reruns, drains = [], []
        quick: dict[str, Any] = {
            "lease_seconds": lease,
            "heartbeat_seconds": 0.5,
            "poll_interval_seconds": poll,
        }
        for _ in range(self.rounds):
            async with queue_at(self.url) as queue:
                await queue.db.execute(
                    "truncate processing_jobs, fullpass.workers, effects cascade"
                )
                await queue.add("steps=1000,ms=50")
                with queue_worker(self.url, **quick) as first:
                    await queue.until("select exists (select from effects)")
                    with queue_worker(self.url, **quick) as second:
                        await queue.until("select count(*) = 2 from fullpass.workers")
                        started = time.perf_counter()
                        first.kill()
                        await queue.until(
                            "select count(distinct worker) = 2 from effects", every=0.005
                        )
                        reruns.append(time.perf_counter() - started)
                        started = time.perf_counter()
                        second.send_signal(signal.SIGTERM)
                        await queue.until(
                            "select exists (select from fullpass.job_events "
                            "where event = 'released')",
                            every=0.005,
                        )
                        drains.append(time.perf_counter() - started)
        return [
            Metric("kill_to_rerun_seconds", max(reruns), "s", lease + poll),
            Metric("sigterm_to_released_seconds", max(drains), "s", 2.0),
        ]


async def run(url: str, rounds: int, only: str | None) -> int:
    await migrations.apply(url)
    db = await asyncpg.connect(url, statement_cache_size=0)
    bench = Bench(url, db, rounds)
    parts: dict[str, Callable[[], Awaitable[list[Metric]]]] = {
        "throughput": bench.throughput,
        "pick_up": bench.pick_up,
        "idle": bench.idle,
        "recovery": bench.recovery,
        "flat": bench.flat,
    }
    metrics: list[Metric] = []
    for name, part in parts.items():
        if only in {None, name}:
            await db.execute("truncate processing_jobs, fullpass.tickets cascade")
            metrics += await part()
    await db.close()
    for metric in metrics:
        limit = (
            "" if metric.limit is None else f"{'≥' if metric.at_least else '≤'} {metric.limit:g}"
        )
        print(
            f"{metric.name:32} {metric.value:12.3f} {metric.unit:7} {limit:8} "
            f"{'' if metric.ok else 'MISSED'}"
        )
    for metric in metrics:
        print(
            json.dumps(
                {
                    "metric": metric.name,
                    "value": round(metric.value, 3),
                    "limit": metric.limit,
                    "ok": metric.ok,
                }
            )
        )
    if bench.control and max(bench.control) - min(bench.control) > NOISY_SHARE * max(bench.control):
        print("the control was too noisy to tell", file=sys.stderr)
        return 3
    return 0 if all(metric.ok for metric in metrics) else 1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--database-url", help="an empty database; default: an embedded server")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--durable",
        action="store_true",
        help="the embedded server waits for its disk at each commit; else fsync is off, so that the "
        "queue is measured and not the disk",
    )
    parser.add_argument("--only", choices=["throughput", "pick_up", "idle", "recovery", "flat"])
    given = parser.parse_args()
    configure_logs(log_format="json", level="ERROR")
    with contextlib.ExitStack() as cleanup:
        url = given.database_url
        if url is None:
            folder = Path(cleanup.enter_context(tempfile.TemporaryDirectory(prefix="fp-bench-")))
            folder.chmod(0o711)
            server = folder / "server"
            server.mkdir(mode=0o711)
            url = cleanup.enter_context(
                EmbeddedPostgres(server, durable=given.durable, max_connections=60)
            ).url
        return asyncio.run(run(url, given.rounds, given.only))


if __name__ == "__main__":
    sys.exit(main())
