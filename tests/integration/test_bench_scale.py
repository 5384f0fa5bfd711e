"""The scale benchmark counts exactly and judges by limits that can be missed."""

from __future__ import annotations

import subprocess
import sys
import time
from decimal import Decimal
from typing import TYPE_CHECKING

import asyncpg

from bench.bench_scale import Point, curve_metrics, footprint_metrics
from bench.scale_counts import Left, Look
from tests.support.cli import ROOT, ask
from tests.support.worker_process import environment

if TYPE_CHECKING:
    from pathlib import Path


def point(workers: int, rate: float, claim_ms: float, connections: int) -> Point:
    return Point(workers, [rate] * 5, [claim_ms] * 100, [connections], [12.0], [7e3])


def test_the_curve_is_judged_by_connections_claims_and_crowding() -> None:
    def missed(*points: Point) -> set[str]:
        return {m.name for m in curve_metrics(list(points), [1000.0], "statements") if not m.ok}

    assert missed(point(1, 100, 5, 5), point(8, 90, 200, 40)) == set()
    assert missed(point(1, 100, 51, 6), point(8, 69, 200, 41)) == {
        "claim_p99_ms_1", "connections_1", "connections_8", "crowded_over_best",
    }  # fmt: skip


def test_a_thousand_passes_are_reckoned_from_a_few_and_staging_is_not_growth() -> None:
    row = {"inserted": 10, "updated": 4, "hot": 4, "deleted": 1}
    left = Left(
        wal_bytes=2 * 2**20, requests=40,
        tables={
            "facts": {**row, "bytes": 2**20},
            "fullpass.staged_facts": {**row, "bytes": 2**30},
        },
    )  # fmt: skip
    found = {
        m.name: m.value
        for m in footprint_metrics(left, 2, 5, "statements", requests_per_second=100.0)
    }
    assert found["real_wal_mb_per_1000_passes"] == 1000
    assert found["real_growth_mb_per_1000_passes"] == 500
    assert found["real_rows_inserted_per_1000_passes"] == 10_000
    assert found["real_growth_kb_per_chunk"] == 1024 / 10
    assert found["real_passes_per_hour_at_most"] == 18_000


async def test_the_look_sees_rows_growth_and_wal_of_others_and_not_its_own(
    database_url: str,
) -> None:
    async with Look.at(database_url) as look:
        other = await asyncpg.connect(database_url, statement_cache_size=0)
        try:
            await other.execute("create table public.heap (n int, words text)")
            await other.execute(
                "insert into heap select n, repeat('w', 500) from generate_series(1, 2000) as n"
            )
            await other.execute("update heap set n = -n where n <= 30")
            await other.execute("delete from heap where n > 1990")
        finally:
            await other.close()
        left = await look.left()
    heap = left.tables["heap"]
    assert (heap["inserted"], heap["updated"], heap["deleted"]) == (2000, 30, 10)
    assert heap["bytes"] > 2**20
    assert left.wal_bytes > 2**20
    assert left.rows("inserted") == 2000


def test_a_simulated_pass_is_written_down_as_real_ones_are_and_ends(
    database_url: str, tmp_path: Path
) -> None:
    ask(
        database_url,
        "insert into processing_jobs (user_id, storage_path) "
        "select gen_random_uuid(), 'bench/' || n from generate_series(1, 20) n",
    )
    claims = tmp_path / "claims"
    workers = subprocess.Popen(
        [sys.executable, str(ROOT / "bench" / "scale_worker.py"), "2", "5", str(claims)],
        env=environment(database_url, None, llm_provider="offline"),
    )
    ends = "select count(*) from processing_jobs where status = 'complete'"
    try:
        deadline = time.monotonic() + 30
        while ask(database_url, ends)[0][0] < 20:
            assert time.monotonic() < deadline, ask(
                database_url, "select error_message from processing_jobs limit 1"
            )
            time.sleep(0.1)  # polled until the deadline
    finally:
        workers.terminate()
        assert workers.wait(20) == 0
    assert claims.read_text()
    paid = "select count(*), sum(cost_usd) from fullpass.llm_calls where usable"
    assert [tuple(row) for row in ask(database_url, paid)] == [(40, Decimal("0.05"))]
