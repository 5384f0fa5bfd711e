"""`fullpass run` and `fullpass demo`: one command from an export to a MEMORY, whatever happens."""

from __future__ import annotations

import json
import shutil
import signal
from typing import TYPE_CHECKING

import pytest

from daemon.cli.progress import Shown
from daemon.embedded import EmbeddedPostgres
from daemon.ops.status import Progress
from tests.support.cli import EXAMPLE, Cli, ask

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.anthropic_server import AnthropicServer

PERSON = "6f1c2a9e-0000-4000-8000-000000000001"
FILES = {"MEMORY.md", "sections.json", "facts.jsonl", "report.json"}
HEADINGS = (
    "## Preferences", "## Projects", "## Important Dates", "## Beliefs & Values", "## Decisions",
)  # fmt: skip


def with_model(folder: Path, server: AnthropicServer, **more: object) -> Cli:
    return Cli(folder, ANTHROPIC_API_KEY="test-key", ANTHROPIC_BASE_URL=server.url, **more)


def small_export(path: Path, *sentences: str) -> Path:
    """An export of one conversation, in which the person says these sentences."""
    mapping: dict[str, object] = {"root": {"id": "root", "parent": None, "children": ["m0"]}}
    for n, sentence in enumerate(sentences):
        message = {
            "id": f"m{n}",
            "author": {"role": "user"},
            "create_time": 1_750_000_000 + n,
            "content": {"content_type": "text", "parts": [sentence]},
        }
        parent = f"m{n - 1}" if n else "root"
        mapping[f"m{n}"] = {"id": f"m{n}", "parent": parent, "children": [], "message": message}
    conversation = {
        "id": "c-1", "title": "One", "create_time": 1_750_000_000, "mapping": mapping,
        "current_node": f"m{len(sentences) - 1}",
    }  # fmt: skip
    path.write_text(json.dumps([conversation]), encoding="utf-8")
    return path


def test_demo_prints_the_memory_and_leaves_the_four_files(tmp_path: Path) -> None:
    done = Cli(tmp_path).run("demo")
    assert done.returncode == 0, done.stderr
    memory = (tmp_path / "fullpass-out" / "demo" / "MEMORY.md").read_text(encoding="utf-8")
    assert done.stdout == memory, "piped, stdout is MEMORY and nothing else"
    assert all(heading in memory for heading in HEADINGS)
    assert {p.name for p in (tmp_path / "fullpass-out" / "demo").iterdir()} == FILES
    assert "No model was used" in done.stderr
    assert "ANTHROPIC_API_KEY" in done.stderr


def test_demo_does_not_stumble_over_the_database_of_an_earlier_build(tmp_path: Path) -> None:
    cli = Cli(tmp_path)
    assert cli.run("demo").returncode == 0
    with EmbeddedPostgres(cli.home / "demo" / "postgres") as server:
        ask(
            server.url, "update fullpass.schema_migrations set sha256 = 'another' where version = 3"
        )
    again = cli.run("demo")
    assert again.returncode == 0, again.stderr
    assert "## Preferences" in again.stdout


def test_run_writes_files_that_agree_and_says_what_it_read(tmp_path: Path) -> None:
    done = Cli(tmp_path).run("run", EXAMPLE, "--out", "made/here")
    assert done.returncode == 0, done.stderr
    out = tmp_path / "made" / "here"
    report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    facts = [json.loads(line) for line in (out / "facts.jsonl").read_text().splitlines()]
    sections = json.loads((out / "sections.json").read_text(encoding="utf-8"))
    assert set(sections) == {"soul", "identity", "user", "agents", "tools"}
    assert all(sections.values())
    current = [fact for fact in facts if fact["superseded_by"] is None]
    assert len(current) == report["facts"]["current"] > 20
    assert len(facts) - len(current) == report["facts"]["superseded"] > 0
    assert all(fact["evidence"][0]["quote"] for fact in facts)
    assert report["status"] == "complete"
    assert report["provider"] == "offline"
    assert report["coverage"]["share"] == 1.0
    assert report["cost"]["calls"] == 0
    assert f"MEMORY from {report['conversations']} conversations" in done.stdout
    assert f"{len(current)} current" in done.stdout
    assert "not to be remembered" in done.stdout, "what was skipped is told"
    assert "made/here/MEMORY.md" in done.stdout
    assert [line for line in done.stdout.splitlines() if len(line) > 80] == []
    assert "Saving" in done.stderr or "Starting" in done.stderr, "progress goes to stderr"


