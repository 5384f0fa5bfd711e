"""Connections to Postgres and what its errors mean to the caller.

Every connection is pooler-safe (promise 8): no named prepared statements, no session settings, a
time-out on each command, on each wait for a pooled connection and on a link that stopped
answering. Leaves transactions on behalf of a job to `queue.lease`, the only door.
"""

from __future__ import annotations

import asyncio
import socket
from contextlib import AsyncExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias
from urllib.parse import urlsplit

import asyncpg

from daemon.errors import Cancelled, LeaseLost, OutOfReach, SchemaMoved, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from asyncpg.pool import PoolAcquireContext, PoolConnectionProxy
    from asyncpg.prepared_stmt import PreparedStatement

    Pool: TypeAlias = asyncpg.Pool[asyncpg.Record]
    Connection: TypeAlias = asyncpg.Connection[asyncpg.Record]

LEASE_LOST = "FP001"
CANCELLED = "FP002"
TOO_OLD = "FP003"
"""Said by a later release's schema to workers that cannot serve it any more."""
COMMAND_TIMEOUT_SECONDS = 60.0

# SQLSTATE classes that speak of the server or the link, never of the statement: connection
# exceptions, too many connections and full disks, operator intervention, system errors.
_TROUBLE_CLASSES = frozenset({"08", "53", "57", "58"})
# The same by code: read-only (a failover), serialization and deadlock, idle in transaction and
# lock time-outs.
_TROUBLE_CODES = frozenset({"25006", "40001", "40P01", "25P03", "25P04", "55P03"})
# A function, table, column or schema that this release names and the database does not have, or has
# with other arguments: every statement of ours is tested on our own schema, so it is another's.
_MOVED_CODES = frozenset({"42883", "42P01", "42703", "3F000"})
# At start the settings are wrong; later, with the same settings, the server is being changed.
_REFUSED_CODES = frozenset({"28P01", "28000", "3D000"})

_CONNECT_TIMEOUT_SECONDS = 10.0
_ACQUIRE_TIMEOUT_SECONDS = 30.0
_KEPT_SECONDS = 0.25
"""How long a ready statement's connection is kept: closing a pool waits for it."""
_NAMED = {"application_name": "fullpass"}

# A link that died without a word (a NAT entry dropped, a host gone): asked after 10 idle seconds,
# given up after three silent probes, or 15 seconds after unanswered data.
_SOCKET_OPTIONS = {
    "TCP_KEEPIDLE": 10,
    "TCP_KEEPINTVL": 5,
    "TCP_KEEPCNT": 3,
    "TCP_USER_TIMEOUT": 15_000,  # milliseconds
}


@dataclass(eq=False, slots=True)
class _Kept:
    """A connection that was not given back yet, and what is ready on it."""

    connection: PoolConnectionProxy[asyncpg.Record]
    statement: PreparedStatement[asyncpg.Record]
    alarm: asyncio.TimerHandle | None = None


class _ImpatientPool(asyncpg.Pool):
    """A pool that no caller waits at for ever."""

    def acquire(self, *, timeout: float | None = None) -> PoolAcquireContext[asyncpg.Record]:
        """Take a connection, or raise TimeoutError."""
        return super().acquire(timeout=timeout or _ACQUIRE_TIMEOUT_SECONDS)


async def connect(
    url: str, *, command_timeout_seconds: float = COMMAND_TIMEOUT_SECONDS
) -> Connection:
    """Open one connection.

    Raises OutOfReach when the server cannot be reached, UsageError when it refuses the login.
    """
    with database_errors(starting=True):
        return await _connect(url, **_options(command_timeout_seconds))


