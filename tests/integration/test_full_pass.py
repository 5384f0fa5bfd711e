"""The pass end to end: one INSERT, the real SDK against the loopback model, and what rows say."""

from __future__ import annotations

import json
import uuid
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.anthropic_server import AnthropicServer
from tests.support.exports import conversation, planted_export
from tests.support.worker_process import work_once

if TYPE_CHECKING:
    from pathlib import Path

HEADINGS = ["## Preferences", "## Projects", "## Important Dates", "## Beliefs & Values", "## Decisions"]  # fmt: skip


async def insert_job(db: Any, path: Path | str, user: uuid.UUID | None = None) -> uuid.UUID:
    return await db.fetchval(
        "INSERT INTO processing_jobs (user_id, storage_path) VALUES ($1, $2) RETURNING id",
        user or uuid.uuid4(),
        f"file://{path}",
    )


async def facts_of(db: Any, user: uuid.UUID) -> list[tuple[str, str]]:
    rows = await db.fetch(
        "select category, statement from fullpass.facts where user_id = $1 order by 1, 2", user
    )
    return [(r["category"], r["statement"]) for r in rows]


async def test_one_plain_insert_becomes_a_memory_that_holds_every_planted_fact(
    db: Any, database_url: str, tmp_path: Path
) -> None:
    export = planted_export(conversations=30)
    path = export.write(tmp_path / "conversations.json")
    user = uuid.uuid4()
    job = await insert_job(db, path, user)
    with AnthropicServer(truth=export.truth) as server:
        tally = await work_once(database_url, server.url)
        assert tally.completed == [job]
        row = await db.fetchrow("select * from processing_jobs where id = $1", job)
        assert (row["status"], row["progress"], row["conversation_count"]) == ("complete", 100, 30)
        assert row["message_count"] == 30 * 6
        assert await facts_of(db, user) == sorted((p.category, p.statement) for p in export.truth)
        profile = await db.fetchrow("select * from user_profiles where user_id = $1", user)
        assert profile["full_pass_status"] == "complete"
        assert profile["full_pass_error"] is None
        assert profile["full_pass_started_at"] == row["started_at"]
        assert profile["full_pass_completed_at"] >= row["started_at"]
        assert [h for h in profile["memory_md"].splitlines() if h.startswith("## ")] == HEADINGS
        missing = [p for p in export.truth if p.statement not in profile["memory_md"]]
        assert not missing
        for column in ("soul_md", "identity_md", "user_md", "agents_md", "tools_md"):
            assert isinstance(json.loads(profile[column]), dict)
        assert profile["soulprint_text"].index("## Soul") < profile["soulprint_text"].index(
            "# MEMORY"
        )
        ledger = await db.fetchrow(
            "select count(*) as calls, sum(input_tokens) as tokens from fullpass.llm_calls "
            "where job_id = $1",
            job,
        )
        totals = server.record.totals()
        assert ledger["calls"] == len(server.record.completed())
        assert ledger["tokens"] == sum(c.input_tokens for c in server.record.completed()), totals
        result = json.loads(row["result"])
        assert result["coverage"]["share"] == 1.0
        assert result["cost"]["calls"] == ledger["calls"]
        assert json.loads(profile["import_cost_json"])["cost_usd"] > 0


async def test_evidence_quotes_stand_in_the_very_message_they_name(
    db: Any, database_url: str, tmp_path: Path
) -> None:
    export = planted_export(conversations=10)
    user = uuid.uuid4()
    await insert_job(db, export.write(tmp_path / "conversations.json"), user)
    with AnthropicServer(truth=export.truth) as server:
        await work_once(database_url, server.url)
    checked = await db.fetch(
        """
        select e->>'quote' as quote,
               exists (
                   select from public.conversation_chunks c
                   join fullpass.chunk_messages m on m.chunk_id = c.id
                   where c.user_id = f.user_id and c.conversation_id = e->>'conversation_id'
                     and m.message_id = e->>'message_id' and m.role = 'user'
                     and strpos(substr(c.content, m.start + 1, m.stop - m.start), e->>'quote') > 0
               ) as proven
        from fullpass.facts f cross join lateral jsonb_array_elements(f.evidence) as e
        where f.user_id = $1
        """,
        user,
    )
    assert len(checked) == 30
    assert all(row["proven"] for row in checked)


