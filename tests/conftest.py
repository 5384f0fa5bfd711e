"""Fixtures every test may ask for: a real Postgres and fresh databases on it."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import pytest

from tests.support import postgres

if TYPE_CHECKING:
    from collections.abc import Iterator

pytest_plugins = ["tests.support.fixtures"]

ONE_SERVER = pytest.StashKey[postgres.OneServer]()


def pytest_configure(config: pytest.Config) -> None:
    # Processes of xdist are told the address; only the one that starts them owns a server.
    if not hasattr(config, "workerinput"):
        config.stash[ONE_SERVER] = postgres.OneServer()


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node) -> None:
    server = node.config.stash[ONE_SERVER].get()
    node.workerinput["postgres"] = (server.url, server.origin)


def pytest_report_header(config: pytest.Config) -> str | None:
    if ONE_SERVER not in config.stash:
        return None
    return f"postgres: {config.stash[ONE_SERVER].choice}"


def pytest_unconfigure(config: pytest.Config) -> None:
    if ONE_SERVER in config.stash:
        config.stash[ONE_SERVER].stop()


@pytest.fixture(scope="session")
def postgres_server(request: pytest.FixtureRequest) -> postgres.Server:
    """The run's server; its `url` opens the maintenance database."""
    workerinput = getattr(request.config, "workerinput", None)
    if workerinput is not None:
        return postgres.Server(*workerinput["postgres"])
    return request.config.stash[ONE_SERVER].get()


@pytest.fixture
def database_url(postgres_server: postgres.Server) -> Iterator[str]:
    """A fresh database with the migrated schema."""
    yield from _fresh(postgres_server.url, migrated=True)


@pytest.fixture
def empty_database_url(postgres_server: postgres.Server) -> Iterator[str]:
    """A fresh database with nothing in it."""
    yield from _fresh(postgres_server.url, migrated=False)


@pytest.fixture(scope="session")
def postgres_15_server() -> Iterator[str]:
    """A PostgreSQL 15 server's URL."""
    with contextlib.ExitStack() as cleanup:
        url = postgres.postgres_15(cleanup)
        if url is None:
            pytest.skip("missing component: PostgreSQL 15 (binaries or TEST_DATABASE_URL_15)")
        yield url


@pytest.fixture(scope="session")
def postgres_18_server(postgres_server: postgres.Server) -> Iterator[str]:
    """A PostgreSQL 18 server's URL: the embedded one, which is often the run's own."""
    if postgres_server.origin == "embedded":
        yield postgres_server.url
        return
    with contextlib.ExitStack() as cleanup:
        yield postgres.embedded(cleanup)


@pytest.fixture(params=["15", "18"])
def each_postgres_empty_url(request: pytest.FixtureRequest) -> Iterator[str]:
    """A fresh empty database, once on PostgreSQL 15 and once on 18."""
    yield from _fresh(request.getfixturevalue(f"postgres_{request.param}_server"), migrated=False)


def _fresh(server_url: str, *, migrated: bool) -> Iterator[str]:
    url = postgres.create_database(server_url, migrated=migrated)
    try:
        yield url
    finally:
        postgres.drop_database(url)
