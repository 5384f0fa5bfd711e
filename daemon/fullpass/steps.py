"""The full pass, told in order.

    bytes → conversations → chunks → facts → MEMORY → sections

Each step leaves its result in Postgres and starts from what is there, so an attempt that follows a
kill, a drain or an error continues at the missing rows (DESIGN, Flow). While conversations are out
by batch the pass ends its attempt and goes on when they are back. Nothing here decides what an
error means for the job: that is the worker's.
"""

from __future__ import annotations

import asyncio
import json
import tempfile
import time
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from daemon.errors import HeldByBatch, Wait
from daemon.fullpass import batch
from daemon.fullpass.consolidate import consolidate
from daemon.fullpass.context import STEPS, Pass, Step, keep_telling, report_progress
from daemon.fullpass.extract import extract, learn_speeds
from daemon.fullpass.ingest import already_ingested, download, save_conversations
from daemon.fullpass.memory import generate, save
from daemon.fullpass.reader_process import ReaderProcess
from daemon.fullpass.reduce import reduce
from daemon.fullpass.sections import regenerate
from daemon.instruments import STEP_SECONDS, span
from daemon.logs import bind_step, get_logger

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from daemon.fullpass.extract import Coverage

__all__ = ["STEPS", "full_pass"]

_log = get_logger()
_LAST_WORD_SECONDS = 1.0


async def full_pass(work: Pass) -> tuple[dict[str, Any], dict[str, Any]]:
    """Run the pass to its end; return the job's result and its cost, both JSON-ready.

    Raises what the steps raise: GiveUp, TryAgain, Wait, Stop.
    """
    await learn_speeds(work)
    if not await already_ingested(work):
        with _spool() as folder:
            async with ReaderProcess(check=work.lease.check) as reader:
                async with _step(work, "download_conversations"):
                    fetched = await download(work, folder, reader)
                async with _step(work, "chunk_conversations"), _step(work, "save_chunks"):
                    await save_conversations(work, fetched, folder, reader)
    else:
        await batch.still_out(work)
    try:
        async with _step(work, "extract_facts"):
            coverage = await extract(work)
        if coverage is None and await batch.first_memory_is_due(work):
            await _first_memory(work)
    except HeldByBatch as error:
        # What the batch leaves of its money pays for this: the pass goes on when it has landed.
        _log.info("batch.holds_money", error=str(error))
        raise await batch.held(work) from error
    if coverage is None:
        raise await batch.awaited(work)
    async with _step(work, "consolidate_facts"):
        consolidated = await consolidate(work)
    async with _step(work, "reduce_facts"):
        reduced = await reduce(work)
    async with _step(work, "generate_memory"):
        memory = await generate(work, reduced)
    async with _step(work, "save_memory"):
        applied = await save(work, memory)
    async with _step(work, "regenerate_sections"):
        sections = await regenerate(work, reduced, memory.markdown)
    cost = await _cost(work)
    result = {
        "provider": work.caller.provider.name,
        "export": await _export_account(work),
        "coverage": _coverage_account(coverage),
        "facts": {
            **consolidated,
            "rejected": await _rejected(work),
            "joined": reduced.joined,
            "ranked_out": reduced.ranked_out,
        },
        "memory": {
            "writer": memory.writer, "facts": memory.facts, "applied": applied, **memory.details,
        },
        "sections": {"saved": sections.saved, "detail": sections.detail},
        "cost": cost,
    }  # fmt: skip
    return result, cost


@contextmanager
def _spool() -> Iterator[Path]:
    """Give a folder for what is too large to be held; it is gone afterwards.

    Raises Wait when the disk takes none: nothing of that is the job's fault.
    """
    try:
        folder = tempfile.TemporaryDirectory(prefix="fullpass-", ignore_cleanup_errors=True)
    except OSError as error:
        raise Wait(
            f"this machine's folder for temporary files cannot be used ({error.strerror}); make "
            "room there or set TMPDIR",
            seconds=60.0,
        ) from None
    with folder as name:
        yield Path(name)


