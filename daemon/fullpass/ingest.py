"""Steps download_conversations, chunk_conversations, save_chunks: one stream from bytes to rows.

A process of its own reads and cuts (reading.py); here its batches go to the database as they come
(staging.py), and the pipe between holds the reader back when the database is slower (bounded
memory, promise 7). Nothing is removed until the export was read whole (promise 10).
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from daemon import __version__
from daemon.database import database_errors
from daemon.errors import BadExport, GiveUp, OutOfReach
from daemon.export import source
from daemon.export.refusals import why_nothing
from daemon.export.streams import Limits
from daemon.fullpass.context import report_progress
from daemon.fullpass.handover import Order, TierOrder
from daemon.fullpass.reader_process import ReaderDied, ReaderProcess
from daemon.fullpass.staging import RECENT, Staging, TooSlow
from daemon.logs import get_logger
from daemon.memory_gauge import MIB, read_gauge
from daemon.queue.lease import clock

if TYPE_CHECKING:
    from collections.abc import Callable

    from daemon.database import Connection
    from daemon.export.conversation import ReadReport
    from daemon.fullpass.context import Pass
    from daemon.fullpass.turns import Tier

_log = get_logger()

_LEAST_READER_BYTES = 96 * MIB
_LEAST_MESSAGE_BYTES = 4 * MIB
_LEAST_HELD_BYTES = 1 * MIB
_PROGRESS_SECONDS = 2.0
_MANY_ROWS = 1_000


async def already_ingested(work: Pass) -> bool:
    """Whether this job brought its export in before; if so, the pass goes on from there."""
    row = await work.fetchrow(
        "select source, ingested_at, ingest->>'etag' as etag from fullpass.passes "
        "where job_id = $1",
        work.job.id,
    )
    if row is None or row["ingested_at"] is None:
        return False
    if (work.job.storage_path or "").startswith("file:"):
        # A file on this machine may have been edited since; one that is gone was read already.
        with suppress(BadExport):
            if (await _fetch(work, Path())).etag != row["etag"]:
                return False
    work.source = row["source"]
    return True


async def download(work: Pass, folder: Path, reader: ReaderProcess) -> source.FetchedExport:
    """Bring the export's bytes into `folder` (a local file stays where it is).

    The reader gets ready meanwhile. Raises BadExport when there is nothing to read, Wait or
    Systemic when storage is in trouble.
    """
    if not (work.job.storage_path or "").strip():
        raise BadExport("the job has no storage_path; enqueue it with the path of an export")
    async with work.lease.fenced() as connection:
        await report_progress(work, connection)
    return await _fetch(work, folder, on_bytes=lambda _done, _total: reader.warm_up())


async def _fetch(
    work: Pass, folder: Path, on_bytes: Callable[[int, int | None], None] = lambda *_: None
) -> source.FetchedExport:
    s = work.settings
    key = s.supabase_service_key
    return await source.fetch(
        work.job.storage_path or "",
        into=folder,
        supabase_url=s.supabase_url,
        service_key=None if key is None else key.get_secret_value(),
        allow_local_files=s.allow_local_files,
        owner=str(work.job.user_id) if s.require_owned_paths else None,
        check=work.lease.check,
        on_bytes=on_bytes,
    )


async def save_conversations(
    work: Pass, fetched: source.FetchedExport, folder: Path, reader: ReaderProcess
) -> None:
    """Bring the export's conversations into conversation_chunks; `folder` is for what must wait.

    Raises BadExport when nothing can be read, and what ends the work meanwhile.
    """
    staging = Staging(work)
    await staging.clear()
    try:
        await reader.begin(_order(work, fetched, folder))
        told_at = clock()
        async for batch in reader:
            work.source = batch.source or work.source
            if batch.parts:
                await staging.save(batch)
            elif clock() - told_at > _PROGRESS_SECONDS:
                async with work.lease.fenced() as connection:
                    await report_progress(work, connection, share=batch.share)
            else:
                continue
            told_at = clock()
    except BadExport:
        work.step = "chunk_conversations"  # where reading went wrong
        raise
    except (ReaderDied, TooSlow) as error:
        if isinstance(error, ReaderDied):
            work.step = "chunk_conversations"
        raise await _once_more(work, error) from error
    finally:
        _log.info("reader.ended", peak_rss_mb=reader.peak_rss_bytes // MIB)
    if staging.rows >= _MANY_ROWS:
        await _refresh_statistics(work)
    if reader.report is not None:
        await _finish(work, reader.report, fetched)


def _order(work: Pass, fetched: source.FetchedExport, folder: Path) -> Order:
    """Bound the reading by the memory there is: what is too large waits on disk, or is skipped.

    A held conversation takes about four times its bytes at the peak, a single message six times
    (promise 7).
    """
    room = read_gauge(memory_limit_mb=work.settings.memory_limit_mb).available_bytes
    usual = Limits()
    return Order(
        release=__version__,
        parent_pid=os.getpid(),
        path=str(fetched.path.absolute()),
        name=fetched.name,
        file_type=_file_type(work.job.file_type),
        folder=str(folder.absolute()),
        last_modified=fetched.last_modified,
        tiers=tuple(map(_tier_order, work.tiers)),
        limits=replace(
            usual,
            held_bytes=min(usual.held_bytes, max(_LEAST_HELD_BYTES, room // 16)),
            message_bytes=min(usual.message_bytes, max(_LEAST_MESSAGE_BYTES, room // 8)),
        ),
        memory_bytes=max(_LEAST_READER_BYTES, room * 9 // 10),
    )


def _tier_order(tier: Tier) -> TierOrder:
    unit = "characters" if tier.measure is len else "tokens"
    return TierOrder(tier.name, tier.size, tier.overlap, unit)  # type: ignore[arg-type]


def _file_type(given: str | None) -> source.FileType | None:
    if given in {None, "json", "zip"}:
        return given  # type: ignore[return-value]
    raise BadExport(f"file_type is {given!r}; it must be json, zip or null (sniffed)")


async def _once_more(work: Pass, error: ReaderDied | TooSlow) -> ReaderDied | TooSlow | GiveUp:
    """Put the evidence on the timeline; an export that ended the attempt before so too is given up.

    Once may have been another job's doing, who took the memory or the time.
    """
    event = "reader.died" if isinstance(error, ReaderDied) else "switch.too_slow"
    async with work.lease.fenced() as connection:
        again: bool = await connection.fetchval(
            """
            select exists (select from fullpass.job_events
                           where job_id = $1 and event = $2 and attempt = $3 - 1)
            """,
            work.job.id, event, work.job.attempt,
        )  # fmt: skip
        await connection.execute(
            "select fullpass.note_event(j, $2, $3, $4) "
            "from public.processing_jobs j where j.id = $1",
            work.job.id, event, work.step, json.dumps({"error": str(error)}),
        )  # fmt: skip
    return GiveUp(f"{error}; twice in a row") if again else error


async def _refresh_statistics(work: Pass) -> None:
    """Tell the planner what was loaded: it would still think of an empty table.

    Of the chunks only the columns that plans are made by: their texts, and what an app keeps beside
    them, would take most of the time.
    Only the tables' owner may; for others Postgres warns and skips. Late or refused, it is no
    trouble of the job's: autovacuum comes sooner or later.
    """
    with suppress(OutOfReach), database_errors():
        async with work.pool.acquire() as connection, connection.transaction():
            await connection.execute(
                """
                set local statement_timeout = '20s'; set local lock_timeout = '1s';
                analyze public.conversation_chunks (
                            user_id, conversation_id, source, chunk_tier, chunk_index,
                            content_hash, created_at, is_recent),
                        fullpass.chunk_maps, fullpass.conversations
                """
            )


async def _finish(work: Pass, report: ReadReport, fetched: source.FetchedExport) -> None:
    """Close the reading: account for it, and let go of what a whole, newer export left out."""
    removed = 0
    async with work.lease.fenced() as connection:
        if not report.conversations and not report.context_entries:
            await _refuse_unless_known(work, report, fetched.name, connection)
        if report.whole and not await _is_older(work, report, connection):
            await _keep_untold(work, report, connection)
            removed = await connection.fetchval(
                "select fullpass.remove_vanished($1, $2, $3)",
                work.job.id, work.job.user_id, work.source,
            )  # fmt: skip
        await connection.execute(
            "select fullpass.drop_orphans($1, $2)", work.job.user_id, work.source
        )
        # Time passes: what was recent at the last pass may not be so any more. It only passes one
        # way, so this needs no look at the conversations, a join whose cost could be their number
        # times that of the chunks.
        await connection.execute(
            """
            update public.conversation_chunks set is_recent = false
            where user_id = $1 and source = $2 and is_recent and created_at <= $3
            """,
            work.job.user_id, work.source, work.job.started_at - RECENT,
        )  # fmt: skip
        account = {**asdict(report), "removed_conversations": removed, "etag": fetched.etag}
        await connection.execute(
            """
            update fullpass.passes set ingested_at = clock_timestamp(), source = $2, ingest = $3
            where job_id = $1
            """,
            work.job.id, work.source, json.dumps(account, default=str),
        )  # fmt: skip
        await report_progress(
            work, connection, share=1.0, conversations=report.conversations,
            messages=report.messages,
        )  # fmt: skip
    _log.info(
        "export.read", source=work.source, conversations=report.conversations,
        messages=report.messages, damaged=report.damaged, whole=report.whole, removed=removed,
    )  # fmt: skip


async def _refuse_unless_known(
    work: Pass, report: ReadReport, name: str, connection: Connection
) -> None:
    """Refuse an export of nothing but what is to be forgotten, of a person nothing is known of.

    Of one whom something is known of, facts and MEMORY may rest on just that: the pass goes on.
    """
    if not await connection.fetchval(
        """
        select exists (select from fullpass.memories where user_id = $1)
            or exists (select from fullpass.extracted_facts where user_id = $1)
        """,
        work.job.user_id,
    ):
        work.step = "chunk_conversations"
        raise BadExport(why_nothing(name, report, met=report.forgotten))


async def _keep_untold(work: Pass, report: ReadReport, connection: Connection) -> None:
    """Take for met what this export would not hold in any case.

    Exports come in several files: memories apart from conversations, conversations in numbered
    parts. That one file lacks what is in another says nothing of it.
    """
    if report.tells_of_conversations and report.tells_of_context:
        return
    await connection.execute(
        """
        update fullpass.conversations set last_job = $3
        where user_id = $1 and source = $2 and last_job <> $3
          and not case when conversation_id ~ '^(instructions|memory):'
                       then $5::boolean else $4::boolean end
        """,
        work.job.user_id, work.source, work.job.id,
        report.tells_of_conversations, report.tells_of_context,
    )  # fmt: skip


async def _is_older(work: Pass, report: ReadReport, connection: Connection) -> bool:
    """Whether what is stored goes further than this export: an old file uploaded again.

    From an older export nothing may be concluded about what the person deleted. Judged by the
    export itself: of a conversation that it holds, a later state may be stored, or an earlier one
    where nothing but the time of its last update changed.
    """
    return bool(
        await connection.fetchval(
            """
            select exists (
                select from fullpass.conversations
                where user_id = $1 and source = $2 and last_job <> $3 and updated_at > $4)
            """,
            work.job.user_id, work.source, work.job.id, report.newest,
        )
    )  # fmt: skip
