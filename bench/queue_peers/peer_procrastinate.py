"""procrastinate: LISTEN, a job claimed at a time; no fence."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from harness import CONCURRENCY, main
from procrastinate import App, PsycopgConnector

if TYPE_CHECKING:
    from collections.abc import Callable


class Procrastinate:
    """Its worker with its defaults: rows kept, LISTEN on."""

    unfinished = "select count(*) from procrastinate_jobs where status in ('todo', 'doing')"

    poll_seconds = 0.0

    async def install(self, url: str) -> None:
        app = App(connector=PsycopgConnector(conninfo=url))
        async with app.open_async():
            await app.schema_manager.apply_schema_async()

    async def start(self, url: str, ran: Callable[[], None]) -> None:
        app = App(connector=PsycopgConnector(conninfo=url, max_size=CONCURRENCY))
        await app.open_async()

        @app.task(name="no_op")
        async def no_op() -> None:
            ran()

        self.no_op = no_op
        self.task = asyncio.create_task(
            app.run_worker_async(concurrency=CONCURRENCY, install_signal_handlers=False)
        )

    async def enqueue(self, count: int) -> None:
        await self.no_op.batch_defer_async(*({} for _ in range(count)))

    async def stop(self) -> None:
        self.task.cancel()
        await asyncio.wait([self.task])


if __name__ == "__main__":
    main(Procrastinate())
