"""Spans and errors leave with ids, types and places, and with nobody's words (promise 11)."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from typing import TYPE_CHECKING
from uuid import uuid4

from daemon.fullpass.context import STEPS
from tests.support.cli import ask
from tests.support.collector import Collector
from tests.support.exports import planted_export
from tests.support.queue_checks import queue_at
from tests.support.webhook_receiver import WebhookReceiver, hang
from tests.support.worker_process import environment, worker_process

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.anthropic_server import AnthropicServer

INSERT = "insert into processing_jobs (user_id, storage_path) values ($1, $2) returning id"


async def test_what_leaves_names_every_step_and_error_and_holds_none_of_the_conversation(
    database_url: str, tmp_path: Path, anthropic_server: AnthropicServer
) -> None:
    export = planted_export(conversations=3, filler_words=20)
    anthropic_server.truth.add(export.truth)
    path = f"file://{export.write(tmp_path / 'private-name.json')}"
    person, other = uuid4(), uuid4()
    with Collector() as collector:
        async with queue_at(database_url) as queue:
            with worker_process(
                database_url, anthropic_server.url, otel_exporter_otlp_endpoint=collector.url,
                sentry_dsn=collector.dsn, anthropic_open_telemetry_traces_content_mode="content",
            ) as worker:  # fmt: skip
                (done,) = ask(database_url, INSERT, person, path)
                await queue.all_done()
                # The database quotes what it refuses: a defect's message may hold anything.
                await queue.db.execute(
                    "create function quote() returns trigger language plpgsql as "
                    "$$ begin raise 'refused: %', new.content; end $$; "
                    "create trigger quoting before insert on conversation_chunks "
                    "for each row execute function quote()"
                )
                (refused,) = ask(database_url, INSERT, other, path)
                await queue.until(
                    "select attempts > 0 and status = 'pending' from processing_jobs where id = $1",
                    refused["id"],
                )
                # And our own words about an export that is none are ours to tell.
                (bad,) = ask(database_url, INSERT, uuid4(), f"file://{tmp_path}")
                await queue.until(
                    "select status = 'failed' from processing_jobs where id = $1", bad["id"]
                )
                worker.terminate()
                assert await asyncio.to_thread(worker.wait, 15) == 0
        spans, events, everything = collector.spans(), collector.events(), collector.everything()

    whole = [s for s in spans if s.get("fullpass.job_id") == str(done["id"])]
    assert sorted(s["name"] for s in whole) == sorted(["full_pass", *STEPS])
    assert len(whole) == len(STEPS) + 1
    (root,) = [s for s in whole if s["name"] == "full_pass"]
    assert (root["fullpass.user_id"], root["fullpass.attempt"]) == (str(person), 1)
    assert {s["trace"] for s in whole} == {root["trace"]}
    assert {s["name"] for s in spans} <= {"full_pass", *STEPS}  # no library's among them
    assert not [s for s in whole if "error.type" in s]
    broken = [s for s in spans if s.get("fullpass.job_id") == str(refused["id"])]
    assert "RaiseError" in {s.get("error.type") for s in broken}

    by_job = {event["tags"]["job_id"]: event for event in events}
    event = by_job[str(refused["id"])]
    assert event["tags"]["step"] in STEPS
    raised = event["exception"]["values"][-1]
    assert (raised["type"], raised["value"]) == ("RaiseError", None)
    frames = raised["stacktrace"]["frames"]
    assert any(f["module"].startswith("daemon.fullpass") for f in frames)
    assert all(f.keys() == {"filename", "function", "module", "lineno", "in_app"} for f in frames)
    ours = by_job[str(bad["id"])]
    assert ours["level"] == "warning"
    assert ours["exception"]["values"][-1]["type"] == "BadExport"

    assert b"Bearer" not in everything
    assert b"test-key" not in everything
    assert b"private-name" not in everything
    for conversation in export.conversations:
        assert conversation["title"].encode() not in everything
    for planted in export.truth:
        assert planted.statement.encode() not in everything
        assert planted.sentence.encode() not in everything
    for word in (b"Something about", b"thought about", b"extract", b"select ", b"insert into"):
        assert word not in everything.replace(b"extract_facts", b""), word


def test_neither_library_is_imported_unless_its_variable_is_set_nor_is_needed_then(
    database_url: str,
) -> None:
    code = (
        "import sys, importlib.abc\n"
        "class Refused(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, *_):\n"
        "        if name in ('sentry_sdk', 'opentelemetry.sdk'): raise ImportError(name)\n"
        "sys.meta_path.insert(0, Refused())\n"
        "from daemon.cli.entry import exit_code_of\n"
        "sys.exit(exit_code_of(['worker', '--once']))\n"
    )

    def run(**settings: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", code],
            env=environment(database_url, None, llm_provider="offline", **settings),
            capture_output=True,
            text=True,
            check=False,
        )

    plain = run()
    assert (plain.returncode, plain.stdout) == (0, "nothing was due\n"), plain.stderr
    assert "telemetry.off" not in plain.stderr
    lacking = run(
        sentry_dsn="https://k@sentry.example/1", otel_exporter_otlp_endpoint="http://[::1]:9"
    )
    assert (lacking.returncode, lacking.stdout) == (0, "nothing was due\n"), lacking.stderr
    assert "pip install 'fullpass[otel]'" in lacking.stderr
    assert "pip install 'fullpass[sentry]'" in lacking.stderr


def test_a_dsn_that_is_none_is_named_and_a_collector_that_is_away_costs_nothing(
    database_url: str,
) -> None:
    def run(**settings: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "daemon", "worker", "--once"],
            env=environment(database_url, None, llm_provider="offline", **settings),
            capture_output=True,
            text=True,
            check=False,
        )

    bad = run(sentry_dsn="https://very-private@nowhere")
    assert bad.returncode == 2
    assert bad.stderr.startswith("error: SENTRY_DSN: ")
    assert "very-private" not in bad.stderr
    away = run(
        otel_exporter_otlp_endpoint="http://127.0.0.1:9", sentry_dsn="http://k@127.0.0.1:9/1"
    )
    assert (away.returncode, away.stdout) == (0, "nothing was due\n"), away.stderr


def test_a_collector_that_only_listens_holds_up_no_end(database_url: str) -> None:
    ask(
        database_url,
        "insert into processing_jobs (user_id, storage_path) "
        "values (gen_random_uuid(), 'file:///nowhere')",
    )
    with WebhookReceiver(always=hang) as collector:
        settings = {"llm_provider": "offline", "otel_exporter_otlp_endpoint": collector.url}
        with worker_process(database_url, None, **settings) as worker:
            deadline = time.monotonic() + 20
            while not ask(database_url, "select from processing_jobs where status = 'failed'"):
                assert time.monotonic() < deadline
                time.sleep(0.1)  # polled until the deadline
            asked = time.monotonic()
            worker.terminate()
            assert worker.wait(20) == 0
            assert time.monotonic() - asked < 6
        assert collector.received


def test_an_address_in_a_path_leaves_by_neither_door(database_url: str) -> None:
    ask(
        database_url,
        "insert into processing_jobs (user_id, storage_path) "
        "values (gen_random_uuid(), 'file:///nowhere/jane.roe@example.org/export.zip')",
    )
    with Collector() as collector:
        settings = {
            "llm_provider": "offline", "sentry_dsn": collector.dsn,
            "otel_exporter_otlp_endpoint": collector.url,
        }  # fmt: skip
        with worker_process(database_url, None, "--once", **settings) as worker:
            assert worker.wait(30) == 1
        (event,) = collector.events()
        assert "/nowhere/…@…/export.zip" in event["exception"]["values"][0]["value"]
        assert collector.spans()
        assert b"jane" not in collector.everything()
