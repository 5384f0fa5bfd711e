"""The service side of the command line: migrate, enqueue, worker --once, status, health."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

import pytest

from daemon.cli.entry import exit_code_of
from tests.support.cli import EXAMPLE, Cli, ask

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.anthropic_server import AnthropicServer
    from tests.support.storage_server import StorageServer

PERSON = "6f1c2a9e-0000-4000-8000-000000000001"
PATH = "exports/one/conversations.json"


class Here:
    """Runs commands in this process, for tests that need many of them."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def __call__(self, *arguments: object) -> subprocess.CompletedProcess[str]:
        code = exit_code_of([str(a) for a in arguments])
        said = self._capsys.readouterr()
        return subprocess.CompletedProcess(arguments, code, said.out, said.err)

    def json(self, *arguments: object) -> Any:
        done = self(*arguments)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)


@pytest.fixture
def here(
    tmp_path: Path,
    database_url: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Here:
    for name, value in Cli(tmp_path, DATABASE_URL=database_url).environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)  # a developer's .env is not read
    return Here(capsys)


def service(
    folder: Path, url: str, model: AnthropicServer, storage: StorageServer, **more: object
) -> Cli:
    return Cli(
        folder, DATABASE_URL=url, ANTHROPIC_API_KEY="test-key", ANTHROPIC_BASE_URL=model.url,
        SUPABASE_URL=storage.url, SUPABASE_SERVICE_KEY=storage.key, **more,
    )  # fmt: skip


def insert(url: str, path: str, person: str = PERSON) -> str:
    (row,) = ask(
        url,
        "insert into processing_jobs (user_id, storage_path) values ($1, $2) returning id",
        person,
        path,
    )
    return str(row["id"])


def test_one_insert_becomes_a_memory_and_every_account_agrees(
    tmp_path: Path,
    empty_database_url: str,
    anthropic_server: AnthropicServer,
    storage_server: StorageServer,
) -> None:
    url = empty_database_url
    cli = service(tmp_path, url, anthropic_server, storage_server)
    migrated = cli.run("migrate")
    assert migrated.returncode == 0, migrated.stderr
    assert "applying 0001_tables" in migrated.stdout
    again = cli.run("migrate")
    assert (again.returncode, again.stdout) == (0, "up to date: nothing to apply\n")

    storage_server.put(PATH, EXAMPLE.read_bytes())
    job_id = insert(url, PATH)
    worked = cli.run("worker", "--once")
    assert worked.returncode == 0, worked.stderr
    assert f"completed  {job_id}" in worked.stdout
    assert all(json.loads(line)["event"] for line in worked.stderr.splitlines())

    status = cli.json("status", job_id, "--json")
    record = anthropic_server.record.totals()
    assert status["status"] == "complete"
    assert status["progress"] == 100
    assert status["cost"]["calls"] == record["completed"] > 2
    assert status["cost"]["input_tokens"] == record["input_tokens"]
    assert status["cost"]["output_tokens"] == record["output_tokens"]
    assert {p: n["calls"] for p, n in status["cost"]["by_purpose"].items()} == record["by_purpose"]
    (row,) = ask(
        url,
        """
        select j.conversation_count, j.message_count, j.result, u.memory_md, u.full_pass_status,
               (select count(*) from conversation_chunks) as chunks,
               (select count(*) from fullpass.chunk_outcomes) as outcomes,
               (select count(*) from fullpass.facts where superseded_by is null) as facts
        from processing_jobs j join user_profiles u using (user_id) where j.id = $1
        """,
        UUID(job_id),
    )
    assert row["full_pass_status"] == status["profile"]["full_pass_status"] == "complete"
    assert status["conversations"] == row["conversation_count"]
    assert status["messages"] == row["message_count"]
    assert status["coverage"]["chunks"] == row["chunks"] == row["outcomes"]
    assert sum(status["outcomes"].values()) == row["chunks"]
    assert status["facts"]["current"] == row["facts"] > 0
    assert status["result"] == json.loads(row["result"])
    assert "## Preferences" in row["memory_md"]
    assert status["events"][0]["event"] == "claimed"
    assert status["events"][-1]["event"] == "completed"
    assert status["why"].startswith("It is done since ")


def test_a_wrong_key_leaves_the_job_pending_and_exits_1(
    tmp_path: Path,
    database_url: str,
    anthropic_server: AnthropicServer,
    storage_server: StorageServer,
) -> None:
    cli = service(tmp_path, database_url, anthropic_server, storage_server)
    storage_server.put(PATH, EXAMPLE.read_bytes())
    job_id = insert(database_url, PATH)
    done = cli.run("worker", "--once", "--json", ANTHROPIC_API_KEY="wrong-key")
    assert done.returncode == 1
    account = json.loads(done.stdout)
    assert (account["completed"], account["failed"]) == ([], {})
    assert "check ANTHROPIC_API_KEY" in account["left"][job_id]
    assert "wrong-key" not in done.stderr + done.stdout
    status = cli.json("status", job_id, "--json")
    assert (status["status"], status["attempts"]) == ("pending", 0)
    assert "It waits, with no attempt used up" in status["why"]


