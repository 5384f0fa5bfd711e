"""Steps download_conversations, chunk_conversations, save_chunks: one stream from bytes to rows.

A thread reads and chunks; the loop saves batches of whole conversations under the fence and holds
the thread back when the database is slower (bounded memory, promise 7). What is already stored
unchanged is only marked as met, so a resumed or repeated export costs no writes. Nothing is removed
until the export was read whole (promise 10).
"""

from __future__ import annotations

import asyncio
import json
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from daemon.errors import BadExport
from daemon.export import source
from daemon.export.conversation import EVIDENCE_ROLES
from daemon.export.reader import ExportReader
from daemon.export.streams import Limits
from daemon.fullpass.chunks import CHUNKING_VERSION, chunk, conversation_hash
from daemon.fullpass.context import report_progress
from daemon.logs import get_logger
from daemon.memory_gauge import read_gauge

if TYPE_CHECKING:
    from collections.abc import Iterator

    from daemon.database import Connection
    from daemon.export.conversation import Conversation, ReadReport
    from daemon.fullpass.chunks import Chunk, Tier
    from daemon.fullpass.context import Pass

_log = get_logger()

_BATCH_CHARACTERS = 1_000_000
_BATCH_CONVERSATIONS = 200
_RECENT = timedelta(days=180)
_LEAST_CONVERSATION_BYTES = 4 * 1024 * 1024
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

_STAGED = (
    "job_id", "conversation_id", "tier", "chunk_index", "total_chunks", "title", "content",
    "message_count", "created_at", "is_recent", "token_count", "content_hash", "messages",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Prepared:
    """One conversation with its chunks and the marks it is recognised by."""

    conversation: Conversation
    content_hash: str
    chunks: tuple[Chunk, ...]
    own_characters: int

    @property
    def characters(self) -> int:
        return sum(len(c.content) for c in self.chunks)


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


async def download(work: Pass, folder: Path) -> source.FetchedExport:
    """Bring the export's bytes into `folder` (a local file stays where it is).

    Raises BadExport when there is nothing to read, Wait or Systemic when storage is in trouble.
    """
    if not (work.job.storage_path or "").strip():
        raise BadExport("the job has no storage_path; enqueue it with the path of an export")
    async with work.lease.fenced() as connection:
        await report_progress(work, connection)
    return await _fetch(work, folder)


async def _fetch(work: Pass, folder: Path) -> source.FetchedExport:
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
    )


async def save_conversations(work: Pass, fetched: source.FetchedExport) -> None:
    """Bring the export's conversations into conversation_chunks.

    Raises BadExport when nothing can be read.
    """
    reader = ExportReader(
        fetched.path,
        file_type=_file_type(work.job.file_type),
        name=fetched.name,
        limits=_limits(work),
    )
    await _save_all(work, reader, fetched.last_modified)
    await _finish(work, reader.report, fetched.etag)


