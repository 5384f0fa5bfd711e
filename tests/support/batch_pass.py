"""Passes by message batch for tests: how they are set up, and what they must have paid."""

from __future__ import annotations

import uuid
from contextlib import asynccontextmanager
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from daemon.database import open_pool
from daemon.llm.batch_api import batch_api_of
from daemon.llm.batch_rows import BatchRows
from daemon.llm.batches import Batches
from daemon.llm.pricing import cost_usd
from daemon.llm.providers import provider_from
from daemon.llm.request import Usage
from daemon.settings import load_settings
from tests.support.worker_process import work_once

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.support.anthropic_server import AnthropicServer
    from tests.support.exports import PlantedExport

BATCH: dict[str, Any] = {
    "extraction_mode": "batch",
    "batch_poll_seconds": 0.1,
    "extraction_window_tokens": 700,
    "fact_extraction_concurrency": 4,
}
ONE_LOOK = {**BATCH, "batch_poll_seconds": 100.0}
"""Longer than a worker that runs once waits for: it leaves the job to its next look."""


async def insert_job(db: Any, path: Path, user: uuid.UUID) -> uuid.UUID:
    """Queue an export as an app does."""
    job: uuid.UUID = await db.fetchval(
        "insert into processing_jobs (user_id, storage_path) values ($1, $2) returning id",
        user,
        f"file://{path}",
    )
    return job


async def waiting_job(
    db: Any, database_url: str, server: AnthropicServer, path: Path
) -> tuple[uuid.UUID, uuid.UUID]:
    """Bring a job to where it waits for its batch; return it and its person."""
    server.behave(batch_seconds=3600.0)
    user = uuid.uuid4()
    job = await insert_job(db, path, user)
    await work_once(database_url, server.url, **ONE_LOOK)
    assert await db.fetchval("select status from processing_jobs where id = $1", job) == "pending"
    return job, user


async def look_now(db: Any, job: uuid.UUID) -> None:
    """Bring the next look forward."""
    await db.execute("update processing_jobs set run_at = now() where id = $1", job)


async def all_planted(db: Any, user: uuid.UUID, export: PlantedExport) -> bool:
    """Whether the person's facts are exactly those that the export states."""
    rows = await db.fetch("select category, statement from fullpass.facts where user_id = $1", user)
    return sorted(tuple(r) for r in rows) == sorted((p.category, p.statement) for p in export.truth)


def paid(server: AnthropicServer) -> Decimal:
    """Return what the server billed: half for what came by batch."""
    total = Decimal(0)
    for call in server.record.completed():
        usage = Usage(
            call.input_tokens, call.output_tokens, call.cache_read_tokens, call.cache_write_tokens
        )
        cost = cost_usd(call.model, usage)
        assert cost is not None
        total += cost / 2 if call.batch else cost
    return total


async def noted(db: Any, server: AnthropicServer) -> bool:
    """Whether the ledger says of every call what the server billed, to the last digit it keeps."""
    total: Decimal = await db.fetchval("select sum(cost_usd) from fullpass.llm_calls")
    digit = Decimal("0.000000005") * len(server.record.completed())
    return abs(total - paid(server)) <= digit


@asynccontextmanager
async def batches_of_a_worker(database_url: str, server: AnthropicServer) -> AsyncIterator[Batches]:
    """Give the batches of a server as a worker has them."""
    settings = load_settings(
        anthropic_api_key="test-key", anthropic_base_url=server.url, database_url=database_url
    )
    provider = provider_from(settings)
    pool = await open_pool(database_url)
    try:
        api = batch_api_of(provider)
        assert api is not None
        yield Batches(api, BatchRows(pool), poll_seconds=0.1, read=lambda reply: reply)
    finally:
        await pool.close()
        await provider.aclose()


async def tend(db: Any, database_url: str, server: AnthropicServer) -> None:
    """Do what every worker does now and then, twice: ask to cancel, then note what came of it."""
    async with batches_of_a_worker(database_url, server) as batches:
        for _ in range(2):
            await db.execute("update fullpass.batches set looked_at = null")
            await batches.tend_orphans()