def test_a_missing_object_fails_its_job_and_the_next_job_runs(
    tmp_path: Path, database_url: str, storage_server: StorageServer
) -> None:
    cli = Cli(
        tmp_path, DATABASE_URL=database_url, LLM_PROVIDER="offline",
        SUPABASE_URL=storage_server.url, SUPABASE_SERVICE_KEY=storage_server.key,
    )  # fmt: skip
    storage_server.put(PATH, EXAMPLE.read_bytes())
    missing = insert(database_url, "exports/nowhere.json")
    good = insert(database_url, PATH, str(uuid4()))
    done = cli.run("worker", "--once", "--json")
    assert done.returncode == 1
    account = json.loads(done.stdout)
    assert account["completed"] == [good]
    assert "exports/nowhere.json" in account["failed"][missing]
    shown = cli.run("status", missing)
    assert shown.returncode == 0
    told = " ".join(shown.stdout.split())
    assert f"fullpass retry {missing}" in told.replace(" - ", "-")
    assert "exports/nowhere.json" in told


def test_a_worker_that_cannot_work_says_so_before_it_claims(
    tmp_path: Path, database_url: str, empty_database_url: str
) -> None:
    cli = Cli(tmp_path)
    nowhere = cli.run("worker", "--once")
    assert nowhere.returncode == 2
    assert nowhere.stderr.startswith("error: DATABASE_URL: not set")
    keyless = cli.run("worker", "--once", DATABASE_URL=database_url)
    assert keyless.returncode == 2
    assert "ANTHROPIC_API_KEY: not set" in keyless.stderr
    behind = cli.run("worker", "--once", DATABASE_URL=empty_database_url, LLM_PROVIDER="offline")
    assert behind.returncode == 1
    assert "run `fullpass migrate`" in behind.stderr
    idle = cli.run("worker", "--once", DATABASE_URL=database_url, LLM_PROVIDER="offline")
    assert (idle.returncode, idle.stdout) == (0, "nothing was due\n"), idle.stderr


def test_the_queue_is_handled_from_the_command_line(
    tmp_path: Path, database_url: str, here: Here
) -> None:
    first = here("enqueue", "--user", PERSON, "--path", PATH, "--priority", 3)
    job_id = first.stdout.strip()
    assert first.stdout == f"{UUID(job_id)}\n"
    assert here("enqueue", "--user", PERSON, "--path", PATH).stdout == first.stdout
    status = here.json("status", "--user", PERSON, "--json")
    assert (status["id"], status["status"], status["priority"]) == (job_id, "pending", 3)
    assert "no worker has beaten" in status["why"]
    assert here("cancel", job_id).returncode == 0
    assert here.json("status", job_id, "--json")["status"] == "cancelled"
    twice = here("cancel", job_id)
    assert twice.returncode == 1
    assert twice.stderr == f"error: {job_id} cannot be cancelled: it is cancelled\n"
    assert here("retry", job_id).returncode == 0
    overview = here.json("status", "--json")
    assert (overview["queue"]["due"], overview["queue"]["processing"]) == (1, 0)
    unconfirmed = Cli(tmp_path, DATABASE_URL=database_url).run("forget", "--user", PERSON)
    assert unconfirmed.returncode == 1, "nobody answered the question"
    erased = here.json("forget", "--user", PERSON, "--yes", "--json")
    assert erased["erased"]["facts"] == 0
    left = here.json("status", job_id, "--json")
    assert left["status"] == "cancelled"
    assert "was erased at" in left["why"], "nothing is left from which a retry could go on"
    assert here("status", uuid4()).returncode == 1
    assert here("enqueue", "--user", PERSON, "--path", "export.zip").returncode == 2


def test_screens_show_evidence_and_fit_80_columns(
    tmp_path: Path, database_url: str, here: Here
) -> None:
    Cli(tmp_path, DATABASE_URL=database_url).json("run", EXAMPLE, "--user", PERSON, "--json")
    facts = here.json("status", "--user", PERSON, "--facts", "--json")["facts"]
    assert all(e["quote"] and e["message_id"] for fact in facts for e in fact["evidence"])
    shown = here("status", "--user", PERSON, "--facts").stdout
    for text in (facts[0]["statement"], facts[0]["evidence"][0]["quote"]):
        assert " ".join(text.split()) in " ".join(shown.split())
    overview = here("status").stdout
    assert "1 complete · 0 failed" in overview
    screens = shown + overview + here("status", "--user", PERSON).stdout
    assert [line for line in screens.splitlines() if len(line) > 80] == []
    assert "\x1b" not in screens, "no colour where nobody sees it"
    ask(database_url, "select fullpass.forget($1)", PERSON)
    job = here.json("status", "--user", PERSON, "--json")
    assert "was erased at" in job["why"]
    # It told of a MEMORY "written by None", and of sections saved.
    assert (job["memory"], job["sections"]["saved"]) == (None, False)