def _limits(work: Pass) -> Limits:
    """Bound a conversation by the memory there is: one too large is skipped, not fatal (promise 7).

    Reading, cutting and saving one takes about four times its bytes at the peak.
    """
    gauge = read_gauge(memory_limit_mb=work.settings.memory_limit_mb)
    usual = Limits()
    room = max(_LEAST_CONVERSATION_BYTES, gauge.available_bytes // 5)
    return replace(usual, conversation_bytes=min(usual.conversation_bytes, room))


def _file_type(given: str | None) -> source.FileType | None:
    if given in {None, "json", "zip"}:
        return given  # type: ignore[return-value]
    raise BadExport(f"file_type is {given!r}; it must be json, zip or null (sniffed)")


async def _save_all(work: Pass, reader: ExportReader, last_modified: datetime | None) -> None:
    """Stream batches from the reading thread into the database."""
    loop = asyncio.get_running_loop()
    batches: asyncio.Queue[list[_Prepared] | BaseException | None] = asyncio.Queue(maxsize=1)
    stopped = False

    def produce() -> None:
        # Every put waits for room, so the thread is never more than two batches ahead.
        def put(item: list[_Prepared] | BaseException | None) -> None:
            asyncio.run_coroutine_threadsafe(batches.put(item), loop).result()

        try:
            for batch in _batched(reader, work.tiers):
                if stopped:
                    return
                put(batch)
            put(None)
        except BaseException as error:  # noqa: BLE001 - carried to the loop, raised there
            put(error)

    reading = asyncio.create_task(asyncio.to_thread(produce))
    try:
        while True:
            batch = await batches.get()
            if batch is None:
                break
            if isinstance(batch, BaseException):
                work.step = "chunk_conversations"  # where reading went wrong
                raise batch
            work.lease.check()
            await _save(work, batch, reader.report, last_modified)
    finally:
        stopped = True
        # Unblock a thread that waits to put, then let it see `stopped`.
        while not reading.done():
            with suppress(asyncio.QueueEmpty):
                batches.get_nowait()
            await asyncio.wait({reading}, timeout=0.05)
    await reading


def _batched(reader: ExportReader, tiers: tuple[Tier, ...]) -> Iterator[list[_Prepared]]:
    batch: list[_Prepared] = []
    size = 0
    for conversation in reader:
        prepared = _Prepared(
            conversation,
            conversation_hash(conversation, tiers),
            tuple(c for tier in tiers for c in chunk(conversation, tier)),
            sum(len(m.text) for m in conversation.messages if m.role in EVIDENCE_ROLES),
        )
        # One conversation appears in a batch once: a later shard's copy starts the next.
        again = any(p.conversation.id == conversation.id for p in batch)
        if batch and (
            again
            or size + prepared.characters > _BATCH_CHARACTERS
            or len(batch) >= _BATCH_CONVERSATIONS
        ):
            yield batch
            batch, size = [], 0
        batch.append(prepared)
        size += prepared.characters
    if batch:
        yield batch


async def _save(
    work: Pass, batch: list[_Prepared], report: ReadReport, last_modified: datetime | None
) -> None:
    """Save one batch of whole conversations in one fenced transaction."""
    work.source = report.source or batch[0].conversation.source
    async with work.lease.fenced() as connection:
        fresh = await _changed(work, connection, batch)
        rows = [row for p in fresh for row in _staged_rows(work, p, last_modified)]
        if rows:
            await connection.copy_records_to_table(
                "staged_chunks", schema_name="fullpass", columns=_STAGED, records=rows
            )
            await connection.execute(
                "select fullpass.apply_staged($1, $2, $3, $4)",
                work.job.id, work.job.user_id, work.source, CHUNKING_VERSION,
            )  # fmt: skip
        await _remember(work, connection, fresh, last_modified)
        await connection.execute(
            """
            update fullpass.conversations set last_job = $4
            where user_id = $1 and source = $2 and conversation_id = any ($3)
              and last_job <> $4
            """,
            work.job.user_id, work.source, [p.conversation.id for p in batch], work.job.id,
        )  # fmt: skip
        await report_progress(
            work,
            connection,
            share=report.bytes_read / max(1, report.bytes_total),
            conversations=report.conversations,
            messages=report.messages,
        )


async def _changed(work: Pass, connection: Connection, batch: list[_Prepared]) -> list[_Prepared]:
    """Return the conversations that are not stored as they are, nor stored in a later state."""
    known = {
        row["conversation_id"]: row
        for row in await connection.fetch(
            """
            select k.conversation_id, k.content_hash, k.updated_at,
                   k.chunk_count = (
                       select count(*) from public.conversation_chunks c
                       where c.user_id = k.user_id and c.conversation_id = k.conversation_id
                         and c.source = k.source and c.chunking_version = $4
                   ) as complete
            from fullpass.conversations k
            where k.user_id = $1 and k.source = $2 and k.conversation_id = any ($3)
            """,
            work.job.user_id, work.source, [p.conversation.id for p in batch], CHUNKING_VERSION,
        )
    }  # fmt: skip
    fresh = []
    for prepared in batch:
        row = known.get(prepared.conversation.id)
        # The app may have deleted chunks: a conversation whose rows are gone is saved anew.
        if row is not None and row["complete"]:
            updated = prepared.conversation.updated_at
            if row["content_hash"] == prepared.content_hash:
                continue
            stored = row["updated_at"]
            if updated is not None and stored is not None and stored > updated:
                continue
        fresh.append(prepared)
    return fresh


def _created_at(conversation: Conversation, last_modified: datetime | None) -> datetime:
    """Date a conversation, by the contract's order; never by the present."""
    earliest = min((m.at for m in conversation.messages if m.at), default=None)
    return conversation.created_at or earliest or conversation.updated_at or last_modified or _EPOCH


def _staged_rows(
    work: Pass, prepared: _Prepared, last_modified: datetime | None
) -> Iterator[tuple[object, ...]]:
    conversation = prepared.conversation
    created_at = _created_at(conversation, last_modified)
    recent = conversation.created_at is not None and (created_at > work.job.started_at - _RECENT)
    for c in prepared.chunks:
        spans = [
            {
                "message_id": s.message_id,
                "role": s.role,
                "at": None if s.at is None else s.at.isoformat(),
                "start": s.start,
                "stop": s.stop,
            }
            for s in c.spans
        ]
        yield (
            work.job.id, conversation.id, c.tier, c.index, c.total, conversation.title, c.content,
            len({s.message_id for s in c.spans}), created_at, recent, c.token_count,
            c.content_hash, json.dumps(spans),
        )  # fmt: skip


async def _remember(
    work: Pass, connection: Connection, fresh: list[_Prepared], last_modified: datetime | None
) -> None:
    await connection.executemany(
        """
        insert into fullpass.conversations (
            user_id, source, conversation_id, content_hash, chunk_count, message_count,
            own_characters, dated, created_at, updated_at, last_job)
        values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)
        on conflict (user_id, source, conversation_id) do update set
            content_hash = excluded.content_hash, chunk_count = excluded.chunk_count,
            message_count = excluded.message_count, own_characters = excluded.own_characters,
            dated = excluded.dated, created_at = excluded.created_at,
            updated_at = excluded.updated_at, last_job = excluded.last_job
        """,
        [
            (
                work.job.user_id, work.source, p.conversation.id, p.content_hash, len(p.chunks),
                len(p.conversation.messages), p.own_characters,
                p.conversation.created_at is not None,
                _created_at(p.conversation, last_modified), p.conversation.updated_at,
                work.job.id,
            )
            for p in fresh
        ],
    )  # fmt: skip


async def _finish(work: Pass, report: ReadReport, etag: str | None) -> None:
    """Close the reading: account for it, and let go of what a whole, newer export left out."""
    removed = 0
    async with work.lease.fenced() as connection:
        if report.whole and not await _is_older(work, connection):
            removed = await connection.fetchval(
                "select fullpass.remove_vanished($1, $2, $3)",
                work.job.id, work.job.user_id, work.source,
            )  # fmt: skip
        await connection.execute(
            "select fullpass.drop_orphans($1, $2)", work.job.user_id, work.source
        )
        # Time passes: what was recent at the last pass may not be so any more.
        await connection.execute(
            """
            update public.conversation_chunks c
            set is_recent = k.dated and c.created_at > $3
            from fullpass.conversations k
            where c.user_id = $1 and c.source = $2 and k.user_id = c.user_id
              and k.source = c.source and k.conversation_id = c.conversation_id
              and c.is_recent is distinct from (k.dated and c.created_at > $3)
            """,
            work.job.user_id, work.source, work.job.started_at - _RECENT,
        )  # fmt: skip
        account = {**asdict(report), "removed_conversations": removed, "etag": etag}
        await connection.execute(
            """
            update fullpass.passes set ingested_at = clock_timestamp(), source = $2, ingest = $3
            where job_id = $1
            """,
            work.job.id, work.source, json.dumps(account),
        )  # fmt: skip
        await report_progress(
            work, connection, share=1.0, conversations=report.conversations,
            messages=report.messages,
        )  # fmt: skip
    _log.info(
        "export.read", source=work.source, conversations=report.conversations,
        messages=report.messages, damaged=report.damaged, whole=report.whole, removed=removed,
    )  # fmt: skip


async def _is_older(work: Pass, connection: Connection) -> bool:
    """Whether what is stored goes further than this export: an old file uploaded again.

    From an older export nothing may be concluded about what the person deleted.
    """
    return bool(
        await connection.fetchval(
            """
            select coalesce(
                max(updated_at) filter (where last_job <> $3)
                    > max(updated_at) filter (where last_job = $3),
                false)
            from fullpass.conversations where user_id = $1 and source = $2
            """,
            work.job.user_id, work.source, work.job.id,
        )
    )  # fmt: skip
