"""A pass watched from outside: what its person is told of the time left, and what is true.

Ten times quicker than models are: 0.1 s to the first token, then 1,000 tokens a second.
"""

from __future__ import annotations

import asyncio
import random
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tests.support.exports import PlantedExport, conversation
from tests.support.planted_truth import Planted
from tests.support.queue_checks import queue_at
from tests.support.worker_process import work_once, worker_process

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from tests.support.anthropic_server import AnthropicServer
    from tests.support.exports import Turn

SPEED = {"latency_seconds": 0.1, "latency_sigma": 0.3, "seconds_per_output_token": 0.001}
_WORDS = ("rain", "window", "paper", "walk", "later", "north", "quiet")
_COLOURS = ("amber", "violet", "crimson", "teal", "ochre", "indigo", "silver", "umber")
_SAYINGS = (
    ("preferences", "I prefer {a} tea from tin {n}", "Prefers {a} tea from tin {n}"),
    ("projects", "I am building a {a} kite of {n} sails", "Is building a {a} kite of {n} sails"),
    (
        "beliefs",
        "I believe in {a} rules with {n} reasons",
        "Believes in {a} rules with {n} reasons",
    ),
    ("decisions", "I decided to buy {n} {a} chairs", "Decided to buy {n} {a} chairs"),
)


def export_of(
    facts: Sequence[int], *, seed: int = 7, own_words: int = 120, heard_words: int = 120,
    different: int | None = None,
) -> PlantedExport:  # fmt: skip
    """Make an export whose conversations state so many facts each; of `different` ones, if told."""
    dice = random.Random(seed)
    made, truth, number = [], {}, 0
    for place, count in enumerate(facts):
        turns: list[Turn] = []
        for turn in range(max(1, count)):
            said = ""
            if turn < count:
                number += 1
                one = number if different is None else dice.randrange(different)
                category, sentence, statement = _SAYINGS[one % len(_SAYINGS)]
                filled = {"a": _COLOURS[one % len(_COLOURS)], "n": one + 100}
                said = f"{sentence.format(**filled)}."
                truth[one] = Planted(
                    sentence=said, category=category, statement=statement.format(**filled)
                )
            own = " ".join(dice.choices(_WORDS, k=own_words))
            heard = " ".join(dice.choices(_WORDS, k=heard_words))
            turns.append(("user", f"Something about {own}. {said} What do you think?"))
            turns.append(("assistant", f"Here is a thought about {heard}."))
        made.append(conversation(place, turns))
    return PlantedExport(made, list(truth.values()))


@dataclass(frozen=True, slots=True)
class Told:
    """What stood there at one moment, and how long the pass then still took."""

    at: float
    """Share of the pass that was over."""
    seconds: float | None
    stage: str | None
    percent: int | None
    true_seconds: float

    @property
    def within_30_percent(self) -> bool:
        """Right, or off by no more than a second of the test's time.

        The number is told in seconds and written at intervals: below that a share means nothing.
        """
        return self.seconds is not None and abs(self.seconds - self.true_seconds) <= max(
            0.3 * self.true_seconds, 1.0
        )


@dataclass(frozen=True, slots=True)
class TimedPass:
    """A pass and all that was told while it ran."""

    took_seconds: float
    told: list[Told]

    def check(self) -> None:
        """Assert that from a tenth on the time left was right, and that words and bar agree.

        Waits are drawn by chance, those of the last long calls too: one moment of twenty may be
        off by more, none by a seventh of the whole pass.
        """
        late = [one for one in self.told if one.at >= 0.1]
        assert len(late) > 50
        wrong = [one for one in late if not one.within_30_percent]
        told = (self.took_seconds, wrong[:: max(1, len(wrong) // 8)], late[::12])
        assert len(wrong) <= 0.05 * len(late), told
        for one in late:
            assert one.seconds is not None
            most = max(0.3 * one.true_seconds, self.took_seconds / 7)
            assert abs(one.seconds - one.true_seconds) <= most, told
            assert one.stage is not None
            assert one.stage.endswith("less than a minute left"), one
        percents = [one.percent for one in self.told if one.percent is not None]
        assert percents == sorted(percents)


async def timed_pass(
    database_url: str,
    llm: AnthropicServer,
    export: PlantedExport,
    folder: Path,
    *,
    before: PlantedExport | None = None,
    killed_after_windows: int = 0,
    offline: bool = False,
    **settings: Any,
) -> TimedPass:
    """Work one export and watch; `before` is worked first, for the same person.

    With `killed_after_windows` a worker dies after so many, and what is watched is the rest.
    """
    llm.truth.add(export.truth)
    settings = {"extraction_window_tokens": 2000, "fact_extraction_concurrency": 3, **settings}
    url = None if offline else llm.url
    told: list[tuple[float, float | None, str | None, int | None]] = []
    async with queue_at(database_url) as queue:
        user = await queue.db.fetchval("select gen_random_uuid()")

        async def add(made: PlantedExport, name: str) -> None:
            await queue.db.execute(
                "insert into processing_jobs (user_id, storage_path) values ($1, $2)",
                user, f"file://{made.write(folder / name)}",
            )  # fmt: skip

        if before is not None:
            llm.truth.add(before.truth)
            await add(before, "before.json")
            await work_once(database_url, url, **settings)
        await add(export, "conversations.json")
        if killed_after_windows:
            with worker_process(database_url, url, **settings) as process:
                done = "select count(*) >= $1 from fullpass.windows where state = 'done'"
                deadline = time.monotonic() + 60
                while not await queue.db.fetchval(done, killed_after_windows):
                    assert time.monotonic() < deadline
                    await asyncio.sleep(0.05)  # polled until its deadline
                process.kill()
        ended_before = await queue.db.fetchval("select now()")
        working = asyncio.create_task(work_once(database_url, url, **settings))
        while not working.done():
            row = await queue.db.fetchrow(
                """
                select r.seconds_left, u.import_stage, u.progress_percent
                from fullpass.ops_running r join user_profiles u on u.user_id = r.user_id
                join fullpass.passes p on p.job_id = r.job_id where p.claimed_at > $1
                """,
                ended_before,
            )
            if row is not None:
                told.append((time.monotonic(), *row))
            await asyncio.sleep(0.05)  # polled until the pass is over, which has a deadline
        ended = time.monotonic()
        assert len((await working).completed) == 1
    began = told[0][0]  # claimed: what came before is no part of the pass
    took = ended - began
    return TimedPass(
        took,
        [
            Told((at - began) / took, seconds, stage, percent, ended - at)
            for at, seconds, stage, percent in told
        ],
    )
