"""Alerts: whoever is on call hears of each trouble once, soon, and of nothing that is private."""

from __future__ import annotations

import asyncio
import re
import signal
import uuid
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from daemon.logs import mask_secrets
from daemon.ops.outbox import Outbox
from daemon.settings import load_settings
from daemon.worker import Worker
from tests.support.anthropic_server import AnthropicServer
from tests.support.exports import planted_export
from tests.support.queue_checks import until
from tests.support.tcp_proxy import TcpProxy
from tests.support.telling import (
    a_job,
    all_ended,
    ended_job,
    kept_live,
    settings_for,
    telling,
    telling_over_a_link,
)
from tests.support.worker_process import QUICK, work_once

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from daemon.database import Pool
    from tests.support.telling import Db
    from tests.support.webhook_receiver import WebhookReceiver

AN_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


@asynccontextmanager
async def serving(url: str, **settings: Any) -> AsyncIterator[Worker]:
    """Run a worker beside the test."""
    worker = Worker(load_settings(**{**QUICK, "database_url": url, **settings}), url)
    running = asyncio.create_task(worker.run())
    try:
        yield worker
    finally:
        signal.raise_signal(signal.SIGTERM)
        await running


async def test_a_final_failure_is_told_with_the_job_and_what_to_do_and_no_address(
    db: Db, database_url: str, chat: WebhookReceiver, tmp_path: Path
) -> None:
    mask_secrets("swordfish-77")
    job = await a_job(db, f"file://{tmp_path}/anna@example.org/swordfish-77/export.zip")
    await work_once(database_url, None, **settings_for(chat=chat))
    (request,) = chat.received
    assert request.path == "/services/room"
    assert request.headers["content-type"] == "application/json"
    assert set(request.json()) == {"text"}
    (text,) = chat.texts()
    assert text.startswith(f"fullpass: job {job} failed: download_conversations: ")
    assert f"fullpass retry {job}" in text
    assert "anna" not in text
    assert "swordfish-77" not in text


async def test_alike_alerts_are_told_once_an_hour_whichever_workers_meet_them(
    db: Db, pool: Pool, chat: WebhookReceiver
) -> None:
    async with telling(pool, **settings_for(chat=chat)), telling(pool, **settings_for(chat=chat)):
        for n in range(12):
            await ended_job(db, "failed", f"extract_facts: {n} calls for {uuid.uuid4()} refused")
        await ended_job(db, "failed", "save_memory: no space")
        await all_ended(db)
        assert len(chat.texts()) == 2
        outcomes = "select outcome, count(*) from fullpass.outbox group by 1 order by 1"
        assert await db.fetch(outcomes) == [("delivered", 2), ("repeated", 11)]
        await db.execute("update fullpass.outbox set told_at = told_at - interval '61 minutes'")
        await ended_job(db, "failed", "extract_facts: 99 calls refused for none")
        await ended_job(db, "failed", "save_memory: no space")
        await all_ended(db)
    assert sum("no space" in text for text in chat.texts()) == 2


async def test_thousands_of_alike_failures_hold_up_no_other_alert(
    db: Db, pool: Pool, chat: WebhookReceiver
) -> None:
    teller = await kept_live(pool, look_seconds=60, **settings_for(chat=chat))
    await db.execute(
        "insert into fullpass.outbox (channel, event, job_id, about, data) "
        "select 'alert', 'failed', gen_random_uuid(), 'failed: x', '{}' from generate_series(1, 900)"
    )
    await Outbox(pool).alert("stopped", "work", {"trouble": "the key", "worker": "w"})
    teller.start()  # it looks once, and again only in a minute
    await chat.until(2, seconds=10)
    await all_ended(db)
    await teller.finish(seconds=5)
    assert "work has stopped" in chat.texts()[1]
    repeated = "select count(*) from fullpass.outbox where outcome = 'repeated'"
    assert await db.fetchval(repeated) == 899


async def test_what_a_path_holds_calls_nobody_in_the_room(
    db: Db, pool: Pool, chat: WebhookReceiver
) -> None:
    async with telling(pool, **settings_for(chat=chat)):
        await ended_job(
            db, "failed", "e/<!channel> @everyone <users/all> <https://x.example|y>: no"
        )
        await chat.until(1)
    (text,) = chat.texts()
    assert "!channel" in text
    assert "everyone" in text
    assert not re.search(r"[<>]|@\w", text)


