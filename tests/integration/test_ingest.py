"""From an export to conversation_chunks: what is stored, what is kept, what is let go."""

from __future__ import annotations

import copy
import json
import uuid
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest

from tests.support.export_samples import claude
from tests.support.exports import conversation, planted_export
from tests.support.worker_process import work_once

if TYPE_CHECKING:
    from pathlib import Path


async def passed(
    db: Any, url: str, path: Path, content: object, user: uuid.UUID, **settings: Any
) -> dict[str, Any]:
    """Run one offline pass over an export and return the job's row."""
    path.write_text(json.dumps(content), encoding="utf-8")
    job = await db.fetchval(
        "INSERT INTO processing_jobs (user_id, storage_path) VALUES ($1, $2) RETURNING id",
        user,
        f"file://{path}",
    )
    await work_once(url, None, **settings)
    return dict(await db.fetchrow("select * from processing_jobs where id = $1", job))


async def chunks_of(db: Any, user: uuid.UUID) -> list[asyncpg.Record]:
    return await db.fetch(
        "select *, xmin::text as version from conversation_chunks where user_id = $1 "
        "order by conversation_id, chunk_tier, chunk_index",
        user,
    )


async def test_a_conversation_that_grew_keeps_its_old_chunks_and_what_stands_beside_them(
    db: Any, database_url: str, tmp_path: Path
) -> None:
    turns = [("user", f"Turn {n}: " + "some words " * 150) for n in range(12)]
    user = uuid.uuid4()
    path = tmp_path / "c.json"
    await db.execute("alter table conversation_chunks add column embedding real[]")
    settings = {"medium_chunk_tokens": 900, "chunk_overlap_tokens": 50}
    await passed(db, database_url, path, [conversation(0, turns)], user, **settings)
    await db.execute("update conversation_chunks set embedding = '{1}' where user_id = $1", user)
    before = await chunks_of(db, user)
    turns += [("assistant", "And so on."), ("user", "I prefer short answers from now on.")]
    await passed(db, database_url, path, [conversation(0, turns)], user, **settings)
    after = await chunks_of(db, user)
    assert len(before) >= 4
    assert [c["chunk_index"] for c in after] == list(range(len(after)))
    assert {c["total_chunks"] for c in after} == {len(after)}
    # All but the last chunk kept their id and the app's own column.
    assert [c["id"] for c in after[: len(before) - 1]] == [c["id"] for c in before[:-1]]
    assert all(c["embedding"] == [1.0] for c in after[: len(before) - 1])


async def test_every_message_stands_where_its_map_says(
    db: Any, database_url: str, tmp_path: Path
) -> None:
    turns = [("user", "Olá! " + "ação " * 40), ("assistant", "好的。" * 30), ("user", "🙂 bye")]
    user = uuid.uuid4()
    await passed(
        db, database_url, tmp_path / "c.json", [conversation(0, turns)], user,
        chunk_tiers=("micro", "medium", "macro"),
    )  # fmt: skip
    rows = await db.fetch(
        "select c.chunk_tier, c.content, m.* from conversation_chunks c "
        "join fullpass.chunk_messages m on m.chunk_id = c.id where c.user_id = $1 "
        "order by c.chunk_tier, c.chunk_index, m.ordinal",
        user,
    )
    assert {r["chunk_tier"] for r in rows} == {"micro", "medium", "macro"}
    for tier in ("micro", "medium", "macro"):
        said: dict[str, str] = {}
        for r in rows:
            if r["chunk_tier"] == tier:
                piece = r["content"][r["start"] : r["stop"]]
                said[r["message_id"]] = said.get(r["message_id"], "") + piece
        for n, (_, text) in enumerate(turns):
            assert said[f"m-0-{n}"].replace(" ", "") == text.strip().replace(" ", "")


async def test_dates_follow_the_contract_and_are_never_now(
    db: Any, database_url: str, tmp_path: Path
) -> None:
    dated = conversation(0, [("user", "I prefer tea.")])
    undated = conversation(1, [("user", "I prefer rain.")])
    undated["create_time"] = None
    nothing = conversation(2, [("user", "I prefer wind.")])
    nothing["create_time"] = nothing["update_time"] = None
    for node in nothing["mapping"].values():
        if node["message"]:
            node["message"]["create_time"] = None
    recent = conversation(3, [("user", "I prefer snow.")])
    recent["create_time"] = await db.fetchval("select extract(epoch from now())::float8 - 86400")
    user = uuid.uuid4()
    await passed(db, database_url, tmp_path / "c.json", [dated, undated, nothing, recent], user)
    rows = {c["conversation_id"]: c for c in await chunks_of(db, user)}
    assert rows["conv-0"]["created_at"].timestamp() == dated["create_time"]
    assert rows["conv-1"]["created_at"].timestamp() == pytest.approx(
        undated["mapping"]["m-1-0"]["message"]["create_time"]
    )
    file_time = (tmp_path / "c.json").stat().st_mtime
    assert rows["conv-2"]["created_at"].timestamp() == pytest.approx(file_time, abs=1)
    assert [rows[f"conv-{n}"]["is_recent"] for n in range(4)] == [False, False, False, True]


