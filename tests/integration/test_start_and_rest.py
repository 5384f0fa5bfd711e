"""What a worker costs before its first job and while it has none (issue's limits: 3 s, 95 MB)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import psutil
import pytest

from tests.integration.test_health import free_port
from tests.support.queue_checks import Queue, queue_at
from tests.support.worker_process import worker_process

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.support.anthropic_server import AnthropicServer

IDLE_RSS_BYTES = 95 * 1024 * 1024
START_CPU_SECONDS = 3.0


@pytest.fixture
async def queue(database_url: str) -> AsyncIterator[Queue]:
    async with queue_at(database_url) as opened:
        yield opened


async def test_a_worker_with_the_vendors_sdk_claims_within_three_seconds_of_work(
    queue: Queue, tmp_path: Path, anthropic_server: AnthropicServer
) -> None:
    """Seconds of CPU, not of the clock: what else a busy machine does is not in them."""
    await queue.add("nowhere")
    with worker_process(queue.url, anthropic_server.url) as worker:
        process = psutil.Process(worker.pid)
        await queue.until(
            "select exists (select from fullpass.job_events where event = 'claimed')", seconds=60
        )
        cpu = process.cpu_times()
    assert cpu.user + cpu.system <= START_CPU_SECONDS


async def test_an_idle_worker_with_the_vendors_sdk_rests_in_95_mb(
    queue: Queue, anthropic_server: AnthropicServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MALLOC_ARENA_MAX", "2")  # as in the image
    port = free_port()
    with worker_process(queue.url, anthropic_server.url, health_port=port) as worker:
        await queue.until(
            "select last_beat_at > started_at + interval '1 second' from fullpass.workers",
            seconds=60,
        )
        maps = psutil.Process(worker.pid).memory_maps()
        assert any("anthropic" in m.path or "jiter" in m.path for m in maps)  # it is imported
        assert psutil.Process(worker.pid).memory_info().rss <= IDLE_RSS_BYTES
