"""The time left that a person is told: right within 30% when a tenth of it is over.

More shapes, speeds and troubles stand in tests/faults/test_time_left_long.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.exports import PlantedExport, planted_export
from tests.support.timed_pass import SPEED, export_of, timed_pass

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.anthropic_server import AnthropicServer

pytestmark = pytest.mark.alone

SHAPES = {
    "much_the_same_all_along": lambda: planted_export(conversations=80, facts_each=(2, 3, 4)),
    "facts_in_the_last_third_only": lambda: export_of([0, 0, 1] * 18 + [8] * 27),
    "a_person_who_repeats_what_matters": lambda: export_of([3] * 80, different=30),
}


@pytest.mark.parametrize("shape", SHAPES)
async def test_from_a_tenth_of_the_pass_on_the_time_left_is_right_within_30_percent(
    shape: str, database_url: str, tmp_path: Path, anthropic_server: AnthropicServer
) -> None:
    anthropic_server.behave(**SPEED)
    watched = await timed_pass(database_url, anthropic_server, SHAPES[shape](), tmp_path)
    assert 8 < watched.took_seconds < 60
    watched.check()


async def test_of_a_person_known_already_only_what_is_new_takes_time(
    database_url: str, tmp_path: Path, anthropic_server: AnthropicServer
) -> None:
    whole = planted_export(conversations=60, facts_each=(2, 3, 4))
    anthropic_server.behave(**SPEED)
    watched = await timed_pass(
        database_url, anthropic_server, whole, tmp_path,
        before=PlantedExport(whole.conversations[:20], []),
    )  # fmt: skip
    watched.check()


async def test_a_server_that_answers_any_length_in_one_time_is_recognised(
    database_url: str, tmp_path: Path, anthropic_server: AnthropicServer
) -> None:
    anthropic_server.behave(latency_seconds=0.2)
    watched = await timed_pass(
        database_url, anthropic_server, planted_export(conversations=80, facts_each=(2, 3, 4)),
        tmp_path, fact_extraction_concurrency=1,
    )  # fmt: skip
    watched.check()