async def open_pool(
    url: str, *, size: int = 3, command_timeout_seconds: float = COMMAND_TIMEOUT_SECONDS
) -> Pool:
    """Open a small pool (a session pooler's places are few, FACTS section 5).

    Raises as `connect` does.
    """
    with database_errors(starting=True):
        pool = _ImpatientPool(
            url,
            min_size=1,
            max_size=size,
            max_queries=50_000,
            max_inactive_connection_lifetime=60.0,
            connect=_connect,
            setup=None,
            init=None,
            # Nothing is ever set for a session, so nothing is reset: a round trip less each time.
            reset=_nothing_to_reset,
            loop=None,
            connection_class=asyncpg.Connection,
            record_class=asyncpg.Record,
            **_options(command_timeout_seconds),
        )
        await pool
    return pool


def _options(command_timeout_seconds: float) -> dict[str, Any]:
    return {
        "statement_cache_size": 0,
        "timeout": _CONNECT_TIMEOUT_SECONDS,
        "command_timeout": command_timeout_seconds,
        "server_settings": _NAMED,
    }


async def _connect(*arguments: Any, **options: Any) -> Connection:
    connection: Connection = await asyncpg.connect(*arguments, **options)
    # asyncpg offers no way to set these; without them a link that fell silent is noticed only by
    # each command's time-out, and an idle one never.
    link = connection._transport.get_extra_info("socket")  # type: ignore[attr-defined]  # noqa: SLF001
    if link is not None and link.family in {socket.AF_INET, socket.AF_INET6}:
        with suppress(OSError):
            link.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for name, value in _SOCKET_OPTIONS.items():
                if (option := getattr(socket, name, None)) is not None:
                    link.setsockopt(socket.IPPROTO_TCP, option, value)
    return connection


async def _nothing_to_reset(_connection: object) -> None:
    """See `open_pool`."""


@contextmanager
def database_errors(*, starting: bool = False, protocol: bool = False) -> Iterator[None]:
    """Turn what Postgres and the link raise into errors that say what to do.

    A lost lease and a cancellation come as SQLSTATEs of the lease protocol; trouble with the
    server or the link is systemic; anything else is a defect of ours and passes unchanged. A
    refused login is the settings' fault when `starting`, and trouble later. In the `protocol` by
    which jobs are claimed and kept, a name that is not there means that the schema is another
    release's; anywhere else it may be a trigger of the app's that is broken.
    """
    try:
        yield
    except asyncpg.PostgresError as error:
        code = error.sqlstate or ""
        if code == LEASE_LOST:
            raise LeaseLost(str(error)) from error
        if code == CANCELLED:
            raise Cancelled(str(error)) from error
        if code in _REFUSED_CODES and starting:
            raise UsageError(
                f"DATABASE_URL: the server refused the connection ({error}); "
                "check the user, the password and the database's name"
            ) from error
        if code == TOO_OLD or (protocol and code in _MOVED_CODES):
            raise SchemaMoved(
                f"the database's schema is not this release's ({first_line(error)}): run `fullpass "
                "migrate` if it is older, start the release that migrated it if it is newer"
            ) from error
        # FATAL ends the session, whatever its code: it speaks of the link. Supabase's pooler says
        # "max clients reached" as XX000, like a defect of the server's.
        fatal = (error.severity_en or error.severity) in {"FATAL", "PANIC"}
        if fatal or code[:2] in _TROUBLE_CLASSES or code in _TROUBLE_CODES | _REFUSED_CODES:
            raise OutOfReach(f"database trouble: {first_line(error)} (SQLSTATE {code})") from error
        raise
    except (asyncpg.InternalClientError, asyncpg.InterfaceError) as error:
        if isinstance(error, asyncpg.DataError):
            raise
        if starting and isinstance(error, asyncpg.ClientConfigurationError):
            raise unreadable_address(error) from None
        raise OutOfReach(f"database connection: {first_line(error)}") from error
    except (OSError, TimeoutError) as error:
        raise OutOfReach(
            f"the database cannot be reached: {first_line(error) or type(error).__name__}"
        ) from error
    except ValueError as error:
        if not starting:
            raise
        raise unreadable_address(error) from None


