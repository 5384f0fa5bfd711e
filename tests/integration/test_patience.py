"""Trouble with the model is waited for once by all, at no job's cost; limits are shared by workers."""

from __future__ import annotations

import asyncio
import json
import random
import signal
import statistics
import time
import uuid
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest

from daemon.database import open_pool
from daemon.errors import BadCall, CallFailed, Systemic, Wait
from daemon.llm.caller import Caller, Scope
from daemon.llm.ledger import Ledger
from daemon.llm.limiter import CallLimiter
from daemon.llm.patience import Begun, Gate, Patience
from daemon.llm.request import Request
from daemon.llm.sharing import Sharing, account_of
from daemon.settings import load_settings
from daemon.worker import Worker
from tests.support.anthropic_client import EXTRACT
from tests.support.anthropic_server import AnthropicServer
from tests.support.callers import Nobody, provider_at
from tests.support.exports import conversation, planted_export
from tests.support.worker_process import QUICK

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from daemon.database import Pool
    from tests.support.anthropic_behaviour import Fault

MODEL = "claude-haiku-5-5"
SCALE = 0.005


class Job(Nobody):
    """One of several jobs."""


def scope() -> Scope:
    return Scope(uuid.uuid4(), uuid.uuid4(), Nobody())


def request(number: int, *, timeout_seconds: float = 10.0) -> Request:
    text = f'<message n="1" role="user" date="2024-03-05">\nI prefer tea {number}.\n</message>'
    return Request("extract", "v1", MODEL, "Read.", text, EXTRACT, 1_000, timeout_seconds)


@asynccontextmanager
async def worker(database_url: str, llm_url: str, **settings: Any) -> AsyncIterator[Worker]:
    """Run a worker whose waits for the model are two hundred times shorter."""
    configured = load_settings(
        **{
            **QUICK, "database_url": database_url, "anthropic_base_url": llm_url,
            "anthropic_api_key": "test-key", **settings,
        },
    )  # fmt: skip
    it = Worker(configured, database_url, patience=Patience(scale=SCALE))
    running = asyncio.create_task(it.run())
    try:
        yield it
    finally:
        signal.raise_signal(signal.SIGTERM)
        await running


async def insert_jobs(db: Any, folder: Path, count: int, *, conversations: int = 4) -> list[Any]:
    jobs = []
    for n in range(count):
        export = planted_export(conversations=conversations, seed=n, filler_words=30)
        path = export.write(folder / f"export-{n}.json")
        jobs.append(
            await db.fetchval(
                "insert into processing_jobs (user_id, storage_path) values ($1, $2) returning id",
                uuid.uuid4(),
                f"file://{path}",
            )
        )
    return jobs


async def until(db: Any, question: str, *arguments: Any, seconds: float = 20.0) -> float:
    """Poll until the answer is true; return the clock."""
    deadline = time.monotonic() + seconds
    while not await db.fetchval(question, *arguments):
        assert time.monotonic() < deadline, question
        await asyncio.sleep(0.02)  # the deadline above ends it
    return time.monotonic()


@pytest.mark.parametrize(
    ("trouble", "mended"),
    [
        ({"keys": ("another-key",)}, {"keys": ("test-key",)}),
        ({"models": ("another-model",)}, {"models": (MODEL,)}),
    ],
    ids=["wrong key", "no such model"],
)
async def test_what_every_job_would_meet_pauses_all_once_and_mends_by_itself(
    db: Any, database_url: str, tmp_path: Path, trouble: dict[str, Any], mended: dict[str, Any]
) -> None:
    jobs = await insert_jobs(db, tmp_path, 3)
    with AnthropicServer() as server:
        server.behave(**trouble)
        async with worker(database_url, server.url, max_concurrent_jobs=3):
            first_call = await asyncio.to_thread(server.wait_until, calls=1) or time.monotonic()
            told = await until(
                db, "select exists (select from fullpass.workers where waiting_for is not null)"
            )
            assert told - first_call < 1.0
            refused = len(server.record.calls)
            assert refused <= 6  # not each job with all its windows
            server.behave(**mended)
            await until(db, "select count(*) = 3 from processing_jobs where status = 'complete'")
            await until(
                db, "select not exists (select from fullpass.workers where waiting_for is not null)"
            )
    rows = await db.fetch("select id, status, attempts, crashes from processing_jobs")
    assert {row["id"] for row in rows} == set(jobs)
    assert {(row["attempts"], row["crashes"]) for row in rows} == {(1, 0)}
    failures = await db.fetchval(
        "select count(*) from fullpass.job_events where event in ('failed', 'retry')"
    )
    assert failures == 0


