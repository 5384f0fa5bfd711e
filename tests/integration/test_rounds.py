"""Receipts and lookups that travel together: none lost, none harmed by another, none late."""

from __future__ import annotations

import asyncio
import time
import uuid
from typing import TYPE_CHECKING, Any, TypeVar

import asyncpg
import pytest

from daemon.database import ReadyStatement, open_pool
from daemon.errors import Systemic
from daemon.llm.ledger import Ledger
from daemon.llm.request import Reply, Request, Usage
from tests.support.pgbouncer import transaction_pooler
from tests.support.tcp_proxy import TcpProxy

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Coroutine

    from daemon.database import Pool

T = TypeVar("T")

MODEL = "claude-haiku-5-5"
USER, JOB = uuid.UUID(int=1), uuid.UUID(int=2)


async def record(ledger: Ledger, key: str, *, text: str = "answer", latency_ms: int = 5) -> None:
    asked = Request("extract", "v1", MODEL, "system", "text", {}, 100, 10.0)
    reply = Reply(text, "end_turn", Usage(10, 5), MODEL, latency_ms=latency_ms)
    await ledger.record(
        asked, reply, key=key, user_id=USER, job_id=JOB, provider="anthropic", usable=True
    )


async def text_of(ledger: Ledger, key: str, *, patient: bool = False) -> str | None:
    found = await ledger.find(key, job_id=JOB, patient=patient)
    return None if found is None or found.reply is None else found.reply.text


@pytest.fixture
async def linked(database_url: str) -> AsyncIterator[tuple[TcpProxy, Ledger]]:
    """A ledger with a receipt in it, and the link to its database."""
    with TcpProxy(database_url) as proxy:
        pool = await open_pool(proxy.url)
        ledger = Ledger(pool)
        await record(ledger, "first")
        yield proxy, ledger
        await pool.close()