@pytest.mark.parametrize(("status", "said"), [("complete", "Done"), ("failed", "Failed")])
def test_the_last_line_of_a_pass_that_ended_says_so(status: str, said: str) -> None:
    """It said "100%  Starting": a job that ended has no stage, like one that has not begun."""
    ended = Progress(status, "regenerate_sections", None, 100, 42, 0.0, 0)
    assert Shown(0.0, ended).line().startswith(f"100%  {said}")


def test_json_is_one_document_on_stdout(tmp_path: Path) -> None:
    export = small_export(tmp_path / "small.json", "I love sourdough bread.")
    report = Cli(tmp_path).json("run", export, "--json")
    assert report["facts"]["current"] == 1
    assert report["storage_path"] == f"file://{export}"


def test_no_facts_are_explained(tmp_path: Path) -> None:
    export = small_export(tmp_path / "asks.json", "What is a monad?", "And a functor?")
    cli = Cli(tmp_path)
    done = cli.run("run", export)
    assert done.returncode == 0, done.stderr
    told = " ".join(done.stdout.split())
    assert "1 conversation with 2 messages" in told
    assert "2 mere questions" in told
    assert "Without a model only plain English statements" in told
    assert "No data yet." in (tmp_path / "fullpass-out" / "MEMORY.md").read_text()


def test_stopped_then_killed_then_run_again_it_pays_for_no_call_twice(
    tmp_path: Path, anthropic_server: AnthropicServer
) -> None:
    # One call at a time: when the next is in flight, every earlier one has its receipt.
    cli = with_model(
        tmp_path, anthropic_server, EXTRACTION_WINDOW_TOKENS=1500, FACT_EXTRACTION_CONCURRENCY=1
    )
    # Ctrl-C: the call in flight lands, and its receipt is kept.
    anthropic_server.hold(after_calls=2)
    process = cli.start("run", EXAMPLE)
    anthropic_server.wait_until(completed=2, in_flight=1, timeout_seconds=40)
    process.send_signal(signal.SIGINT)
    anthropic_server.release()
    assert process.wait(30) == 1
    said = (tmp_path / "output.txt").read_text()
    assert "stopped before the end: run the same command again" in said
    landed = len(anthropic_server.record.completed())
    # Kill -9: what is in flight is lost, what was paid is not.
    anthropic_server.hold(after_calls=2)
    process = cli.start("run", EXAMPLE)
    anthropic_server.wait_until(completed=landed + 2, in_flight=1, timeout_seconds=40)
    process.kill()
    process.wait(10)
    anthropic_server.release()
    report = cli.json("run", EXAMPLE, "--json")
    assert (report["status"], report["coverage"]["share"]) == ("complete", 1.0)
    again = anthropic_server.record.paid_again()
    assert not again, [c for c in anthropic_server.record.calls if c.key in again]
    assert anthropic_server.record.totals()["completed"] == report["cost"]["calls"]
    assert cli.json("status", report["job_id"], "--json")["crashes"] == 0


def test_a_wrong_key_or_model_fails_the_command_not_the_job(
    tmp_path: Path, database_url: str, anthropic_server: AnthropicServer
) -> None:
    cli = with_model(tmp_path, anthropic_server, DATABASE_URL=database_url)
    export = small_export(tmp_path / "small.json", "I love sourdough bread.")
    for wrong, said in (
        ({"ANTHROPIC_API_KEY": "wrong-key"}, "check ANTHROPIC_API_KEY"),
        ({"EXTRACTION_MODEL": "claude-nobody-9"}, "claude-nobody-9"),
    ):
        done = cli.run("run", export, "--user", PERSON, **wrong)
        assert done.returncode == 1
        (line,) = [line for line in done.stderr.splitlines() if "error" in line]
        assert line.startswith("error: ")
        assert said in line
        assert "run the same command again" in line
        assert "wrong-key" not in done.stderr
        (job,) = ask(database_url, "select * from public.processing_jobs")
        assert (job["status"], job["attempts"], job["crashes"]) == ("pending", 0, 0)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "empty"),
        (b"Dear diary, today I wrote no JSON.", "not a chat export"),
        (b'{"recipes": [1, 2]}', "no chat export"),
        (b"PK\x03\x04 and then nothing", "zip"),
    ],
    ids=["empty", "text", "other json", "broken zip"],
)
def test_what_is_no_export_fails_in_one_line(
    tmp_path: Path, database_url: str, content: bytes, said: str
) -> None:
    (tmp_path / "wrong.json").write_bytes(content)
    done = Cli(tmp_path, DATABASE_URL=database_url).run("run", "wrong.json", "--user", PERSON)
    assert done.returncode == 1
    (line,) = [line for line in done.stderr.splitlines() if "rror" in line]
    assert "wrong.json" in line
    assert said in line
    assert not (tmp_path / "fullpass-out" / "MEMORY.md").exists()
    (row,) = ask(
        database_url,
        """
        select j.status, j.error_message, u.full_pass_status, u.full_pass_error
        from public.processing_jobs j join public.user_profiles u using (user_id)
        """,
    )
    assert (row["status"], row["full_pass_status"]) == ("failed", "failed")
    assert line == f"error: {row['error_message']}"
    assert row["full_pass_error"] == row["error_message"]