async def test_an_outage_of_ten_minutes_is_waited_for_with_no_attempt_used(
    db: Any, database_url: str, tmp_path: Path
) -> None:
    """Three seconds, at a two-hundredth of every wait."""
    [job] = await insert_jobs(db, tmp_path, 1, conversations=12)
    server = AnthropicServer().start()
    port = int(server.url.rpartition(":")[2])
    server.hold(after_calls=2)
    async with worker(
        database_url, server.url, extraction_window_tokens=300, heartbeat_seconds=0.2
    ):
        await asyncio.to_thread(server.wait_until, calls=3)
        server.close()
        down_at = time.monotonic()
        await until(
            db, "select waiting_for is not null from fullpass.passes where job_id = $1", job
        )
        await until(
            db, "select clock_timestamp() > $1::timestamptz + interval '3 seconds'",
            await db.fetchval("select clock_timestamp()"),
        )  # fmt: skip
        assert time.monotonic() - down_at > 600 * SCALE
        with AnthropicServer(port=port) as again:
            await until(db, "select status = 'complete' from processing_jobs where id = $1", job)
            assert not again.record.paid_again()
            held = await db.fetchrow("select llm_limit, llm_held_by from fullpass.workers")
            assert 1 <= held["llm_limit"] <= 3
            assert held["llm_held_by"] in {"ceiling", "rate", "memory"}
    row = await db.fetchrow("select * from processing_jobs where id = $1", job)
    assert (row["attempts"], row["crashes"], row["error_message"]) == (1, 0, None)
    releases = await db.fetchval(
        "select count(*) from fullpass.job_events where job_id = $1 and event = 'waited'", job
    )
    assert 1 <= releases <= 12  # the pauses grow


@pytest.mark.parametrize(
    "trouble",
    [{"keys": ("another-key",)}, {"faults": {"truncated_body": 1.0}}],
    ids=["wrong key", "replies cut off"],
)
async def test_a_pass_that_only_waits_ends_in_time_however_often_it_enters_its_steps(
    db: Any, database_url: str, tmp_path: Path, trouble: dict[str, Any]
) -> None:
    [job] = await insert_jobs(db, tmp_path, 1)
    waiting_since = "select waiting_since from fullpass.passes where job_id = $1"
    with AnthropicServer() as server:
        server.behave(**trouble)
        async with worker(database_url, server.url, max_wait_hours=1):
            first = None
            for waits in (2, 4):
                await until(
                    db, "select count(*) >= $2 from fullpass.job_events "
                    "where job_id = $1 and event = 'waited'", job, waits,
                )  # fmt: skip
                since = await db.fetchval(waiting_since, job)
                assert first is None or since == first
                first = since
            await db.execute(
                "update fullpass.passes set waiting_since = now() - interval '2 hours', "
                "advanced_at = advanced_at - interval '3 hours'"
            )
            await until(db, "select status = 'failed' from processing_jobs where id = $1", job)
    said = await db.fetchval("select error_message from processing_jobs where id = $1", job)
    assert "waited since" in said


async def test_a_gate_shut_for_all_lets_one_try_and_tells_the_alarm_once() -> None:
    alarms: list[Systemic] = []
    gate = Gate(Patience(scale=0.001), alarm=alarms.append)
    for _ in range(5):
        gate.closed_by(Systemic("a wrong key", seconds=60.0))
    assert len(alarms) == 1
    with pytest.raises(Systemic, match="a wrong key"):
        gate.check()
    gate.answered(Job())
    gate.check()


