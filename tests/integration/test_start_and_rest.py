"""What a worker costs before its first job and while it has none (issue's limits: 3 s, 95 MB)."""

from __future__ import annotations

import json
import subprocess
import sys
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


def test_a_worker_imports_what_it_may_need_before_its_first_claim_and_nothing_else() -> None:
    asked = (
        "import gc, json, sys\n"
        "from daemon.cli.worker import import_everything\n"
        "import_everything()\n"
        "print(json.dumps([list(sys.modules), gc.isenabled(), gc.get_freeze_count()]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", asked], capture_output=True, text=True, timeout=60, check=True
    )
    modules, looks_for_garbage, set_aside = json.loads(done.stdout)
    needed = {"anthropic", "daemon.fullpass.sections", "daemon.export.source", "daemon.llm.batches"}
    assert needed <= set(modules)
    for name in (
        "daemon.embedded", "daemon.export.reader", "daemon.fullpass.estimate", "daemon.llm.bedrock",
        "daemon.llm.offline", "daemon.llm.vertex", "daemon.ops.mail", "daemon.ops.status", "rich",
    ):  # fmt: skip
        assert name not in modules, name
    assert looks_for_garbage
    assert set_aside > 100_000
