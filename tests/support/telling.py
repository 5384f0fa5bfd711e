"""Jobs that end with nobody working them, and a teller beside the test."""

from __future__ import annotations

import contextlib
import uuid
from typing import TYPE_CHECKING, Any

from daemon.database import open_pool
from daemon.ops.telling import Teller
from daemon.settings import load_settings
from tests.support.queue_checks import until
from tests.support.tcp_proxy import TcpProxy

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from typing import TypeAlias

    import asyncpg

    from daemon.database import Pool
    from tests.support.webhook_receiver import WebhookReceiver

    Db: TypeAlias = asyncpg.Connection[asyncpg.Record]

SECRET = "whsec_" + "c2VjcmV0LXdvcmRz" * 2


async def a_job(db: Db, path: str) -> uuid.UUID:
    job: uuid.UUID = await db.fetchval(
        "insert into processing_jobs (user_id, storage_path) values (gen_random_uuid(), $1) "
        "returning id",
        path,
    )
    return job


async def ended_job(db: Db, event: str, error: str | None = None) -> uuid.UUID:
    """End a job that nobody worked: what is told depends on its row and its timeline only."""
    job = await a_job(db, f"jobs/{uuid.uuid4()}")
    await db.execute(
        "select fullpass.end_job(j, $2, $3, $4) from processing_jobs j where id = $1",
        job,
        {"completed": "complete", "cancelled": "cancelled"}.get(event, "failed"),
        event,
        error,
    )
    return job


def settings_for(
    app: WebhookReceiver | None = None, chat: WebhookReceiver | None = None, **more: Any
) -> dict[str, Any]:
    named: dict[str, Any] = dict(more)
    if app is not None:
        named |= {"notify_webhook": f"{app.url}/hook", "notify_webhook_secret": SECRET}
    if chat is not None:
        named["alert_webhook"] = f"{chat.url}/services/room"
    return named


async def kept_live(pool: Pool, *, look_seconds: float = 30.0, **settings: Any) -> Teller:
    """Give a teller that does not tell yet, its channels live: what comes earlier is told nobody."""
    configured = load_settings(llm_provider="offline", **settings)
    teller = Teller(configured, worker_id="w-1", look_seconds=look_seconds)
    await teller.open(pool)
    return teller


@contextlib.asynccontextmanager
async def telling(
    pool: Pool, *, look_seconds: float = 0.05, finish_seconds: float = 5.0, **settings: Any
) -> AsyncIterator[Teller]:
    """Tell beside the test, as a worker does."""
    teller = await kept_live(pool, look_seconds=look_seconds, **settings)
    teller.start()
    try:
        yield teller
    finally:
        await teller.finish(seconds=finish_seconds)


@contextlib.asynccontextmanager
async def telling_over_a_link(
    database_url: str, **settings: Any
) -> AsyncIterator[tuple[TcpProxy, Teller]]:
    """Tell beside the test, over a link to the database that can be lost."""
    with TcpProxy(database_url) as proxy:
        pool = await open_pool(proxy.url)
        async with telling(pool, look_seconds=0.3, **settings) as teller:
            yield proxy, teller
        pool.terminate()


async def all_ended(db: Db) -> None:
    await until(
        lambda: db.fetchval(
            "select not exists (select from fullpass.outbox where ended_at is null)"
        ),
        seconds=15,
    )
