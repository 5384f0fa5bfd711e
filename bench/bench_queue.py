"""How quick the queue is beside its peers, how little it asks when idle, and how it recovers.

    python bench/bench_queue.py [--peers auto|none|awa,absurd] [--rounds 5] [--quick] [--only NAME]
                                [--durable | --database-url URL]

Every round runs each queue once, beginning with another one each time, beside a control on the
same server: the bare claim and complete statements through asyncpg, with no fence, no events and no
profile. Two tables for people, then one JSON line a metric; exit 1 when a limit is missed, 3 when
the control was too noisy to tell. The peers are installed into a temporary environment.

`queue_field.py` drives the queues, `queue_peers/` says how each is used, `queue_trouble.py` holds
what only ours is asked.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import asyncpg

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench import queue_trouble as trouble
from bench.metrics import Metric, percentile
from bench.queue_field import Field, head
from bench.queue_server import Server, embedded_server
from daemon import migrations
from daemon.database import open_pool
from daemon.logs import configure_logs

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

PARTS = ("throughput", "pick_up", "idle", "recovery", "blocked", "flat")
NOISY_SHARE = 0.35
"""More spread than this in the control between rounds: the machine was busy with something else."""

FENCED_JOBS_PER_SECOND, THEIR_CONTROL = 740, 2_572
"""The quickest fencing peer and the control beside it, once on one machine: the limit, scaled by
the control of this run, where no fencing peer can be run."""


@dataclass(frozen=True, slots=True)
class Size:
    """How much one run measures."""

    rounds: int
    jobs: int
    samples: int
    idle_seconds: float
    blocked_rounds: int
    parts: tuple[str, ...]


async def control(url: str, count: int) -> float:
    """Claim and complete as two plain statements, 10 at once; jobs a second."""
    db = await asyncpg.connect(url, statement_cache_size=0)
    await db.execute(
        "create table if not exists bare "
        "(id bigserial primary key, status text default 'pending'); truncate bare"
    )
    await db.execute(f"insert into bare select n from generate_series(1, {count}) n")
    await db.close()
    pool = await open_pool(url, size=10)

    async def work() -> None:
        while job := await pool.fetchval(
            "update bare set status = 'running' where id = (select id from bare "
            "where status = 'pending' order by id limit 1 for update skip locked) returning id"
        ):
            await pool.execute("update bare set status = 'done' where id = $1", job)

    # Everyone's connections are open before the clock runs.
    await asyncio.gather(*(pool.execute("select pg_sleep(0.05)") for _ in range(10)))
    started = time.perf_counter()
    await asyncio.gather(*(work() for _ in range(10)))
    rate = count / (time.perf_counter() - started)
    await pool.close()
    return rate


def throughput_metrics(field: Field, controls: list[float]) -> list[Metric]:
    """Judge jobs a second by the quickest peer that fences, in this very run."""
    ours, bare = field.ours, statistics.median(controls)
    rates = {
        peer.title: peer.median("jobs_per_second")
        for peer in field.running[1:]
        if peer.fences and peer.rounds
    }
    if rates:
        best = max(rates, key=lambda title: rates[title])
        limit, note = rates[best], f"{best}, the quickest that fences"
    else:
        limit = FENCED_JOBS_PER_SECOND * bare / THEIR_CONTROL
        note = f"{FENCED_JOBS_PER_SECOND} × control ÷ {THEIR_CONTROL}: no fencing peer ran"
    return [
        Metric(
            "jobs_per_second", ours.median("jobs_per_second"), "jobs/s", limit,
            at_least=True, note=note,
        ),
        Metric("control_bare_jobs_per_second", bare, "jobs/s"),
        Metric("wal_bytes_per_job", ours.median("wal_bytes_per_job"), "bytes"),
        Metric(f"{ours.rounds[0]['counted']}_per_job", ours.median("requests_per_job"), ""),
    ]  # fmt: skip


def pick_up_metrics(field: Field) -> list[Metric]:
    """Judge the pick-up by pgqueuer's in this very run."""
    ms = field.ours.from_commit_ms
    pgqueuer = field.of("pgqueuer")
    if pgqueuer is not None and pgqueuer.from_commit_ms:
        limit, note = 1.5 * percentile(pgqueuer.from_commit_ms, 0.5), "1.5 × pgqueuer's"
    else:
        limit, note = 6.0, "1.5 × 4 ms: pgqueuer did not run"
    return [
        Metric("pick_up_p50_ms", percentile(ms, 0.5), "ms", limit, note=note),
        Metric("pick_up_p99_ms", percentile(ms, 0.99), "ms", 50.0),
        Metric("insert_to_start_p50_ms", percentile(field.ours.from_insert_ms, 0.5), "ms"),
    ]


def idle_metrics(field: Field) -> list[Metric]:
    """Judge what our idle worker asks of the server and of its core."""
    idle = field.ours.idle
    return [
        Metric(f"idle_{idle['counted']}_per_second", idle["requests_per_second"], "1/s", 2.0),
        Metric("idle_share_of_a_core", idle["share_of_a_core_percent"], "%", 0.5),
    ]


def peer_metrics(field: Field) -> list[Metric]:
    """Everything measured of the peers: it informs, and sets limits above."""
    metrics = []
    for peer in field.running[1:]:
        if peer.rounds:
            metrics.append(
                Metric(f"{peer.name}_jobs_per_second", peer.median("jobs_per_second"), "jobs/s")
            )
        if peer.from_commit_ms:
            metrics += [
                Metric(f"{peer.name}_pick_up_p50_ms", percentile(peer.from_commit_ms, 0.5), "ms"),
                Metric(f"{peer.name}_pick_up_p99_ms", percentile(peer.from_commit_ms, 0.99), "ms"),
            ]
        if peer.idle:
            idle = peer.idle
            metrics.append(
                Metric(
                    f"{peer.name}_idle_{idle['counted']}_per_second",
                    idle["requests_per_second"],
                    "1/s",
                )
            )
    return metrics


