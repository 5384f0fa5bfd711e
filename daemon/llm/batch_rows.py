"""What Postgres knows of batches: written down before they are made, closed when all is noted.

Owns the rows of `fullpass.batches` and `fullpass.batch_items` (sql/migrations/0005_batches.sql says
what their states mean). Rows of a new batch are written under the fence by whoever calls `begin`;
everything else only notes what happened and is not fenced (promise 2).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from daemon.database import database_errors

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime
    from decimal import Decimal
    from uuid import UUID

    import asyncpg

    from daemon.database import Connection, Pool
    from daemon.llm.batch_api import Item, Remote

_COLUMNS = """
    b.id, b.user_id, b.job_id, b.model, b.requests, b.state, b.batch_id, b.created_at,
    b.estimated_usd, b.cancel_asked_at is not null as cancel_asked, b.sent_at,
    extract(epoch from clock_timestamp() - b.created_at)::float8 as age_seconds,
    extract(epoch from clock_timestamp() - b.expires_at)::float8 as overdue_seconds,
    extract(epoch from b.expires_at - b.sent_at)::float8 as life_seconds
"""


@dataclass(frozen=True, slots=True)
class Batch:
    """One batch as it is written down; spans are by the database's clock (promise 5)."""

    id: int
    user_id: UUID
    job_id: UUID
    model: str
    requests: int
    state: Literal["creating", "sent", "done"]
    batch_id: str | None
    created_at: datetime
    estimated_usd: Decimal | None
    cancel_asked: bool
    sent_at: datetime | None
    age_seconds: float
    overdue_seconds: float | None
    """How long ago the server should have ended it; negative before that moment."""
    life_seconds: float | None


@dataclass(frozen=True, slots=True)
class Draft:
    """A batch that is about to be made."""

    job_id: UUID
    user_id: UUID
    source: str
    provider: str
    model: str
    purpose: str
    prompt_version: str
    estimated_usd: Decimal | None