async def test_a_server_that_fails_most_calls_is_not_asked_ever_more_often() -> None:
    gate = Gate(Patience(scale=0.0), alarm=None)
    job = Job()
    asked = 0
    with pytest.raises(Wait):  # every call fails twice before it is answered: beyond the budget
        for _ in range(1_000):
            asked += 1
            gate.pause_after(CallFailed("500"), 1, job, Begun(0.0))
            gate.pause_after(CallFailed("500"), 2, job, Begun(0.0))
            gate.answered(job)
    assert 50 <= asked <= 70
    fair = Job()
    for _ in range(1_000):  # one of two fails: that is within it
        gate.pause_after(CallFailed("500"), 1, fair, Begun(0.0))
        gate.answered(fair)


async def test_a_call_that_alone_fails_shuts_nobody_else_out() -> None:
    gate, job, other = Gate(Patience(scale=0.0)), Job(), Job()
    for attempt in range(1, 8):
        gate.pause_after(CallFailed("500"), attempt, job, Begun(0.0))
        gate.answered(other)
    with pytest.raises(Wait):
        gate.pause_after(CallFailed("500"), 8, job, Begun(0.0))
    gate.check()


async def test_an_input_on_which_alone_the_server_fails_is_left_out_and_the_job_ends(
    db: Any, database_url: str, tmp_path: Path
) -> None:
    export = planted_export(conversations=40, facts_each=1, filler_words=30)
    path = export.write(tmp_path / "c.json")
    user = uuid.uuid4()
    job = await db.fetchval(
        "insert into processing_jobs (user_id, storage_path) values ($1, $2) returning id",
        user, f"file://{path}",
    )  # fmt: skip
    poison = export.truth[7].sentence
    with AnthropicServer(truth=export.truth) as server:
        server.behave(fails_on=poison)
        async with worker(
            database_url, server.url, extraction_window_tokens=100, heartbeat_seconds=0.2
        ):
            await until(
                db, "select status not in ('pending', 'processing') from processing_jobs "
                "where id = $1", job,
            )  # fmt: skip
        asked = sum(call.fault == "server_error" for call in server.record.calls)
    row = await db.fetchrow("select status, attempts from processing_jobs where id = $1", job)
    assert tuple(row) == ("complete", 1)
    outcomes = await db.fetch(
        "select outcome, detail from fullpass.chunk_outcomes where user_id = $1", user
    )
    failed = [row["detail"] for row in outcomes if row["outcome"] == "failed"]
    assert len(failed) == 1
    assert "fails on this input and on no other" in failed[0]
    found = {
        r[0]
        for r in await db.fetch("select statement from fullpass.facts where user_id = $1", user)
    }
    assert found == {p.statement for n, p in enumerate(export.truth) if n != 7}
    assert asked >= 8


@pytest.mark.parametrize(
    ("fault", "probed"),
    [("server_error", range(6, 11)), ("firewall", range(2, 3))],
)
async def test_one_bad_input_among_few_holds_neither_its_job_nor_the_others_for_days(
    db: Any, database_url: str, tmp_path: Path, fault: Fault, probed: range
) -> None:
    # With four other windows, and nothing else to do, nobody else's answers tell what is at fault.
    export = planted_export(conversations=5, facts_each=1, filler_words=30)
    path = export.write(tmp_path / "c.json")
    job = await db.fetchval(
        "insert into processing_jobs (user_id, storage_path) values ($1, $2) returning id",
        uuid.uuid4(), f"file://{path}",
    )  # fmt: skip
    with AnthropicServer(truth=export.truth) as server:
        server.behave(fails_on=export.truth[2].sentence, fails_with=fault)
        async with worker(
            database_url, server.url, extraction_window_tokens=100, min_extraction_coverage=0.5
        ):
            await until(
                db, "select status not in ('pending', 'processing') from processing_jobs "
                "where id = $1", job,
            )  # fmt: skip
        assert not server.record.paid_again()
        paid = len(server.record.completed())
    row = await db.fetchrow(
        "select status, attempts, result from processing_jobs where id = $1", job
    )
    assert (row["status"], row["attempts"]) == ("complete", 1)
    result = json.loads(row["result"])
    assert result["coverage"]["outcomes"] == {"ok": 4, "failed": 1}
    # What was asked to find that out has receipts too.
    probes = await db.fetchval(
        "select count(*) from fullpass.llm_calls where prompt_version = 'probe'"
    )
    assert probes in probed
    assert result["cost"]["calls"] == paid
    waits = "select count(*) from fullpass.job_events where event = 'waited'"
    assert await db.fetchval(waits) == 0