async def test_more_than_twenty_alerts_an_hour_are_summed_up_in_one(
    db: Db, pool: Pool, chat: WebhookReceiver
) -> None:
    words = [w for a in "abcdef" for w in (f"{a}{b}" for b in "uvwxyz")]
    async with telling(pool, **settings_for(chat=chat)):
        for word in words:
            await ended_job(db, "failed", f"extract_facts: {word}")
        await until(
            lambda: db.fetchval(
                "select count(*) = 36 from fullpass.outbox where ended_at is not null"
            ),
            seconds=10,
        )
        assert len(chat.texts()) == 20
        assert "further ones are summed up" in chat.texts()[-1]
        due = await db.fetchval(
            "select due_at - now() > interval '58 minutes' from fullpass.outbox "
            "where event = 'more' and ended_at is null"
        )
        assert due
        await db.execute("update fullpass.outbox set due_at = now() where event = 'more'")
        await chat.until(21)
    assert "and 16 more alerts since" in chat.texts()[-1]


async def test_what_stops_all_work_is_told_once_and_so_is_that_it_goes_on(
    db: Db, database_url: str, chat: WebhookReceiver, tmp_path: Path
) -> None:
    for n in range(3):
        export = planted_export(conversations=2, seed=n, filler_words=30)
        await a_job(db, f"file://{export.write(tmp_path / f'{n}.json')}")
    with AnthropicServer() as server:
        server.behave(keys=("another-key",))
        settings = settings_for(
            chat=chat, anthropic_base_url=server.url, anthropic_api_key="test-key",
            max_concurrent_jobs=3,
        )  # fmt: skip
        async with serving(database_url, **settings):
            await chat.until(1)
        at_once = "update processing_jobs set run_at = now() where status = 'pending'"
        await db.execute(at_once)
        async with serving(database_url, **settings):  # a restart with the same wrong key
            await until(
                lambda: db.fetchval(
                    "select count(*) > 1 from fullpass.outbox where event = 'stopped'"
                ),
                seconds=20,
            )
        stopped = chat.texts()[0]
        assert "work has stopped" in stopped
        assert "ANTHROPIC_API_KEY" in stopped
        assert "test-key" not in stopped
        server.behave(keys=("test-key",))
        await db.execute(at_once)
        async with serving(database_url, **settings):
            await until(
                lambda: db.fetchval(
                    "select count(*) = 3 from processing_jobs where status = 'complete'"
                ),
                seconds=20,
            )
            await chat.until(2)
            await all_ended(db)
    assert len(chat.texts()) == 2
    assert chat.texts()[1].startswith("fullpass: work goes on. It had stopped for: ")


async def test_a_stop_is_told_again_when_work_had_gone_on_in_between(
    pool: Pool, db: Db, chat: WebhookReceiver
) -> None:
    outbox = Outbox(pool)

    async def work_goes_on() -> None:
        job = await a_job(db, f"jobs/{uuid.uuid4()}")
        await db.fetch("select fullpass.claim('w', 60, 'v', p_only => $1)", job)
        await db.execute("select fullpass.complete($1, 1, '{}', '{}')", job)

    async with telling(pool, **settings_for(chat=chat)):
        for trouble in ("the key", "the key", "the limit", "the key"):
            await outbox.alert("stopped", "work", {"trouble": trouble, "worker": "w"})
            await all_ended(db)
        await work_goes_on()
        await work_goes_on()
        await all_ended(db)
        await outbox.alert("stopped", "work", {"trouble": "the key", "worker": "w"})
        await all_ended(db)
    told = [text.removeprefix("fullpass: ") for text in chat.texts()]
    assert [t.split(".")[0].split(",")[0] for t in told] == [
        "work has stopped", "work has stopped", "work goes on", "work has stopped",
    ]  # fmt: skip


async def test_a_job_that_was_claimed_before_the_stop_is_no_sign_that_it_is_over(
    pool: Pool, db: Db, chat: WebhookReceiver
) -> None:
    await kept_live(pool, **settings_for(chat=chat))
    job = await a_job(db, "jobs/early")
    await db.fetch("select fullpass.claim('w', 60, 'v', p_only => $1)", job)
    await Outbox(pool).alert("stopped", "work", {"trouble": "the key", "worker": "w"})
    await db.execute("select fullpass.complete($1, 1, '{}', '{}')", job)
    assert await db.fetch("select event from fullpass.outbox") == [("stopped",)]


