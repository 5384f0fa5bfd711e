"""Brings a database's schema to what this release expects, and says when it is not there.

Owns the order of the migrations (`daemon.migration_files`), the table `fullpass.schema_migrations`
and the lock. It promises that several processes may apply at once, that kill -9 at any moment
leaves nothing locked and nothing half recorded, and that all of it works through a transaction
pooler (promise 8). docs/decisions/0010 says why this is not a migration tool. What the files do is
theirs.

Rows that an app already has may forbid a unique index. That is never mended: all else is applied,
and `MigrationsBlocked` names the rows and the SQL. It hears of them from a unique violation in a
`-- no-transaction` file and from `fullpass.migration_problems() returns setof text`, which a
migration may define.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import random
import re
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import asyncpg

from daemon.database import unreadable_address
from daemon.errors import TryAgain, UsageError
from daemon.migration_files import (
    BOOTSTRAP,
    Migration,
    load_migrations,
    print_sql,
    sql_root,
    without_comments,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping, Sequence
    from pathlib import Path

    Connection = asyncpg.Connection[asyncpg.Record]

__all__ = [
    "Migration",
    "MigrationsBlocked",
    "SchemaState",
    "apply",
    "check",
    "inspect",
    "load_migrations",
    "print_sql",
    "sql_root",
]

LOCK_KEY = int.from_bytes(hashlib.sha256(b"fullpass.schema_migrations").digest()[:8], signed=True)
"""Advisory lock, per database, held by whoever applies."""

LOCK_TIMEOUT_SECONDS = 2
"""How long a migration may queue for a table before it steps back and lets the app's traffic by."""

_RIGHTS_REMEDY = (
    "run fullpass migrate as the owner of the tables; "
    "a worker's own login needs the role fullpass_worker (fullpass doctor tells)"
)
_TABLE = "fullpass.schema_migrations"
_CONCURRENT_INDEX = re.compile(
    r"\bcreate\s+(?:unique\s+)?index\s+concurrently\s+if\s+not\s+exists\s+(?P<index>[\w\"]+)\s+"
    r"on\s+(?:only\s+)?(?:(?P<schema>[\w\"]+)\.)?(?P<table>[\w\"]+)",
    re.IGNORECASE,
)

_LOCAL_SETTINGS = f"""
set local lock_timeout = '{LOCK_TIMEOUT_SECONDS}s';
set local idle_in_transaction_session_timeout = 0;
-- A role that shares a schema's name would find that schema first.
set local search_path = public;
-- Ends a long statement whose process was killed; some platforms cannot, and say so.
do $$ begin perform set_config('client_connection_check_interval', '1s', true);
exception when others then null; end $$;
"""

_RECORD = """
insert into fullpass.schema_migrations (version, name, sha256) values ($1, $2, $3)
on conflict (version) do nothing
"""

_INDEX_STATE = """
select c.oid::regclass::text as name, i.indisvalid as valid,
       exists (select from pg_stat_progress_create_index p where p.index_relid = c.oid) as building
  from pg_class c join pg_index i on i.indexrelid = c.oid
 where c.relname = $1 and i.indrelid = to_regclass($2)
"""


@dataclass(frozen=True, slots=True)
class SchemaState:
    """How a database compares with this release's files.

    `drifted` and `blocked` are sentences for people. `newer` are versions only a later release
    knows: no reason to stop, since a deploy migrates first and old workers finish on its schema.
    """

    pending: tuple[Migration, ...]
    drifted: tuple[str, ...]
    newer: tuple[int, ...]
    blocked: tuple[str, ...]

    @property
    def problems(self) -> list[str]:
        """Every difference, a line each; empty when database and release agree."""
        lines = [f"behind: {m.label} is not applied: run fullpass migrate" for m in self.pending]
        lines += self.drifted
        lines += [
            f"newer than code: version {version:04d} is not known to this release: upgrade fullpass"
            for version in self.newer
        ]
        return lines + list(self.blocked)