def test_a_truncated_export_keeps_what_could_be_read(tmp_path: Path) -> None:
    whole = EXAMPLE.read_bytes()
    (tmp_path / "cut.json").write_bytes(whole[: len(whole) // 2])
    done = Cli(tmp_path).run("run", "cut.json")
    assert done.returncode == 0, done.stderr
    told = " ".join(done.stdout.split())
    assert "damaged, the rest was kept" in told
    assert "cut.json, item" in told
    report = json.loads((tmp_path / "fullpass-out" / "report.json").read_text())
    assert report["damaged"] == 1
    assert 10 < report["conversations"] < 40


@pytest.mark.parametrize(
    ("path", "said"),
    [("missing.zip", "no such file"), ("folder", "is a folder")],
)
def test_a_path_that_is_no_file_is_a_usage_error(tmp_path: Path, path: str, said: str) -> None:
    (tmp_path / "folder").mkdir()
    shutil.copy(EXAMPLE, tmp_path / "folder" / "conversations.json")
    cli = Cli(tmp_path)
    done = cli.run("run", path)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {path}: {said}")
    assert not cli.home.exists(), "no server is started for it"
    assert done.stdout == ""


def test_on_a_given_database_it_asks_whose_export_it_is(tmp_path: Path, database_url: str) -> None:
    cli = Cli(tmp_path, DATABASE_URL=database_url)
    done = cli.run("run", EXAMPLE)
    assert done.returncode == 2
    assert done.stderr.startswith("error: --user: needed where DATABASE_URL is set")
    report = cli.json("run", EXAMPLE, "--user", PERSON, "--json")
    assert not cli.home.exists(), "the embedded server is not for this"
    (row,) = ask(
        database_url,
        """
        select j.status, j.run_at = 'infinity' as reserved, u.memory_md, u.full_pass_status
        from public.processing_jobs j join public.user_profiles u using (user_id)
        where j.user_id = $1
        """,
        PERSON,
    )
    assert (row["status"], row["full_pass_status"]) == ("complete", "complete")
    assert row["reserved"], "no other worker could have taken it"
    assert row["memory_md"] == (tmp_path / "fullpass-out" / "MEMORY.md").read_text()
    assert report["user_id"] == PERSON


def test_somebodys_database_is_not_migrated_in_silence(
    tmp_path: Path, empty_database_url: str
) -> None:
    cli = Cli(tmp_path, DATABASE_URL=empty_database_url)
    done = cli.run("run", EXAMPLE, "--user", PERSON)
    assert done.returncode == 1
    assert "run `fullpass migrate`" in done.stderr
    assert (
        ask(empty_database_url, "select to_regnamespace('fullpass') as there")[0]["there"] is None
    )


def test_a_folder_that_cannot_be_written_is_told_before_anything_is_read(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    cli = Cli(tmp_path)
    done = cli.run("run", EXAMPLE, "--out", "taken/here")
    assert done.returncode == 2
    assert done.stderr.startswith("error: --out: cannot write in taken/here")
    assert not cli.home.exists()


def test_what_is_done_does_not_say_that_it_starts() -> None:
    begun = Shown(0.0)
    ended = Shown(0.0, Progress("complete", None, None, 100, 14, cost_usd=0.01, calls=16))
    assert (begun.step, ended.step) == ("Starting", "Done")