class Report:
    """What was found, and the time since it all began."""

    def __init__(self) -> None:
        self.metrics: list[Metric] = []
        self.controls: list[float] = []
        self._began = time.monotonic()

    def say(self, what: str) -> None:
        """Tell a person who waits what is being done."""
        print(f"{time.monotonic() - self._began:5.0f} s  {what}", file=sys.stderr, flush=True)

    @property
    def noisy(self) -> bool:
        """Whether the control differed too much between rounds."""
        spread = max(self.controls) - min(self.controls)
        return spread > NOISY_SHARE * max(self.controls)


async def measure_field(server: Server, field: Field, size: Size, report: Report) -> None:
    """Measure all queues side by side."""
    bare = await server.database("control")
    for turn in range(size.rounds):
        report.say(f"round {turn + 1} of {size.rounds}")
        report.controls.append(await control(bare, size.jobs))
        if "throughput" in size.parts:
            await field.throughput(size.jobs, turn)
        if "pick_up" in size.parts:
            await field.pick_up(size.samples, turn)
    if "idle" in size.parts:
        report.say(f"all idle for {size.idle_seconds:.0f} s")
        await field.idle(size.idle_seconds)
    if "throughput" in size.parts:
        report.metrics += throughput_metrics(field, report.controls)
    if "pick_up" in size.parts:
        report.metrics += pick_up_metrics(field)
    if "idle" in size.parts:
        report.metrics += idle_metrics(field)


async def measure_ours(server: Server, size: Size, report: Report) -> None:
    """Ask of our queue what only it is asked; what does not come about is missed, and said."""
    url = await migrated(server, "trouble")

    async def flat() -> list[Metric]:
        empty, full = await migrated(server, "empty"), await migrated(server, "full")
        return await trouble.flat(empty, full, size.rounds)

    parts: dict[str, tuple[str, Callable[[], Awaitable[list[Metric]]]]] = {
        "recovery": ("kill -9 and SIGTERM", lambda: trouble.recovery(url, size.rounds)),
        "blocked": ("blocked loops", lambda: trouble.blocked(url, size.blocked_rounds)),
        "flat": ("claims beside a full table", flat),
    }
    for name, (title, part) in parts.items():
        if name not in size.parts:
            continue
        report.say(title)
        try:
            report.metrics += await part()
        except (AssertionError, RuntimeError) as error:
            report.metrics.append(
                Metric(f"{name}_came_about", 0, "", 1, at_least=True, note=str(error))
            )


async def migrated(server: Server, name: str) -> str:
    url = await server.database(name)
    await migrations.apply(url)
    return url


async def run(url: str, peers: str, size: Size) -> int:
    report = Report()
    async with Server.at(url) as server:
        described = await server.described()
        field = None
        if {"throughput", "pick_up", "idle"} & set(size.parts):
            report.say("installing the peers")
            with tempfile.TemporaryDirectory(prefix="fp-peers-") as folder:
                field = await Field.gather(server, peers, Path(folder))
                await measure_field(server, field, size, report)
        await measure_ours(server, size, report)
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    print(f"{described}; {os.cpu_count()} cores, load {load}; {size.rounds} rounds by turns")
    if field is not None:
        print(f"\n{head(field.counted)}")
        for entrant in field.entrants:
            print(entrant.row)
        if report.controls:
            rates = f"{min(report.controls):.0f}–{max(report.controls):.0f}"
            print(
                f"{'control, two bare statements':28}{statistics.median(report.controls):8.0f}{rates:>12}"
            )
    print()
    for metric in report.metrics:
        print(metric.row)
    for metric in report.metrics + (peer_metrics(field) if field is not None else []):
        print(metric.line)
    if field is not None:
        for peer in field.entrants:
            if peer.out is not None:
                print(
                    json.dumps(
                        {"metric": f"{peer.name}_not_measured", "value": 1, "limit": None,
                         "ok": True, "reason": peer.out}
                    )
                )  # fmt: skip
    if report.controls and report.noisy:
        print("the control was too noisy to tell", file=sys.stderr)
        return 3
    return 0 if all(metric.ok for metric in report.metrics) else 1


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--database-url",
        help="a server where databases may be made and dropped; default: an embedded one",
    )
    parser.add_argument(
        "--peers", default="auto", help="auto (all), none, or names with commas (default: auto)"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--quick", action="store_true", help="fewer rounds, jobs and samples; no full table"
    )
    parser.add_argument(
        "--durable",
        action="store_true",
        help="the embedded server waits for its disk at each commit; else fsync is off for "
        "everyone, so that the queues are measured and not the disk",
    )
    parser.add_argument("--only", choices=PARTS, help="one part")
    given = parser.parse_args()
    size = Size(given.rounds, 1000, 30, 30.0, 1, PARTS)
    if given.quick:
        size = Size(min(given.rounds, 2), 500, 15, 10.0, 1, PARTS[:-1])
    if given.only is not None:
        size = replace(size, parts=(given.only,))
    configure_logs(log_format="json", level="ERROR")
    with contextlib.ExitStack() as cleanup:
        url = given.database_url
        if url is None:
            url = cleanup.enter_context(embedded_server(durable=given.durable))
        return asyncio.run(run(url, given.peers, size))


if __name__ == "__main__":
    sys.exit(main())