async def test_the_same_export_again_costs_no_call_and_moves_no_row(
    db: Any, database_url: str, tmp_path: Path
) -> None:
    export = planted_export(conversations=12)
    path = export.write(tmp_path / "conversations.json")
    user = uuid.uuid4()
    with AnthropicServer(truth=export.truth) as server:
        await insert_job(db, path, user)
        await work_once(database_url, server.url)
        chunks = await db.fetch(
            "select id, xmin::text from conversation_chunks where user_id = $1 order by id", user
        )
        facts = await facts_of(db, user)
        calls = len(server.record.calls)
        second = await insert_job(db, path, user)
        tally = await work_once(database_url, server.url)
        assert tally.completed == [second]
        assert len(server.record.calls) == calls
    assert chunks == await db.fetch(
        "select id, xmin::text from conversation_chunks where user_id = $1 order by id", user
    )
    assert facts == await facts_of(db, user)
    result = json.loads(await db.fetchval("select result from processing_jobs where id=$1", second))
    assert result["cost"]["calls"] == 0
    assert result["coverage"]["share"] == 1.0


async def test_new_text_is_all_that_a_newer_export_pays_for(
    db: Any, database_url: str, tmp_path: Path
) -> None:
    old = planted_export(conversations=60, filler_words=250)
    new = planted_export(conversations=62, filler_words=250)
    user = uuid.uuid4()
    with AnthropicServer(truth=new.truth) as server:
        await insert_job(db, old.write(tmp_path / "old.json"), user)
        await work_once(database_url, server.url)
        before = [c for c in server.record.calls if c.purpose == "extract"]
        await insert_job(db, new.write(tmp_path / "new.json"), user)
        await work_once(database_url, server.url)
        after = [c for c in server.record.calls if c.purpose == "extract"]
    assert len(before) > 5
    assert len(after) - len(before) == 1
    assert await facts_of(db, user) == sorted((p.category, p.statement) for p in new.truth)


async def test_a_conversation_that_the_person_deleted_takes_its_facts_along(
    db: Any, database_url: str, tmp_path: Path
) -> None:
    export = planted_export(conversations=6)
    user = uuid.uuid4()
    with AnthropicServer(truth=export.truth) as server:
        await insert_job(db, export.write(tmp_path / "all.json"), user)
        await work_once(database_url, server.url)
        fewer = tmp_path / "fewer.json"
        fewer.write_text(json.dumps(export.conversations[1:]))
        await insert_job(db, fewer, user)
        await work_once(database_url, server.url)
    kept = await facts_of(db, user)
    assert kept == sorted((p.category, p.statement) for p in export.truth[3:])
    memory = await db.fetchval("select memory_md from user_profiles where user_id = $1", user)
    assert export.truth[0].statement not in memory


async def test_a_later_answer_supersedes_an_earlier_one_and_both_stay_known(
    db: Any, database_url: str, tmp_path: Path
) -> None:
    path = tmp_path / "conversations.json"
    path.write_text(
        json.dumps(
            [
                conversation(
                    0, [("user", "I live in Porto, near the river."), ("assistant", "Nice.")]
                ),
                conversation(
                    9, [("user", "I live in Ghent now, by the canal."), ("assistant", "Oh.")]
                ),
            ]
        )
    )
    truth = [
        {"sentence": "I live in Porto", "category": "preferences", "statement": "Lives in Porto", "slot": "home city"},
        {"sentence": "I live in Ghent now", "category": "preferences", "statement": "Lives in Ghent", "slot": "home city"},
    ]  # fmt: skip
    user = uuid.uuid4()
    await insert_job(db, path, user)
    from tests.support.planted_truth import Planted

    with AnthropicServer(truth=[Planted(**t) for t in truth]) as server:
        await work_once(database_url, server.url)
    rows = {
        r["statement"]: r
        for r in await db.fetch("select * from fullpass.facts where user_id = $1", user)
    }
    assert rows["Lives in Ghent"]["superseded_by"] is None
    assert rows["Lives in Porto"]["superseded_by"] == rows["Lives in Ghent"]["id"]
    memory = await db.fetchval("select memory_md from user_profiles where user_id = $1", user)
    assert "Lives in Ghent" in memory
    assert "Porto" not in memory


