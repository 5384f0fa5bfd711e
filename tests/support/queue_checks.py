"""What the fault tests of the queue ask the database: jobs in, effects out, and polled waits."""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import asyncpg

from tests.support.queue_worker import EFFECTS

if TYPE_CHECKING:
    import uuid
    from collections.abc import AsyncIterator, Awaitable, Callable


class Queue:
    """A database with short jobs, looked at by a direct connection of its own."""

    def __init__(self, url: str, db: asyncpg.Connection[asyncpg.Record]) -> None:
        self.url = url
        self.db = db

    async def add(
        self, options: str, *, user: uuid.UUID | None = None, count: int = 1
    ) -> list[uuid.UUID]:
        """Insert jobs of one user, or of a user each."""
        rows = await self.db.fetch(
            "insert into processing_jobs (user_id, storage_path) "
            "select coalesce($1, gen_random_uuid()), 'jobs/' || gen_random_uuid() || '/' || $2::text "
            "from generate_series(1, $3) returning id",
            user,
            options,
            count,
        )
        return [row["id"] for row in rows]

    async def row(self, job: uuid.UUID) -> asyncpg.Record:
        """Return one job's row."""
        row = await self.db.fetchrow("select * from processing_jobs where id = $1", job)
        assert row is not None
        return row

    async def effects(self, job: uuid.UUID) -> list[asyncpg.Record]:
        """Return a job's effects in order."""
        return await self.db.fetch("select * from effects where job_id = $1 order by at", job)

    async def events(self, job: uuid.UUID) -> list[str]:
        """Return a job's timeline."""
        rows = await self.db.fetch(
            "select event from fullpass.job_events where job_id = $1 order by id", job
        )
        return [row["event"] for row in rows]

    async def doubled(self) -> int:
        """Count effects that happened more than once."""
        count: int = await self.db.fetchval(
            "select count(*) from (select from effects group by job_id, step having count(*) > 1) d"
        )
        return count

    async def until(
        self, query: str, *arguments: Any, seconds: float = 20.0, every: float = 0.03
    ) -> Any:
        """Ask until the answer is true; return it."""

        async def ask() -> Any:
            return await self.db.fetchval(query, *arguments)

        return await until(ask, seconds=seconds, every=every, what=query)

    async def all_done(self, *, seconds: float = 30.0) -> None:
        """Wait until every job is complete."""
        await self.until(
            "select not exists (select from processing_jobs where status <> 'complete')",
            seconds=seconds,
        )


@asynccontextmanager
async def queue_at(url: str) -> AsyncIterator[Queue]:
    """Open a queue on a migrated database."""
    db = await asyncpg.connect(url, statement_cache_size=0)
    try:
        await db.execute(EFFECTS)
        yield Queue(url, db)
    finally:
        await db.close()


async def until(
    ask: Callable[[], Awaitable[Any]], *, seconds: float, every: float = 0.03, what: str = ""
) -> Any:
    """Ask until the answer is true; return it."""
    deadline = time.monotonic() + seconds
    while not (answer := await ask()):
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        await asyncio.sleep(every)  # polled until the deadline
    return answer
