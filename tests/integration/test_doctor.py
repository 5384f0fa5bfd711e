"""The doctor: a healthy set-up is told healthy, and each broken one what to do about it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from uuid import uuid4

import pytest

from daemon.database import connect, open_pool
from daemon.fullpass.tiers import accepted_tiers
from daemon.ops import doctor
from daemon.settings import load_settings
from tests.support.cli import Cli, ask
from tests.support.pgbouncer import transaction_pooler
from tests.support.supabase import login_in, look_of_supabase
from tests.support.worker_process import environment

if TYPE_CHECKING:
    from daemon.ops.finding import Finding
    from tests.support.anthropic_server import AnthropicServer
    from tests.support.storage_server import StorageServer


@pytest.fixture
def setup(
    database_url: str, anthropic_server: AnthropicServer, storage_server: StorageServer
) -> dict[str, Any]:
    """What makes everything well."""
    return {
        "database_url": database_url, "anthropic_api_key": "test-key",
        "anthropic_base_url": anthropic_server.url, "supabase_url": storage_server.url,
        "supabase_service_key": storage_server.key,
    }  # fmt: skip


async def examined(setup: dict[str, Any], **changes: Any) -> dict[str, Finding]:
    settings = load_settings(**{**setup, **changes})
    assert settings.database_url is not None
    pool = await open_pool(settings.database_url)
    try:
        found = await doctor.examine(
            settings, settings.database_url, tiers=accepted_tiers, pool=pool
        )
    finally:
        await pool.close()
    # Whatever is wrong comes with what to do.
    assert all(f.remedy for f in found if f.state in {"mend", "note"})
    # Of several findings of one check the worst counts.
    worst = sorted(found, key=lambda f: ("ok", "unknown", "note", "mend").index(f.state))
    return {finding.check: finding for finding in worst}


def to_mend(found: dict[str, Finding]) -> set[str]:
    return {check for check, finding in found.items() if finding.state == "mend"}


def test_a_healthy_set_up_is_ok_line_by_line_and_exits_0(
    tmp_path: Path,
    setup: dict[str, Any],
    anthropic_server: AnthropicServer,
    storage_server: StorageServer,
) -> None:
    cli = Cli(tmp_path, **{name.upper(): value for name, value in setup.items()})
    done = cli.run("doctor")
    assert done.returncode == 0, done.stdout + done.stderr
    checks = [line.split() for line in done.stdout.splitlines() if line[:1].strip()]
    assert {"database", "pooler", "clock", "rights", "rls", "memory", "migrations", "chunk",
            "listen", "storage", "model"} <= {words[1] for words in checks}  # fmt: skip
    assert {words[0] for words in checks} == {"ok"}, done.stdout
    assert [line for line in done.stdout.splitlines() if len(line) > 80] == []
    # One harmless read each, and nothing paid.
    assert anthropic_server.record.totals()["completed"] == 0
    assert [r.method for r in storage_server.requests] == ["GET"]
    account = cli.json("doctor", "--json")
    assert account["healthy"]
    assert {frozenset(check) for check in account["checks"]} == {
        frozenset({"check", "state", "told", "remedy"})
    }


def test_a_broken_set_up_exits_1_and_shows_no_secret(tmp_path: Path, setup: dict[str, Any]) -> None:
    settings = {name.upper(): value for name, value in setup.items()}
    cli = Cli(tmp_path, **{**settings, "ANTHROPIC_API_KEY": "sk-wrong-hunter22"})
    done = cli.run("doctor")
    assert done.returncode == 1
    assert "to do: check ANTHROPIC_API_KEY" in done.stdout
    assert "hunter22" not in done.stdout + done.stderr
    down = cli.run("doctor", "--json", DATABASE_URL="postgresql://me:hunter22@127.0.0.1:1/none")
    assert down.returncode == 1
    (check,) = json.loads(down.stdout)["checks"]
    assert (check["check"], check["state"]) == ("database", "mend")
    assert "hunter22" not in down.stdout + down.stderr


async def test_a_database_that_was_never_migrated(
    setup: dict[str, Any], empty_database_url: str
) -> None:
    found = await examined(setup, database_url=empty_database_url)
    assert to_mend(found) == {"migrations"}
    assert found["migrations"].remedy == "run `fullpass migrate`"
    assert found["chunk tiers"].state == "unknown"


async def test_a_schema_of_another_release(setup: dict[str, Any], database_url: str) -> None:
    add = "insert into fullpass.schema_migrations (version, name, sha256) values (9001, 'n', 'x')"
    ask(database_url, add)
    newer = await examined(setup)
    assert to_mend(newer) == set()
    assert newer["migrations"].state == "note"
    ask(database_url, "update fullpass.schema_migrations set sha256 = 'y' where version = 1")
    drifted = await examined(setup)
    assert to_mend(drifted) == {"migrations"}
    assert "was applied with another text" in drifted["migrations"].told


async def test_a_key_or_a_model_that_the_server_refuses(
    setup: dict[str, Any], anthropic_server: AnthropicServer
) -> None:
    keyless = await examined(setup, anthropic_api_key="wrong")
    (check,) = to_mend(keyless)
    assert keyless[check].remedy == "check ANTHROPIC_API_KEY"
    misnamed = await examined(setup, memory_model="claude-nonesuch-9")
    assert to_mend(misnamed) == {"model claude-nonesuch-9"}
    assert misnamed["model claude-haiku-5-5"].state == "ok"
    anthropic_server.behave(models=("claude-haiku-5-5", "claude-retired-1"))
    retired = await examined(setup, sections_model="claude-retired-1")
    assert retired["model claude-retired-1"].told == "it is retired"
    assert to_mend(retired) == {"model claude-retired-1"}


async def test_a_server_that_describes_no_models_is_unknown_never_missing(
    setup: dict[str, Any], anthropic_server: AnthropicServer
) -> None:
    anthropic_server.behave(models_endpoint=False)
    found = await examined(setup)
    assert to_mend(found) == set()
    assert found["model claude-haiku-5-5"].state == "unknown"


@pytest.mark.parametrize(
    ("changes", "check", "named"),
    [
        ({"llm_provider": "bedrock", "aws_region": None}, "model", "AWS_REGION"),
        ({"llm_provider": "vertex"}, "model", "ANTHROPIC_VERTEX_PROJECT_ID"),
        ({"extraction_model": "mine", "max_cost_usd_per_job": 1}, "model", "MODEL_CAPABILITIES"),
        ({"smtp_url": "smtp://localhost", "email_from": "a@example.org",
          "email_templates": "/nowhere"}, "mail", "EMAIL_TEMPLATES"),
    ],
)  # fmt: skip
async def test_settings_with_which_no_worker_starts_are_to_be_mended(
    setup: dict[str, Any], changes: dict[str, Any], check: str, named: str
) -> None:
    """The worker ended with exit code 2, and the doctor had found nothing to mend."""
    found = await examined(setup, **changes)
    assert to_mend(found) == {check}
    assert named in str(found[check].remedy)


async def test_storage_that_refuses_the_key_or_is_not_there(
    setup: dict[str, Any], anthropic_server: AnthropicServer
) -> None:
    refused = await examined(setup, supabase_service_key="sb_secret_wrong")
    assert to_mend(refused) == {"storage"}
    assert "check the key" in str(refused["storage"].remedy)
    elsewhere = await examined(setup, supabase_url=anthropic_server.url)
    assert to_mend(elsewhere) == {"storage"}
    unset = await examined(setup, supabase_url=None, supabase_service_key=None)
    assert to_mend(unset) == {"storage"}


async def test_a_login_without_rights_gets_the_grant_that_helps(
    setup: dict[str, Any], database_url: str
) -> None:
    with login_in(database_url, "fullpass_reader") as url:
        found = await examined(setup, database_url=url)
        assert to_mend(found) == {"rights"}
        assert found["rights"].remedy is not None
        assert "grant fullpass_worker to" in found["rights"].remedy
    with login_in(database_url, "fullpass_worker") as url:
        assert to_mend(await examined(setup, database_url=url)) == set()


async def test_a_login_without_any_right_gets_the_same_grant(
    setup: dict[str, Any], database_url: str
) -> None:
    with login_in(database_url) as url:
        found = await examined(setup, database_url=url)
        assert to_mend(found) == {"rights"}
        assert "schema fullpass" in found["rights"].told
        assert "grant fullpass_worker to" in str(found["rights"].remedy)


async def test_a_database_that_takes_no_writes(setup: dict[str, Any], database_url: str) -> None:
    name = urlsplit(database_url).path.strip("/")
    ask(database_url, f"alter database {name} set default_transaction_read_only = on")
    found = await examined(setup)
    assert to_mend(found) == {"database"}
    sql = re.search(r"run: (.* commit;)", str(found["database"].remedy))
    assert sql is not None
    connection = await connect(database_url)
    await connection.execute(sql[1])  # the remedy is exact
    await connection.close()
    assert to_mend(await examined(setup)) == set()


@pytest.mark.parametrize("tail", ["", "?application_name=x&sslmode=perhaps"])
def test_an_address_that_is_torn_is_told_without_its_password(tmp_path: Path, tail: str) -> None:
    user = "me:hunter22/rest#more" if not tail else "me:hunter22"
    cli = Cli(tmp_path, DATABASE_URL=f"postgresql://{user}@127.0.0.1:1/none{tail}")
    for command, code in (("doctor", 1), ("status", 2), ("migrate", 2)):
        done = cli.run(command)
        said = " ".join((done.stdout + done.stderr).split())
        assert done.returncode == code, said
        assert "DATABASE_URL: cannot be read as an address" in said
        assert "%2F for /" in said
        assert "hunter22" not in said


async def test_several_hosts_in_the_address(setup: dict[str, Any], database_url: str) -> None:
    parts = urlsplit(database_url)
    hosts = f"127.0.0.1:1,{parts.hostname}:{parts.port}"
    several = database_url.replace(f"{parts.hostname}:{parts.port}", hosts)
    found = await examined(setup, database_url=several)
    assert to_mend(found) == set()
    assert found["pooler"].state == "ok"


async def test_row_security_that_hides_the_apps_rows_from_the_worker(
    setup: dict[str, Any], database_url: str
) -> None:
    ask(database_url, "alter table user_profiles enable row level security")
    ask(database_url, "create policy own on user_profiles for select using (false)")
    with login_in(database_url, "fullpass_worker") as url:
        found = await examined(setup, database_url=url)
        assert to_mend(found) == {"rls user_profiles"}
        remedy = found["rls user_profiles"].remedy
        assert remedy is not None
        ask(database_url, remedy.removeprefix("run: ").rstrip(";"))  # the remedy is exact
        assert to_mend(await examined(setup, database_url=url)) == set()
    owner = await examined(setup)
    assert owner["rls user_profiles"].state == "ok"


async def test_tables_open_to_the_data_api_are_reported(
    setup: dict[str, Any], empty_database_url: str
) -> None:
    from daemon import migrations

    look_of_supabase(empty_database_url)
    await migrations.apply(empty_database_url)
    found = await examined(setup, database_url=empty_database_url)
    assert found["rls processing_jobs"].state == "ok"
    ask(empty_database_url, "alter table processing_jobs disable row level security")
    opened = await examined(setup, database_url=empty_database_url)
    assert opened["rls processing_jobs"].state == "note"
    assert "enable row level security" in str(opened["rls processing_jobs"].remedy)


async def test_chunk_tiers_that_the_database_does_not_accept(
    setup: dict[str, Any], database_url: str
) -> None:
    unknown = await examined(setup, chunk_tiers="medium,gigantic")
    assert to_mend(unknown) == {"chunk tiers"}
    ask(database_url, "alter table conversation_chunks add check (chunk_tier in ('a', 'b'))")
    assert to_mend(await examined(setup)) == {"chunk tiers"}


async def test_a_memory_limit_that_leaves_no_room(setup: dict[str, Any]) -> None:
    found = await examined(setup, memory_limit_mb=64)
    assert to_mend(found) == {"memory"}
    assert "1 of 3 calls" in found["memory"].told


async def test_a_pooler_that_lends_by_statement_cannot_serve(
    setup: dict[str, Any], database_url: str
) -> None:
    with transaction_pooler(database_url, mode="statement") as pooled:
        found = await examined(setup, database_url=pooled)
        assert to_mend(found) == {"pooler"}


async def test_a_transaction_pooler_is_noticed_and_what_it_costs(
    setup: dict[str, Any], database_url: str
) -> None:
    with transaction_pooler(database_url) as pooled:
        found = await examined(setup, database_url=pooled)
        assert to_mend(found) == set()
        assert found["pooler"].state == "note"
        assert "DATABASE_LISTEN_URL" in str(found["pooler"].remedy)
        direct = await examined(setup, database_url=pooled, database_listen_url=database_url)
        assert (direct["pooler"].state, direct["listen"].state) == ("ok", "ok")
        wrong = await examined(
            setup, database_url=pooled, database_listen_url="postgresql://127.0.0.1:1/none"
        )
        assert to_mend(wrong) == {"listen"}
        refused = await examined(
            setup, database_url=pooled, database_listen_url=database_url + "_not"
        )
        assert refused["listen"].remedy == "correct DATABASE_LISTEN_URL"
        assert "DATABASE_URL" not in refused["listen"].told


@pytest.mark.parametrize(
    ("ahead", "state"),
    [
        (timedelta(seconds=0.5), "ok"), (timedelta(seconds=-20), "note"),
        (timedelta(hours=1), "mend"), (timedelta(hours=-1), "mend"),
    ],
)  # fmt: skip
def test_a_clock_that_is_off_is_told(ahead: timedelta, state: str) -> None:
    here = datetime(2026, 11, 22, 12, tzinfo=UTC)
    finding = doctor._clock(here - ahead, here.timestamp())
    assert finding.state == state
    assert ("ahead" in finding.told) == (ahead > timedelta())


def test_a_starting_worker_looks_too_and_does_not_wait_for_it(
    tmp_path: Path, database_url: str
) -> None:
    ask(database_url, "select fullpass.enqueue($1, 'file:///nowhere.json')", uuid4())
    log = tmp_path / "log"
    with log.open("wb") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-m", "daemon", "worker"],
            env=environment(database_url, None, llm_provider="offline"),
            stderr=stderr,
            stdout=subprocess.DEVNULL,
        )
    try:
        deadline = time.monotonic() + 60
        while not all(
            f'"{event}"' in log.read_text() for event in ("doctor.looked", "job.claimed")
        ):
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.02)  # polled until the deadline
    finally:
        process.terminate()
        assert process.wait(20) == 0
    lines = {(line := json.loads(text))["event"]: line for text in log.read_text().splitlines()}
    assert lines["doctor.looked"]["ok"] >= 5
    started, claimed = (
        datetime.fromisoformat(lines[event]["timestamp"])
        for event in ("worker.started", "job.claimed")
    )
    assert (claimed - started).total_seconds() < 1
