"""fullpass: leased, fenced, with its events and the person's profile; LISTEN."""

from __future__ import annotations

import asyncio
import signal
from typing import TYPE_CHECKING, Any

import asyncpg
from harness import CONCURRENCY, main

from daemon import migrations
from daemon.logs import configure_logs
from daemon.settings import load_settings
from daemon.worker import Worker

if TYPE_CHECKING:
    from collections.abc import Callable

    from daemon.fullpass.context import Pass


class Fullpass:
    """The worker with its defaults, its pass replaced by nothing; a user a job."""

    unfinished = "select count(*) from processing_jobs where status in ('pending', 'processing')"
    poll_seconds = 0.0

    async def install(self, url: str) -> None:
        await migrations.apply(url)

    async def start(self, url: str, ran: Callable[[], None]) -> None:
        configure_logs(log_format="json", level="ERROR")

        async def no_op(_work: Pass) -> tuple[dict[str, Any], dict[str, Any]]:
            ran()
            return {}, {"cost_usd": 0.0, "calls": 0}

        settings = load_settings(
            database_url=url, llm_provider="offline", max_concurrent_jobs=CONCURRENCY
        )
        self.producer = await asyncpg.connect(url)
        self.task = asyncio.create_task(Worker(settings, url, run_pass=no_op).run())

    async def enqueue(self, count: int) -> None:
        await self.producer.execute(
            "insert into processing_jobs (user_id, storage_path) "
            "select gen_random_uuid(), 'bench/' || n from generate_series(1, $1::int) n",
            count,
        )

    async def stop(self) -> None:
        signal.raise_signal(signal.SIGTERM)
        await self.task


if __name__ == "__main__":
    main(Fullpass())
