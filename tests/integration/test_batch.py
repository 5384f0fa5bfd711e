"""Extraction by message batches: half the price, the same pass, nothing asked or paid twice."""

from __future__ import annotations

import json
import uuid
from decimal import Decimal
from io import StringIO
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest
from rich.console import Console

from daemon.cli.screen import job_screen
from daemon.database import open_pool
from daemon.fullpass.context import STEPS
from daemon.llm.batch_api import BatchApi, batch_api_of
from daemon.llm.batch_rows import Batch, BatchRows, Draft
from daemon.llm.batches import Batches
from daemon.llm.providers import provider_from
from daemon.llm.request import Request
from daemon.ops.status import job_account
from daemon.settings import load_settings
from tests.support.anthropic_behaviour import Scripted
from tests.support.anthropic_server import AnthropicServer
from tests.support.batch_pass import (
    BATCH,
    ONE_LOOK,
    all_planted,
    batches_of_a_worker,
    insert_job,
    look_now,
    noted,
    paid,
    tend,
    waiting_job,
)
from tests.support.cloud_server import ACCESS_KEY, REGION, SECRET_KEY, CloudServer
from tests.support.exports import planted_export
from tests.support.worker_process import work_once

if TYPE_CHECKING:
    from pathlib import Path


async def test_a_first_memory_comes_at_once_and_the_job_holds_nothing_while_it_waits(
    db: Any, database_url: str, tmp_path: Path
) -> None:
    export = planted_export(conversations=10, filler_words=60)
    user = uuid.uuid4()
    job = await insert_job(db, export.write(tmp_path / "c.json"), user)
    with AnthropicServer(truth=export.truth) as server:
        server.behave(batch_seconds=3600.0)
        tally = await work_once(database_url, server.url, **ONE_LOOK)
        assert list(tally.left) == [job]
        profile = await db.fetchrow("select * from user_profiles where user_id = $1", user)
        newest = export.truth[-1].statement
        assert newest in profile["memory_md"]
        assert export.truth[0].statement not in profile["memory_md"]
        assert profile["full_pass_status"] == "processing"
        assert "the rest is being read" in profile["import_stage"]
        assert profile["progress_percent"] < 80
        row = await db.fetchrow("select * from processing_jobs where id = $1", job)
        assert (row["status"], row["attempts"], row["worker_id"]) == ("pending", 0, None)
        told = await job_account(db, job)
        assert told is not None
        assert "1 message batch with" in told["why"]
        assert "since 20" in told["why"]
        assert told["batches"]["out"] == 1
        assert told["waiting_since"] is not None
        # Looks that find nothing new write no step, ask nothing and never end the job.
        asked = len(server.record.calls)
        counted = "select count(*) from fullpass.job_events where event like 'step%'"
        steps = await db.fetchval(counted)
        for _ in range(2):
            await look_now(db, job)
            await work_once(database_url, server.url, max_wait_hours=1e-6, **ONE_LOOK)
        assert len(server.record.calls) == asked
        assert len(server.batches.made) == 1
        assert await db.fetchval(counted) == steps
        told = await job_account(db, job)
        assert told is not None
        shown = Console(file=StringIO(), width=100)
        job_screen(shown, told)
        timeline = shown.file.getvalue()  # type: ignore[attr-defined]
        assert timeline.count("claimed") == 1, timeline
        assert "looks 3" in timeline
        assert await db.fetchval("select attempts from processing_jobs") == 0
        server.behave(batch_seconds=0.0)
        await look_now(db, job)
        tally = await work_once(database_url, server.url, **BATCH)
        assert tally.completed == [job]
        assert await all_planted(db, user, export)
        by_batch = [c for c in server.record.calls if c.batch]
        assert len(by_batch) == 9  # of ten windows, one was read at once
        # Half the price, receipt by receipt.
        assert await noted(db, server)
        memory = await db.fetchval("select memory_md from user_profiles where user_id = $1", user)
        assert all(p.statement in memory for p in export.truth)
        assert not server.record.paid_again()