async def test_a_database_out_of_reach_is_told_straight_out_once_and_its_return_too(
    database_url: str, chat: WebhookReceiver
) -> None:
    with TcpProxy(database_url) as proxy:
        settings = settings_for(chat=chat, llm_provider="offline", database_listen_url=proxy.url)
        async with serving(proxy.url, **settings) as worker:
            worker.alarm._patience_seconds = 0.4
            await until(lambda: worker_beats(worker), seconds=10)
            proxy.lose()
            await chat.until(1)
            await asyncio.sleep(1.0)  # it goes on failing; the deadline of telling it again
            assert len(chat.received) == 1
            proxy.find()
            proxy.reset()
            await chat.until(2, seconds=30)
    lost, back = chat.texts()
    assert lost.startswith("fullpass: the database is out of reach for ")
    assert back.startswith("fullpass: the database answers again, after ")


async def test_a_stop_told_while_the_database_was_away_is_told_to_be_over(
    database_url: str, db: Db, chat: WebhookReceiver
) -> None:
    """It went straight out, so the outbox has to learn of it, or nobody hears of its end."""
    async with telling_over_a_link(database_url, **settings_for(chat=chat)) as (proxy, teller):
        proxy.lose()
        teller.alarm.stopped("the key is refused")
        teller.alarm.out_of_reach("the database cannot be reached")
        await chat.until(1)
        assert "work has stopped" in chat.texts()[0]
        proxy.find()
        teller.alarm.reached()
        await until(lambda: db.fetchval("select count(*) = 1 from fullpass.outbox"), seconds=10)
        job = await a_job(db, "jobs/later")
        await db.fetch("select fullpass.claim('w', 60, 'v', p_only => $1)", job)
        await db.execute("select fullpass.complete($1, 1, '{}', '{}')", job)
        await chat.until(2)
        await all_ended(db)
    assert chat.texts()[1] == "fullpass: work goes on. It had stopped for: the key is refused"
    assert len(chat.texts()) == 2


async def test_a_job_that_was_through_before_the_outbox_heard_of_the_stop_ends_it_too(
    db: Db, pool: Pool, chat: WebhookReceiver
) -> None:
    await kept_live(pool, **settings_for(chat=chat))
    for path in ("jobs/quick", "jobs/quicker"):
        job = await a_job(db, path)
        await db.fetch("select fullpass.claim('w', 60, 'v', p_only => $1)", job)
        await db.execute("select fullpass.complete($1, 1, '{}', '{}')", job)
    await Outbox(pool).note_told_stop({"trouble": "the key"}, seconds_ago=30)
    events = "select event from fullpass.outbox order by at"
    assert await db.fetch(events) == [("stopped",), ("resumed",)]


async def test_a_stop_and_its_end_are_told_however_many_alerts_there_were(
    db: Db, pool: Pool, chat: WebhookReceiver
) -> None:
    async with telling(pool, **settings_for(chat=chat)):
        for word in (f"{a}{b}" for a in "abcdef" for b in "uvwxyz"):
            await ended_job(db, "failed", f"extract_facts: {word}")
        await chat.until(20)
        await Outbox(pool).alert("stopped", "work", {"trouble": "the key", "worker": "w"})
        await chat.until(21)
        job = await a_job(db, "jobs/later")
        await db.fetch("select fullpass.claim('w', 60, 'v', p_only => $1)", job)
        await db.execute("select fullpass.complete($1, 1, '{}', '{}')", job)
        await chat.until(22)
        await Outbox(pool).alert("reached", "database", {"seconds": 90})
        await chat.until(23)
    told = chat.texts()[20:]
    assert "work has stopped" in told[0]
    assert "work goes on" in told[1]


async def test_each_outage_that_was_told_ends_with_word_that_it_is_over(
    pool: Pool, chat: WebhookReceiver
) -> None:
    async with telling(pool, **settings_for(chat=chat)) as teller:
        teller.alarm._patience_seconds = 0.0
        for outage in (1, 2):
            teller.alarm.out_of_reach("the database cannot be reached")
            await chat.until(2 * outage - 1)
            teller.alarm.reached()
            await chat.until(2 * outage)
    assert ["answers again" in text for text in chat.texts()] == [False, True, False, True]


async def test_two_workers_that_met_one_outage_tell_its_end_once(
    db: Db, pool: Pool, chat: WebhookReceiver
) -> None:
    async with telling(pool, **settings_for(chat=chat)):
        for _ in range(2):
            await Outbox(pool).alert("reached", "database", {"seconds": 90})
        await all_ended(db)
    assert len(chat.texts()) == 1


