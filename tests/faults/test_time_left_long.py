"""The time left under many shapes, speeds and troubles: what the quick test cannot hold."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.support.exports import planted_export
from tests.support.timed_pass import SPEED, export_of, timed_pass

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.support.anthropic_server import AnthropicServer
    from tests.support.exports import PlantedExport


def _usual(conversations: int = 80, seed: int = 7) -> PlantedExport:
    return planted_export(conversations=conversations, facts_each=(2, 3, 4), seed=seed)


SHAPES: dict[str, tuple[Callable[[], PlantedExport], dict[str, Any], dict[str, Any]]] = {
    "another_seed": (lambda: _usual(seed=8), {"seed": 4}, {}),
    "one_call_at_a_time": (lambda: _usual(40), {}, {"fact_extraction_concurrency": 1}),
    "ten_calls_at_a_time": (lambda: _usual(160), {}, {"fact_extraction_concurrency": 10}),
    "uneven_latency": (lambda: _usual(120), {"latency_sigma": 0.8, "seed": 3}, {}),
    "few_long_conversations": (lambda: export_of([60] * 4), {}, {}),
    "facts_in_the_first_third_only": (lambda: export_of([8] * 27 + [0, 0, 1] * 18), {}, {}),
    "refused_now_and_then": (
        _usual, {"faults": {"rate_limited": 0.08}, "retry_after_seconds": 0.3}, {},
    ),
    "overloaded_now_and_then": (_usual, {"faults": {"overloaded": 0.05}}, {}),
    "an_allowance_a_minute": (_usual, {"requests_per_minute": 240}, {}),
    "a_model_that_thinks": (_usual, {"thinking_tokens": 300}, {}),
    "a_small_memory": (_usual, {}, {"memory_max_tokens": 1500}),
}  # fmt: skip


@pytest.mark.long
@pytest.mark.parametrize("shape", SHAPES)
async def test_the_time_left_is_right_whatever_the_pass_is_like(
    shape: str, database_url: str, tmp_path: Path, anthropic_server: AnthropicServer
) -> None:
    make, changes, settings = SHAPES[shape]
    anthropic_server.behave(**{**SPEED, **changes})
    (await timed_pass(database_url, anthropic_server, make(), tmp_path, **settings)).check()


@pytest.mark.long
async def test_the_time_left_of_a_pass_taken_up_again_is_that_of_the_rest(
    database_url: str, tmp_path: Path, anthropic_server: AnthropicServer
) -> None:
    anthropic_server.behave(**SPEED)
    watched = await timed_pass(
        database_url, anthropic_server, _usual(120), tmp_path, killed_after_windows=30
    )
    watched.check()