async def test_a_batch_whose_creation_got_no_answer_is_found_and_not_made_again(
    db: Any, database_url: str, tmp_path: Path
) -> None:
    export = planted_export(conversations=8, filler_words=60)
    user = uuid.uuid4()
    job = await insert_job(db, export.write(tmp_path / "c.json"), user)
    with AnthropicServer(truth=export.truth) as server:
        server.script(Scripted(fault="reset", purpose="batch.created"))
        tally = await work_once(database_url, server.url, **BATCH)
        assert tally.completed == [job]
        assert await all_planted(db, user, export)
        assert len(server.batches.made) == 1
        assert not server.record.paid_again()
        assert await noted(db, server)


async def test_results_that_break_off_are_noted_once_each(
    db: Any, database_url: str, tmp_path: Path
) -> None:
    export = planted_export(conversations=8, filler_words=60)
    user = uuid.uuid4()
    await insert_job(db, export.write(tmp_path / "c.json"), user)
    with AnthropicServer(truth=export.truth) as server:
        server.script(Scripted(fault="reset", purpose="batch.results"))
        server.script(Scripted(fault="truncated_body", purpose="batch.results"))
        await work_once(database_url, server.url, **BATCH)
        assert await all_planted(db, user, export)
        assert not server.record.paid_again()
        assert await noted(db, server)


@pytest.mark.parametrize(
    "tail",
    [b"\n", b'{"custom_id": "a\\u0000b", "result": {"type": "expired"}}\n'],
    ids=["an empty line", "an id that no row can hold"],
)
async def test_what_stands_behind_the_last_result_changes_nothing(
    db: Any, database_url: str, tmp_path: Path, tail: bytes
) -> None:
    export = planted_export(conversations=4, filler_words=60)
    user = uuid.uuid4()
    job = await insert_job(db, export.write(tmp_path / "c.json"), user)
    with AnthropicServer(truth=export.truth) as server:
        server.behave(batch_tail=tail)
        tally = await work_once(database_url, server.url, **BATCH)
        assert tally.completed == [job]
        assert await all_planted(db, user, export)
        assert not server.record.paid_again()
        assert await noted(db, server)
    assert await db.fetchval("select attempts from processing_jobs") == 1


async def test_cancelling_a_job_that_waits_cancels_its_batch_and_keeps_what_was_answered(
    db: Any, database_url: str, tmp_path: Path
) -> None:
    export = planted_export(conversations=8, filler_words=60)
    with AnthropicServer(truth=export.truth) as server:
        server.behave(batch_done_when_cancelled=0.5)
        path = export.write(tmp_path / "c.json")
        job, user = await waiting_job(db, database_url, server, path)
        assert await db.fetchval("select fullpass.cancel($1)", job)
        # Nobody holds the job: whichever worker is up next does it.
        await work_once(database_url, server.url, **BATCH)
        await tend(db, database_url, server)
        (batch,) = server.batches.made.values()
        assert batch.cancelled_at is not None
        assert await db.fetchval("select outcome from fullpass.batches") == "collected"
        assert await noted(db, server)
        profile = await db.fetchrow("select * from user_profiles where user_id = $1", user)
        assert profile["full_pass_status"] == "complete"  # there is a first memory
        # Taken up again, it pays only for what was not answered.
        server.behave(batch_seconds=0.0)
        assert await db.fetchval("select fullpass.retry($1)", job)
        tally = await work_once(database_url, server.url, **BATCH)
        assert tally.completed == [job]
        assert await all_planted(db, user, export)
        assert not server.record.paid_again()


