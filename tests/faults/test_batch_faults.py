"""Message batches under kills and trouble: no batch is made twice, nothing is paid twice.

A kill meets exactly one moment: the server holds the request at which the process is to die. What
was made, answered or half read by then is found by the next worker.
"""

from __future__ import annotations

import asyncio
import json
import signal
import time
import uuid
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.anthropic_behaviour import Scripted
from tests.support.anthropic_server import AnthropicServer
from tests.support.batch_pass import (
    BATCH,
    ONE_LOOK,
    all_planted,
    insert_job,
    look_now,
    noted,
    tend,
)
from tests.support.cli import EXAMPLE, Cli
from tests.support.exports import planted_export
from tests.support.worker_process import work_once, worker_process

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    "moment",
    [
        pytest.param("batch.create", marks=pytest.mark.long),  # written down, not made
        "batch.created",  # made, its id not known
        pytest.param("batch.poll", marks=pytest.mark.long),  # its id known
        pytest.param("batch.results", marks=pytest.mark.long),  # ended, nothing noted
        "half of the results",
    ],
)
async def test_a_kill_at_any_moment_of_a_batch_pays_nothing_twice(
    db: Any, database_url: str, tmp_path: Path, moment: str
) -> None:
    export = planted_export(conversations=8, filler_words=60)
    user = uuid.uuid4()
    job = await insert_job(db, export.write(tmp_path / "c.json"), user)
    with AnthropicServer(truth=export.truth) as server:
        if moment.startswith("batch."):
            server.hold(purpose=moment)
        else:
            server.script(Scripted(fault="stall_mid_body", purpose="batch.results"))
        with worker_process(database_url, server.url, "--once", **BATCH) as worker:
            if moment.startswith("batch."):
                await held(server, moment)
            else:
                await some_results_noted(db)
            worker.send_signal(signal.SIGKILL)
            worker.wait()
        assert len(server.batches.made) == (0 if moment == "batch.create" else 1)
        server.release()
        tally = await work_once(database_url, server.url, **BATCH)
        assert tally.completed == [job]
        assert len(server.batches.made) == 1
        assert not server.record.duplicates()
        assert await noted(db, server)
    assert await all_planted(db, user, export)


async def held(server: AnthropicServer, moment: str) -> None:
    """Wait until the process stands at that moment, whatever else it had to do done."""
    deadline = time.monotonic() + 40
    while moment not in server.batches.held or server.in_flight != 1:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)  # until the deadline


async def some_results_noted(db: Any) -> None:
    """Wait until a part of a batch's results is in the ledger, and no more comes."""
    counted = "select count(*) from fullpass.llm_calls where batch"
    deadline = time.monotonic() + 40
    before, now = -1, 0
    while now == 0 or now != before:
        assert time.monotonic() < deadline
        before = now
        await asyncio.sleep(0.2)  # until two looks agree, or the deadline
        now = await db.fetchval(counted)


@pytest.mark.long
async def test_what_comes_back_unread_or_odd_is_read_all_the_same(
    db: Any, database_url: str, tmp_path: Path
) -> None:
    export = planted_export(conversations=40, filler_words=60)
    user = uuid.uuid4()
    job = await insert_job(db, export.write(tmp_path / "c.json"), user)
    with AnthropicServer(truth=export.truth) as server:
        server.behave(
            batch_items={
                "errored": 0.08, "invalid": 0.08, "expired": 0.08, "canceled": 0.08, "missing": 0.05
            },
            faults={"empty_text": 0.08, "max_tokens": 0.08, "prefixed": 0.08, "fenced": 0.08},
            fault_purposes=("extract",),
        )  # fmt: skip
        tally = await work_once(database_url, server.url, **BATCH)
        assert tally.completed == [job]
        assert await all_planted(db, user, export)
        assert not server.record.paid_again()
        assert await noted(db, server)
        result = json.loads(await db.fetchval("select result from processing_jobs"))
        assert result["coverage"]["share"] == 1.0
        assert "unread" not in result["coverage"]["outcomes"]
        states = dict(
            await db.fetch("select state, count(*) from fullpass.batch_items group by state")
        )
        assert {"succeeded", "errored", "expired", "canceled"} <= set(states)
        assert "waiting" not in states
        assert await db.fetchval("select max(sent) from fullpass.windows") <= 3


@pytest.mark.long
async def test_a_batch_that_never_ends_is_given_up_and_its_late_cost_still_noted(
    db: Any, database_url: str, tmp_path: Path
) -> None:
    export = planted_export(conversations=12, filler_words=60)
    user = uuid.uuid4()
    job = await insert_job(db, export.write(tmp_path / "c.json"), user)
    with AnthropicServer(truth=export.truth) as server:
        server.behave(batch_never_ends=True, batch_expires_seconds=1.0)
        tally = await work_once(database_url, server.url, **BATCH)
        assert tally.completed == [job]
        assert await all_planted(db, user, export)
        (batch,) = server.batches.made.values()
        assert batch.cancelled_at is not None
        server.behave(batch_never_ends=False, batch_done_when_cancelled=1.0)
        await tend(db, database_url, server)
        assert await noted(db, server)
        assert await db.fetchval("select state from fullpass.batches") == "done"


@pytest.mark.long
@pytest.mark.parametrize("fault", ["overloaded", "rate_limited"])
async def test_a_batch_that_was_refused_is_made_later(
    db: Any, database_url: str, tmp_path: Path, fault: Any
) -> None:
    export = planted_export(conversations=12, filler_words=60)
    user = uuid.uuid4()
    job = await insert_job(db, export.write(tmp_path / "c.json"), user)
    with AnthropicServer(truth=export.truth) as server:
        server.script(Scripted(fault=fault, purpose="batch.create"))
        tally = await work_once(database_url, server.url, **ONE_LOOK)
        assert list(tally.left) == [job]
        assert await db.fetchval("select attempts from processing_jobs") == 0
        await db.execute("update fullpass.batches set created_at = created_at - interval '1 hour'")
        await look_now(db, job)
        tally = await work_once(database_url, server.url, **BATCH)
        assert tally.completed == [job]
        assert len(server.batches.made) == 1
        assert await all_planted(db, user, export)
        assert not server.record.paid_again()


@pytest.mark.long
def test_run_waits_for_its_batch_and_may_be_stopped_meanwhile(tmp_path: Path) -> None:
    with AnthropicServer() as server:
        server.behave(batch_seconds=3600.0)
        cli = Cli(
            tmp_path, ANTHROPIC_API_KEY="test-key", ANTHROPIC_BASE_URL=server.url,
            EXTRACTION_MODE="batch", BATCH_POLL_SECONDS=0.5, EXTRACTION_WINDOW_TOKENS=1500,
        )  # fmt: skip
        process = cli.start("run", EXAMPLE)
        try:
            deadline = time.monotonic() + 40
            while "Waiting for 1 message batch with" not in (tmp_path / "output.txt").read_text():
                assert time.monotonic() < deadline
                time.sleep(0.05)  # until the deadline
            process.send_signal(signal.SIGINT)
            assert process.wait(20) == 1
        finally:
            process.kill()
        assert "stopped before the end" in (tmp_path / "output.txt").read_text()
        server.behave(batch_seconds=0.0)
        done = cli.run("run", EXAMPLE)
        assert done.returncode == 0, done.stderr
        assert len(server.batches.made) == 1
        assert not server.record.paid_again()
