"""A database that is away or takes nothing is told of by workers that are busy too."""

from __future__ import annotations

import asyncio
import signal
from functools import partial
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from daemon.database import open_pool
from daemon.errors import Systemic
from daemon.queue.pausing import Pausing
from daemon.settings import load_settings
from daemon.worker import Worker
from tests.support.queue_checks import until
from tests.support.tcp_proxy import TcpProxy
from tests.support.telling import a_job, settings_for, telling
from tests.support.worker_process import QUICK

if TYPE_CHECKING:
    from daemon.fullpass.context import Pass
    from tests.support.telling import Db
    from tests.support.webhook_receiver import WebhookReceiver


async def test_a_worker_with_every_place_taken_tells_that_the_database_is_away(
    database_url: str, db: Db, chat: WebhookReceiver
) -> None:
    """It claims nothing, so it asks the queue nothing: only its jobs meet the trouble."""
    await db.fetchval("select fullpass.enqueue($1, 'exports/a.json')", uuid4())
    begun = asyncio.Event()

    async def run_pass(work: Pass) -> tuple[dict[str, Any], dict[str, Any]]:
        begun.set()
        while True:
            await work.fetchval("select 1")
            await asyncio.sleep(0.05)  # until the deadline of the test's own waiting

    with TcpProxy(database_url) as proxy:
        settings = load_settings(
            **{**QUICK, **settings_for(chat=chat), "max_concurrent_jobs": 1},
            llm_provider="offline",
        )  # fmt: skip
        worker = Worker(settings, proxy.url, run_pass=run_pass)
        worker.alarm._patience_seconds = 0.4
        running = asyncio.create_task(worker.run())
        await begun.wait()
        begun.clear()
        proxy.retarget("postgresql://127.0.0.1:1")
        proxy.reset()
        await chat.until(1)
        proxy.retarget(database_url)
        await chat.until(2, seconds=20)
        signal.raise_signal(signal.SIGTERM)
        await running
    lost, back = chat.texts()
    assert lost.startswith("fullpass: the database is out of reach for ")
    assert back.startswith("fullpass: the database answers again, after ")


async def test_an_end_that_is_not_taken_while_the_queue_answers_is_told(
    chat: WebhookReceiver,
) -> None:
    """A full disk of the database (53100): claims find nothing to do, and so meet nothing."""
    worker = Worker(
        load_settings(**QUICK, **settings_for(chat=chat), llm_provider="offline"), "unused"
    )
    worker.alarm._patience_seconds = 0.0
    pausing = worker._pausing
    for _ in range(3):
        pausing.ending("database trouble: No space left on device (SQLSTATE 53100)")
        pausing.reached_the_queue()
    await chat.until(1)
    pausing.ending(None)
    pausing.reached_the_queue()
    assert "53100" in chat.texts()[0]
    assert [event for event, *_ in worker.alarm._written] == ["reached"]


async def test_a_stop_is_told_again_when_another_worker_had_worked_in_between(
    database_url: str, db: Db, chat: WebhookReceiver
) -> None:
    with TcpProxy(database_url) as proxy:
        pool = await open_pool(proxy.url)
        async with telling(pool, look_seconds=0.3, **settings_for(chat=chat)) as teller:
            pausing = Pausing(teller.alarm)
            for stops in (1, 2):
                proxy.retarget("postgresql://127.0.0.1:1")
                proxy.reset()
                pausing.take(Systemic("the key is refused", seconds=60.0))
                await chat.until(2 * stops - 1)
                proxy.retarget(database_url)
                told = "select count(*) = {} from fullpass.outbox where event = 'stopped'"
                await until(partial(db.fetchval, told.format(stops)), seconds=10)
                job = await a_job(db, f"jobs/{stops}")
                await db.fetch("select fullpass.claim('other', 60, 'v', p_only => $1)", job)
                await db.execute("select fullpass.complete($1, 1, '{}', '{}')", job)
                await chat.until(2 * stops)
                await until(partial(_unmuted, teller.alarm), seconds=10)
                pausing._until = 0.0
        pool.terminate()
    assert ["work has stopped" in text for text in chat.texts()] == [True, False, True, False]


async def _unmuted(alarm: Any) -> bool:
    return not alarm._cried
