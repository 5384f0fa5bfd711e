"""What a command works on: settings, logs and a database, or one line on what is missing."""

from __future__ import annotations

import asyncio
import sys
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any, TextIO, cast

import asyncpg

from daemon import migrations
from daemon.database import connect, database_errors
from daemon.errors import NotAllowed, TryAgain, UsageError
from daemon.logs import configure_logs, mask_secrets
from daemon.settings import load_settings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from daemon.database import Connection
    from daemon.settings import Settings

_NO_SCHEMA = (
    asyncpg.UndefinedTableError,
    asyncpg.UndefinedFunctionError,
    asyncpg.UndefinedColumnError,
    asyncpg.InvalidSchemaNameError,
)


class SchemaBehind(TryAgain):
    """The database lacks a migration of this release: nothing works before `fullpass migrate`."""


class CurrentStderr:
    """Whatever `sys.stderr` is when a line is written: a live display puts itself in its place."""

    def write(self, text: str) -> int:
        """Write to the stderr of this moment."""
        return sys.stderr.write(text)

    def flush(self) -> None:
        """Flush it."""
        sys.stderr.flush()

    def isatty(self) -> bool:
        """Whether it is a terminal."""
        return sys.stderr.isatty()


def settings_and_logs(*, quiet: bool = False, **overrides: Any) -> Settings:
    """Load the settings and set up the log; `quiet` keeps it to warnings unless LOG_LEVEL is set.

    Raises UsageError.
    """
    settings = load_settings(**overrides)
    mask_secrets(*settings.secret_values())
    level: str = settings.log_level
    if quiet and "log_level" not in settings.model_fields_set:
        level = "WARNING"
    configure_logs(
        log_format=settings.log_format,
        level=level,
        stream=cast("TextIO", CurrentStderr()),  # the part of it that a log uses
    )
    return settings


def database_url(settings: Settings) -> str:
    """Return DATABASE_URL, or raise UsageError for a command that needs it."""
    if settings.database_url is None:
        raise UsageError(
            "DATABASE_URL: not set; set it to the Postgres that holds the queue, "
            "e.g. postgresql://user:password@host:5432/database"
        )
    return settings.database_url


def local_data(settings: Settings) -> Path:
    """Return the folder of the embedded Postgres that `fullpass run` keeps."""
    return settings.fullpass_home / "postgres"


@contextmanager
def known_database(settings: Settings) -> Iterator[str]:
    """Give DATABASE_URL, or else the database that earlier `fullpass run` commands left.

    Raises UsageError when there is neither.
    """
    if settings.database_url is not None:
        yield settings.database_url
        return
    folder = local_data(settings)
    if not (folder / "cluster").exists():
        raise UsageError(
            "DATABASE_URL: not set, and there is no database of an earlier `fullpass run` "
            f"in {folder}"
        )
    from daemon.embedded import EmbeddedPostgres

    with EmbeddedPostgres(folder) as server:
        asyncio.run(migrations.apply(server.url))
        yield server.url


@asynccontextmanager
async def connection_to(url: str) -> AsyncIterator[Connection]:
    """Open one connection; a database that fullpass never migrated gets a remedy, not a riddle."""
    connection = await connect(url)
    try:
        with database_errors(), schema_expected():
            yield connection
    finally:
        await connection.close(timeout=5)


@contextmanager
def schema_expected() -> Iterator[None]:
    """Turn a missing table, function or right into what to do about it."""
    try:
        yield
    except _NO_SCHEMA as error:
        raise SchemaBehind(
            f"the database is not at this release's schema ({error}): run `fullpass migrate`"
        ) from error
    except asyncpg.InsufficientPrivilegeError as error:
        raise NotAllowed(
            f"DATABASE_URL: its login may not do this ({error}); use that of the tables' owner"
        ) from error


async def require_schema(url: str) -> None:
    """Raise SchemaBehind unless this release's migrations are applied; newer ones are fine.

    Raises TryAgain when the database cannot be asked.
    """
    state = await migrations.inspect(url)
    if state.pending or state.drifted:
        lines = [f"{m.label} is not applied" for m in state.pending] + list(state.drifted)
        raise SchemaBehind(
            f"the database is not at this release's schema: {lines[0]}"
            + (f" (and {len(lines) - 1} more)" if len(lines) > 1 else "")
            + ": run `fullpass migrate`"
        )
