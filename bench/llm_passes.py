"""Whole passes over one export: what extraction sends beside the text, and what a later run pays.

Three passes for one person: the export, the same export again, and the export with a twentieth of
its conversations added. Counts are the ledger's; they do not vary from round to round.
"""

from __future__ import annotations

import asyncio
import json
import random
import uuid
from typing import TYPE_CHECKING, Any

import asyncpg

from daemon.settings import load_settings
from daemon.worker import Worker
from tests.support.exports import conversation

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.exports import Turn

Found = tuple[str, float, str, float | None, bool]
"""Name, value, unit, limit, and whether the value must be at least the limit."""

_WORDS = [
    "rain",
    "window",
    "paper",
    "walk",
    "later",
    "north",
    "quiet",
    "stairs",
    "garden",
    "letter",
    "bridge",
    "morning",
    "kettle",
    "corner",
    "market",
    "yellow",
    "harbour",
    "engine",
    "summer",
    "velvet",
    "thunder",
    "basket",
    "candle",
    "meadow",
    "copper",
    "island",
]
_LEAST_CALLS = 1_000


def made_up(conversations: int, *, first: int = 0) -> list[dict[str, Any]]:
    """Make conversations of about 8,000 tokens each, with a fact in every other turn."""
    made = []
    for n in range(first, first + conversations):
        dice = random.Random(n)
        turns: list[Turn] = []
        for turn in range(12):
            words = " ".join(dice.choice(_WORDS) for _ in range(dice.randint(150, 650)))
            said = f"I prefer lamp {n}-{turn} to any other. " if turn % 4 == 0 else ""
            turns.append(("assistant" if turn % 2 else "user", f"{said}{words}."))
        made.append(conversation(n, turns))
    return made


def passes(
    url: str, base_url: str, api_key: str, folder: Path, *, export: Path | None, conversations: int
) -> list[Found]:
    """Run the three passes and reckon."""
    first = made_up(conversations) if export is None else json.loads(export.read_text("utf-8"))
    if not isinstance(first, list):
        raise SystemExit("--export: a plain conversations.json with a list is needed here")
    added = made_up(max(1, len(first) // 20), first=1_000_000)
    for name, what in (("first", first), ("again", first), ("more", [*first, *added])):
        (folder / f"{name}.json").write_text(json.dumps(what), encoding="utf-8")
    return asyncio.run(_passes(url, base_url, api_key, folder))


async def _passes(url: str, base_url: str, api_key: str, folder: Path) -> list[Found]:
    user = uuid.uuid4()
    db = await asyncpg.connect(url, statement_cache_size=0)
    settings = load_settings(
        database_url=url, anthropic_base_url=base_url, anthropic_api_key=api_key,
        llm_provider="anthropic", allow_local_files=True, fact_extraction_concurrency=10,
        max_jobs_per_user_per_day=None, poll_interval_seconds=0.2,
    )  # fmt: skip

    async def run(name: str) -> dict[str, int]:
        job = await db.fetchval(
            "insert into processing_jobs (user_id, storage_path) values ($1, $2) returning id",
            user, f"file://{folder / name}.json",
        )  # fmt: skip
        await Worker(settings, url).run(once=True)
        status = await db.fetchval("select status from processing_jobs where id = $1", job)
        if status != "complete":
            raise SystemExit(f"the {name} pass ended as {status}")
        rows = await db.fetch(
            "select purpose, count(*) as calls, sum(input_tokens) as tokens "
            "from fullpass.llm_calls where job_id = $1 group by 1",
            job,
        )
        return {
            "extract": sum(row["calls"] for row in rows if row["purpose"] == "extract"),
            "tokens": sum(row["tokens"] or 0 for row in rows if row["purpose"] == "extract"),
            "all": sum(row["calls"] for row in rows),
        }

    first = await run("first")
    # The loopback server counts a token for every four characters: so are the chunks counted here.
    read = await db.fetchval(
        "select sum(length(content)) / 4.0 from conversation_chunks c join fullpass.chunk_outcomes o "
        "using (user_id, content_hash) where c.user_id = $1",
        user,
    )
    again, more = await run("again"), await run("more")
    await db.close()
    return [
        ("pass.extraction_calls", first["extract"], "", None, True),
        ("pass.sent_over_read", first["tokens"] / float(read), "×", 1.15, False),
        ("pass.calls_of_the_same_again", again["all"], "", 0.0, False),
        (
            "pass.calls_for_a_twentieth_more", more["all"] / first["extract"], "",
            0.08 if first["extract"] >= _LEAST_CALLS else None, False,
        ),
    ]  # fmt: skip
