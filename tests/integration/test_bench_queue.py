"""The queue's benchmark: it counts exactly, judges by the right peer, and hides none."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path

import asyncpg
import pytest

from bench.bench_queue import throughput_metrics
from bench.queue_field import Entrant, Field
from bench.queue_peers.harness import Measured, Meter
from bench.queue_server import Server, embedded_server

ROOT = Path(__file__).resolve().parents[2]


def entrant(name: str, jobs_per_second: float | None, *, fences: bool) -> Entrant:
    made = Entrant(name, name, fences=fences, python="/bin/false")
    if jobs_per_second is None:
        made.out = "it would not start"
    else:
        row = {"jobs_per_second": jobs_per_second, "counted": "statements"}
        made.rounds = [{**row, "wal_bytes_per_job": 1.0, "requests_per_job": 1.0}]
    return made


def test_throughput_is_judged_by_the_quickest_peer_that_fences() -> None:
    ours = entrant("fullpass", 500, fences=True)
    peers = [entrant("awa", 499, fences=True), entrant("absurd", 300, fences=True)]
    quicker = entrant("pgqueuer", 2000, fences=False)
    assert throughput_metrics(Field([ours, *peers, quicker]), [1000.0])[0].ok
    peers[1].rounds[0]["jobs_per_second"] = 501
    assert not throughput_metrics(Field([ours, *peers, quicker]), [1000.0])[0].ok


def test_without_a_fencing_peer_the_limit_is_scaled_by_the_control() -> None:
    field = Field(
        [
            entrant("fullpass", 500, fences=True),
            entrant("awa", None, fences=True),
            entrant("pgqueuer", 2000, fences=False),
        ]
    )
    assert throughput_metrics(field, [2572.0])[0].limit == 740
    assert throughput_metrics(field, [1286.0])[0].ok


async def test_a_peer_that_fails_stays_in_the_table_and_ours_ends_the_run() -> None:
    ours, peer = entrant("fullpass", 500, fences=True), entrant("awa", 400, fences=True)
    field = Field([ours, peer])
    await field.measure(peer, "idle")
    assert field.running == [ours]
    assert "not measured: idle: it said nothing" in peer.row
    with pytest.raises(RuntimeError, match="idle"):
        await field.measure(ours, "idle")


class RunsTwice:
    """A queue that gives each job to two workers."""

    unfinished = "select 0"
    poll_seconds = 0.0

    def __init__(self) -> None:
        self.measured: Measured | None = None

    async def install(self, url: str) -> None: ...
    async def start(self, url: str, ran) -> None: ...
    async def stop(self) -> None: ...

    async def enqueue(self, count: int) -> None:
        for _ in range(2 * count):
            self.measured.ran()


@pytest.mark.xdist_group("bench_queue")
def test_the_meter_counts_what_others_send_and_a_job_run_twice_is_no_result() -> None:
    async def check(server_url: str) -> None:
        async with Server.at(server_url) as server:
            url = await server.database("meter")
            meter = await Meter.connect(url)
            assert meter.counted == "statements"
            other = await asyncpg.connect(url, statement_cache_size=0)
            before = await meter.requests()
            for n in range(7):
                await other.execute("select $1::int", n)
                await meter.ask("select 1")
            assert await meter.requests() - before == 7
            await other.close()
            queue = RunsTwice()
            queue.measured = Measured(queue, meter)
            with pytest.raises(RuntimeError, match="5 jobs ran 10 times"):
                await queue.measured.throughput(5)

    with embedded_server(durable=False) as server_url:
        asyncio.run(check(server_url))


@pytest.mark.xdist_group("bench_queue")
def test_the_script_measures_ours_and_names_every_peer_left_out(postgres_server) -> None:
    done = subprocess.run(
        [
            sys.executable, "bench/bench_queue.py", "--database-url", postgres_server.url,
            "--peers", "none", "--quick", "--rounds", "1", "--only", "throughput",
        ],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode in {0, 1, 3}, done.stderr
    for peer in ("awa", "absurd", "pgqueuer", "procrastinate"):
        assert [
            line
            for line in done.stdout.splitlines()
            if line.startswith(peer) and "not measured: not asked for" in line
        ]
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    found = {line["metric"]: line for line in lines}
    assert found["jobs_per_second"]["value"] > 0
    assert found["jobs_per_second"]["limit"] > 0
    assert {line["metric"] for line in lines} >= {"awa_not_measured", "procrastinate_not_measured"}
