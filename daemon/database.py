"""Connections to Postgres and what its errors mean to the caller.

Every connection is pooler-safe (promise 8): no named prepared statements, no session settings, a
time-out on each command. Leaves transactions on behalf of a job to `queue.lease`, the only door.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeAlias
from urllib.parse import urlsplit

import asyncpg

from daemon.errors import Cancelled, LeaseLost, Systemic, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

    Pool: TypeAlias = asyncpg.Pool[asyncpg.Record]
    Connection: TypeAlias = asyncpg.Connection[asyncpg.Record]

LEASE_LOST = "FP001"
CANCELLED = "FP002"
COMMAND_TIMEOUT_SECONDS = 60.0

# SQLSTATE classes that speak of the server or the link, never of the statement: connection
# exceptions, too many connections and full disks, operator intervention, system errors.
_TROUBLE_CLASSES = frozenset({"08", "53", "57", "58"})


_CONNECT_TIMEOUT_SECONDS = 10.0
_NAMED = {"application_name": "fullpass"}


async def connect(
    url: str, *, command_timeout_seconds: float = COMMAND_TIMEOUT_SECONDS
) -> Connection:
    """Open one connection. Raises Systemic when the server cannot be reached."""
    with database_errors():
        connection: Connection = await asyncpg.connect(
            url,
            statement_cache_size=0,
            timeout=_CONNECT_TIMEOUT_SECONDS,
            command_timeout=command_timeout_seconds,
            server_settings=_NAMED,
        )
    return connection


async def open_pool(url: str, *, size: int = 3) -> Pool:
    """Open a small pool (a session pooler's places are few, FACTS section 5).

    Raises Systemic when the server cannot be reached.
    """
    with database_errors():
        pool: Pool = await asyncpg.create_pool(
            url,
            min_size=1,
            max_size=size,
            max_inactive_connection_lifetime=60.0,
            statement_cache_size=0,
            timeout=_CONNECT_TIMEOUT_SECONDS,
            command_timeout=COMMAND_TIMEOUT_SECONDS,
            server_settings=_NAMED,
        )
    return pool


@contextmanager
def database_errors() -> Iterator[None]:
    """Turn what Postgres and the link raise into errors that say what to do.

    A lost lease and a cancellation come as SQLSTATEs of the lease protocol; trouble with the
    server or the link is systemic; anything else is a defect of ours and passes unchanged.
    """
    try:
        yield
    except asyncpg.PostgresError as error:
        code = error.sqlstate or ""
        if code == LEASE_LOST:
            raise LeaseLost(str(error)) from error
        if code == CANCELLED:
            raise Cancelled(str(error)) from error
        if code in {"28P01", "28000", "3D000"}:
            raise UsageError(
                f"DATABASE_URL: the server refused the connection ({error}); "
                "check the user, the password and the database's name"
            ) from error
        if code[:2] in _TROUBLE_CLASSES or code in {"25006", "40001", "40P01", "25P03", "55P03"}:
            raise Systemic(f"database trouble: {first_line(error)} (SQLSTATE {code})") from error
        raise
    except (asyncpg.InternalClientError, asyncpg.InterfaceError) as error:
        if isinstance(error, asyncpg.DataError):
            raise
        raise Systemic(f"database connection: {first_line(error)}") from error
    except (OSError, TimeoutError) as error:
        raise Systemic(
            f"the database cannot be reached: {first_line(error) or type(error).__name__}"
        ) from error


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text: what fits a log line or a status column."""
    return str(error).strip().partition("\n")[0][:300]


def is_transaction_pooler(url: str) -> bool:
    """Whether the URL names a transaction pooler by its customary port (6543)."""
    return urlsplit(url).port == 6543
