"""How many workers one Postgres carries, and what a thousand passes leave in it.

    python bench/bench_scale.py [--workers 1,2,4,8] [--jobs 10000] [--history 1000000] [--rounds 5]
                                [--export FILE --truth FILE] [--passes 30] [--base-url URL]
                                [--no-durable | --database-url URL] [--quick]

Two parts, one database with a year of ended jobs in it.

- The curve. Each round starts 1, 2, 4 and 8 worker processes by turns and gives them the same number
  of simulated passes (`scale_worker.py`: receipts and fenced progress as a pass writes them, a sleep
  for the model), beside a control: the bare claim and complete statements. Every pass must have been
  completed exactly once.
- The footprint. Real passes over a real export, each of another person, through the whole daemon and
  a model server on loopback: rows, WAL and growth of each table.

Tables for people, then one JSON line a metric; exit 1 when a limit is missed, 3 when the control was
too noisy to tell. docs/scale.md says what the figures mean beyond one server.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import asyncpg
import msgspec

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.bench_queue import control, migrated
from bench.metrics import Metric, percentile
from bench.queue_server import Server, embedded_server
from bench.scale_counts import Left, Look
from daemon.logs import configure_logs
from tests.support.anthropic_server import AnthropicServer
from tests.support.history import a_year_of_jobs
from tests.support.planted_truth import Truth, planted_from
from tests.support.worker_process import work_once

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

ROOT = Path(__file__).resolve().parents[1]
NOISY_SHARE = 0.35
"""More spread than this in the control between rounds: the machine was busy with something else."""
CONNECTIONS_A_WORKER = 5
CLAIM_P99_MS = 50.0
CROWDED_SHARE = 0.7
"""With the most workers at least this share of the best rate must be left: none may be in others'
way more than cores are short."""
_CONCURRENCY = 10
_START_SECONDS = 120.0
_STALL_SECONDS = 60.0
_KEPT_DAYS = 3650
"""The history is not to be pruned meanwhile: that is not what a pass leaves."""
_SHOWN_TABLES = 14
_WARM_UP_PASSES = 3


@dataclass(frozen=True, slots=True)
class Asked:
    """What is measured."""

    workers: tuple[int, ...]
    jobs: int
    history: int
    rounds: int
    calls: int
    milliseconds: float
    passes: int


@dataclass(slots=True)
class Point:
    """One number of workers and what was measured of it, a value a round."""

    workers: int
    rates: list[float] = field(default_factory=list)
    claims_ms: list[float] = field(default_factory=list)
    connections: list[int] = field(default_factory=list)
    requests: list[float] = field(default_factory=list)
    wal_bytes: list[float] = field(default_factory=list)

    @property
    def rate(self) -> float:
        """Passes a second, the median of the rounds."""
        return statistics.median(self.rates)

    @property
    def row(self) -> str:
        """One line of the table."""
        return (
            f"{self.workers:7} {self.rate:9.0f} {f'{min(self.rates):.0f}–{max(self.rates):.0f}':>11}"
            f" {percentile(self.claims_ms, 0.5):10.1f} {percentile(self.claims_ms, 0.99):10.1f}"
            f" {max(self.connections):12} {statistics.median(self.requests):11.1f}"
            f" {statistics.median(self.wal_bytes) / 1024:12.1f}"
        )


async def curve(server: Server, url: str, asked: Asked) -> tuple[list[Point], list[float], str]:
    """Measure each number of workers in each round, beginning with another one each time."""
    bare = await server.database("control")
    points = [Point(count) for count in asked.workers]
    controls: list[float] = []
    counted = ""
    share = max(1, asked.jobs // asked.rounds // len(points))
    for turn in range(asked.rounds):
        _say(f"round {turn + 1} of {asked.rounds}")
        controls.append(await control(bare, share))
        for n in range(len(points)):
            point = points[(turn + n) % len(points)]
            counted = await _work(url, point, share, asked)
    return points, controls, counted


async def _work(url: str, point: Point, jobs: int, asked: Asked) -> str:
    """Let so many workers do so many simulated passes, and note what it took."""
    with tempfile.TemporaryDirectory(prefix="fp-scale-") as name:
        claims = [Path(name) / str(n) for n in range(point.workers)]
        async with _workers(url, claims, asked), Look.at(url) as look:
            db = await asyncpg.connect(url, statement_cache_size=0)
            began = await db.fetchval("select clock_timestamp()")
            await db.execute(
                "insert into processing_jobs (user_id, storage_path) "
                f"select gen_random_uuid(), 'bench/' || n from generate_series(1, {jobs}) n"
            )
            started = time.perf_counter()
            await _done(look)
            point.rates.append(jobs / (time.perf_counter() - started))
            left = await look.left()
            ended = await db.fetchrow(
                "select count(*) as ends, count(distinct job_id) as jobs from fullpass.job_events "
                "where event = 'completed' and at >= $1",
                began,
            )
            await db.close()
        assert ended is not None
        if (ended["ends"], ended["jobs"]) != (jobs, jobs):
            raise RuntimeError(f"{jobs} passes were completed {ended['ends']} times")
        for file in claims:
            point.claims_ms += [float(line) for line in file.read_text("utf-8").splitlines()]
    point.connections.append(look.most_connections)
    point.requests.append(left.requests / jobs)
    point.wal_bytes.append(left.wal_bytes / jobs)
    return look.counted


async def _done(look: Look) -> None:
    """Wait until nothing waits or runs; give up when nothing moves any more."""
    least, moved = sys.maxsize, time.monotonic()
    while unfinished := await look.unfinished():
        if unfinished < least:
            least, moved = unfinished, time.monotonic()
        if time.monotonic() - moved > _STALL_SECONDS:
            why = await look.trouble()
            raise RuntimeError(f"{unfinished} passes do not end: {why}")
        await asyncio.sleep(0.05)


@contextlib.asynccontextmanager
async def _workers(url: str, claims: list[Path], asked: Asked) -> AsyncIterator[None]:
    """Start a worker process for each file, in a group of their own; wait until all beat."""
    environment = {
        **{k: v for k, v in os.environ.items() if k in {"PATH", "HOME", "LANG", "TMPDIR"}},
        "DATABASE_URL": url,
        "LLM_PROVIDER": "offline",
        "MAX_CONCURRENT_JOBS": str(_CONCURRENCY),
        "PIPELINE_RETENTION_DAYS": str(_KEPT_DAYS),
    }
    db = await asyncpg.connect(url, statement_cache_size=0)
    before = await db.fetchval("select clock_timestamp()")
    command = [
        sys.executable, str(ROOT / "bench" / "scale_worker.py"), str(asked.calls),
        str(asked.milliseconds), *map(str, claims),
    ]  # fmt: skip
    workers = subprocess.Popen(command, env=environment, start_new_session=True)  # noqa: ASYNC220 - before anything is timed
    try:
        deadline = time.monotonic() + _START_SECONDS
        beating = "select count(*) from fullpass.workers where started_at >= $1"
        while await db.fetchval(beating, before) < len(claims):
            if time.monotonic() > deadline or workers.poll() is not None:
                raise RuntimeError("a worker did not start")
            await asyncio.sleep(0.05)
        yield
    finally:
        await db.close()
        workers.send_signal(signal.SIGTERM)
        try:
            workers.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(workers.pid, signal.SIGKILL)
            workers.wait()


async def footprint(
    url: str, export: Path, base_url: str, key: str, passes: int
) -> tuple[Left, int]:
    """Run real passes, a person each, and say what they left and how many chunks they stored."""
    db = await asyncpg.connect(url, statement_cache_size=0)

    async def work(count: int) -> None:
        await db.execute(
            "insert into processing_jobs (user_id, storage_path) "
            f"select gen_random_uuid(), $1 from generate_series(1, {count})",
            f"file://{export.resolve()}",
        )
        tally = await work_once(
            url, base_url, anthropic_api_key=key, pipeline_retention_days=_KEPT_DAYS
        )
        if len(tally.completed) != count:
            raise RuntimeError(f"{len(tally.completed)} of {count} real passes were completed")

    try:
        # The first ones also make the first page of each index: that is not what a pass leaves.
        await work(_WARM_UP_PASSES)
        async with Look.at(url) as look:
            await work(passes)
            left = await look.left()
        chunks = await db.fetchval("select count(*) from conversation_chunks")
    finally:
        await db.close()
    return left, int(chunks) // (passes + _WARM_UP_PASSES)


def curve_metrics(points: list[Point], controls: list[float], counted: str) -> list[Metric]:
    """Judge the curve."""
    metrics = [Metric("control_bare_jobs_per_second", statistics.median(controls), "jobs/s")]
    for point in points:
        count = point.workers
        metrics += [
            Metric(f"passes_per_second_{count}", point.rate, "1/s"),
            Metric(f"claim_p50_ms_{count}", percentile(point.claims_ms, 0.5), "ms"),
            Metric(
                f"claim_p99_ms_{count}", percentile(point.claims_ms, 0.99), "ms",
                CLAIM_P99_MS if count == 1 else None,
            ),
            Metric(
                f"connections_{count}", max(point.connections), "",
                CONNECTIONS_A_WORKER * count, note=f"{CONNECTIONS_A_WORKER} a worker",
            ),
        ]  # fmt: skip
    one = points[0]
    best = max(point.rate for point in points)
    metrics += [
        Metric(f"simulated_{counted}_per_1000_passes", 1000 * statistics.median(one.requests), ""),
        Metric(
            "simulated_wal_mb_per_1000_passes",
            1000 * statistics.median(one.wal_bytes) / 2**20,
            "MB",
        ),
    ]
    if len(points) > 1:
        metrics.append(
            Metric(
                "crowded_over_best", points[-1].rate / best, "×", CROWDED_SHARE, at_least=True,
                note=f"{points[-1].workers} workers beside the best rate",
            )
        )  # fmt: skip
    return metrics


def footprint_metrics(
    left: Left, passes: int, chunks: int, counted: str, *, requests_per_second: float
) -> list[Metric]:
    """Reckon a thousand real passes, a chunk of them, and how many of them the server carries.

    `requests_per_second` is what it carried at the best point of the curve.
    """
    per_thousand = 1000 / passes
    # What is staged is emptied again: its pages are used by the next pass.
    grown = sum(row["bytes"] for name, row in left.tables.items() if ".staged_" not in name)
    return [
        Metric("chunks_per_real_pass", chunks, ""),
        Metric(f"real_{counted}_per_1000_passes", left.requests * per_thousand, ""),
        Metric(
            "real_passes_per_hour_at_most",
            3600 * requests_per_second * passes / left.requests,
            "1/h",
            note=f"by {counted}; workers and server share these cores",
        ),
        Metric("real_wal_mb_per_1000_passes", left.wal_bytes * per_thousand / 2**20, "MB"),
        Metric("real_rows_inserted_per_1000_passes", left.rows("inserted") * per_thousand, "rows"),
        Metric("real_rows_updated_per_1000_passes", left.rows("updated") * per_thousand, "rows"),
        Metric("real_rows_deleted_per_1000_passes", left.rows("deleted") * per_thousand, "rows"),
        Metric("real_growth_mb_per_1000_passes", grown * per_thousand / 2**20, "MB"),
        Metric("real_wal_kb_per_chunk", left.wal_bytes / passes / max(1, chunks) / 1024, "kB"),
        Metric("real_growth_kb_per_chunk", grown / passes / max(1, chunks) / 1024, "kB"),
    ]


def tables_of(left: Left, passes: int) -> Iterator[str]:
    """Say what a thousand passes leave in each table, the largest first."""
    yield f"{'a thousand real passes':34}{'inserted':>10}{'updated':>10}{'HOT':>7}{'deleted':>10}{'MB':>9}"
    per_thousand = 1000 / passes
    ranked = sorted(left.tables.items(), key=lambda item: item[1]["bytes"], reverse=True)
    for name, row in ranked[:_SHOWN_TABLES]:
        hot = f"{row['hot'] / row['updated']:.0%}" if row["updated"] else ""
        yield (
            f"{name:34}{row['inserted'] * per_thousand:>10,.0f}{row['updated'] * per_thousand:>10,.0f}"
            f"{hot:>7}{row['deleted'] * per_thousand:>10,.0f}"
            f"{row['bytes'] * per_thousand / 2**20:>9.1f}"
        )


async def run(url: str, given: argparse.Namespace, asked: Asked) -> int:
    """Measure both parts and print them."""
    async with Server.at(url) as server:
        described = await server.described()
        scale = await migrated(server, "scale")
        _say(f"a history of {asked.history:,} jobs")
        db = await asyncpg.connect(scale, statement_cache_size=0, command_timeout=1200)
        await a_year_of_jobs(db, asked.history)
        # Only what is measured waits.
        await db.execute("delete from processing_jobs where status = 'pending'")
        await db.close()
        points, controls, counted = await curve(server, scale, asked)
        _say(f"{asked.passes} real passes")
        with contextlib.ExitStack() as cleanup:
            base_url = given.base_url
            if base_url is None:
                truth = Truth(planted_from(msgspec.json.decode(given.truth.read_bytes())))
                model = cleanup.enter_context(AnthropicServer(truth=truth))
                base_url = model.url
            left, chunks = await footprint(
                scale, given.export, base_url, given.api_key, asked.passes
            )
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    print(f"{described}; {os.cpu_count()} cores, load {load}; {asked.rounds} rounds by turns")
    print(
        f"simulated passes of {asked.calls} calls of {asked.milliseconds:g} ms, {_CONCURRENCY} at "
        f"once a worker, beside {asked.history:,} ended jobs\n"
    )
    print(
        f"workers  passes/s  least–most  claim p50  claim p99  connections  {counted[:10]:>10}"
        "       WAL kB\n"
        f"{'':8}{'median':>10}{'':12}{'ms':>10} {'ms':>10} {'at most':>12} {'a pass':>11} {'a pass':>12}"
    )
    for point in points:
        print(point.row)
    print()
    for line in tables_of(left, asked.passes):
        print(line)
    metrics = curve_metrics(points, controls, counted)
    best = max(points, key=lambda point: point.rate)
    carried = best.rate * statistics.median(best.requests)
    metrics.append(Metric(f"{counted}_per_second_at_best", carried, "1/s"))
    metrics += footprint_metrics(left, asked.passes, chunks, counted, requests_per_second=carried)
    print()
    for metric in metrics:
        print(metric.row)
    for metric in metrics:
        print(metric.line)
    if max(controls) - min(controls) > NOISY_SHARE * max(controls):
        print("the control was too noisy to tell", file=sys.stderr)
        return 3
    return 0 if all(metric.ok for metric in metrics) else 1


def _say(what: str) -> None:
    """Tell a person who waits what is being done."""
    print(f"{time.monotonic() - _BEGAN:5.0f} s  {what}", file=sys.stderr, flush=True)


_BEGAN = time.monotonic()


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--database-url",
        help="a server where databases may be made and dropped; default: an embedded one",
    )
    parser.add_argument("--workers", default="1,2,4,8", help="numbers of workers, with commas")
    parser.add_argument("--jobs", type=int, default=10_000, help="of the whole curve")
    parser.add_argument("--history", type=int, default=1_000_000, help="ended jobs beside them")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--calls", type=int, default=2, help="of a simulated pass")
    parser.add_argument("--milliseconds", type=float, default=20.0, help="of each such call")
    parser.add_argument("--passes", type=int, default=30, help="real ones")
    parser.add_argument("--export", type=Path, default=ROOT / "examples" / "conversations.json")
    parser.add_argument("--truth", type=Path, default=ROOT / "examples" / "truth.json")
    parser.add_argument("--base-url", help="another model server, instead of one on loopback")
    parser.add_argument("--api-key", default="test-key")
    parser.add_argument(
        "--durable", action=argparse.BooleanOptionalAction, default=True,
        help="whether the embedded server waits for its disk and writes whole pages into its WAL, "
        "as one in production does",
    )  # fmt: skip
    parser.add_argument("--quick", action="store_true", help="a little of everything")
    given = parser.parse_args()
    asked = Asked(
        tuple(sorted({int(count) for count in given.workers.split(",")})), given.jobs, given.history,
        given.rounds, given.calls, given.milliseconds, given.passes,
    )  # fmt: skip
    if given.quick:
        asked = Asked((1, 2), 120, 3_000, 1, given.calls, given.milliseconds, 1)
    configure_logs(log_format="json", level="ERROR")
    with contextlib.ExitStack() as cleanup:
        url = given.database_url
        if url is None:
            url = cleanup.enter_context(embedded_server(durable=given.durable))
        return asyncio.run(run(url, given, asked))


if __name__ == "__main__":
    sys.exit(main())