@pytest.mark.parametrize("fault", ["malformed", "stall", "server_error"])
async def test_sections_that_fail_twice_leave_yesterdays_and_the_pass_still_completes(
    db: Any, database_url: str, tmp_path: Path, fault: str
) -> None:
    export = planted_export(conversations=3)
    user = uuid.uuid4()
    await db.execute("insert into user_profiles (user_id, soul_md) values ($1, 'yesterday')", user)
    job = await insert_job(db, export.write(tmp_path / "c.json"), user)
    with AnthropicServer(truth=export.truth) as server:
        server.behave(faults={fault: 1.0}, fault_purposes=("sections",), retry_after_seconds=None)
        tally = await work_once(database_url, server.url, sections_timeout_seconds=1.0)
    assert tally.completed == [job]
    assert sum(call.purpose == "sections" for call in server.record.calls) == 2
    profile = await db.fetchrow("select * from user_profiles where user_id = $1", user)
    assert profile["soul_md"] == "yesterday"
    assert profile["memory_md"]
    result = json.loads(await db.fetchval("select result from processing_jobs where id = $1", job))
    assert result["sections"]["saved"] is False
    assert result["sections"]["detail"]


async def test_a_wrong_key_is_not_the_jobs_fault(
    db: Any, database_url: str, tmp_path: Path
) -> None:
    export = planted_export(conversations=2)
    job = await insert_job(db, export.write(tmp_path / "c.json"))
    with AnthropicServer(truth=export.truth) as server:
        tally = await work_once(database_url, server.url, anthropic_api_key="wrong")
    assert tally.completed == []
    assert "ANTHROPIC_API_KEY" in tally.left[job]
    row = await db.fetchrow("select status, attempts from processing_jobs where id = $1", job)
    assert (row["status"], row["attempts"]) == ("pending", 0)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "empty"),
        (b"<!doctype html><html><body>Sign in</body></html>", "HTML"),
        (b'{"hello": 1}', ""),
        (b"[]", "no conversations"),
    ],
)
async def test_bad_input_fails_with_one_clear_line_everywhere(
    db: Any, database_url: str, tmp_path: Path, content: bytes, says: str
) -> None:
    bad = tmp_path / "bad.json"
    bad.write_bytes(content)
    export = planted_export(conversations=1)
    job = await insert_job(db, bad)
    good = await insert_job(db, export.write(tmp_path / "good.json"))
    with AnthropicServer(truth=export.truth) as server:
        tally = await work_once(database_url, server.url)
    assert tally.completed == [good]
    row = await db.fetchrow(
        "select j.*, p.full_pass_status, p.full_pass_error from processing_jobs j "
        "join user_profiles p using (user_id) where j.id = $1",
        job,
    )
    assert (row["status"], row["full_pass_status"]) == ("failed", "failed")
    assert row["error_message"] == row["full_pass_error"] == tally.failed[job]
    assert "bad.json" in row["error_message"]
    assert "\n" not in row["error_message"]
    assert says.lower() in row["error_message"].lower()
    assert row["attempts"] == 1