class BatchRows:
    """Reads and writes the rows of batches."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def open_of(self, user_id: UUID, source: str) -> list[Batch]:
        """Return the batches of a person's source that a job of theirs waits for, oldest first."""
        with database_errors():
            rows = await self._pool.fetch(
                f"""
                select {_COLUMNS} from fullpass.batches b
                where b.user_id = $1 and b.source = $2 and b.state <> 'done'
                  and b.given_up_at is null
                order by b.id
                """,
                user_id,
                source,
            )
        return [_batch(row) for row in rows]

    async def begin(
        self, connection: Connection, draft: Draft, windows: Mapping[str, int]
    ) -> Batch:
        """Write a batch down before it is made: its keys, each with the window it asks about."""
        row = await connection.fetchrow(
            f"""
            with b as (
                insert into fullpass.batches (
                    job_id, user_id, source, provider, model, purpose, prompt_version,
                    estimated_usd, requests)
                values ($1, $2, $3, $4, $5, $6, $7, $8, cardinality($9::text[]))
                returning *
            ), items as (
                insert into fullpass.batch_items (batch, call_key, window_id)
                select b.id, i.call_key, i.window_id
                from b, unnest($9::text[], $10::bigint[]) as i (call_key, window_id)
            )
            select {_COLUMNS} from b
            """,
            draft.job_id, draft.user_id, draft.source, draft.provider, draft.model, draft.purpose,
            draft.prompt_version, draft.estimated_usd, list(windows), list(windows.values()),
        )  # fmt: skip
        assert row is not None  # noqa: S101 - an insert returns its row
        return _batch(row)

    async def sent(self, batch: Batch, remote: Remote) -> bool:
        """Write the server's id down; False when nobody waited for it any more."""
        with database_errors():
            kept: bool = await self._pool.fetchval(
                "select fullpass.batch_sent($1, $2, $3)", batch.id, remote.id, remote.life_seconds
            )
        return kept

    async def known(self, batch_id: str) -> bool:
        """Whether some batch is written down under this id of the server."""
        with database_errors():
            found: bool = await self._pool.fetchval(
                "select exists (select from fullpass.batches where batch_id = $1)", batch_id
            )
        return found

    async def holds(self, batch: Batch, custom_id: str) -> bool:
        """Whether a batch was written down with a request of this id."""
        with database_errors():
            found: bool = await self._pool.fetchval(
                """
                select exists (select from fullpass.batch_items
                               where batch = $1 and call_key in ($2, fullpass.blind($2)))
                """,
                batch.id,
                custom_id,
            )
        return found

    async def waiting_elsewhere(self, keys: Sequence[str]) -> set[str]:
        """Return those of the keys that wait in some batch already."""
        with database_errors():
            rows = await self._pool.fetch(
                "select call_key from fullpass.batch_items "
                "where call_key = any ($1) and state = 'waiting'",
                list(keys),
            )
        return {row["call_key"] for row in rows}

    async def note(self, batch: Batch, item: Item, *, usable: bool) -> bool:
        """Note one result, and its receipt when it was paid; False when it was noted before."""
        reply = item.reply
        usage = None if reply is None else reply.usage
        bill = None if reply is None else reply.bill
        text = "" if reply is None else reply.text
        with database_errors():
            noted: bool = await self._pool.fetchval(
                "select fullpass.record_batch_item("
                "$1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16)",
                batch.id,
                item.custom_id,
                item.state,
                item.error,
                batch.model if reply is None else reply.model,
                None if usage is None else usage.input_tokens,
                None if usage is None else usage.output_tokens,
                None if usage is None else usage.cache_read_tokens,
                None if usage is None else usage.cache_write_tokens,
                None if bill is None else bill.cost_usd,
                None if bill is None else bill.saved_by_cache_usd,
                None if bill is None else bill.saved_by_batch_usd,
                None if reply is None else reply.stop_reason,
                usable,
                # Postgres holds no NUL, and no reply that means anything does.
                text.replace("\x00", "").encode("utf-8", "replace").decode(),
                None if reply is None else reply.request_id,
            )
        return noted

    async def unanswered(self, batch: Batch) -> int:
        """Count the requests of a batch whose result was not noted yet."""
        with database_errors():
            count: int = await self._pool.fetchval(
                "select count(*) from fullpass.batch_items "
                "where batch = $1 and state in ('waiting', 'stray')",
                batch.id,
            )
        return count

    async def close(self, batch: Batch, outcome: str) -> None:
        """Close a batch: nothing more comes of it. Requests without a result may be made again."""
        with database_errors():
            await self._pool.execute("select fullpass.close_batch($1, $2)", batch.id, outcome)

    async def give_up(self, batch: Batch) -> None:
        """Wait for a batch no more; should its results come after all, they are noted."""
        with database_errors():
            await self._pool.execute(
                """
                with freed as (
                    update fullpass.batch_items set state = 'stray'
                    where batch = $1 and state = 'waiting'
                )
                update fullpass.batches set given_up_at = clock_timestamp() where id = $1
                """,
                batch.id,
            )

    async def cancel_asked(self, batch_id: str) -> None:
        """Note that the server was asked to end a batch early."""
        with database_errors():
            await self._pool.execute(
                "update fullpass.batches set cancel_asked_at = clock_timestamp() "
                "where batch_id = $1",
                batch_id,
            )

    async def take_orphans(
        self, *, limit: int, pause_seconds: float, keep_days: int
    ) -> list[Batch]:
        """Take some batches that no job waits for and nobody looked at lately."""
        with database_errors():
            rows = await self._pool.fetch(
                f"select {_COLUMNS} from fullpass.take_orphan_batches($1, $2, $3) b",
                limit,
                pause_seconds,
                keep_days,
            )
        return [_batch(row) for row in rows]


def _batch(row: asyncpg.Record) -> Batch:
    return Batch(**dict(row))
