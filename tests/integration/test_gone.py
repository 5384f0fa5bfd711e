"""What a person deleted, or asked to be forgotten, goes from all that was made of it."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any

from tests.integration.test_ingest import chunks_of, passed
from tests.support.exports import conversation

if TYPE_CHECKING:
    from pathlib import Path

TEA = "I prefer amber tea over anything else."


async def all_that_is_said(db: Any, user: uuid.UUID) -> str:
    """Return everything that an app, a prompt or a next pass could read of a person."""
    rows = [await db.fetchrow("select * from user_profiles where user_id = $1", user)]
    for table in ("conversation_chunks", "fullpass.facts", "fullpass.extracted_facts"):
        rows += await db.fetch(f"select * from {table} where user_id = $1", user)
    return "\n".join(str(dict(row)) for row in rows if row is not None)


async def test_what_alone_was_known_and_is_to_be_forgotten_leaves_facts_and_memory_too(
    db: Any, database_url: str, tmp_path: Path
) -> None:
    user, path = uuid.uuid4(), tmp_path / "c.json"
    export = [conversation(0, [("user", TEA)])]
    await passed(db, database_url, path, export, user)
    assert "amber tea" in (await db.fetchval("select memory_md from user_profiles"))
    export[0]["is_do_not_remember"] = True
    for _ in range(2):
        job = await passed(db, database_url, path, export, user)
        assert job["status"] == "complete", job["error_message"]
        assert "amber" not in await all_that_is_said(db, user)
    nobody = await passed(db, database_url, path, export, uuid.uuid4())
    assert nobody["status"] == "failed"
    assert "1 marked not to be remembered" in nobody["error_message"]


async def test_an_older_export_uploaded_again_does_not_bring_back_what_is_to_be_forgotten(
    db: Any, database_url: str, tmp_path: Path
) -> None:
    def talk(n: int, *, forgotten: bool = False, at: float = 1_700_000_000.0) -> dict[str, Any]:
        said = conversation(n, [("user", TEA if n else "I prefer rain.")])
        return {**said, "is_do_not_remember": forgotten, "update_time": at}

    for first in ([], [talk(0), talk(1)]):  # known before it was forgotten, or never
        user, path = uuid.uuid4(), tmp_path / "c.json"
        if first:
            await passed(db, database_url, path, first, user)
        await passed(db, database_url, path, [talk(0), talk(1, forgotten=True)], user)
        again = await passed(db, database_url, path, [talk(0), talk(1)], user)
        assert again["status"] == "complete"
        assert "amber" not in await all_that_is_said(db, user)
        # The person went on with it, and lets it be remembered now.
        await passed(db, database_url, path, [talk(0), talk(1, at=1_700_000_009.0)], user)
        assert "amber" in await all_that_is_said(db, user)


async def test_rows_of_the_system_before_are_forgotten_with_their_conversation(
    db: Any, database_url: str, tmp_path: Path
) -> None:
    user = uuid.uuid4()
    await db.execute(
        "insert into conversation_chunks (user_id, conversation_id, content, created_at) "
        "select $1, 'conv-' || n, $2, now() from generate_series(0, 1) n",
        user, TEA,
    )  # fmt: skip
    export = [conversation(n, [("user", "I prefer rain.")]) for n in range(2)]
    export[0]["is_do_not_remember"] = True
    await passed(db, database_url, tmp_path / "c.json", export, user)
    assert [c["conversation_id"] for c in await chunks_of(db, user)] == ["conv-1"]


async def test_a_memory_that_lost_a_line_loses_it_also_where_the_sections_stay_as_they_were(
    db: Any, database_url: str, tmp_path: Path
) -> None:
    user = uuid.uuid4()
    export = [
        conversation(0, [("user", TEA)]),
        conversation(1, [("user", "I decided to buy 3 crimson chairs.")]),
    ]
    await passed(db, database_url, tmp_path / "c.json", export, user)
    before = await db.fetchval("select soulprint_text from user_profiles")
    await passed(db, database_url, tmp_path / "c.json", export[1:], user, min_conversations=50)
    sections, _, memory = before.partition("\n\n# MEMORY\n\n")
    assert "amber tea" in memory
    after = await db.fetchrow("select soulprint_text, memory_md from user_profiles")
    assert after["soulprint_text"] == f"{sections}\n\n# MEMORY\n\n{after['memory_md']}"
    assert "crimson chairs" in after["memory_md"]
    assert "amber tea" not in after["memory_md"]