async def _first_memory(work: Pass) -> None:
    """Write a first MEMORY from what is read while the rest is out by batch."""
    work.early = True
    async with _step(work, "consolidate_facts"):
        await consolidate(work)
    async with _step(work, "reduce_facts"):
        reduced = await reduce(work)
    async with _step(work, "generate_memory"):
        memory = await generate(work, reduced)
    async with _step(work, "save_memory"):
        await save(work, memory)
    work.early = False
    _log.info("memory.first", facts=memory.facts)


@asynccontextmanager
async def _step(work: Pass, name: Step) -> AsyncIterator[None]:
    """Log a step's boundaries and put them on the job's timeline."""
    work.step = name
    with bind_step(name), span(name, job_id=str(work.job.id)):
        _log.info("step.started")
        started = time.monotonic()
        await _note(work, "step.started", name, None)
        if name not in {"chunk_conversations", "save_chunks"}:  # these two say so as they stream
            async with work.lease.fenced() as connection:
                await report_progress(work, connection)
        async with _time_told(work):
            yield
        seconds = round(time.monotonic() - started, 3)
        await _note(work, "step.finished", name, {"seconds": seconds})
        _log.info("step.finished", seconds=seconds)
        STEP_SECONDS.observe(name, seconds)


@asynccontextmanager
async def _time_told(work: Pass) -> AsyncIterator[None]:
    """Keep what people read of the time left true meanwhile."""
    over = asyncio.Event()
    telling = asyncio.create_task(keep_telling(work, over))
    try:
        yield
    finally:
        over.set()
        try:
            await asyncio.wait({telling}, timeout=_LAST_WORD_SECONDS)
        finally:
            telling.cancel()  # a word that the database does not take holds up no end of a step
        if telling.done():
            telling.result()


async def _note(work: Pass, event: str, step: Step, data: dict[str, Any] | None) -> None:
    async with work.lease.fenced() as connection:
        await connection.execute(
            """
            select fullpass.note_event(j, $2, $3, $4)
            from public.processing_jobs j where j.id = $1
            """,
            work.job.id,
            event,
            step,
            None if data is None else json.dumps(data),
        )


async def _cost(work: Pass) -> dict[str, Any]:
    spent = await work.caller.ledger.spent(work.job.id)
    return {
        "calls": spent.calls,
        "input_tokens": spent.input_tokens,
        "output_tokens": spent.output_tokens,
        "cache_read_tokens": spent.cache_read_tokens,
        "cache_write_tokens": spent.cache_write_tokens,
        "cost_usd": float(spent.cost_usd),
        "calls_of_unknown_price": spent.unpriced_calls,
        "batch_calls": spent.batch_calls,
        "saved_by_cache_usd": float(spent.saved_by_cache_usd),
        "saved_by_batch_usd": float(spent.saved_by_batch_usd),
        "calls_served_by_ledger": spent.served_calls,
        "saved_by_ledger_usd": float(spent.saved_by_ledger_usd),
    }


async def _export_account(work: Pass) -> dict[str, Any]:
    account = await work.fetchval(
        "select ingest from fullpass.passes where job_id = $1", work.job.id
    )
    loaded: dict[str, Any] = json.loads(account) if account else {}
    return loaded


def _coverage_account(coverage: Coverage) -> dict[str, Any]:
    return {
        "chunks": coverage.chunks,
        "read": coverage.read,
        "share": round(coverage.share, 4),
        "outcomes": coverage.outcomes,
    }


async def _rejected(work: Pass) -> dict[str, int]:
    """Count the reported facts that were not believed, by reason."""
    rows = await work.fetch(
        """
        select rejected, count(*) as facts from fullpass.extracted_facts
        where user_id = $1 and source = $2 and rejected is not null
        group by 1 order by 2 desc limit 20
        """,
        work.job.user_id,
        work.source,
    )
    return {row["rejected"]: row["facts"] for row in rows}
