"""Fixtures of the loopback servers and of a look into the database; conftest.py lists this module in
`pytest_plugins`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import asyncpg
import pytest

from daemon.database import open_pool
from tests.support.anthropic_server import AnthropicServer
from tests.support.storage_server import StorageServer
from tests.support.webhook_receiver import WebhookReceiver

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from daemon.database import Pool


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


@pytest.fixture
async def pool(database_url: str) -> AsyncIterator[Pool]:
    """A pool like a worker's."""
    opened = await open_pool(database_url)
    yield opened
    await opened.close()


@pytest.fixture
def app() -> Iterator[WebhookReceiver]:
    """The app's receiver of webhooks."""
    with WebhookReceiver() as receiver:
        yield receiver


@pytest.fixture
def chat() -> Iterator[WebhookReceiver]:
    """A chat room's receiver of alerts."""
    with WebhookReceiver() as receiver:
        yield receiver