async def test_what_is_recent_ages_though_its_text_is_unchanged(
    db: Any, database_url: str, tmp_path: Path
) -> None:
    """The same export half a year on: stored conversations are not saved anew, but they are old."""
    new, old = conversation(0, [("user", "I prefer tea.")]), conversation(1, [("user", "Rain.")])
    new["create_time"] = await db.fetchval("select extract(epoch from now())::float8 - 86400")
    user = uuid.uuid4()
    await passed(db, database_url, tmp_path / "c.json", [new, old], user)
    assert [c["is_recent"] for c in await chunks_of(db, user)] == [True, False]
    ids = [c["id"] for c in await chunks_of(db, user)]
    await db.execute(
        "update conversation_chunks set is_recent = true where user_id = $1 and not is_recent", user
    )
    await passed(db, database_url, tmp_path / "d.json", [new, old], user)
    assert [c["is_recent"] for c in await chunks_of(db, user)] == [True, False]
    assert [c["id"] for c in await chunks_of(db, user)] == ids


async def test_sources_never_replace_each_other(db: Any, database_url: str, tmp_path: Path) -> None:
    claude = [
        {
            "uuid": "claude-1", "name": "Plans", "created_at": "2025-01-14T09:30:00Z",
            "updated_at": "2025-01-14T09:35:00Z",
            "chat_messages": [
                {"uuid": "x1", "sender": "human", "text": "I prefer jazz over rock.",
                 "created_at": "2025-01-14T09:30:00Z"},
            ],
        }
    ]  # fmt: skip
    user = uuid.uuid4()
    chatgpt = [conversation(0, [("user", "I prefer tea over coffee.")])]
    await passed(db, database_url, tmp_path / "a.json", chatgpt, user)
    before = [dict(c) for c in await chunks_of(db, user)]
    await passed(db, database_url, tmp_path / "b.json", claude, user)
    rows = await chunks_of(db, user)
    assert {c["source"] for c in rows} == {"chatgpt", "claude"}
    assert [dict(c) for c in rows if c["source"] == "chatgpt"] == before
    facts = await db.fetch("select source, statement from fullpass.facts where user_id = $1", user)
    assert {f["source"] for f in facts} == {"chatgpt", "claude"}
    memory = await db.fetchval("select memory_md from user_profiles where user_id = $1", user)
    assert "tea" in memory
    assert "jazz" in memory


async def test_a_damaged_export_removes_nothing(db: Any, database_url: str, tmp_path: Path) -> None:
    export = planted_export(conversations=5)
    user = uuid.uuid4()
    path = tmp_path / "c.json"
    await passed(db, database_url, path, export.conversations, user)
    whole = len(await chunks_of(db, user))
    cut = json.dumps(export.conversations)[:-2000]
    path.write_text(cut)
    job = await db.fetchval(
        "INSERT INTO processing_jobs (user_id, storage_path) VALUES ($1, $2) RETURNING id",
        user,
        f"file://{path}",
    )
    await work_once(database_url, None)
    row = await db.fetchrow("select * from processing_jobs where id = $1", job)
    assert row["status"] == "complete"
    assert json.loads(row["result"])["export"]["damaged"] >= 1
    assert len(await chunks_of(db, user)) == whole


async def test_an_older_export_uploaded_again_neither_replaces_nor_removes(
    db: Any, database_url: str, tmp_path: Path
) -> None:
    new = [
        conversation(0, [("user", "I prefer tea."), ("assistant", "Good."), ("user", "Very.")]),
        conversation(1, [("user", "I prefer rain.")]),
    ]
    old = [copy.deepcopy(new[0])]
    old[0]["update_time"] -= 1000
    old[0]["mapping"]["m-0-0"]["message"]["content"]["parts"] = ["I prefer mud."]
    user = uuid.uuid4()
    await passed(db, database_url, tmp_path / "c.json", new, user)
    before = [dict(c) for c in await chunks_of(db, user)]
    await passed(db, database_url, tmp_path / "c2.json", old, user)
    assert [dict(c) for c in await chunks_of(db, user)] == before


