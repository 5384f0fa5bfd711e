"""What a stretch of work left in Postgres: WAL, rows by table, table sizes, statements, connections."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import asyncpg

from bench.queue_peers.harness import Meter

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

# Backends tell the server's counters what they did once a second, or when they end.
_REPORTED_SECONDS = 1.5
_TABLES = """
select relid::regclass::text as name, n_tup_ins as inserted, n_tup_upd as updated,
       n_tup_hot_upd as hot, n_tup_del as deleted, pg_total_relation_size(relid) as bytes
from pg_stat_user_tables
"""


@dataclass(frozen=True, slots=True)
class Left:
    """What was written between two looks."""

    wal_bytes: float
    requests: int
    tables: dict[str, dict[str, int]]
    """By table: rows `inserted`, `updated`, `hot`, `deleted`, and by how many `bytes` it grew."""

    def rows(self, what: str) -> int:
        """Sum one kind of row over all tables."""
        return sum(table[what] for table in self.tables.values())


class Look:
    """The server's counters at one moment, and how they are read again."""

    def __init__(self, url: str, meter: Meter) -> None:
        self._url = url
        self._meter = meter
        self._lsn = ""
        self._requests = 0
        self._tables: dict[str, dict[str, int]] = {}
        self.most_connections = 0

    @classmethod
    @contextlib.asynccontextmanager
    async def at(cls, url: str) -> AsyncIterator[Look]:
        """Begin to count here."""
        look = cls(url, await Meter.connect(url))
        try:
            look._tables = await look._read()
            look._lsn = await look._meter.ask("select pg_current_wal_insert_lsn()::text")
            look._requests = await look._meter.requests()
            yield look
        finally:
            await look._meter.close()

    @property
    def counted(self) -> str:
        """What `requests` counts: statements, or transactions where those are not counted."""
        return self._meter.counted

    async def unfinished(self) -> int:
        """Count jobs that wait or run; notes the connections of this moment."""
        connections = await self._meter.ask(
            "select count(*) from pg_stat_activity where application_name = 'fullpass' "
            "and datname = current_database()"
        )
        self.most_connections = max(self.most_connections, int(connections))
        return int(
            await self._meter.ask(
                "select (select count(*) from processing_jobs where status = 'pending') "
                "+ (select count(*) from processing_jobs where status = 'processing')"
            )
        )

    async def trouble(self) -> str | None:
        """Say what jobs that wait or run met."""
        met: str | None = await self._meter.ask(
            "select max(error_message) from processing_jobs "
            "where status in ('pending', 'processing')"
        )
        return met

    async def left(self) -> Left:
        """Say what was written since."""
        wal_bytes = await self._meter.ask(
            "select pg_wal_lsn_diff(pg_current_wal_insert_lsn(), $1::text::pg_lsn)::float8",
            self._lsn,
        )
        requests = await self._meter.requests() - self._requests
        await asyncio.sleep(_REPORTED_SECONDS)
        after = await self._read()
        tables = {
            name: {what: row[what] - self._tables.get(name, {}).get(what, 0) for what in row}
            for name, row in after.items()
        }
        return Left(
            float(wal_bytes), requests, {n: t for n, t in tables.items() if any(t.values())}
        )

    async def _read(self) -> dict[str, dict[str, int]]:
        db = await asyncpg.connect(self._url, statement_cache_size=0)
        try:
            rows = await db.fetch(_TABLES)
        finally:
            await db.close()
        return {
            row["name"]: {name: int(value) for name, value in row.items() if name != "name"}
            for row in rows
        }