@pytest.mark.parametrize(
    "row",
    [
        "('pending', 0, null, null, null)",
        "('pending', 3, 'extract_facts', 'extract_facts: it broke', now() + interval '1 hour')",
        "('processing', 0, null, null, now())",
        "('processing', 2, 'extract_facts', null, now())",
        "('failed', 4, 'save_chunks', 'save_chunks: export.zip: it is empty', now())",
        "('cancelled', 4, 'reduce_facts', null, now())",
        "('complete', 4, 'complete', null, now())",
        "('pending', 0, null, null, '-infinity')",
    ],
)
def test_any_state_of_a_row_can_be_explained(database_url: str, here: Here, row: str) -> None:
    """Rows that another system left, or that ended without a pass, are told too."""
    (made,) = ask(
        database_url,
        f"""
        insert into processing_jobs
            (user_id, storage_path, status, lease_epoch, current_step, error_message, run_at)
        select '{PERSON}', '{PATH}', v.a, v.b, v.c, v.d, v.e::timestamptz
        from (values {row}) as v (a, b, c, d, e) returning id
        """,
    )
    shown = here("status", made["id"])
    assert shown.returncode == 0, shown.stderr
    assert here.json("status", made["id"], "--json")["why"] in " ".join(shown.stdout.split())
    assert here.json("status", "--json")["queue"], "one row must not hide the others"


def test_health_is_told_by_the_beats_of_this_host(
    tmp_path: Path,
    database_url: str,
    anthropic_server: AnthropicServer,
    storage_server: StorageServer,
) -> None:
    cli = service(tmp_path, database_url, anthropic_server, storage_server, HEARTBEAT_SECONDS=0.2)
    before = cli.run("health")
    assert before.returncode == 1
    assert "has ever beaten" in before.stderr
    worker = cli.start("worker")
    try:
        deadline = time.monotonic() + 30  # the deadline for its first beat
        while not ask(database_url, "select from fullpass.workers"):
            assert time.monotonic() < deadline, (tmp_path / "output.txt").read_text()
            assert worker.poll() is None, (tmp_path / "output.txt").read_text()
        live = cli.run("health", HEARTBEAT_SECONDS=10)
        assert live.returncode == 0, live.stderr
    finally:
        worker.terminate()
        assert worker.wait(20) == 0
    silent = "update fullpass.workers set last_beat_at = now() - interval '31 seconds'"
    ask(database_url, silent)
    after = cli.run("health", HEARTBEAT_SECONDS=10)
    assert after.returncode == 1
    assert "more than 3 × HEARTBEAT_SECONDS (10)" in after.stderr


def test_help_is_quick_and_shows_examples(tmp_path: Path) -> None:
    took = []
    for _ in range(3):
        started = time.monotonic()
        done = Cli(tmp_path).run("--help")
        took.append(time.monotonic() - started)
    assert done.returncode == 0
    assert min(took) < 0.4
    assert "fullpass demo" in done.stdout
    for command in ("run", "demo", "worker", "migrate", "enqueue", "status", "cancel", "forget"):
        assert "fullpass " + command in Cli(tmp_path).run(command, "--help").stdout
    heavy = "import sys, daemon.cli; print({'anthropic', 'asyncpg', 'rich'} & set(sys.modules))"
    loaded = subprocess.run(
        [sys.executable, "-c", heavy], env=Cli(tmp_path).environment(), capture_output=True,
        text=True, check=True,
    )  # fmt: skip
    assert loaded.stdout == "set()\n"


def test_a_bad_setting_is_named_with_its_rule_and_without_its_value(tmp_path: Path) -> None:
    done = Cli(tmp_path, DATABASE_URL="mysql://me:hunter22@here/x").run("status")
    assert done.returncode == 2
    assert done.stderr.startswith("error: DATABASE_URL: must look like")
    assert "hunter22" not in done.stderr


def test_a_database_that_is_down_is_one_line(tmp_path: Path) -> None:
    down = "postgresql://me:hunter22@127.0.0.1:1/none"
    for command in (("status",), ("migrate",), ("worker", "--once"), ("health",)):
        done = Cli(tmp_path, DATABASE_URL=down, LLM_PROVIDER="offline").run(*command)
        assert done.returncode == 1
        assert done.stderr.startswith("error: ")
        assert len(done.stderr.splitlines()) == 1
        assert "hunter22" not in done.stderr