async def test_an_older_export_is_known_as_such_whatever_state_of_it_is_stored(
    db: Any, database_url: str, tmp_path: Path
) -> None:
    """The conversation that both exports hold went on after all the others had begun."""
    turns = [("user", "I prefer tea.")]
    old = [conversation(0, turns)]
    new = [conversation(0, [*turns, ("user", "Oolong.")]), conversation(1, [("user", "Rain.")])]
    new[0]["update_time"] = new[1]["update_time"] + 1000
    user = uuid.uuid4()
    await passed(db, database_url, tmp_path / "c.json", new, user)
    before = [dict(c) for c in await chunks_of(db, user)]
    await passed(db, database_url, tmp_path / "c2.json", old, user)
    assert [dict(c) for c in await chunks_of(db, user)] == before


async def test_a_newer_export_of_unchanged_text_lets_go_of_what_it_left_out(
    db: Any, database_url: str, tmp_path: Path
) -> None:
    export = [conversation(0, [("user", "I prefer tea.")]), conversation(1, [("user", "Rain.")])]
    user = uuid.uuid4()
    await passed(db, database_url, tmp_path / "c.json", export, user)
    kept = export[0]
    kept["update_time"] = export[1]["update_time"] + 1000  # archived, say
    await passed(db, database_url, tmp_path / "c2.json", [kept], user)
    assert {c["conversation_id"] for c in await chunks_of(db, user)} == {"conv-0"}


async def test_what_is_no_more_to_be_remembered_goes_though_it_was_the_latest(
    db: Any, database_url: str, tmp_path: Path
) -> None:
    export = [conversation(0, [("user", "I prefer tea.")]), conversation(1, [("user", "Rain.")])]
    user = uuid.uuid4()
    await passed(db, database_url, tmp_path / "c.json", export, user)
    export[1]["is_do_not_remember"] = True
    await passed(db, database_url, tmp_path / "c.json", export, user)
    assert {c["conversation_id"] for c in await chunks_of(db, user)} == {"conv-0"}


async def test_chunks_the_app_deleted_are_stored_again(
    db: Any, database_url: str, tmp_path: Path
) -> None:
    export = planted_export(conversations=3)
    user = uuid.uuid4()
    await passed(db, database_url, tmp_path / "c.json", export.conversations, user)
    count = len(await chunks_of(db, user))
    await db.execute("delete from conversation_chunks where conversation_id = 'conv-1'")
    await passed(db, database_url, tmp_path / "c.json", export.conversations, user)
    assert len(await chunks_of(db, user)) == count


async def test_rows_of_the_system_before_are_replaced_conversation_by_conversation(
    db: Any, database_url: str, tmp_path: Path
) -> None:
    user = uuid.uuid4()
    await db.execute(
        "insert into conversation_chunks (user_id, conversation_id, content, created_at) values "
        "($1, 'conv-0', 'old cut', now()), ($1, 'another', 'kept', now())",
        user,
    )
    await passed(
        db, database_url, tmp_path / "c.json", [conversation(0, [("user", "I prefer tea.")])], user
    )
    rows = await chunks_of(db, user)
    assert [(c["conversation_id"], c["source"]) for c in rows] == [
        ("another", None),
        ("conv-0", "chatgpt"),
    ]


async def test_saving_a_batch_does_not_look_at_all_chunks_stored_before(
    db: Any, database_url: str
) -> None:
    """A plan that is made while the table is empty, and kept, would: quadratic by the export."""
    await db.execute("set plan_cache_mode = force_generic_plan")  # a server may come to that itself
    user = uuid.uuid4()
    now = datetime.now(UTC)

    async def save(batch: int, rows: int) -> None:
        each = range(rows)
        await db.execute(
            "select fullpass.save_chunks($1, 'chatgpt', 2, $2, $3, $4, $5, $6, $7, $8, $9, $10, "
            "$11, $12, $13)",
            user, [f"{batch}-{n // 3}" for n in each], ["medium" for _ in each], [0 for _ in each],
            [1 for _ in each], ["" for _ in each], ["text" for _ in each], [1 for _ in each],
            [now for _ in each], [False for _ in each], [1 for _ in each],
            [f"{batch}-{n}" for n in each], ["[]" for _ in each],
        )  # fmt: skip

    await save(0, 200)
    await db.execute("analyze conversation_chunks; truncate conversation_chunks cascade")
    for batch in range(50):
        await save(batch, 200)
    await db.execute("select pg_stat_force_next_flush()")
    read = await db.fetchval(
        "select seq_tup_read + idx_tup_fetch from pg_stat_user_tables "
        "where relid = 'conversation_chunks'::regclass"
    )
    assert await db.fetchval("select count(*) from conversation_chunks") == 10_000
    assert read < 20_000