async def test_a_broken_conversation_in_the_middle_loses_only_itself(
    db: Any, database_url: str, tmp_path: Path
) -> None:
    export = planted_export(conversations=5)
    texts = [json.dumps(c) for c in export.conversations]
    texts[2] = texts[2].replace('"mapping": {', '"mapping": {{{', 1)
    path = tmp_path / "c.json"
    path.write_text("[" + ",".join(texts) + "]")
    user = uuid.uuid4()
    job = await insert_job(db, path, user)
    with AnthropicServer(truth=export.truth) as server:
        tally = await work_once(database_url, server.url)
    assert tally.completed == [job]
    assert len(await facts_of(db, user)) == 12
    result = json.loads(await db.fetchval("select result from processing_jobs where id = $1", job))
    assert result["export"]["damaged"] == 1
    assert result["export"]["whole"] is False


async def test_an_export_comes_from_storage_and_a_missing_object_is_said_clearly(
    db: Any, database_url: str, storage_server: Any
) -> None:
    export = planted_export(conversations=4)
    storage_server.put("exports/u1/c.json", json.dumps(export.conversations).encode())
    there, gone = [
        await db.fetchval(
            "INSERT INTO processing_jobs (user_id, storage_path) VALUES ($1, $2) RETURNING id",
            uuid.uuid4(),
            path,
        )
        for path in ("exports/u1/c.json", "exports/u1/gone.zip")
    ]
    with AnthropicServer(truth=export.truth) as server:
        tally = await work_once(
            database_url,
            server.url,
            supabase_url=storage_server.url,
            supabase_service_key=storage_server.key,
            allow_local_files=False,
        )
    assert tally.completed == [there]
    assert list(tally.failed) == [gone]
    assert "exports/u1/gone.zip" in tally.failed[gone]
    assert tally.failed[gone].startswith("download_conversations: ")
    created = await db.fetchval("select min(created_at) from conversation_chunks")
    assert created.year == 2023


async def test_a_model_that_misbehaves_costs_facts_it_did_not_prove_and_nothing_else(
    db: Any, database_url: str, tmp_path: Path
) -> None:
    export = planted_export(conversations=30)
    user = uuid.uuid4()
    job = await insert_job(db, export.write(tmp_path / "c.json"), user)
    with AnthropicServer(truth=export.truth) as server:
        server.behave(paraphrase_share=0.1, misnumber_share=0.1, invent_facts=2)
        await work_once(database_url, server.url)
    truth = {p.statement for p in export.truth}
    facts = {statement for _, statement in await facts_of(db, user)}
    assert facts <= truth
    assert len(facts) >= 0.8 * len(truth)
    rejected = await db.fetchval(
        "select count(*) from fullpass.extracted_facts where rejected is not null"
    )
    assert rejected > 0
    result = json.loads(await db.fetchval("select result from processing_jobs where id = $1", job))
    assert sum(result["facts"]["rejected"].values()) == rejected
    memory = await db.fetchval("select memory_md from user_profiles where user_id = $1", user)
    lines = [line for line in memory.splitlines() if line.startswith("- ")]
    assert len(lines) == len(facts)
    assert all(any(t in line for t in truth) for line in lines)


async def test_trouble_of_every_kind_loses_no_fact_that_the_server_answered(
    db: Any, database_url: str, tmp_path: Path
) -> None:
    export = planted_export(conversations=40, filler_words=250)
    user = uuid.uuid4()
    job = await insert_job(db, export.write(tmp_path / "c.json"), user)
    with AnthropicServer(truth=export.truth) as server:
        server.behave(
            faults={
                "rate_limited": 0.05, "overloaded": 0.05, "server_error": 0.05, "reset": 0.05,
                "malformed": 0.05, "truncated_body": 0.05, "fenced": 0.05, "html": 0.05,
                "no_usage": 0.05, "max_tokens": 0.05, "stall": 0.05,
            },
            retry_after_seconds=0.1,
            stall_seconds=30.0,
        )  # fmt: skip
        await work_once(database_url, server.url, llm_timeout_seconds=1.5)
    row = await db.fetchrow("select * from processing_jobs where id = $1", job)
    assert row["status"] == "complete", row["error_message"]
    assert row["attempts"] == 1
    facts = {statement for _, statement in await facts_of(db, user)}
    assert facts == {p.statement for p in export.truth}
    result = json.loads(row["result"])
    assert sum(result["coverage"]["outcomes"].values()) == result["coverage"]["chunks"]


