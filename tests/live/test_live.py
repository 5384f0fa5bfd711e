"""A small pass on a real Supabase project with the real model: what no stand-in can promise.

Skipped unless these are set (their prefix keeps a developer's own settings out of it):

    FULLPASS_LIVE_DATABASE_URL          the session pooler, as the tables' owner
    FULLPASS_LIVE_SUPABASE_URL          https://<ref>.supabase.co
    FULLPASS_LIVE_SUPABASE_SERVICE_KEY  sb_secret_…
    FULLPASS_LIVE_BUCKET                a private bucket
    FULLPASS_LIVE_ANTHROPIC_API_KEY     a pass over three conversations costs less than a cent

Use a project that is for this alone: it is migrated, and its queue must be empty, since a worker
takes whatever is due. The person that the test makes is forgotten and deleted at its end.
"""

from __future__ import annotations

import json
import os
import uuid
from typing import TYPE_CHECKING

import httpx
import pytest

from tests.support.cli import Cli, ask

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

NAMES = (
    "DATABASE_URL", "SUPABASE_URL", "SUPABASE_SERVICE_KEY", "ANTHROPIC_API_KEY",
)  # fmt: skip
GIVEN = {name: os.environ.get(f"FULLPASS_LIVE_{name}", "") for name in (*NAMES, "BUCKET")}
MISSING = [f"FULLPASS_LIVE_{name}" for name, value in GIVEN.items() if not value]

pytestmark = [
    pytest.mark.skipif(bool(MISSING), reason=f"not set: {', '.join(MISSING)}"),
    pytest.mark.xdist_group("live"),
    pytest.mark.timeout(600),
]

SAID = (
    "I live in Ghent with my whippet Biscuit, and I am allergic to shellfish.",
    "Decision: Furrow stays on SQLite. The launch is on 3 March 2027.",
    "Ich arbeite seit 2019 als Hebamme und mag kurze Antworten.",
)


def export() -> bytes:
    """Three conversations as ChatGPT exports them."""
    return json.dumps([
        {
            "id": str(uuid.uuid5(uuid.NAMESPACE_URL, text)), "title": f"Chat {n}",
            "create_time": 1_760_000_000 + n, "current_node": "1",
            "mapping": {
                "0": {"id": "0", "parent": None, "children": ["1"], "message": None},
                "1": {
                    "id": "1", "parent": "0", "children": [],
                    "message": {
                        "id": f"m{n}", "author": {"role": "user"},
                        "create_time": 1_760_000_000 + n,
                        "content": {"content_type": "text", "parts": [text]},
                    },
                },
            },
        }
        for n, text in enumerate(SAID)
    ]).encode()  # fmt: skip


@pytest.fixture
def cli(tmp_path: Path) -> Cli:
    settings = {name: GIVEN[name] for name in NAMES}
    if base := os.environ.get("FULLPASS_LIVE_ANTHROPIC_BASE_URL"):
        settings["ANTHROPIC_BASE_URL"] = base
    made = Cli(tmp_path, **settings)
    migrated = made.run("migrate", timeout_seconds=120)
    assert migrated.returncode == 0, migrated.stderr
    return made


@pytest.fixture
def person(cli: Cli) -> Iterator[str]:
    """A person with an account, who is gone afterwards."""
    user, url = str(uuid.uuid4()), GIVEN["DATABASE_URL"]
    ask(url, "insert into auth.users (id, email) values ($1, $2)", user, f"{user}@example.com")
    try:
        yield user
    finally:
        cli.run("forget", "--user", user, "--yes")
        ask(url, "delete from auth.users where id = $1", user)


def test_the_doctor_finds_the_project_healthy(cli: Cli) -> None:
    done = cli.run("doctor")
    assert done.returncode == 0, done.stdout + done.stderr


def test_an_export_in_the_projects_storage_becomes_a_memory(cli: Cli, person: str) -> None:
    url = GIVEN["DATABASE_URL"]
    due = "select from processing_jobs where status in ('pending', 'processing')"
    assert not ask(url, due), "the queue is not empty: use a project that is for this alone"
    key = GIVEN["SUPABASE_SERVICE_KEY"]
    headers = {"apikey": key}
    if key.startswith("eyJ"):
        headers["authorization"] = f"Bearer {key}"
    path = f"{GIVEN['BUCKET']}/{person}/conversations.json"
    with httpx.Client(base_url=GIVEN["SUPABASE_URL"], headers=headers, timeout=60) as project:
        stored = project.post(f"/storage/v1/object/{path}", content=export())
        assert stored.status_code == 200, stored.text
        asked = {"user_id": person, "storage_path": path}
        queued = project.post("/rest/v1/rpc/fullpass_enqueue", json=asked)
        assert queued.status_code == 200, queued.text
        try:
            worked = cli.run("worker", "--once", timeout_seconds=300)
            assert worked.returncode == 0, worked.stdout + worked.stderr
        finally:
            project.request("DELETE", f"/storage/v1/object/{path}")
    status = cli.json("status", queued.json(), "--json")
    assert status["status"] == "complete"
    assert status["coverage"]["share"] == 1
    assert status["cost"]["calls"] > 0
    assert 0 < status["cost"]["cost_usd"] < 0.1
    (row,) = ask(url, "select memory_md, user_md from user_profiles where user_id = $1", person)
    assert "hellfish" in row["memory_md"], "a plain statement about oneself is not lost"
    assert json.loads(row["user_md"]).keys() >= {"name", "location"}