async def test_a_result_that_arrives_for_a_forgotten_person_leaves_its_cost_and_nothing_else(
    db: Any, database_url: str, tmp_path: Path
) -> None:
    export = planted_export(conversations=8, filler_words=60)
    with AnthropicServer(truth=export.truth) as server:
        server.behave(batch_done_when_cancelled=1.0)
        path = export.write(tmp_path / "c.json")
        _, user = await waiting_job(db, database_url, server, path)
        keys = {r["call_key"] for r in await db.fetch("select call_key from fullpass.batch_items")}
        forgotten = json.loads(await db.fetchval("select fullpass.forget($1)", user))
        assert forgotten["batch_requests_blinded"] == len(keys)
        left = {r["call_key"] for r in await db.fetch("select call_key from fullpass.batch_items")}
        assert not left & keys
        await tend(db, database_url, server)
        assert await noted(db, server)
        content = await db.fetchval(
            "select count(*) from fullpass.llm_calls "
            "where call_key is not null or response is not null or request_id is not null"
        )
        assert content == 0
        assert await db.fetchval("select count(*) from fullpass.llm_calls where batch") == len(keys)
        assert await db.fetchval("select count(*) from fullpass.batch_items") == 0
        # Looked at again it is not noted again.
        await tend(db, database_url, server)
        assert await noted(db, server)


async def test_a_server_without_batches_is_read_in_real_time(
    db: Any, database_url: str, tmp_path: Path
) -> None:
    export = planted_export(conversations=8, filler_words=60)
    user = uuid.uuid4()
    job = await insert_job(db, export.write(tmp_path / "c.json"), user)
    with AnthropicServer(truth=export.truth) as server:
        server.behave(batches_endpoint=False)
        tally = await work_once(database_url, server.url, **BATCH)
        assert tally.completed == [job]
        assert await all_planted(db, user, export)
        assert not server.record.paid_again()


async def test_a_limit_on_cost_holds_before_a_batch_is_made(
    db: Any, database_url: str, tmp_path: Path
) -> None:
    export = planted_export(conversations=12, filler_words=60)
    user = uuid.uuid4()
    # With a MEMORY already, nothing is read at once: batches alone meet the limit.
    await db.execute(
        "insert into fullpass.memories (job_id, user_id, writer, memory_md, facts) "
        "values (gen_random_uuid(), $1, 'llm', '', 0)",
        user,
    )
    job = await insert_job(db, export.write(tmp_path / "c.json"), user)
    with AnthropicServer(truth=export.truth) as server:
        tally = await work_once(database_url, server.url, max_cost_usd_per_job=0.0004, **BATCH)
        assert "MAX_COST_USD_PER_JOB" in tally.failed[job]
        assert not server.batches.made
        assert not server.record.calls
        # Parts go as far as the money reaches at their estimated cost, the rest when it is known.
        limit = 0.006
        await db.fetchval("select fullpass.retry($1)", job)
        tally = await work_once(database_url, server.url, max_cost_usd_per_job=limit, **BATCH)
        sizes = [len(batch.requests) for batch in server.batches.made.values()]
        assert len(sizes) > 1
        assert sum(sizes) == 12
        assert await db.fetchval("select max(estimated_usd) from fullpass.batches") <= limit
        assert paid(server) <= Decimal(str(limit))
        await db.fetchval("select fullpass.retry($1)", job)
        tally = await work_once(database_url, server.url, **BATCH)
        assert tally.completed == [job]
        assert await all_planted(db, user, export)
        assert not server.record.paid_again()
        assert await noted(db, server)


@pytest.mark.parametrize("told", [True, False], ids=["usage told", "usage not told"])
async def test_thinking_that_is_paid_as_output_takes_no_batch_past_the_limit(
    db: Any, database_url: str, tmp_path: Path, *, told: bool
) -> None:
    export = planted_export(conversations=8, filler_words=60)
    user = uuid.uuid4()
    await db.execute(
        "insert into fullpass.memories (job_id, user_id, writer, memory_md, facts) "
        "values (gen_random_uuid(), $1, 'llm', '', 0)",
        user,
    )
    await insert_job(db, export.write(tmp_path / "c.json"), user)
    limit = Decimal("0.006")
    with AnthropicServer(truth=export.truth) as server:
        server.behave(thinking_tokens=7_000, faults={} if told else {"no_usage": 1.0})
        await work_once(database_url, server.url, max_cost_usd_per_job=float(limit), **BATCH)
        assert server.batches.made
        assert limit / 2 < paid(server) <= limit
        if told:
            assert await noted(db, server)
        else:
            assert await db.fetchval("select sum(cost_usd) from fullpass.llm_calls") is None


