"""Fixtures of the loopback servers and of a look into the database; conftest.py lists this module in
`pytest_plugins`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import asyncpg
import pytest

from tests.support.anthropic_server import AnthropicServer
from tests.support.storage_server import StorageServer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator


@pytest.fixture
def anthropic_server() -> Iterator[AnthropicServer]:
    """A faultless model with no truth planted; accepts the key "test-key"."""
    with AnthropicServer() as server:
        yield server


@pytest.fixture
def storage_server() -> Iterator[StorageServer]:
    """An empty Storage; accepts `storage_server.key`."""
    with StorageServer() as server:
        yield server


@pytest.fixture
async def db(database_url: str) -> AsyncIterator[asyncpg.Connection[asyncpg.Record]]:
    """A connection of the test's own to its database."""
    connection = await asyncpg.connect(database_url, statement_cache_size=0)
    yield connection
    await connection.close()