async def test_several_bad_inputs_that_are_all_that_is_left_hold_their_job_no_longer_than_one(
    db: Any, database_url: str, tmp_path: Path
) -> None:
    export = planted_export(conversations=3, facts_each=1, filler_words=30)
    barred = [("user", "Of the barred. " + "And so on. " * 30)]
    export.conversations.extend(
        conversation(50 + n, [*barred, ("user", f"No. {n}.")]) for n in range(3)
    )
    path = export.write(tmp_path / "c.json")
    job = await db.fetchval(
        "insert into processing_jobs (user_id, storage_path) values ($1, $2) returning id",
        uuid.uuid4(), f"file://{path}",
    )  # fmt: skip
    with AnthropicServer(truth=export.truth) as server:
        server.behave(fails_on="Of the barred")
        async with worker(
            database_url, server.url, extraction_window_tokens=100, min_extraction_coverage=0.4
        ):
            ended = "select status = 'complete' from processing_jobs where id = $1"
            await until(db, ended, job)
    outcomes = await db.fetch("select outcome from fullpass.chunk_outcomes order by 1")
    assert [row["outcome"] for row in outcomes] == ["failed"] * 3 + ["ok"] * 3


async def test_an_outage_shuts_everybody_out_for_longer_each_time() -> None:
    patience = Patience(tries=1, outage_seconds=0.2)
    gate = Gate(patience)
    waits = []
    for _ in range(3):
        with pytest.raises(Wait) as told:
            gate.pause_after(CallFailed("500"), 2, Job(), Begun(time.monotonic()))
        waits.append(told.value.seconds)
        with pytest.raises(Wait, match="does not answer"):
            gate.check()
        while gate.shut:
            await asyncio.sleep(0.01)  # a deadline of its own: a second at most
    assert waits == [0.2, 0.4, 0.8]


async def test_an_absurd_retry_after_gives_the_job_back_and_is_capped() -> None:
    gate = Gate(Patience())
    with pytest.raises(Wait) as told:
        gate.pause_after(CallFailed("429", retry_after_seconds=86_400.0), 1, Job(), Begun(0.0))
    assert told.value.seconds <= 900


async def test_a_reply_that_trickles_ends_at_the_calls_own_deadline(
    database_url: str, anthropic_server: AnthropicServer
) -> None:
    pool = await open_pool(database_url)
    provider = provider_at(anthropic_server.url)
    limit = CallLimiter(ceiling=1, allowed=lambda _: 1)
    caller = Caller(provider, Ledger(pool), limit, patience=Patience(tries=1, outage_seconds=1.0))
    anthropic_server.script("stall_mid_body", "stall_mid_body")  # the second is the probe
    started = time.monotonic()
    with pytest.raises(Wait):
        await caller.ask(scope(), request(1, timeout_seconds=0.5), lambda reply: reply.text)
    assert time.monotonic() - started < 2.0
    assert limit.in_flight == 0
    await provider.aclose()
    await pool.close()


# -- several workers of one account -------------------------------------------------------------


