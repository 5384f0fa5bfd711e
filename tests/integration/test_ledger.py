"""Receipts: found by content, kept whatever happens to the job, pruned by age, erased by person."""

from __future__ import annotations

import asyncio
import uuid
from decimal import Decimal
from typing import TYPE_CHECKING

from daemon.llm.budget import Budget
from daemon.llm.ledger import Ledger, Spent
from daemon.llm.pricing import Models
from daemon.llm.request import Reply, Request, Usage
from daemon.queue.housekeeping import keep_house, prune

if TYPE_CHECKING:
    from daemon.database import Pool

MODEL = "claude-haiku-5-5"
USER = uuid.UUID(int=1)


def request(text: str) -> Request:
    return Request("extract", "v1", MODEL, "system", text, {}, 100, 10.0)


async def paid(pool: Pool, text: str, *, user: uuid.UUID = USER, job: uuid.UUID) -> str:
    """Leave a receipt of a call; return its key."""
    asked = request(text)
    key = asked.content_key(str(user))
    usage = Usage(1_000, 100)
    bill = Models().named(MODEL).bill(usage)
    reply = Reply(f"answer to {text}", "end_turn", usage, MODEL, latency_ms=5, bill=bill)
    await Ledger(pool).record(
        asked, reply, key=key, user_id=user, job_id=job, provider="anthropic", usable=True
    )
    return key


async def age(pool: Pool, days: int) -> None:
    await pool.execute(
        "update fullpass.llm_calls set created_at = created_at - make_interval(days => $1)", days
    )


async def test_totals_of_a_job_and_of_a_person_are_sums_of_receipts(pool: Pool) -> None:
    jobs = [uuid.uuid4(), uuid.uuid4()]
    for n in range(6):
        await paid(pool, f"text {n}", job=jobs[n % 2])
    await paid(pool, "another's", user=uuid.UUID(int=2), job=uuid.uuid4())
    ledger = Ledger(pool)
    of_job, of_user = await ledger.spent(jobs[0]), await ledger.spent_on(USER)
    assert (of_job.calls, of_job.input_tokens, of_job.output_tokens) == (3, 3_000, 300)
    assert (of_user.calls, of_user.input_tokens, of_user.output_tokens) == (6, 6_000, 600)
    # 0.10 and 0.50 dollars a million.
    assert of_user.cost_usd == 2 * of_job.cost_usd == Decimal("0.0009")


async def test_old_bodies_are_dropped_and_what_they_cost_stays(pool: Pool) -> None:
    job = uuid.uuid4()
    old = await paid(pool, "long ago", job=job)
    await age(pool, 31)
    new = await paid(pool, "today", job=job)
    ledger = Ledger(pool)
    before = await ledger.spent_on(USER)
    assert await prune(pool, retention_days=30) == {
        "llm_bodies": 1,
        "job_events": 0,
        "windows": 0,
        "workers": 0,
        "outbox": 0,
    }
    assert await prune(pool, retention_days=30) == {
        "llm_bodies": 0,
        "job_events": 0,
        "windows": 0,
        "workers": 0,
        "outbox": 0,
    }
    assert await ledger.spent_on(USER) == before
    assert await ledger.find(old, job_id=job) is None  # an empty body is never served as a reply
    kept = await ledger.find(new, job_id=job)
    assert kept is not None
    assert kept.reply is not None
    assert kept.reply.text == "answer to today"


async def test_pruning_goes_on_by_bounded_steps_until_nothing_old_is_left(pool: Pool) -> None:
    await paid(pool, "long ago", job=uuid.uuid4())
    await pool.execute(
        "insert into fullpass.llm_calls (call_key, user_id, purpose, provider, model, "
        "prompt_version, usable, response) select 'k' || n, $1, 'extract', 'p', 'm', 'v', true, "
        "'body' from generate_series(1, 2500) n",
        USER,
    )
    await age(pool, 31)
    assert (await prune(pool, retention_days=30))["llm_bodies"] == 1_000
    await keep_house(pool, retention_days=30)
    left = await pool.fetchval("select count(*) from fullpass.llm_calls where response is not null")
    assert left == 0
    assert await pool.fetchval("select count(*) from fullpass.llm_calls") == 2_501