async def test_a_chunk_that_the_app_stored_twice_is_stored_once_again(
    db: Any, database_url: str, tmp_path: Path
) -> None:
    """A restored or copied row beside its original neither stops a pass nor mixes up rows."""
    talks = [conversation(n, [("user", f"I keep {n} bees.")]) for n in range(3)]
    user, path = uuid.uuid4(), tmp_path / "c.json"
    await passed(db, database_url, path, talks, user)
    before = await chunks_of(db, user)
    await db.execute(
        "insert into conversation_chunks (user_id, source, conversation_id, title, content, "
        "message_count, created_at, is_recent, chunk_tier, chunk_index, total_chunks, "
        "token_count, chunking_version, content_hash) "
        "select user_id, source, conversation_id, title, content, message_count, created_at, "
        "is_recent, chunk_tier, chunk_index, total_chunks, token_count, chunking_version, "
        "content_hash from conversation_chunks where id = $1",
        before[0]["id"],
    )
    job = await passed(db, database_url, path, [*talks, conversation(3, [("user", "Hi")])], user)
    after = await chunks_of(db, user)
    assert job["status"] == "complete", job["error_message"]
    assert len(after) == 4
    assert len({c["content"] for c in after}) == 4
    maps = await db.fetch(
        "select c.content, m.start, m.stop from conversation_chunks c "
        "join fullpass.chunk_messages m on m.chunk_id = c.id where c.user_id = $1", user,
    )  # fmt: skip
    assert all(m["stop"] == len(m["content"]) for m in maps)
    assert len(maps) == 4


async def test_one_file_of_an_export_in_several_takes_nothing_of_the_others_away(
    db: Any, database_url: str, tmp_path: Path
) -> None:
    """Claude sends memories and conversations apart; ChatGPT's shards may be uploaded one by one."""
    user = uuid.uuid4()
    often = {"max_jobs_per_user_per_day": 0}
    talks = [claude("c", "I prefer jazz over rock.")]
    await passed(db, database_url, tmp_path / "conversations.json", talks, user, **often)
    for memory in ("Plays the tuba.", "Plays the horn."):
        of_account = {"conversations_memory": memory, "account_uuid": "u"}
        await passed(db, database_url, tmp_path / "memories.json", of_account, user, **often)
    for number in range(2):
        shard = [conversation(number, [("user", f"I moved to town {number}.")])]
        await passed(
            db, database_url, tmp_path / f"conversations-00{number}.json", shard, user, **often
        )
    told = {c["content"].partition(": ")[2] for c in await chunks_of(db, user)}
    assert told == {"I prefer jazz over rock.", "Plays the horn.", "I moved to town 0.", "I moved to town 1."}  # fmt: skip


async def test_what_is_to_be_forgotten_goes_though_the_export_is_damaged(
    db: Any, database_url: str, tmp_path: Path
) -> None:
    export = [conversation(n, [("user", f"I moved to town {n}.")]) for n in range(3)]
    user = uuid.uuid4()
    await passed(db, database_url, tmp_path / "c.json", export, user)
    export[1]["is_do_not_remember"] = True
    await passed(db, database_url, tmp_path / "c.json", [export[1], 5], user)
    assert {c["conversation_id"] for c in await chunks_of(db, user)} == {"conv-0", "conv-2"}
    left = "select count(*) from fullpass.conversations where user_id = $1 and chunk_count > 0"
    assert await db.fetchval(left, user) == 2


async def test_an_update_said_to_lie_far_ahead_does_not_make_all_later_exports_old(
    db: Any, database_url: str, tmp_path: Path
) -> None:
    export = [conversation(n, [("user", f"I moved to town {n}.")]) for n in range(3)]
    user = uuid.uuid4()
    for damaged in export[:2]:
        damaged["update_time"] = 4_294_967_295
    await passed(db, database_url, tmp_path / "c.json", export, user)
    grown = conversation(0, [("user", "I moved to town 0."), ("user", "Then to Porto.")])
    await passed(db, database_url, tmp_path / "c2.json", [grown, export[2]], user)
    told = {c["conversation_id"]: c["content"] for c in await chunks_of(db, user)}
    assert set(told) == {"conv-0", "conv-2"}
    assert "Porto" in told["conv-0"]
