"""Rows into conversation_chunks, so that nobody ever reads half a conversation (promise 10).

A batch of whole conversations is switched in by one short fenced transaction. A conversation too
large for that is copied into fullpass.staged_chunks in slices, each in a transaction of its own;
then one transaction of many short statements, which proves the lease at its end and so never keeps
the job's row from the heartbeat, switches it in. A crash anywhere leaves either the old
conversation or the new one, and the next attempt does the conversation again. What is stored
unchanged is only marked as met.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import asyncpg
import msgspec

from daemon.errors import OutOfReach, TryAgain
from daemon.fullpass.chunks import CHUNKING_VERSION
from daemon.fullpass.context import report_progress

if TYPE_CHECKING:
    from collections.abc import Iterator

    from daemon.database import Connection
    from daemon.fullpass.context import Pass
    from daemon.fullpass.handover import Batch, Part

RECENT = timedelta(days=180)
_INSERTED_AT_ONCE = 250
_COLUMNS = (
    "conversation_id", "tier", "chunk_index", "total_chunks", "title", "content", "message_count",
    "created_at", "is_recent", "token_count", "content_hash", "messages",
)  # fmt: skip


class TooSlow(TryAgain):
    """A conversation cannot be stored within the lease's time-outs; the message says what helps."""


class Staging:
    """Takes a reader's batches in order; each `save` is whole when it returns."""

    def __init__(self, work: Pass) -> None:
        self._work = work
        self._skipping = False
        self.rows = 0
        """Rows that were new or changed."""

    async def clear(self) -> None:
        """Let go of what an attempt that died left staged, this job's or one that is over."""
        async with self._work.lease.fenced() as connection:
            await connection.execute(
                """
                delete from fullpass.staged_chunks s where s.job_id = $1 or not exists (
                    select from public.processing_jobs j
                    where j.id = s.job_id and j.status = 'processing')
                """,
                self._work.job.id,
            )

    async def save(self, batch: Batch) -> None:
        """Save whole conversations, or one more slice of a large one."""
        part = batch.parts[0]
        if part.first and part.last:
            await self._save_whole(batch)
            return
        if part.last and not part.chunk_count:
            await self.clear()
            return
        if part.first:
            async with self._work.lease.fenced() as connection:
                self._skipping = not await self._changed(connection, batch.parts)
        if not self._skipping:
            async with self._work.lease.fenced() as connection:
                await self._stage(connection, batch.parts)
                await _report(self._work, connection, batch)
            if not part.last:
                return
            await self._switch(part)
        if part.last:
            async with self._work.lease.fenced() as connection:
                await self._remember(connection, [] if self._skipping else batch.parts)
                await self._met(connection, batch.parts)
                await _report(self._work, connection, batch, advanced=not self._skipping)

    async def _save_whole(self, batch: Batch) -> None:
        work = self._work
        async with work.lease.fenced() as connection:
            changed = await self._changed(connection, batch.parts)
            await self._forget(connection, [p for p in changed if not p.chunk_count])
            if fresh := [p for p in changed if p.chunk_count]:
                await self._save_rows(connection, fresh)
            await self._remember(connection, changed)
            await self._met(connection, batch.parts)
            await _report(work, connection, batch, advanced=bool(fresh))

    def _new(self, parts: list[Part]) -> None:
        work = self._work
        work.left.saved(
            tokens=sum(r.token_count for p in parts for r in p.rows if r.tier == work.medium),
            own_characters=sum(p.own_characters for p in parts if p.last),
        )

    async def _save_rows(self, connection: Connection, parts: list[Part]) -> None:
        """Switch whole conversations in by one statement."""
        work = self._work
        self._new(parts)
        rows = [row for part in parts for row in _rows(work, part)]
        if not rows:
            return
        self.rows += len(rows)
        await connection.execute(
            "select fullpass.save_chunks("
            "$1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15)",
            work.job.user_id, work.source, CHUNKING_VERSION,
            *map(list, zip(*rows, strict=True)),
        )  # fmt: skip

    async def _forget(self, connection: Connection, parts: list[Part]) -> None:
        """Let go of what the person asked not to be remembered, whatever else the export lacks.

        Also of rows of the system before, which name no source. That it was asked for stays known:
        an older export, uploaded again, does not bring it back.
        """
        if not parts:
            return
        await connection.execute(
            "delete from public.conversation_chunks where user_id = $1 "
            "and (source = $2 or source is null) and conversation_id = any ($3)",
            self._work.job.user_id, self._work.source, [p.conversation_id for p in parts],
        )  # fmt: skip

    async def _stage(self, connection: Connection, parts: list[Part]) -> None:
        """Copy rows and find out which of them are stored already."""
        work = self._work
        self._new(parts)
        rows = [(work.job.id, *row) for part in parts for row in _rows(work, part)]
        if not rows:
            return
        self.rows += len(rows)
        await connection.copy_records_to_table(
            "staged_chunks", schema_name="fullpass", columns=("job_id", *_COLUMNS), records=rows
        )
        await connection.execute(
            "select fullpass.match_staged($1, $2, $3, $4, $5)",
            work.job.id, work.job.user_id, work.source, CHUNKING_VERSION,
            list({part.conversation_id for part in parts}),
        )  # fmt: skip

    async def _switch(self, part: Part) -> None:
        """Switch one large conversation in.

        Raises TooSlow where one of its statements takes as long as none may.
        """
        work = self._work
        try:
            async with work.lease.fenced_at_the_end() as connection:
                # Until it is remembered as it is now its state counts as not known, but that it is
                # there is known, so that an export without it takes it away.
                await self._remember(connection, [msgspec.structs.replace(part, content_hash="")])
                await self._begin_switch(connection, part.chunk_count)
                for start in range(0, part.chunk_count, _INSERTED_AT_ONCE):
                    work.lease.check()
                    await self._insert(connection, start, start + _INSERTED_AT_ONCE)
                    work.lease.progressed()
        except OutOfReach as error:
            if isinstance(error.__cause__, asyncpg.QueryCanceledError):
                raise TooSlow(
                    f"storing a conversation of {part.chunk_count} chunks met a statement longer "
                    f"than half of LEASE_SECONDS={work.lease.lease_seconds:g}; raise LEASE_SECONDS "
                    "or give the database room"
                ) from error
            raise

    async def _begin_switch(self, connection: Connection, expected: int) -> None:
        work = self._work
        await connection.execute(
            "select fullpass.switch_staged($1, $2, $3, $4)",
            work.job.id, work.job.user_id, work.source, expected,
        )  # fmt: skip

    async def _insert(self, connection: Connection, start: int, stop: int) -> None:
        work = self._work
        await connection.execute(
            "select fullpass.insert_staged($1, $2, $3, $4, $5, $6)",
            work.job.id, work.job.user_id, work.source, CHUNKING_VERSION, start, stop,
        )  # fmt: skip

    # --- what is known

    async def _changed(self, connection: Connection, parts: list[Part]) -> list[Part]:
        """Return the conversations that are not stored as they are, nor stored in a later state."""
        work = self._work
        known = {
            row["conversation_id"]: row
            for row in await connection.fetch(
                """
                select k.conversation_id, k.content_hash, k.updated_at, k.chunk_count,
                       k.chunk_count = (
                           select count(*) from public.conversation_chunks c
                           where c.user_id = k.user_id and c.conversation_id = k.conversation_id
                             and c.source = k.source and c.chunking_version = $4
                       ) as complete
                from fullpass.conversations k
                where k.user_id = $1 and k.source = $2 and k.conversation_id = any ($3)
                """,
                work.job.user_id, work.source, [p.conversation_id for p in parts],
                CHUNKING_VERSION,
            )
        }  # fmt: skip
        fresh = []
        for part in parts:
            row = known.get(part.conversation_id)
            # The app may have deleted chunks: a conversation whose rows are gone is saved anew.
            if row is not None and row["complete"] and row["content_hash"]:
                if row["content_hash"] == part.content_hash:
                    continue
                stored = row["updated_at"]
                dated = part.updated_at is not None and stored is not None
                if dated and stored > part.updated_at:
                    continue
                # What was to be forgotten stays so until the person goes on with it.
                if not row["chunk_count"] and not (dated and stored < part.updated_at):
                    continue
            fresh.append(part)
        return fresh

    async def _met(self, connection: Connection, parts: list[Part]) -> None:
        await connection.execute(
            """
            update fullpass.conversations set last_job = $4
            where user_id = $1 and source = $2 and conversation_id = any ($3)
              and last_job <> $4
            """,
            self._work.job.user_id, self._work.source, [p.conversation_id for p in parts],
            self._work.job.id,
        )  # fmt: skip

    async def _remember(self, connection: Connection, fresh: list[Part]) -> None:
        work = self._work
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
                    work.job.user_id, work.source, p.conversation_id, p.content_hash,
                    p.chunk_count, p.message_count, p.own_characters, p.dated, p.created_at,
                    p.updated_at, work.job.id,
                )
                for p in fresh
            ],
        )  # fmt: skip


async def _report(
    work: Pass, connection: Connection, batch: Batch, *, advanced: bool = False
) -> None:
    await report_progress(
        work, connection, share=batch.share, conversations=batch.conversations,
        messages=batch.messages, advanced=advanced,
    )  # fmt: skip


def _rows(work: Pass, part: Part) -> Iterator[tuple[object, ...]]:
    """Give a part's rows in the order of _COLUMNS."""
    recent = part.dated and part.created_at > work.job.started_at - RECENT
    for row in part.rows:
        yield (
            part.conversation_id, row.tier, row.index, row.total, part.title,
            row.content, row.message_count, part.created_at, recent, row.token_count,
            row.content_hash, row.messages,
        )  # fmt: skip