def unreadable_address(error: ValueError) -> UsageError:
    """Say that DATABASE_URL is torn or has options that do not exist.

    An unescaped `/` or `#` in the password tears it: the error then quotes half of that, so only
    what the driver says of options is repeated (promise 11).
    """
    known = isinstance(error, asyncpg.ClientConfigurationError)
    told = f" ({first_line(error)})" if known else ""
    return UsageError(
        f"DATABASE_URL: cannot be read as an address{told}; percent-encode what is special in user "
        "and password (%40 for @, %2F for /, %23 for #, %3A for :)"
    )


class ReadyStatement:
    """One statement that is executed again and again, with one round trip each time.

    Without statements kept by name, the driver has the server parse and describe a statement before
    each execution: two round trips. A statement that was prepared under no name is parsed again
    with each execution, in the same breath, and its description is known: as safe through a pooler
    (promise 8), in half the time. It lives only while its connection is not given back, so the
    connection is kept for a moment, unless the pool has no other to lend.
    """

    def __init__(self, pool: Pool, query: str) -> None:
        self._pool = pool
        self._query = query
        self._kept: _Kept | None = None
        self._giving_back: set[asyncio.Task[None]] = set()

    async def fetchval(self, *arguments: object) -> Any:
        """Execute it and return the first column of its first row."""
        kept, self._kept = self._kept, None
        if kept is None:
            kept = await self._prepared()
        elif kept.alarm is not None:
            kept.alarm.cancel()
        try:
            value = await kept.statement.fetchval(*arguments)
        except BaseException:
            # Whatever it was, a cancellation too: its connection goes back, and it is the caller's.
            await self._pool.release(kept.connection)
            raise
        others = self._pool.get_max_size() - self._pool.get_size() + self._pool.get_idle_size()
        if self._kept is not None or not others:
            await self._pool.release(kept.connection)
        else:
            loop = asyncio.get_running_loop()
            kept.alarm = loop.call_later(_KEPT_SECONDS, self._give_back, loop)
            self._kept = kept
        return value

    async def _prepared(self) -> _Kept:
        connection = await self._pool.acquire()
        try:
            return _Kept(connection, await connection.prepare(self._query))
        except BaseException:  # as above: given back, and raised again
            await self._pool.release(connection)
            raise

    def _give_back(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._kept is not None:
            task = loop.create_task(self._pool.release(self._kept.connection))
            self._kept = None
            self._giving_back.add(task)
            task.add_done_callback(self._giving_back.discard)


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text: what fits a log line or a status column."""
    return str(error).strip().partition("\n")[0][:300]


def is_transaction_pooler(url: str) -> bool:
    """Whether the URL names a transaction pooler by its customary port (6543)."""
    hosts = urlsplit(url).netloc.rpartition("@")[2].split(",")  # libpq takes several
    return any(host.endswith(":6543") for host in hosts)


async def pools_transactions(url: str, other: Connection | None = None) -> bool:
    """Whether a pooler stands at the URL that lends server connections by transaction.

    While a second connection keeps a transaction open on the very server process that the first
    one was served by, the first must be served by another; on a direct connection it cannot be.
    A pooler with a single place makes the second wait, which tells as much. `other` is a connection
    by the same URL, where one is at hand; else both are opened. Raises OutOfReach.
    """
    if is_transaction_pooler(url):
        return True
    pid = "select pg_backend_pid()"
    async with AsyncExitStack() as cleanup:

        async def opened() -> Connection:
            connection = await connect(url, command_timeout_seconds=3.0)
            cleanup.callback(connection.terminate)
            return connection

        ours = await opened()
        if other is None:
            other = await opened()
        with database_errors():
            before = (await ours.fetchval(pid), await other.fetchval(pid))
            async with other.transaction():
                theirs = await other.fetchval(pid)
                try:
                    after = (await ours.fetchval(pid), theirs)
                except TimeoutError:
                    return True
        return bool(before[0] == before[1] or before != after)