def at_most(usd: float) -> dict[str, Any]:
    """A limit on a job, and a model for MEMORY whose one call may cost four cents of it."""
    return {
        "max_cost_usd_per_job": usd,
        "model_capabilities": {"sonnet-5.5": {"input_usd": 0.1, "output_usd": 2}},
        "memory_model": "sonnet-5.5",
    }


async def test_what_is_paid_at_once_leaves_a_batch_that_is_out_its_money(
    db: Any, database_url: str, tmp_path: Path
) -> None:
    # One window is read at once for a first MEMORY.
    export = planted_export(conversations=12, filler_words=60)
    job = await insert_job(db, export.write(tmp_path / "c.json"), uuid.uuid4())
    limit = Decimal("0.06")
    money = at_most(float(limit))
    with AnthropicServer(truth=export.truth) as server:
        server.behave(batch_seconds=3600.0)
        tally = await work_once(database_url, server.url, **ONE_LOOK, **money)
        assert tally.left
        (made,) = server.batches.made.values()
        aside = await db.fetchval("select estimated_usd from fullpass.batches")
        spent = await db.fetchval("select sum(cost_usd) from fullpass.llm_calls")
        # Without the batch the next call would fit, beside it at its worst it does not.
        assert 0 < spent < Decimal("0.02") < aside
        purposes = {call.purpose for call in server.record.completed()}
        assert purposes == {"extract"}
        detail = await db.fetchrow("select status, attempts from processing_jobs")
        assert (detail["status"], detail["attempts"]) == ("pending", 0)
        # While it is out, a worker that looks again and again tries what it cannot pay but once.
        server.behave(batch_seconds=2.0)
        await look_now(db, job)
        counted = "select count(*) from fullpass.job_events where event = 'step.started'"
        before = await db.fetchval(counted)
        tally = await work_once(database_url, server.url, **{**BATCH, **money})
        assert tally.completed == [job]
        assert await db.fetchval("select sum(cost_usd) from fullpass.llm_calls") <= limit
        assert {call.purpose for call in server.record.completed()} > {"extract"}
        assert await db.fetchval(counted) - before <= 2 * len(STEPS)
        assert len(made.requests) > 2
        assert not server.record.paid_again()


@pytest.mark.parametrize("limit", [0.06, 0.028])
async def test_a_provider_without_batches_waits_for_none_and_says_what_is_set_aside(
    db: Any, database_url: str, tmp_path: Path, limit: float
) -> None:
    export = planted_export(conversations=12, filler_words=60)
    job = await insert_job(db, export.write(tmp_path / "c.json"), uuid.uuid4())
    with AnthropicServer(truth=export.truth) as server:
        server.behave(batch_seconds=3600.0)
        tally = await work_once(database_url, server.url, **ONE_LOOK, **at_most(0.06))
        assert tally.left
    await look_now(db, job)
    with CloudServer(truth=export.truth) as cloud:
        bedrock: dict[str, Any] = {
            "anthropic_api_key": None,
            "anthropic_base_url": None,
            "use_bedrock": True,
            "aws_region": REGION,
            "aws_access_key_id": ACCESS_KEY,
            "aws_secret_access_key": SECRET_KEY,
            "anthropic_bedrock_base_url": cloud.url,
            "anthropic_bedrock_mantle_base_url": f"{cloud.url}/anthropic",
        }
        again = {**ONE_LOOK, **bedrock, **at_most(limit)}
        tally = await work_once(database_url, cloud.url, **again)
        assert f"MAX_COST_USD_PER_JOB ({limit:g})" in tally.failed[job]
        assert "spent or set aside" in tally.failed[job]
        await db.fetchval("select fullpass.retry($1)", job)
        tally = await work_once(database_url, cloud.url, **{**again, **at_most(1.0)})
        assert tally.completed == [job]


