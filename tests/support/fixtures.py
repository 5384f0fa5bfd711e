"""Fixtures of the loopback servers; conftest.py lists this module in `pytest_plugins`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.anthropic_server import AnthropicServer
from tests.support.storage_server import StorageServer

if TYPE_CHECKING:
    from collections.abc import Iterator


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