async def test_two_windows_with_the_same_text_are_paid_once(
    db: Any, database_url: str, tmp_path: Path
) -> None:
    twin = [("user", "I prefer tea over everything else. " + "filler words " * 200)]
    conversations = [conversation(5, twin, title=f"Twin {n}") for n in range(2)]
    conversations[1]["id"] = conversations[1]["conversation_id"] = "conv-twin"
    path = tmp_path / "c.json"
    path.write_text(json.dumps(conversations))
    await insert_job(db, path)
    with AnthropicServer() as server:
        server.behave(latency_seconds=0.2)
        # A window holds one chunk, so both windows show exactly the same text at the same moment.
        await work_once(database_url, server.url, extraction_window_tokens=100)
        extractions = [c for c in server.record.calls if c.purpose == "extract"]
        assert not server.record.duplicates()
    assert len(extractions) == 1
    assert await db.fetchval("select count(*) from fullpass.extracted_facts") == 2


@pytest.mark.parametrize("fault", ["wrong_shape", "refusal", "too_large"])
async def test_a_model_that_is_never_of_use_ends_the_pass_early_and_says_why(
    db: Any, database_url: str, tmp_path: Path, fault: str
) -> None:
    export = planted_export(conversations=40, filler_words=250)
    job = await insert_job(db, export.write(tmp_path / "c.json"))
    with AnthropicServer(truth=export.truth) as server:
        server.behave(faults={fault: 1.0})
        tally = await work_once(database_url, server.url)
        # Five windows, three at a time in flight, each asked at most three times.
        assert len(server.record.calls) <= (5 + 2) * 3
    assert "could not be used" in tally.failed[job]
    row = await db.fetchrow("select status, error_message from processing_jobs where id = $1", job)
    assert row["status"] == "failed"
    assert row["error_message"].startswith("extract_facts: ")


async def test_a_null_among_the_conversations_is_no_damage(
    db: Any, database_url: str, tmp_path: Path
) -> None:
    export = planted_export(conversations=3)
    user = uuid.uuid4()
    with AnthropicServer(truth=export.truth) as server:
        await insert_job(db, export.write(tmp_path / "c.json"), user)
        await work_once(database_url, server.url)
        fewer = tmp_path / "fewer.json"
        fewer.write_text(json.dumps([None, *export.conversations[1:], None]))
        job = await insert_job(db, fewer, user)
        await work_once(database_url, server.url)
    result = json.loads(await db.fetchval("select result from processing_jobs where id = $1", job))
    assert (result["export"]["damaged"], result["export"]["removed_conversations"]) == (0, 1)


async def test_a_path_that_was_not_percent_encoded_is_found(
    db: Any, database_url: str, tmp_path: Path
) -> None:
    path = planted_export(conversations=1).write(tmp_path / "my export #1 50%.json")
    job = await insert_job(db, path)
    assert (await work_once(database_url, None)).completed == [job]


async def test_planning_by_pages_leaves_no_chunk_out(
    db: Any, database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("daemon.fullpass.windows.PLANNED_AT_ONCE", 3)
    export = planted_export(conversations=11)
    wordless = [
        conversation(50 + n, [("assistant", f"Only the model speaks, {n}.")]) for n in range(7)
    ]
    export.conversations.extend(wordless)
    user = uuid.uuid4()
    job = await insert_job(db, export.write(tmp_path / "c.json"), user)
    with AnthropicServer(truth=export.truth) as server:
        await work_once(database_url, server.url)
    assert await facts_of(db, user) == sorted((p.category, p.statement) for p in export.truth)
    result = json.loads(await db.fetchval("select result from processing_jobs where id = $1", job))
    assert result["coverage"]["outcomes"] == {"ok": 11, "empty": 7}