async def test_another_model_named_while_a_batch_is_out_pays_nothing_again(
    db: Any, database_url: str, tmp_path: Path
) -> None:
    export = planted_export(conversations=6, filler_words=60)
    with AnthropicServer(truth=export.truth) as server:
        path = export.write(tmp_path / "c.json")
        job, user = await waiting_job(db, database_url, server, path)
        server.behave(batch_seconds=0.0)
        await look_now(db, job)
        # As is a release that words the question anew: what is out was asked in the old words.
        other = {**BATCH, "extraction_model": "sonnet-5.5"}
        tally = await work_once(database_url, server.url, **other)
        assert tally.completed == [job]
        assert await all_planted(db, user, export)
        asked = [call.model for call in server.record.calls if call.purpose == "extract"]
        assert asked == ["claude-haiku-5-5"] * 6
        assert await noted(db, server)


async def test_neither_another_mode_nor_another_job_asks_what_is_out(
    db: Any, database_url: str, tmp_path: Path
) -> None:
    export = planted_export(conversations=8, filler_words=60)
    with AnthropicServer(truth=export.truth) as server:
        path = export.write(tmp_path / "c.json")
        job, user = await waiting_job(db, database_url, server, path)
        asked = len(server.record.calls)
        second = await insert_job(db, export.write(tmp_path / "again.json"), user)
        realtime = {**ONE_LOOK, "extraction_mode": "realtime"}
        await look_now(db, job)
        tally = await work_once(database_url, server.url, **realtime)
        assert set(tally.left) == {job, second}
        assert len(server.record.calls) == asked
        server.behave(batch_seconds=0.0)
        await look_now(db, job)
        await look_now(db, second)
        tally = await work_once(
            database_url, server.url, **{**BATCH, "extraction_mode": "realtime"}
        )
        assert sorted(tally.completed) == sorted([job, second])
        assert await all_planted(db, user, export)
        assert not server.record.paid_again()
        assert len(server.batches.made) == 1


async def test_a_late_creation_of_a_worker_that_lost_the_job_is_cancelled_and_its_cost_noted(
    db: Any, database_url: str
) -> None:
    user, job = uuid.uuid4(), uuid.uuid4()
    request = Request("extract", "1", "claude-haiku-5-5", "s", "t", {}, 100, 10.0)
    with AnthropicServer() as server:
        server.behave(strict_schemas=False, batch_done_when_cancelled=1.0, batch_seconds=3600.0)
        async with batches_of_a_worker(database_url, server) as batches:
            batch = await begun(batches.rows, user=user, job=job, keys={"k1": 1})
            # Whoever took the job over found nothing listed and concluded that it was never made.
            await batches.rows.close(batch, "never sent")
            again = await begun(batches.rows, user=user, job=job, keys={"k1": 1})
            await batches.send(batch, [("k1", request)])
            (stray,) = server.batches.made.values()
            assert stray.cancelled_at is not None
            await batches.send(again, [("k1", request)])
            assert len(server.batches.made) == 2
        await tend(db, database_url, server)
        assert await noted(db, server)


async def begun(rows: BatchRows, *, user: uuid.UUID, job: uuid.UUID, keys: dict[str, int]) -> Batch:
    draft = Draft(
        job_id=job, user_id=user, source="chatgpt", provider="anthropic",
        model="claude-haiku-5-5", purpose="extract", prompt_version="1",
        estimated_usd=None,
    )  # fmt: skip
    async with rows._pool.acquire() as connection:
        return await rows.begin(connection, draft, keys)  # type: ignore[arg-type]