async def test_old_events_go_once_their_job_has_ended(pool: Pool) -> None:
    live, done = [
        await pool.fetchval(
            "insert into processing_jobs (user_id, storage_path) values ($1, $2) returning id",
            uuid.UUID(int=n),
            f"b/{n}",
        )
        for n in (1, 2)
    ]
    await pool.execute("update processing_jobs set status = 'complete' where id = $1", done)
    for job, days in ((live, 40), (done, 40), (done, 1)):
        await pool.execute(
            "insert into fullpass.job_events (job_id, at, event) "
            "values ($1, now() - make_interval(days => $2), 'claimed')",
            job,
            days,
        )
    dropped = await prune(pool, retention_days=30)
    assert dropped["job_events"] == 1
    rows = await pool.fetch("select job_id from fullpass.job_events where event = 'claimed'")
    assert sorted(str(row["job_id"]) for row in rows) == sorted([str(live), str(done)])


async def test_pruning_reads_an_index(pool: Pool) -> None:
    await pool.execute(
        "insert into fullpass.llm_calls (user_id, purpose, provider, model, prompt_version, "
        "usable, response, created_at) select $1, 'extract', 'p', 'm', 'v', true, 'body', "
        "now() - n * interval '1 minute' from generate_series(1, 20000) n",
        USER,
    )
    await pool.execute("analyze fullpass.llm_calls")
    plan = await pool.fetch(
        "explain select id from fullpass.llm_calls where response is not null "
        "and created_at < now() - interval '10 days' order by created_at limit 1000"
    )
    assert any("llm_calls_bodies" in row[0] for row in plan), plan


async def test_after_an_erasure_the_totals_stay_and_nothing_is_served(pool: Pool) -> None:
    job = uuid.uuid4()
    key = await paid(pool, "private", job=job)
    ledger = Ledger(pool)
    before = await ledger.spent_on(USER)
    await pool.fetchval("select fullpass.forget($1)", USER)
    assert await ledger.spent_on(USER) == before
    assert await ledger.find(key, job_id=job) is None
    row = await pool.fetchrow("select * from fullpass.llm_calls")
    assert row is not None
    assert not [name for name in ("call_key", "response", "request_id") if row[name] is not None]


async def test_a_call_that_is_cancelled_twice_leaves_its_job_the_money_set_aside_for_it(
    pool: Pool,
) -> None:
    budget, ledger = Budget(), Ledger(pool)
    job, other = uuid.uuid4(), uuid.uuid4()
    inside, slow, go_on = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def spent_slowly() -> Spent:
        slow.set()
        await go_on.wait()
        return await ledger.spent(other)

    async def call() -> None:
        async with budget.reserve(
            job, Decimal("0.6"), ceiling_usd=1.0, spent=lambda: ledger.spent(job)
        ):
            inside.set()
            await asyncio.Event().wait()

    async def call_of_another_job() -> None:
        async with budget.reserve(other, Decimal("0.1"), ceiling_usd=1.0, spent=spent_slowly):
            pass

    async with asyncio.timeout(10):
        first = asyncio.create_task(call())
        await inside.wait()
        another = asyncio.create_task(call_of_another_job())
        await slow.wait()
        for _ in range(2):  # its lease is lost, then the worker shuts down
            first.cancel()
            for _ in range(2):  # until it has arrived: what is awaited hears of it a turn later
                await asyncio.sleep(0)
        go_on.set()
        await asyncio.gather(first, another, return_exceptions=True)
        assert first.cancelled()
        async with budget.reserve(
            job, Decimal("0.6"), ceiling_usd=1.0, spent=lambda: ledger.spent(job)
        ):
            pass
