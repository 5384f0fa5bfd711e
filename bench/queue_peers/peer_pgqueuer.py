"""pgqueuer: LISTEN, batches claimed and recorded together; no fence."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import asyncpg
import uvloop
from harness import CONCURRENCY, main
from pgqueuer import PgQueuer
from pgqueuer.db import AsyncpgDriver
from pgqueuer.queries import Queries

if TYPE_CHECKING:
    from collections.abc import Callable

    from pgqueuer.models import Job


class Pgqueuer:
    """Its worker as its command line runs it: one connection, its own event loop."""

    unfinished = "select count(*) from pgqueuer"

    poll_seconds = 0.0

    async def install(self, url: str) -> None:
        db = await asyncpg.connect(url)
        await Queries(AsyncpgDriver(db)).install()
        await db.close()

    async def start(self, url: str, ran: Callable[[], None]) -> None:
        self.producer = Queries(AsyncpgDriver(await asyncpg.connect(url)))
        self.worker = PgQueuer(AsyncpgDriver(await asyncpg.connect(url)))

        @self.worker.entrypoint("no_op")
        async def no_op(_job: Job) -> None:
            ran()

        # It asks for room for two batches.
        self.task = asyncio.create_task(
            self.worker.run(batch_size=CONCURRENCY // 2, max_concurrent_tasks=CONCURRENCY)
        )

    async def enqueue(self, count: int) -> None:
        await self.producer.enqueue(["no_op"] * count, [None] * count, [0] * count)

    async def stop(self) -> None:
        self.worker.shutdown.set()
        await self.task


if __name__ == "__main__":
    main(Pgqueuer(), uvloop.run)