class MigrationsBlocked(TryAgain):
    """Something stands in the way; `problems` has a line each, with the remedy. Exit code 1."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = tuple(problems)


async def apply(
    dsn: str,
    *,
    on_progress: Callable[[str], None] | None = None,
    directory: Path | None = None,
    wait_seconds: float = 60.0,
) -> list[Migration]:
    """Apply what is missing and return what was applied; `on_progress` gets lines for people.

    Waits at most `wait_seconds` for another process that applies or a table that is in use. Raises
    MigrationsBlocked when a checksum changed (nothing was applied) or rows prevent an index (all
    else was applied), TryAgain when a file fails or the wait is over, UsageError for rights.
    """
    migrations = load_migrations(directory)
    say = on_progress or (lambda _line: None)
    blocked: list[str] = []
    done: list[Migration] = []
    async with _session(dsn) as connection:
        run = _Run(connection, dsn, say, time.monotonic() + wait_seconds)
        for migration in await run.pending(migrations):
            try:
                if await run.apply_one(migration):
                    done.append(migration)
            except asyncpg.UniqueViolationError as error:
                if migration.transactional:
                    raise _failed(migration, error) from error
                blocked.append(_blocked_index(migration, error))
            except asyncpg.InsufficientPrivilegeError as error:
                raise UsageError(f"{migration.label}: {error}: {_RIGHTS_REMEDY}") from error
            except asyncpg.PostgresError as error:
                raise _failed(migration, error) from error
        blocked += await _reported_problems(connection)
    if blocked:
        raise MigrationsBlocked(blocked)
    return done


async def inspect(dsn: str, *, directory: Path | None = None) -> SchemaState:
    """Compare the database with this release's files; writes nothing."""
    migrations = load_migrations(directory)
    async with _session(dsn) as connection:
        recorded = await _recorded(connection)
        blocked = await _reported_problems(connection)
    return SchemaState(
        pending=tuple(m for m in migrations if m.version not in recorded),
        drifted=tuple(_drifted(migrations, recorded)),
        newer=tuple(sorted(recorded.keys() - {m.version for m in migrations})),
        blocked=tuple(blocked),
    )


async def check(dsn: str, *, directory: Path | None = None) -> list[str]:
    """Problems, a line each: behind, drifted, newer than code, blocked by rows. Empty is good."""
    return (await inspect(dsn, directory=directory)).problems


@dataclass(frozen=True, slots=True)
class _Run:
    """One call of `apply`: its connection, its listener and its deadline (monotonic seconds)."""

    connection: Connection
    dsn: str
    say: Callable[[str], None]
    deadline: float

    async def pending(self, migrations: tuple[Migration, ...]) -> list[Migration]:
        """Return what is not recorded yet, having made sure that what is recorded still stands."""
        recorded = await _recorded(self.connection)
        if drifted := _drifted(migrations, recorded):
            raise MigrationsBlocked(drifted)
        missing = [m for m in migrations if m.version not in recorded]
        if missing and not await _has_table(self.connection):
            async with self.locked(self.connection):
                await self.connection.execute(BOOTSTRAP)
        return missing

    async def apply_one(self, migration: Migration) -> bool:
        """Apply and record it; False when another process had done so by the time we held the lock.

        A plain file, its record and the lock live and die in one transaction: a killed process
        leaves all or nothing, whatever the pooler does.
        """
        if not migration.transactional:
            return await self.apply_concurrently(migration)
        while True:
            try:
                async with self.locked(self.connection):
                    if migration.version in await _recorded(self.connection):
                        return False
                    self.say(f"applying {migration.label}")
                    await self.connection.execute(migration.sql)
                    await _record(self.connection, migration)
                    return True
            except (asyncpg.LockNotAvailableError, asyncpg.DeadlockDetectedError) as error:
                await self._pause(f"{migration.label}: a table is in use ({error})")

    async def apply_concurrently(self, migration: Migration) -> bool:
        """Build outside a transaction while a second connection's transaction holds the lock.

        That one must stay without a snapshot: CONCURRENTLY waits for every older one, and a fetch
        keeps its own until the next simple statement.
        """
        async with _connected(self.dsn) as guard, self.locked(guard):
            if migration.version in await _recorded(guard):
                return False
            self.say(f"applying {migration.label}")
            await guard.execute("select 1")
            await self._drop_invalid_index(migration)
            try:
                await self.connection.execute(migration.sql)
            except asyncpg.PostgresError:
                with contextlib.suppress(asyncpg.PostgresError):
                    await self._drop_invalid_index(migration)
                raise
            await _record(guard, migration)
            return True

    @contextlib.asynccontextmanager
    async def locked(self, connection: Connection) -> AsyncIterator[None]:
        """Open a transaction that holds the migration lock.

        Polls the try variant, each time in a transaction of its own: a waiting lock would pin a
        snapshot, and with it the very CREATE INDEX CONCURRENTLY it waits for.
        """
        while True:
            transaction = connection.transaction()
            await transaction.start()
            try:
                held = await connection.fetchval("select pg_try_advisory_xact_lock($1)", LOCK_KEY)
                if held:
                    await connection.execute(_LOCAL_SETTINGS)
                    yield
            except BaseException:
                # A dead connection has rolled back already, and its own error says more.
                with contextlib.suppress(asyncpg.InterfaceError, asyncpg.PostgresError, OSError):
                    await transaction.rollback()
                raise
            if held:
                await transaction.commit()
                return
            await transaction.rollback()
            await self._pause("another process is applying migrations")

    async def _drop_invalid_index(self, migration: Migration) -> None:
        """Remove what an interrupted CONCURRENTLY left; `if not exists` would keep it for ever."""
        match = _CONCURRENT_INDEX.search(without_comments(migration.sql))
        if match is None:
            return
        index = match["index"].strip('"')
        table = f"{match['schema'] or 'public'}.{match['table']}"
        while row := await self.connection.fetchrow(_INDEX_STATE, index, table):
            if row["valid"]:
                return
            if not row["building"]:
                await self.connection.execute(f"drop index concurrently if exists {row['name']}")
                return
            # A killed process's server side may still be at it: its end decides.
            await self._pause(f"{migration.label}: an interrupted build is still running")

    async def _pause(self, reason: str) -> None:
        if time.monotonic() >= self.deadline:
            raise TryAgain(f"{reason}: nothing of it was applied; run fullpass migrate again")
        await asyncio.sleep(random.uniform(0.05, 0.25))