async def begun(work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
    """Return it as a task that is under way."""
    task = asyncio.create_task(work)
    # A task begins at the loop's next turn; cancelled before, it never would.
    await asyncio.sleep(0)
    return task


async def test_a_receipt_whose_caller_was_cancelled_is_waited_for_at_the_end(
    pool: Pool, database_url: str
) -> None:
    ledger = Ledger(pool)
    blocker = await asyncpg.connect(database_url)
    held = blocker.transaction()
    await held.start()
    await blocker.execute("lock table fullpass.llm_calls in access exclusive mode")
    paid = await begun(record(ledger, "paid"))
    paid.cancel()
    await asyncio.wait({paid})
    settled = asyncio.create_task(ledger.settle())
    assert not (await asyncio.wait({settled}, timeout=0.3))[0]  # a deadline that must pass
    await held.rollback()
    await blocker.close()
    await settled
    assert await pool.fetchval("select count(*) from fullpass.llm_calls") == 1
    await ledger.settle()


async def test_what_comes_at_the_same_moment_goes_in_one_transaction(pool: Pool) -> None:
    ledger = Ledger(pool)
    keys = [f"key {n}" for n in range(30)]
    await asyncio.gather(
        *(record(ledger, key, text=f"of {key}") for key in keys),
        *(text_of(ledger, "nobody's") for _ in range(30)),
    )
    rows = await pool.fetchrow(
        "select count(*) as calls, count(distinct xmin::text) as transactions "
        "from fullpass.llm_calls"
    )
    assert tuple(rows or ()) == (30, 1)
    texts = await asyncio.gather(*(text_of(ledger, key) for key in keys))
    assert texts == [f"of {key}" for key in keys]
    served = await pool.fetchval("select count(*) from fullpass.calls_served")
    assert served == 30
    # Long replies do not gather without bound.
    long = "x" * 400_000
    await asyncio.gather(*(record(ledger, f"long {n}", text=long) for n in range(6)))
    held = await pool.fetch(
        "select sum(length(response)) as characters from fullpass.llm_calls "
        "where call_key like 'long %' group by xmin::text"
    )
    assert [row["characters"] for row in held] == [800_000] * 3


async def test_a_patient_lookup_goes_with_the_next_receipt_and_never_waits_long(
    pool: Pool,
) -> None:
    ledger = Ledger(pool)
    patient = await begun(text_of(ledger, "key", patient=True))
    # It was asked before the receipt was there, and sees it: it went along.
    await record(ledger, "key")
    assert await patient == "answer"
    began = time.monotonic()
    assert await text_of(ledger, "another", patient=True) is None
    assert 0.1 < time.monotonic() - began < 5  # alone, and after its patience only


async def test_a_receipt_that_cannot_be_written_harms_no_other(pool: Pool) -> None:
    ledger = Ledger(pool)
    await record(ledger, "before")
    results = await asyncio.gather(
        record(ledger, "good"),
        record(ledger, "bad", latency_ms=2**40),  # no number of the column's
        record(ledger, "good too"),
        text_of(ledger, "before"),
        return_exceptions=True,
    )
    assert isinstance(results[1], asyncpg.DataError)
    assert (results[0], results[2], results[3]) == (None, None, "answer")
    rows = await pool.fetch("select call_key from fullpass.llm_calls order by id")
    assert sorted(row["call_key"] for row in rows) == ["before", "good", "good too"]


async def test_a_receipt_is_written_though_its_caller_is_cancelled(pool: Pool) -> None:
    landed: list[uuid.UUID] = []
    ledger = Ledger(pool, landed=landed.append)
    lost = await begun(record(ledger, "key"))
    lost.cancel()
    with pytest.raises(asyncio.CancelledError):
        await lost
    deadline = time.monotonic() + 5
    while not landed and time.monotonic() < deadline:
        await asyncio.sleep(0.01)  # until the deadline
    assert landed == [JOB]
    assert await text_of(ledger, "key") == "answer"


async def test_while_the_database_is_away_lookups_say_so_and_receipts_hold_on(
    linked: tuple[TcpProxy, Ledger], pool: Pool
) -> None:
    proxy, ledger = linked
    proxy.lose()
    receipt = asyncio.create_task(record(ledger, "held"))
    with pytest.raises(Systemic):
        await text_of(ledger, "first")
    assert not receipt.done()
    proxy.find()
    await asyncio.wait_for(receipt, 10)
    assert await text_of(ledger, "first") == "answer"
    keys = [r["call_key"] for r in await pool.fetch("select call_key from fullpass.llm_calls")]
    assert sorted(keys) == ["first", "held"]


async def test_no_lookup_overtakes_a_receipt_that_the_database_did_not_take(
    linked: tuple[TcpProxy, Ledger], pool: Pool
) -> None:
    proxy, ledger = linked
    proxy.lose()
    paid = [asyncio.create_task(record(ledger, f"held {n}")) for n in range(3)]
    for _ in range(3):  # however often it was tried in vain
        with pytest.raises(Systemic):
            await text_of(ledger, "first")
    paid[0].cancel()  # its job went to another attempt, which asks the same
    settled = asyncio.create_task(ledger.settle())
    assert not (await asyncio.wait({settled}, timeout=0.3))[0]  # a deadline that must pass
    proxy.find()
    assert [await text_of(ledger, f"held {n}") for n in range(3)] == ["answer"] * 3
    await asyncio.wait_for(settled, 10)
    assert await pool.fetchval("select count(*) from fullpass.llm_calls") == 4


async def test_receipts_whose_answer_was_lost_are_written_once(
    linked: tuple[TcpProxy, Ledger], pool: Pool
) -> None:
    proxy, ledger = linked
    proxy.swallow()
    receipts = asyncio.gather(*(record(ledger, f"key {n}") for n in range(3)))
    assert await asyncio.to_thread(proxy.swallowed.wait, 5)
    # They are written, and nobody here knows.
    assert await pool.fetchval("select count(*) from fullpass.llm_calls") == 4
    proxy.reset()
    await asyncio.wait_for(receipts, 10)
    assert (await ledger.spent(JOB)).calls == 4


async def test_many_ledgers_work_through_a_transaction_pooler(database_url: str) -> None:
    """Each statement may be served by another server process, which others just used."""
    with transaction_pooler(database_url, places=2) as pooled:
        pools = [await open_pool(pooled, size=2) for _ in range(4)]

        async def work(pool: Pool, n: int) -> None:
            ledger = Ledger(pool)
            for turn in range(15):
                key = f"{n} {turn}"
                assert await text_of(ledger, key) is None
                await record(ledger, key, text=key)
                assert await pool.fetchval("select $1::int + 1", turn) == turn + 1
                assert await text_of(ledger, key) == key

        await asyncio.gather(*(work(pool, n) for n, pool in enumerate(pools)))
        assert await pools[0].fetchval("select count(*) from fullpass.llm_calls") == 60
        for pool in pools:
            await pool.close()


async def test_a_ready_statement_never_keeps_the_last_connection(database_url: str) -> None:
    pool = await open_pool(database_url, size=1)
    ready = ReadyStatement(pool, "select $1::int")
    began = time.monotonic()
    for n in range(20):
        assert await ready.fetchval(n) == n
        assert await pool.fetchval("select 1") == 1
    assert time.monotonic() - began < 3  # were it kept each time: five seconds
    await pool.close()


async def test_useless_receipts_are_found_by_key_too(pool: Pool) -> None:
    """However many calls a job has made."""
    await pool.execute(
        "insert into fullpass.llm_calls (user_id, job_id, call_key, purpose, provider, model, "
        "prompt_version, usable) select $1, $2, 'k' || n, 'extract', 'anthropic', 'm', 'v', "
        "n % 50 > 0 from generate_series(1, 20000) n",
        USER, JOB,
    )  # fmt: skip
    await pool.execute("analyze fullpass.llm_calls")
    plan = await pool.fetch(
        "explain select id from fullpass.llm_calls where call_key = 'k50' and not usable "
        "and job_id = '00000000-0000-0000-0000-000000000002'"
    )
    assert any("llm_calls_useless" in row[0] for row in plan), plan
