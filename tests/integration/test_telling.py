"""Telling: what became of a job reaches the app and whoever is on call, and nothing else does."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import time
from typing import TYPE_CHECKING, Any

import pytest
from standardwebhooks.webhooks import Webhook, WebhookVerificationError

from daemon.ops.outbox import Outbox
from daemon.ops.telling import _LOOK_SECONDS
from daemon.ops.webhooks import NotifyWebhook
from tests.support.cli import EXAMPLE
from tests.support.loopback import Reply, Request
from tests.support.queue_checks import until
from tests.support.queue_worker import EFFECTS, queue_worker
from tests.support.telling import (
    SECRET,
    a_job,
    all_ended,
    ended_job,
    kept_live,
    settings_for,
    telling,
)
from tests.support.webhook_receiver import WebhookReceiver, hang
from tests.support.worker_process import work_once

if TYPE_CHECKING:
    from pathlib import Path

    from daemon.database import Pool
    from tests.support.telling import Db


async def test_the_app_is_told_signed_of_a_pass_that_completed_and_of_one_that_failed(
    db: Db, database_url: str, app: WebhookReceiver, tmp_path: Path
) -> None:
    good = await a_job(db, f"file://{EXAMPLE}")
    bad = await a_job(db, f"file://{tmp_path}/anna@example.org/export.zip")
    tally = await work_once(database_url, None, **settings_for(app))
    assert tally.completed == [good]
    assert set(tally.failed) == {bad}
    told = {}
    for request in app.received:
        assert request.path == "/hook"
        body = Webhook(SECRET).verify(request.body, dict(request.headers))
        told[body["data"]["job_id"]] = body
        forged = request.body.replace(b"fullpass.", b"fullpass,")
        with pytest.raises(WebhookVerificationError):
            Webhook(SECRET).verify(forged, dict(request.headers))
    user = await db.fetchval("select user_id from processing_jobs where id = $1", good)
    completed = told[str(good)]
    assert completed["timestamp"].endswith("Z")
    assert completed | {"timestamp": ""} == {
        "type": "fullpass.completed",
        "timestamp": "",
        "data": {
            "job_id": str(good), "user_id": str(user), "status": "complete", "conversations": 42,
            "messages": 169,
        },
    }  # fmt: skip
    failed = told[str(bad)]
    assert failed["type"] == "fullpass.failed"
    assert failed["data"]["status"] == "failed"
    assert failed["data"]["quarantined"] is False
    assert failed["data"]["error"].startswith("download_conversations: ")
    assert "anna@example.org" not in json.dumps(failed)
    assert "…@…" in failed["data"]["error"]
    assert len(app.received) == 2
    assert await db.fetch("select distinct outcome, attempts from fullpass.outbox") == [
        ("delivered", 1)
    ]


async def test_a_clock_an_hour_off_makes_no_message_look_old(
    db: Db, pool: Pool, app: WebhookReceiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = time.time
    monkeypatch.setattr(time, "time", lambda: right() - 3600)
    async with telling(pool, **settings_for(app)):
        await ended_job(db, "completed")
        await app.until(1)
    Webhook(SECRET).verify(app.received[0].body, dict(app.received[0].headers))  # 5 minutes at most


async def test_a_worker_killed_between_sending_and_marking_loses_no_message_and_repeats_it_marked(
    db: Db, database_url: str
) -> None:
    await db.execute(EFFECTS)
    victim: list[int] = []

    async def kill_the_sender(_request: Request) -> Reply:
        os.kill(victim.pop(), signal.SIGKILL)
        return Reply(200)

    with WebhookReceiver(kill_the_sender) as app:
        settings = settings_for(app)
        with queue_worker(database_url, **settings) as worker:
            victim.append(worker.pid)
            await until(lambda: db.fetchval("select count(*) from fullpass.channels"), seconds=15)
            job = await a_job(db, "jobs/steps=1")
            await app.until(1)
            assert worker.wait(10) == -signal.SIGKILL
        row = await db.fetchrow("select * from fullpass.outbox")
        assert row is not None
        assert (row["attempts"], row["ended_at"]) == (1, None)
        # It is due again in half a minute, a quarter more or less; here at once.
        put_off = (row["due_at"] - row["told_at"]).total_seconds()
        assert 22 < put_off < 38
        await db.execute("update fullpass.outbox set due_at = now()")
        with queue_worker(database_url, **settings):
            await all_ended(db)
        first, second = app.received
    assert first.headers["webhook-id"] == second.headers["webhook-id"] == f"msg_{row['id'].hex}"
    assert first.body == second.body
    assert Webhook(SECRET).verify(second.body, dict(second.headers))["data"]["job_id"] == str(job)


async def test_a_message_is_written_with_what_it_tells_of_or_not_at_all(
    db: Db, pool: Pool, app: WebhookReceiver
) -> None:
    await ended_job(db, "completed")
    assert await db.fetchval("select count(*) from fullpass.outbox") == 0, "nobody tells"
    await kept_live(pool, **settings_for(app))
    undone = db.transaction()
    await undone.start()
    await ended_job(db, "failed", "extract_facts: no")
    assert await db.fetchval("select count(*) from fullpass.outbox") == 1
    await undone.rollback()
    assert await db.fetchval("select count(*) from fullpass.outbox") == 0
    for event in ("completed", "failed", "quarantined", "cancelled"):
        await ended_job(db, event, "x: y")
    events = await db.fetch("select channel, event from fullpass.outbox order by at")
    assert [row["event"] for row in events] == [
        "completed", "failed", "quarantined", "cancelled",
    ]  # fmt: skip
    # Three days after the last worker that could tell, nothing more is written.
    await db.execute("update fullpass.channels set live_until = now()")
    await ended_job(db, "completed")
    assert await db.fetchval("select count(*) from fullpass.outbox") == 4


async def test_a_worker_tells_at_once_and_asks_next_to_nothing_while_idle(
    db: Db, pool: Pool, app: WebhookReceiver
) -> None:
    async with telling(pool, look_seconds=30, **settings_for(app)) as teller:
        await ended_job(db, "completed")
        teller.wake()
        await app.until(1, seconds=2)
        await all_ended(db)
    mine = "select xact_commit from pg_stat_database where datname = current_database()"
    async with telling(pool, look_seconds=0.1, **settings_for(app)):
        await asyncio.sleep(0.3)  # its start is over before the deadline of what is measured
        await pool.execute("select pg_stat_force_next_flush()")
        before, began = await db.fetchval(mine), asyncio.get_running_loop().time()
        await asyncio.sleep(1.5)  # the deadline of what is measured
        lasted = asyncio.get_running_loop().time() - began
        await pool.execute("select pg_stat_force_next_flush()")
        asked = await db.fetchval(mine) - before
    assert asked / (lasted / 0.08) < 1.6, "one statement a look, beside the measuring"
    assert 1 / (0.8 * _LOOK_SECONDS) < 0.06, "looks a second, with the longest stretch of jitter"


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (hang, "no answer within 0.5 s"),
        (Reply(500, b"x" * 5_000_000), "it answers 500"),
        (Reply(404), "it answers 404"),
        (Reply(302, headers={"location": "{elsewhere}"}), "it answers 302, a redirect"),
        (Reply(308, headers={"location": "{elsewhere}"}), "it answers 308, a redirect"),
        (Reply(reset=True), "ReadError"),
        (Reply(200, b"y" * 50_000_000, bytes_per_second=2000), None),
        (Reply(200, b"z", stall_after_bytes=0), None),
    ],
    ids=["hangs", "500", "404", "302", "308", "reset", "drips an endless body", "stalls"],
)
async def test_a_bad_receiver_costs_an_attempt_and_nothing_more(
    db: Db, pool: Pool, app: WebhookReceiver, answer: Any, why: str | None
) -> None:
    with WebhookReceiver() as elsewhere:
        if isinstance(answer, Reply) and "location" in answer.headers:
            answer = Reply(answer.status, headers={"location": f"{elsewhere.url}/hook"})
        app.always = answer
        async with telling(pool, **settings_for(app)) as teller:
            channel = teller._channels["notify"]
            assert isinstance(channel, NotifyWebhook)
            channel.attempt_seconds = 0.5
            await ended_job(db, "completed")
            await until(
                lambda: db.fetchval(
                    "select ended_at is not null or error is not null from fullpass.outbox"
                ),
                seconds=5,
            )
        assert elsewhere.received == []
    row = await db.fetchrow("select * from fullpass.outbox")
    assert row is not None
    assert row["outcome"] == (None if why else "delivered")
    assert why is None or row["error"].startswith(why), row["error"]
    assert row["attempts"] == len(app.received) == 1


async def test_a_head_that_drips_is_cut_off(db: Db, pool: Pool) -> None:
    left = asyncio.Event()

    async def drip(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer with a head that never ends, a byte at a time."""
        writer.write(b"HTTP/1.1 200 OK\r\nx-long: ")
        with contextlib.suppress(ConnectionError):
            while True:
                writer.write(b"a")
                await writer.drain()
                await asyncio.sleep(0.02)  # until the client's deadline
        writer.close()
        left.set()

    server = await asyncio.start_server(drip, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
    async with telling(pool, notify_webhook=url, notify_webhook_secret=SECRET) as teller:
        channel = teller._channels["notify"]
        assert isinstance(channel, NotifyWebhook)
        channel.attempt_seconds = 0.3
        await ended_job(db, "completed")
        error = await until(
            lambda: db.fetchval("select error from fullpass.outbox where attempts = 1"), seconds=5
        )
    async with asyncio.timeout(5):
        await left.wait()
        server.close()
        await server.wait_closed()
    assert error == "no answer within 0.3 s"


async def test_a_receiver_that_hangs_delays_no_alert(
    db: Db, pool: Pool, app: WebhookReceiver, chat: WebhookReceiver
) -> None:
    app.always = hang
    async with telling(pool, finish_seconds=0.2, **settings_for(app, chat)):
        for _ in range(20):
            await ended_job(db, "completed")
        await app.until(4)
        await ended_job(db, "failed", "extract_facts: no")
        await chat.until(1, seconds=5)
    assert 4 <= len(app.received) <= 8, "a few at a time"


async def test_tries_grow_apart_and_after_three_days_the_timeline_says_so(
    db: Db, pool: Pool, app: WebhookReceiver, chat: WebhookReceiver
) -> None:
    app.always = Reply(503)
    pauses = []
    outbox = Outbox(pool)
    await kept_live(pool, **settings_for(app, chat))
    job = await ended_job(db, "completed")
    for _ in range(9):
        (message,) = await outbox.take(["notify"], limit=4)
        pauses.append(message.put_off_seconds)
        assert not await outbox.not_told(message, "it answers 503", final=False)
        await db.execute("update fullpass.outbox set due_at = now()")
    wanted = [min(21600, 30 * 3**n) for n in range(9)]
    assert all(0.7 * w < p < 1.3 * w for p, w in zip(pauses, wanted, strict=True)), pauses
    await db.execute("update fullpass.outbox set at = now() - interval '71 hours'")
    async with telling(pool, **settings_for(app, chat)):
        await chat.until(1)
        await all_ended(db)
    row = await db.fetchrow("select * from fullpass.outbox where channel = 'notify'")
    assert row is not None
    assert (row["outcome"], row["attempts"]) == ("given up", 10)
    event = await db.fetchrow(
        "select event, data from fullpass.job_events where job_id = $1 and event = 'not_told'", job
    )
    assert event is not None
    assert json.loads(event["data"]) == {
        "channel": "notify", "of": "completed", "attempts": 10, "reason": "it answers 503",
    }  # fmt: skip
    assert "NOTIFY_WEBHOOK was not reached in 10 attempts" in chat.texts()[0]


async def test_a_receiver_that_is_gone_is_told_nothing_more_until_its_address_changes(
    db: Db, pool: Pool, app: WebhookReceiver, chat: WebhookReceiver
) -> None:
    app.always = Reply(410)
    async with telling(pool, **settings_for(app, chat)):
        first = await ended_job(db, "completed")
        await chat.until(1)
        await ended_job(db, "completed")
    assert "NOTIFY_WEBHOOK answered 410 Gone" in chat.texts()[0]
    async with telling(pool, **settings_for(app, chat)):  # as after a restart
        await ended_job(db, "completed")
    assert len(app.received) == 1
    waiting = await db.fetch("select job_id from fullpass.outbox where ended_at is null")
    assert [row["job_id"] for row in waiting] == [first], "nothing is written for it meanwhile"
    await db.execute("update fullpass.outbox set due_at = now()")
    with WebhookReceiver() as new:
        async with telling(pool, **settings_for(new, chat)):
            last = await ended_job(db, "completed")
            await new.until(2)
        assert {body["data"]["job_id"] for body in new.bodies()} == {str(first), str(last)}


async def test_a_message_that_nobody_could_tell_for_days_is_let_go(
    db: Db, pool: Pool, app: WebhookReceiver
) -> None:
    await kept_live(pool, **settings_for(app))
    job = await ended_job(db, "completed")
    await db.execute(
        "update fullpass.outbox set (at, due_at) = (select t, t from (select now() - interval '4 days' as t) d)"
    )
    async with telling(pool, **settings_for(app)):
        await all_ended(db)
    assert app.received == []
    assert await db.fetchval("select outcome from fullpass.outbox") == "dropped"
    assert await db.fetchval(
        "select count(*) from fullpass.job_events where job_id = $1 and event = 'not_told'", job
    )


async def test_two_workers_share_the_messages_and_send_none_twice(
    db: Db, pool: Pool, app: WebhookReceiver
) -> None:
    async with (
        telling(pool, **settings_for(app)) as one,
        telling(pool, **settings_for(app)) as two,
    ):
        for _ in range(40):
            await ended_job(db, "completed")
        one.wake()
        two.wake()
        await all_ended(db)
    ids = [request.headers["webhook-id"] for request in app.received]
    assert len(ids) == len(set(ids)) == 40


async def test_forgetting_a_person_forgets_what_was_to_be_told_of_them(
    db: Db, pool: Pool, app: WebhookReceiver
) -> None:
    app.always = Reply(500)
    async with telling(pool, **settings_for(app)):
        job = await ended_job(db, "completed")
        await app.until(1)
        user = await db.fetchval("select user_id from processing_jobs where id = $1", job)
        counts = json.loads(await db.fetchval("select fullpass.forget($1)", user))
    assert counts["outbox"] == 1
    assert await db.fetchval("select count(*) from fullpass.outbox") == 0


async def test_a_worker_that_ends_in_the_middle_of_a_look_tells_what_that_look_took(
    db: Db, pool: Pool, app: WebhookReceiver
) -> None:
    for n in range(25):
        async with telling(pool, look_seconds=30, **settings_for(app)) as teller:
            await ended_job(db, "completed")
            teller.wake()
            await asyncio.sleep(n / 10_000)  # each time a little deeper; no deadline
    assert len(app.received) == 25
    assert await db.fetchval("select count(*) from fullpass.outbox where attempts <> 1") == 0


async def test_looking_for_what_is_due_reads_nothing_else(db: Db) -> None:
    await db.execute(
        "insert into fullpass.outbox (channel, event, about, told_at, ended_at, outcome) "
        "select 'alert', 'failed', 'failed: ' || n, now() - interval '2 hours', now(), 'delivered' "
        "from generate_series(1, 50000) n"
    )
    await db.execute("analyze fullpass.outbox")
    for query, index in (
        (
            "select * from fullpass.outbox where channel = 'notify' and ended_at is null "
            "and due_at <= clock_timestamp() order by due_at limit 4",
            "outbox_due",
        ),
        (
            "select count(*) from fullpass.outbox where channel = 'alert' "
            "and told_at > now() - interval '1 hour'",
            "outbox_alerts_told",
        ),
        (
            "select * from fullpass.outbox where about = 'work' order by at desc limit 1",
            "outbox_stops",
        ),
    ):
        plan = "\n".join(row[0] for row in await db.fetch(f"explain {query}"))
        assert index in plan, plan