class Client:
    """What a worker calls with, as often as it may."""

    def __init__(self, pool: Pool, url: str, *, minute_seconds: float, account: str | None) -> None:
        self.pool = pool
        self.provider = provider_at(url)
        self.limit = CallLimiter(ceiling=30, allowed=lambda _: 30, minute_seconds=minute_seconds)
        self.sharing = account and Sharing(
            pool, self.limit, worker_id=f"w-{uuid.uuid4()}", account=account,
            minute_seconds=minute_seconds,
        )  # fmt: skip
        self.caller = Caller(self.provider, Ledger(pool), self.limit)
        self.shares: list[float] = []

    async def call_for(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        on_behalf = scope()

        async def one() -> None:
            while time.monotonic() < deadline:
                number = random.getrandbits(60)
                await self.caller.ask(on_behalf, request(number), lambda reply: reply.text)
                self.shares.append(self.limit.paces[MODEL].share)

        await asyncio.gather(*(one() for _ in range(30)))

    async def close(self) -> None:
        if self.sharing:
            await self.sharing.close()
        await self.provider.aclose()


async def test_two_workers_of_one_account_share_its_limit_and_draw_hardly_a_429(
    database_url: str,
) -> None:
    """That nearly all is used, and that two which do not share draw many refusals, is shown in
    made-up time, in test_pace.py, and measured by bench_llm."""
    minute = 4.0
    pool = await open_pool(database_url)
    with AnthropicServer() as server:
        server.behave(
            requests_per_minute=24, minute_seconds=minute,
            latency_seconds=minute / 3, latency_sigma=0.4,
        )  # fmt: skip
        clients = [Client(pool, server.url, minute_seconds=minute, account="one") for _ in range(2)]
        began = time.time()
        await asyncio.gather(*(client.call_for(3 * minute) for client in clients))
        shares = [statistics.median(client.shares) for client in clients]
        for client in clients:
            await client.close()
    later = [c for c in server.record.calls if minute <= c.started_at - began < 3 * minute]
    refused = sum(call.status == 429 for call in later)
    assert refused <= 1
    assert len(later) > 10
    assert all(0.4 <= share <= 0.7 for share in shares), shares
    await pool.close()


async def test_each_worker_writes_a_row_of_its_own_and_no_key_is_in_it(database_url: str) -> None:
    pool = await open_pool(database_url)
    settings = load_settings(
        database_url=database_url, anthropic_api_key="sk-very-secret", llm_provider="anthropic"
    )
    account = account_of(settings)
    assert account == account_of(settings)
    other = load_settings(
        database_url=database_url, anthropic_api_key="sk-another", llm_provider="anthropic"
    )
    assert account != account_of(other)
    with AnthropicServer() as server:
        clients = [Client(pool, server.url, minute_seconds=3.0, account=account) for _ in range(2)]
        await asyncio.gather(*(client.call_for(0.5) for client in clients))
        rows = await pool.fetch("select * from fullpass.account_use")
        assert len({row["worker_id"] for row in rows}) == 2
        assert {row["account"] for row in rows} == {account}
        assert "secret" not in str(rows)
        for client in clients:
            await client.close()
    assert await pool.fetchval("select count(*) from fullpass.account_use") == 0
    await pool.close()


async def test_writing_the_row_again_stays_on_its_page(database_url: str, db: Any) -> None:
    """No index entry and no new page for each exchange."""
    share = "select count(*) from fullpass.share_use($1, 'a', 'm', true, $2, 3, 4, 0, 10)"
    for n in range(200):
        await db.fetchval(share, f"worker-{n % 4}", float(n))
    await db.execute("select pg_stat_force_next_flush()")
    await db.fetchval("select 1")
    row = await db.fetchrow(
        "select n_tup_upd, n_tup_hot_upd, pg_relation_size(relid) as bytes "
        "from pg_stat_user_tables where relname = 'account_use'"
    )
    assert row["n_tup_upd"] == 196
    assert row["n_tup_hot_upd"] >= 190
    assert row["bytes"] <= 4 * 8192


async def test_refused_input_is_not_the_servers_trouble(
    database_url: str, anthropic_server: AnthropicServer
) -> None:
    pool = await open_pool(database_url)
    provider = provider_at(anthropic_server.url)
    caller = Caller(provider, Ledger(pool), CallLimiter(ceiling=1, allowed=lambda _: 1))
    anthropic_server.script("too_large")
    with pytest.raises(BadCall):
        await caller.ask(scope(), request(1), lambda reply: reply.text)
    assert (await caller.ask(scope(), request(2), lambda reply: reply.text)).value
    await provider.aclose()
    await pool.close()
