"""`fullpass estimate` foretells what `fullpass run` then does, and pays for nothing itself."""

from __future__ import annotations

import json
import uuid
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest

from daemon.fullpass.estimate import Survey, survey
from daemon.fullpass.forecast import assumptions, configured_dollars, dollars, forecast, minutes
from daemon.fullpass.tokens import estimate_tokens
from daemon.fullpass.windows import shown
from daemon.llm.request import NumberedMessage
from daemon.settings import load_settings
from tests.support.anthropic_server import AnthropicServer
from tests.support.cli import EXAMPLE, ROOT, Cli
from tests.support.exports import planted_export
from tests.support.planted_truth import planted_from
from tests.support.worker_process import work_once

if TYPE_CHECKING:
    from pathlib import Path

    from daemon.settings import Settings

FIXTURES = ROOT / "tests" / "fixtures" / "exports"
TOKENS_OFF = 0.03
"""How far the estimate of the messages that windows show may be off what they measure."""
CALLS_OFF = 0.35
"""How far the calls in all may be off: what comes after extraction depends on the facts found."""

# Conversations and messages as counted by hand: docs/formats.md.
COUNTED = {
    "chatgpt/librechat-chatgpt-export.json": (2, 10),
    "chatgpt/librechat-chatgpt-tree.json": (1, 6),
    "chatgpt/mitkury-example-conversation.json": (1, 4),
    "chatgpt/ai-chat-md-export-conversations.json": (2, 8),
    "chatgpt/bot-knows-chatgpt_export.json": (2, 6),
    "claude/ai-chat-md-export-conversations.json": (2, 8),
    "claude/bot-knows-claude_export.json": (1, 4),
    "gemini/knowledgemaxxing-MyActivity.json": (1, 1),
}


def foretold(path: Path, **settings: Any) -> tuple[Survey, Settings]:
    configured = load_settings(llm_provider="anthropic", **settings)
    return survey(path, configured), configured


async def windows_as_planned(url: str, user: uuid.UUID) -> list[int]:
    """Measure the messages of every window that the pass planned, as its prompts showed them."""
    connection = await asyncpg.connect(url, statement_cache_size=0)
    try:
        rows = await connection.fetch(
            """
            select w.id, m.role, m.at, substr(c.content, m.start + 1, m.stop - m.start) as text
            from fullpass.windows w
            cross join lateral unnest(w.content_hashes) with ordinality as h (content_hash, place)
            join public.conversation_chunks c
                on c.user_id = w.user_id and c.content_hash = h.content_hash
            join fullpass.chunk_messages m on m.chunk_id = c.id
            where w.user_id = $1 and w.parent_id is null
            order by w.id, h.place, m.ordinal
            """,
            user,
        )
    finally:
        await connection.close()
    measured: dict[int, int] = {}
    before: tuple[int, str] | None = None
    for row in rows:
        day = f"{row['at']:%Y-%m-%d}" if row["at"] else ""
        message = NumberedMessage(12, row["role"], row["at"], row["text"])
        text = shown(message, day=None if before == (row["id"], day) else day)
        before = row["id"], day
        measured[row["id"]] = measured.get(row["id"], 0) + estimate_tokens("\n" + text)
    return sorted(measured.values())


@pytest.mark.parametrize("name", ["example", "planted", "claude"])
async def test_calls_and_tokens_are_those_of_the_pass_that_follows(
    name: str, database_url: str, tmp_path: Path
) -> None:
    if name == "planted":
        export = planted_export(conversations=90)
        path, truth = export.write(tmp_path / "conversations.json"), export.truth
    elif name == "example":
        path = EXAMPLE
        truth = planted_from(json.loads((EXAMPLE.parent / "truth.json").read_text()))
    else:
        path, truth = FIXTURES / "claude/ai-chat-md-export-conversations.json", []
    found, settings = foretold(path)
    expected = forecast(found, settings)
    user = uuid.uuid4()
    connection = await asyncpg.connect(database_url, statement_cache_size=0)
    try:
        await connection.execute(
            "INSERT INTO processing_jobs (user_id, storage_path) VALUES ($1, $2)",
            user,
            path.as_uri(),
        )
        with AnthropicServer(truth=truth) as server:
            tally = await work_once(database_url, server.url, fact_extraction_concurrency=8)
            assert len(tally.completed) == 1
            purposes = [call.purpose for call in server.record.completed()]
        stored = await connection.fetchrow(
            "select count(*) as chunks, sum(token_count) as tokens from conversation_chunks"
        )
    finally:
        await connection.close()
    assert (found.chunks["medium"], found.text_tokens) == (stored["chunks"], stored["tokens"])
    measured = await windows_as_planned(database_url, user)
    assert purposes.count("extract") == len(found.windows) == len(measured), "planned exactly"
    for planned, real in zip(sorted(w.tokens for w in found.windows), measured, strict=True):
        assert planned == pytest.approx(real, rel=TOKENS_OFF, abs=30)
    foreseen = {c.purpose: c.calls for c in expected.calls}
    if name == "example":  # of the planted facts no two are alike, and the third holds none
        assert expected.total == pytest.approx(len(purposes), rel=CALLS_OFF)
    if truth:
        for purpose in ("extract", "reduce", "memory", "sections"):
            assert foreseen.get(purpose, 0) == purposes.count(purpose)


@pytest.mark.parametrize("name", COUNTED)
def test_every_sample_is_counted_as_by_hand(name: str, tmp_path: Path) -> None:
    found, _ = foretold(FIXTURES / name)
    assert (found.report.conversations, found.report.messages) == COUNTED[name]
    assert found.report.whole
    assert len(found.windows) == 1