async def test_a_batch_is_found_behind_one_of_others_whose_results_cannot_be_had(
    database_url: str,
) -> None:
    request = Request("extract", "1", "claude-haiku-5-5", "s", "t", {}, 100, 10.0)
    with AnthropicServer() as server:
        server.behave(strict_schemas=False)
        async with batches_of_a_worker(database_url, server) as batches:
            batch = await begun(batches.rows, user=uuid.uuid4(), job=uuid.uuid4(), keys={"k1": 1})
            ours = await batches.api.create([("k1", request)])
            await batches.api.create([("another-apps", request)])  # the newer: looked at first
            server.script(Scripted(fault="server_error", purpose="batch.results"))
            assert await batches.look(batch)
            outcome = "select batch_id, outcome from fullpass.batches where id = $1"
            found = await batches.rows._pool.fetchrow(outcome, batch.id)
            assert found is not None
            assert tuple(found) == (ours.id, "collected")


async def test_the_same_question_never_waits_in_two_batches(database_url: str) -> None:
    pool = await open_pool(database_url)
    try:
        rows = BatchRows(pool)
        user, job = uuid.uuid4(), uuid.uuid4()
        first = await begun(rows, user=user, job=job, keys={"k": 1})
        with pytest.raises(asyncpg.UniqueViolationError):
            await begun(rows, user=user, job=job, keys={"k": 2})
        assert await rows.waiting_elsewhere(["k", "other"]) == {"k"}
        await rows.close(first, "collected")
        await begun(rows, user=user, job=job, keys={"k": 2})
    finally:
        await pool.close()


async def test_looks_grow_rarer_with_the_age_of_a_batch(database_url: str) -> None:
    pool = await open_pool(database_url)
    try:
        rows = BatchRows(pool)
        batches = Batches(BatchApi.__new__(BatchApi), rows, poll_seconds=30.0, read=lambda r: r)
        batch = await begun(rows, user=uuid.uuid4(), job=uuid.uuid4(), keys={"k": 1})
        pauses = []
        for minutes in (0, 10, 30, 600):
            await pool.execute(
                "update fullpass.batches set created_at = now() - make_interval(mins => $1)",
                minutes,
            )
            (aged,) = await rows.open_of(batch.user_id, "chatgpt")
            pauses.append(round(batches.pause_seconds([aged])))
        assert pauses == [30, 60, 180, 300]
    finally:
        await pool.close()


def test_bedrock_and_offline_have_no_batches() -> None:
    assert batch_api_of(provider_from(load_settings(llm_provider="offline"))) is None


async def test_the_loopback_server_refuses_what_the_api_refuses(database_url: str) -> None:
    import anthropic

    body = {
        "model": "claude-haiku-5-5",
        "max_tokens": 10,
        "messages": [{"role": "user", "content": "x"}],
    }
    with AnthropicServer() as server:
        server.behave(batch_most_requests=2, batch_most_bytes=1_000)
        async with anthropic.AsyncAnthropic(
            api_key="test-key", base_url=server.url, max_retries=0
        ) as client:
            for requests, error in [
                ([], anthropic.BadRequestError),
                ([("a", body), ("a", body)], anthropic.BadRequestError),
                ([("bad id", body)], anthropic.BadRequestError),
                ([("a", body), ("b", body), ("c", body)], anthropic.BadRequestError),
                ([("a", {**body, "system": "x" * 1_000})], anthropic.RequestTooLargeError),
            ]:
                with pytest.raises(error):
                    await client.messages.batches.create(
                        requests=[{"custom_id": i, "params": p} for i, p in requests]  # type: ignore[misc]
                    )
            made = await client.messages.batches.create(
                requests=[{"custom_id": "a", "params": body}]  # type: ignore[typeddict-item]
            )
            listed = [b.id async for b in client.messages.batches.list()]
            assert listed == [made.id]