async def worker_beats(worker: Worker) -> bool:
    """Whether the worker has claimed, so that it knew a database that answers."""
    return worker._mend_at > 0


async def test_a_database_that_was_never_there_is_told_of_too(chat: WebhookReceiver) -> None:
    nowhere = "postgresql://nobody@127.0.0.1:1/none"
    settings = load_settings(
        **QUICK, **settings_for(chat=chat), llm_provider="offline", database_url=nowhere
    )
    worker = Worker(settings, nowhere)
    worker.alarm._patience_seconds = 0.3
    running = asyncio.create_task(worker.run())
    await chat.until(1)
    signal.raise_signal(signal.SIGTERM)
    await running
    assert "out of reach" in chat.texts()[0]


async def test_a_short_absence_of_the_database_alarms_nobody(chat: WebhookReceiver) -> None:
    worker = Worker(
        load_settings(**QUICK, **settings_for(chat=chat), llm_provider="offline"), "unused"
    )
    for _ in range(5):
        worker.alarm.out_of_reach("the database cannot be reached")
    worker.alarm.reached()
    await worker.alarm.hush(seconds=1)
    assert chat.received == []
    assert worker.alarm._written == []


async def test_stuck_jobs_are_told_of_once_an_hour_with_the_remedy(
    db: Db, pool: Pool, chat: WebhookReceiver
) -> None:
    await kept_live(pool, **settings_for(chat=chat))
    outbox = Outbox(pool)
    await outbox.look_for_stuck()
    assert await db.fetchval("select count(*) from fullpass.outbox") == 0
    for _ in range(3):
        job = await a_job(db, f"exports/{uuid.uuid4()}")
        await db.execute(
            "update processing_jobs set run_at = now() - interval '20 minutes' where id = $1", job
        )
    async with telling(pool, **settings_for(chat=chat)) as teller:
        await chat.until(1)
        await all_ended(db)
        teller._stuck_at = 0.0
        await outbox.look_for_stuck()
        assert await db.fetchval("select count(*) from fullpass.outbox") == 1
    (text,) = chat.texts()
    assert re.fullmatch(
        rf"fullpass: job {AN_ID.pattern} is stuck since 20 min \(2 more: .*\): it is due and no "
        r"worker is alive\. What to do: start a worker\.",
        text,
    ), text


async def test_an_outage_that_jobs_wait_out_is_told_after_ten_minutes(
    db: Db, pool: Pool, chat: WebhookReceiver
) -> None:
    await kept_live(pool, **settings_for(chat=chat))
    job = await a_job(db, "exports/one")
    await db.fetch("select fullpass.claim('w', 60, 'v', p_only => $1)", job)
    await db.execute(
        "select fullpass.release($1, 1, 60, 'the LLM server does not answer: 503', 9e9)", job
    )
    await Outbox(pool).look_for_stuck()
    assert await db.fetchval("select count(*) from fullpass.outbox") == 0
    await db.execute("update fullpass.passes set waiting_since = now() - interval '11 minutes'")
    async with telling(pool, **settings_for(chat=chat)):
        await chat.until(1)
    assert "the LLM server does not answer: 503" in chat.texts()[0]


async def test_a_quarantined_job_and_one_that_stalls_are_told(
    db: Db, pool: Pool, chat: WebhookReceiver
) -> None:
    async with telling(pool, **settings_for(chat=chat)):
        first = await ended_job(db, "quarantined", "extract_facts: the worker died twice")
        second = await a_job(db, "exports/two")
        await db.execute(
            "select fullpass.note_event(j, 'stalled', 'extract_facts', '{\"stacks\": [\"main\"]}') "
            "from processing_jobs j where id = $1",
            second,
        )
        await all_ended(db)
    assert {text.split(":")[1].strip() for text in chat.texts()} == {
        f"job {first} is quarantined",
        f"job {second} made no progress at extract_facts and was given back; it is tried again by "
        "itself. If it recurs",
    }


async def test_a_worker_without_a_channel_writes_and_asks_nothing(
    db: Db, database_url: str
) -> None:
    await a_job(db, "file:///nowhere.json")
    await work_once(database_url, None)
    assert await db.fetchval("select count(*) from fullpass.outbox") == 0
    assert await db.fetchval("select count(*) from fullpass.channels") == 0
