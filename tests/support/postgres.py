"""Which Postgres the tests use, and fresh databases on it.

Chosen in this order: the server of TEST_DATABASE_URL, a container where a Docker engine answers,
the embedded server. One server serves the whole test run, whatever the number of processes; a test
gets a database of its own, copied from a template that holds the migrated schema.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import http.client
import os
import secrets
import socket
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import urlsplit, urlunsplit

import asyncpg

from daemon import migrations
from daemon.embedded import EmbeddedPostgres

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

DEBIAN_15 = Path("/usr/lib/postgresql/15/bin")
CONTAINER_IMAGE = "postgres:17-alpine"
_TEMPLATE_LOCK = 7_301_952

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Server:
    """A running server: `url` opens its maintenance database, `origin` is for the header."""

    url: str
    origin: str


class OneServer:
    """Starts the chosen server at first need and stops it once."""

    def __init__(self) -> None:
        self._server: Server | None = None
        self._cleanup = contextlib.ExitStack()
        self.choice = choose()

    def get(self) -> Server:
        if self._server is None:
            start = {"TEST_DATABASE_URL": _given, "testcontainers": _container}.get(
                self.choice, _embedded
            )
            self._server = Server(start(self._cleanup), self.choice)
        return self._server

    def stop(self) -> None:
        self._cleanup.close()


def choose() -> str:
    """Name the kind of server this run uses, without starting it."""
    if os.environ.get("TEST_DATABASE_URL"):
        return "TEST_DATABASE_URL"
    return "testcontainers" if docker_answers() else "embedded"


def docker_answers() -> bool:
    """Ask the engine itself: a socket file alone may belong to a stopped one."""
    host = urlsplit(os.environ.get("DOCKER_HOST") or "unix:///var/run/docker.sock")
    try:
        if host.scheme == "unix":
            with socket.socket(socket.AF_UNIX) as engine:
                engine.settimeout(2)
                engine.connect(host.path)
                engine.sendall(b"GET /_ping HTTP/1.0\r\n\r\n")
                return b" 200 " in engine.recv(64)
        if host.scheme == "tcp" and host.hostname:
            connection = http.client.HTTPConnection(host.hostname, host.port or 2375, timeout=2)
            with contextlib.closing(connection):
                connection.request("GET", "/_ping")
                return connection.getresponse().status == 200
    except OSError:
        return False
    return False


def embedded(cleanup: contextlib.ExitStack, binaries: Path | None = None) -> str:
    """Start an embedded server that lives until `cleanup` closes; return its URL."""
    folder = Path(cleanup.enter_context(tempfile.TemporaryDirectory(prefix="fp-postgres-")))
    data_dir = folder / "server"
    data_dir.mkdir()
    # Servers before 16 walk the whole path to their data, which as root is another user's.
    folder.chmod(0o711)
    data_dir.chmod(0o711)
    server = EmbeddedPostgres(data_dir, durable=False, binaries=binaries, max_connections=120)
    return cleanup.enter_context(server).url


def _embedded(cleanup: contextlib.ExitStack) -> str:
    return embedded(cleanup)


def _given(_cleanup: contextlib.ExitStack) -> str:
    return os.environ["TEST_DATABASE_URL"]


def _container(cleanup: contextlib.ExitStack) -> str:
    from testcontainers.community.postgres import PostgresContainer

    container = PostgresContainer(CONTAINER_IMAGE, driver=None)
    container.with_command("postgres -c fsync=off -c full_page_writes=off -c max_connections=120")
    return str(cleanup.enter_context(container).get_connection_url())


def postgres_15(cleanup: contextlib.ExitStack) -> str | None:
    """Return a PostgreSQL 15 server's URL, or None where neither variable nor binaries exist."""
    if url := os.environ.get("TEST_DATABASE_URL_15"):
        return url
    return embedded(cleanup, DEBIAN_15) if (DEBIAN_15 / "postgres").exists() else None


def create_database(server_url: str, *, migrated: bool) -> str:
    """Make a database named fp_test_… and return its URL."""
    name = f"fp_test_{secrets.token_hex(6)}"

    async def create() -> None:
        async with _admin(server_url) as admin:
            template = await _template(admin, server_url) if migrated else "template1"
            await admin.execute(f'create database "{name}" template "{template}"')

    _on_own_loop(create)
    return url_of(server_url, name)


def drop_database(url: str) -> None:
    """Drop a test's database, whoever is still connected to it."""
    name = urlsplit(url).path.lstrip("/")

    async def drop() -> None:
        # A database cannot be dropped from within.
        async with _admin(url_of(url, "postgres")) as admin:
            await admin.execute(f'drop database if exists "{name}" with (force)')

    _on_own_loop(drop)


def url_of(server_url: str, database: str) -> str:
    return urlunsplit(urlsplit(server_url)._replace(path=f"/{database}"))


@contextlib.asynccontextmanager
async def _admin(server_url: str):  # type: ignore[no-untyped-def]
    connection = await asyncpg.connect(server_url, statement_cache_size=0)
    try:
        yield connection
    finally:
        await connection.close()


async def _template(admin: asyncpg.Connection[asyncpg.Record], server_url: str) -> str:
    """Return the name of the migrated template, made once for each state of sql/.

    It is built under another name: a half-built one must not be copied. It stays on the server; on
    one that outlives the run, the next run is quicker for it.
    """
    name = f"fp_template_{_sql_hash()}"
    exists = "select exists (select from pg_database where datname = $1)"
    if await admin.fetchval(exists, name):
        return name
    await admin.execute(f"select pg_advisory_lock({_TEMPLATE_LOCK})")
    try:
        if not await admin.fetchval(exists, name):
            draft = f"fp_draft_{secrets.token_hex(6)}"
            await admin.execute(f'create database "{draft}"')
            try:
                await migrations.apply(url_of(server_url, draft))
                await admin.execute(f'alter database "{draft}" rename to "{name}"')
            finally:
                await admin.execute(f'drop database if exists "{draft}" with (force)')
    finally:
        await admin.execute(f"select pg_advisory_unlock({_TEMPLATE_LOCK})")
    return name


def _sql_hash() -> str:
    digest = hashlib.sha256()
    for migration in migrations.load_migrations():
        digest.update(f"{migration.label} {migration.sha256}\n".encode())
    return digest.hexdigest()[:16]


def _on_own_loop(action: Callable[[], Coroutine[object, object, T]]) -> T:
    """Run `action` beside whatever loop the test has: fixtures serve tests of both kinds."""
    with ThreadPoolExecutor(max_workers=1) as thread:
        return thread.submit(lambda: asyncio.run(action())).result()