@contextlib.asynccontextmanager
async def _session(dsn: str) -> AsyncIterator[Connection]:
    """Open the main connection; whatever the database says outside a migration gets a remedy."""
    place = _place(dsn)
    async with _connected(dsn) as connection:
        try:
            yield connection
        except asyncpg.InsufficientPrivilegeError as e:
            raise UsageError(f"{place}: {e}: {_RIGHTS_REMEDY}") from e
        except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError) as e:
            raise TryAgain(f"{place}: {e}: check the server and run fullpass migrate again") from e


@contextlib.asynccontextmanager
async def _connected(dsn: str) -> AsyncIterator[Connection]:
    """Open a connection that a transaction pooler can serve; no error shows the password."""
    place = _place(dsn)
    try:
        connection = await asyncpg.connect(dsn, statement_cache_size=0, timeout=30)
    except (asyncpg.InvalidAuthorizationSpecificationError, asyncpg.InvalidCatalogNameError) as e:
        raise UsageError(f"{place}: {e}: check DATABASE_URL") from e
    except ValueError as e:
        raise unreadable_address(e) from None
    except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError) as e:
        raise TryAgain(f"{place}: cannot connect ({e}): check DATABASE_URL and the server") from e
    try:
        yield connection
    finally:
        with contextlib.suppress(TimeoutError, OSError, asyncpg.PostgresError):
            await connection.close(timeout=5)


def _place(dsn: str) -> str:
    """Name the server without user and password (promise 11)."""
    return urlsplit(dsn).netloc.rpartition("@")[2] or "the database"


async def _has_table(connection: Connection) -> bool:
    return await connection.fetchval(f"select to_regclass('{_TABLE}')") is not None


async def _recorded(connection: Connection) -> Mapping[int, str]:
    """Version → sha256 of what the database says was applied."""
    if not await _has_table(connection):
        return {}
    rows = await connection.fetch("select version, sha256 from fullpass.schema_migrations")
    return {row["version"]: row["sha256"] for row in rows}


async def _record(connection: Connection, migration: Migration) -> None:
    await connection.execute(_RECORD, migration.version, migration.name, migration.sha256)


def _drifted(migrations: Sequence[Migration], recorded: Mapping[int, str]) -> list[str]:
    return [
        f"drifted: {m.label} was applied with another text: restore the released file "
        "and put the change into a new migration"
        for m in migrations
        if recorded.get(m.version, m.sha256) != m.sha256
    ]


async def _reported_problems(connection: Connection) -> list[str]:
    """Ask the schema itself what could not be applied, a line each."""
    if await connection.fetchval("select to_regprocedure('fullpass.migration_problems()')") is None:
        return []
    rows = await connection.fetch("select * from fullpass.migration_problems()")
    return [" ".join(str(row[0]).split()) for row in rows]


def _failed(migration: Migration, error: asyncpg.PostgresError) -> TryAgain:
    return TryAgain(
        f"{migration.label}: {' '.join(str(error).split())}: nothing of this file was applied; "
        "mend the cause and run fullpass migrate again"
    )


def _blocked_index(migration: Migration, error: asyncpg.UniqueViolationError) -> str:
    rows = " ".join(str(error.detail or error).split())
    statement = " ".join(without_comments(migration.sql).split())
    return (
        f"{migration.label}: existing rows prevent a unique index: {rows} "
        f"Make them distinct, then run fullpass migrate again, or: {statement}"
    )