async def test_a_pass_over_every_sample_counts_the_same(database_url: str) -> None:
    connection = await asyncpg.connect(database_url, statement_cache_size=0)
    try:
        for name in COUNTED:
            await connection.execute(
                "INSERT INTO processing_jobs (user_id, storage_path) VALUES ($1, $2)",
                uuid.uuid5(uuid.NAMESPACE_URL, name),
                (FIXTURES / name).as_uri(),
            )
        tally = await work_once(database_url, None)
        assert len(tally.completed) == len(COUNTED)
        for name, counted in COUNTED.items():
            row = await connection.fetchrow(
                "select conversation_count, message_count from processing_jobs where user_id = $1",
                uuid.uuid5(uuid.NAMESPACE_URL, name),
            )
            assert tuple(row) == counted, name
    finally:
        await connection.close()


def test_nothing_is_called_and_no_database_is_made(
    anthropic_server: AnthropicServer, tmp_path: Path
) -> None:
    cli = Cli(tmp_path, ANTHROPIC_API_KEY="test-key", ANTHROPIC_BASE_URL=anthropic_server.url)
    done = cli.run("estimate", EXAMPLE, "--json")
    assert done.returncode == 0, done.stderr
    account = json.loads(done.stdout)
    assert (account["conversations"], account["messages"]) == (42, 169)
    assert account["skipped"]["not_to_be_remembered"] == 1
    assert account["redacted"] == 1
    assert max(account["languages"], key=account["languages"].get) == "English"
    assert sum(account["languages"].values()) == pytest.approx(1, abs=0.01)
    batch = account["dollars"]["by_model"]["claude-haiku-5-5"]
    assert 0 < batch["batch"] < batch["realtime"] == account["dollars"]["as_configured"]
    assert not anthropic_server.record.calls
    assert not cli.home.exists(), "no database, and nothing else either"


def test_people_read_it_in_eighty_columns(tmp_path: Path) -> None:
    done = Cli(tmp_path, CHUNK_TIERS="small,medium,large").run("estimate", EXAMPLE)
    assert done.returncode == 0, done.stderr
    assert max(map(len, done.stdout.splitlines())) <= 80, done.stdout
    for said in ("42 conversations and 169 messages", "English", "49 medium", "small", "large",
                 "$", "1 marked as not to be remembered", "1 credential", "Assumes"):  # fmt: skip
        assert said in done.stdout


@pytest.mark.parametrize(
    ("content", "arguments", "code", "said"),
    [
        (None, ["missing.zip"], 2, "no such file"),
        (b"<html>Sign in</html>", ["export.json"], 1, "export.json"),
        (b'{"error": "expired"}', ["export.json"], 1, "error answer"),
        (None, [], 2, "Missing argument"),
    ],
    ids=["missing", "page", "answer", "nothing"],
)
def test_what_cannot_be_estimated_is_said_in_a_line(
    content: bytes | None, arguments: list[str], code: int, said: str, tmp_path: Path
) -> None:
    if content is not None:
        (tmp_path / arguments[0]).write_bytes(content)
    done = Cli(tmp_path).run("estimate", *arguments)
    assert done.returncode == code
    assert said in done.stderr
    assert done.stdout == ""


def test_damage_is_named_and_the_rest_estimated(tmp_path: Path) -> None:
    conversations = planted_export(conversations=4).conversations
    texts = [json.dumps(c) for c in conversations]
    texts[1] = texts[1].replace('"mapping": {', '"mapping": {{', 1)
    path = tmp_path / "conversations.json"
    path.write_text(f"[{', '.join(texts)}]")
    found, _ = foretold(path)
    assert found.report.conversations == 3
    assert found.report.damaged == 1
    assert "item 2" in found.report.damages[0]
    assert not found.report.whole


def test_a_conversation_met_again_counts_once(tmp_path: Path) -> None:
    first, other = planted_export(conversations=2).conversations
    later = {**first, "title": "Renamed", "update_time": first["update_time"] + 60}
    path = tmp_path / "conversations.json"
    path.write_text(json.dumps([first, other, later]))
    found, _ = foretold(path)
    assert found.report.duplicates == 1
    path.write_text(json.dumps([later, other]))
    once, _ = foretold(path)
    assert (found.chunks, found.windows) == (once.chunks, once.windows)


def test_what_is_set_decides_money_and_time() -> None:
    found, settings = foretold(EXAMPLE)
    expected = forecast(found, settings)
    extraction = next(c for c in expected.calls if c.purpose == "extract")
    whole, half = (dollars([extraction], "haiku", batch=batch) for batch in (False, True))
    assert whole is not None
    assert half == whole / 2
    assert dollars(expected.calls, "a-model-of-the-future") is None
    dear, unknown, batch = (
        foretold(EXAMPLE, **more)[1]
        for more in (
            {"extraction_model": "sonnet"},
            {"memory_model": "a-model-of-the-future"},
            {"extraction_mode": "batch"},
        )
    )
    usual = configured_dollars(expected, settings)
    assert usual is not None
    assert (configured_dollars(expected, dear) or Decimal(0)) > 5 * usual
    assert configured_dollars(expected, unknown) is None
    assert (configured_dollars(expected, batch) or Decimal(0)) < usual
    wide = foretold(EXAMPLE, fact_extraction_concurrency=20)[1]
    assert minutes(expected, wide, reading_seconds=1) < minutes(
        expected, settings, reading_seconds=1
    )
    assert "20 calls at a time" in " ".join(assumptions(wide))
