"""The time left that a person is told: right when a tenth of it is over."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from tests.support.exports import planted_export
from tests.support.queue_checks import queue_at
from tests.support.worker_process import work_once

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.anthropic_server import AnthropicServer


async def test_from_a_tenth_of_the_pass_on_the_time_left_is_right_within_30_percent(
    database_url: str, tmp_path: Path, anthropic_server: AnthropicServer
) -> None:
    """Ten times quicker than models are: 0.1 s to the first token, then 1,000 tokens a second."""
    export = planted_export(conversations=80, facts_each=(2, 3, 4))
    anthropic_server.truth.add(export.truth)
    anthropic_server.behave(latency_seconds=0.1, latency_sigma=0.3, seconds_per_output_token=0.001)
    path = f"file://{export.write(tmp_path / 'conversations.json')}"
    told: list[tuple[float, float | None, str | None, int]] = []
    async with queue_at(database_url) as queue:
        await queue.db.execute(
            "insert into processing_jobs (user_id, storage_path) values (gen_random_uuid(), $1)",
            path,
        )
        working = asyncio.create_task(
            work_once(
                database_url, anthropic_server.url, extraction_window_tokens=2000,
                fact_extraction_concurrency=3,
            )
        )  # fmt: skip
        while not working.done():
            row = await queue.db.fetchrow(
                "select r.seconds_left, u.import_stage, u.progress_percent "
                "from fullpass.ops_running r join user_profiles u on u.user_id = r.user_id"
            )
            if row is not None:
                told.append((time.monotonic(), *row))
            await asyncio.sleep(0.05)  # polled until the pass is over, which has a deadline
        ended = time.monotonic()
        assert len((await working).completed) == 1
    began = told[0][0]  # claimed: what came before is no part of the pass
    took = ended - began
    assert 8 < took < 60
    late = [row for row in told if (row[0] - began) / took >= 0.1]
    assert len(late) > 50
    for at, seconds_left, stage, _percent in late:
        true = ended - at
        assert seconds_left is not None
        assert stage is not None
        assert stage.endswith(" left"), stage
        # Near the end, what is left is too short for a share of it to mean anything.
        assert abs(seconds_left - true) <= max(0.3 * true, 0.15 * took), [
            (f"{(a - began) / took:.2f}", left, f"{ended - a:.2f}") for a, left, *_ in late[::8]
        ]
    percents = [row[3] for row in told if row[3] is not None]
    assert percents == sorted(percents)
