"""The server that every queue is measured on: one, with a database for each, and what it promises.

By default an embedded Postgres in a temporary folder with pg_stat_statements loaded, so that
statements are counted and not guessed; or any server where databases may be made and dropped.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit, urlunsplit

import asyncpg

from daemon.embedded import EmbeddedPostgres

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

_MAX_CONNECTIONS = 100


@contextlib.contextmanager
def embedded_server(*, durable: bool) -> Iterator[str]:
    """Start a server of our own and yield its URL."""
    with tempfile.TemporaryDirectory(prefix="fp-bench-") as name:
        folder = Path(name)
        folder.chmod(0o711)
        home = folder / "server"
        home.mkdir(mode=0o711)
        server = EmbeddedPostgres(home, durable=durable, max_connections=_MAX_CONNECTIONS)
        with server:
            asyncio.run(_load_statement_counts(server.url))
        with server:
            yield server.url


async def _load_statement_counts(url: str) -> None:
    """Have pg_stat_statements loaded at the next start."""
    db = await asyncpg.connect(url)
    await db.execute("alter system set shared_preload_libraries = 'pg_stat_statements'")
    await db.close()


class Server:
    """A running server, and the databases made on it for this run."""

    def __init__(self, url: str, db: asyncpg.Connection[asyncpg.Record]) -> None:
        self.url = url
        self.db = db
        self._made: list[str] = []

    @classmethod
    @contextlib.asynccontextmanager
    async def at(cls, url: str) -> AsyncIterator[Server]:
        """Connect; the databases made meanwhile are dropped in the end."""
        server = cls(url, await asyncpg.connect(url, statement_cache_size=0))
        try:
            yield server
        finally:
            for name in server._made:
                await server.db.execute(f'drop database if exists "{name}" with (force)')
            await server.db.close()

    async def database(self, name: str) -> str:
        """Make an empty database and return its URL."""
        made = f"fullpass_bench_{os.getpid()}_{name}"
        await self.db.execute(f'create database "{made}"')
        self._made.append(made)
        url = urlunsplit(urlsplit(self.url)._replace(path=f"/{made}"))
        db = await asyncpg.connect(url, statement_cache_size=0)
        # Without it the harness counts transactions, and says so.
        with contextlib.suppress(asyncpg.PostgresError):
            await db.execute("create extension pg_stat_statements")
        await db.close()
        return url

    async def described(self) -> str:
        """Say what a commit waits for here: the same for every queue of the run."""
        names = ("server_version", "fsync", "synchronous_commit", "full_page_writes")
        found = [await self.db.fetchval(f"select current_setting('{name}')") for name in names]
        return "PostgreSQL " + ", ".join(
            [found[0]]
            + [f"{name} {value}" for name, value in zip(names[1:], found[1:], strict=True)]
        )
