"""absurd: leased and fenced; its worker only polls, every quarter of a second."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import asyncpg
from absurd_sdk import AsyncAbsurd
from absurdctl import BUNDLED_SCHEMA_SQL
from harness import CONCURRENCY, main

if TYPE_CHECKING:
    from collections.abc import Callable


class Absurd:
    """Its asynchronous worker with its defaults."""

    unfinished = (
        "select count(*) from absurd.r_default where state in ('pending', 'running', 'sleeping')"
    )

    poll_seconds = 0.25

    async def install(self, url: str) -> None:
        db = await asyncpg.connect(url)
        await db.execute(BUNDLED_SCHEMA_SQL)
        await db.execute("select absurd.create_queue('default')")
        await db.close()

    async def start(self, url: str, ran: Callable[[], None]) -> None:
        self.producer = await asyncpg.connect(url)
        self.worker = AsyncAbsurd(url)

        @self.worker.register_task("no_op")
        async def no_op(_params: Any, _context: Any) -> None:
            ran()

        self.task = asyncio.create_task(self.worker.start_worker(concurrency=CONCURRENCY))

    async def enqueue(self, count: int) -> None:
        # What its `spawn` sends, for all jobs in one statement.
        await self.producer.execute(
            "select absurd.spawn_task('default', 'no_op', '{}'::jsonb, '{}'::jsonb) "
            "from generate_series(1, $1::int)",
            count,
        )

    async def stop(self) -> None:
        self.worker.stop_worker()
        await self.task


if __name__ == "__main__":
    main(Absurd())
