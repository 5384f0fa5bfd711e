"""Two releases on one database: what docs/rollback.md says a deploy and a rollback come to.

Nothing is released before this, so the other release is the next one: a copy of this code under a
later version number, with a migration more that does what a migration may do. Both run as real
processes, each from a folder of its own.
"""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from daemon import __version__
from tests.support.cli import ROOT, Cli, ask
from tests.support.exports import PlantedExport, planted_export
from tests.support.pages import shown_in
from tests.support.planted_truth import Truth

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.anthropic_server import AnthropicServer

NEXT = "99.0.0"
# What a migration may do: add columns and tables, replace a function by one that takes the same.
NEXT_MIGRATION = """
alter table public.processing_jobs add column if not exists next_release int not null default 1;
alter table public.conversation_chunks add column if not exists next_release int not null default 1;
alter table public.user_profiles add column if not exists next_release text default 'new';
alter table fullpass.workers add column if not exists next_release int not null default 1;
alter table fullpass.job_events add column if not exists next_release int not null default 1;
alter table fullpass.llm_calls add column if not exists next_release int not null default 1;
alter table fullpass.facts add column if not exists next_release int not null default 1;
create table if not exists fullpass.next_things (id int primary key);
create or replace function fullpass.mend_queue() returns int language sql as $$ select 0 $$;
select fullpass.secure();
"""


@dataclass(frozen=True)
class Release:
    """One release's code and how to run it."""

    version: str
    cli: Cli

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return self.cli.run(*arguments, timeout_seconds=90)

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        return self.cli.start(*arguments)


@pytest.fixture
def releases(
    tmp_path: Path, database_url: str, anthropic_server: AnthropicServer
) -> dict[str, Release]:
    """This release and the next one, which has not migrated yet."""
    settings = {
        "DATABASE_URL": database_url, "ANTHROPIC_API_KEY": "test-key",
        "ANTHROPIC_BASE_URL": anthropic_server.url, "ALLOW_LOCAL_FILES": "true",
        "MAX_JOBS_PER_USER_PER_DAY": "0", "POLL_INTERVAL_SECONDS": "0.1",
    }  # fmt: skip
    code = tmp_path / "next-code"
    # Compiled files come along, but for those that another process is just writing.
    shutil.copytree(ROOT / "daemon", code / "daemon", ignore=shutil.ignore_patterns("*.pyc.*"))
    shutil.copytree(ROOT / "sql", code / "sql")
    (code / "sql/migrations/9001_next.sql").write_text(NEXT_MIGRATION, encoding="utf-8")
    init = code / "daemon/__init__.py"
    told = init.read_text(encoding="utf-8")
    assert __version__ in told
    init.write_text(told.replace(__version__, NEXT), encoding="utf-8")
    found = {}
    for name, version, path in (("this", __version__, ROOT), ("next", NEXT, code)):
        folder = tmp_path / name
        folder.mkdir()
        found[name] = Release(version, Cli(folder, **settings, PYTHONPATH=path))
    return found


def enqueued(url: str, export: PlantedExport, path: Path) -> str:
    (row,) = ask(
        url,
        "insert into processing_jobs (user_id, storage_path) values (gen_random_uuid(), $1) "
        "returning id",
        f"file://{export.write(path)}",
    )
    return str(row["id"])


def test_the_two_releases_are_two(releases: dict[str, Release]) -> None:
    for release in releases.values():
        said = release.run("--version").stdout
        assert said.split()[-1] == release.version
    code = "import daemon; print(daemon.__file__)"
    at = subprocess.check_output(
        [sys.executable, "-c", code], text=True, cwd=releases["next"].cli.folder,
        env=releases["next"].cli.environment(),
    )  # fmt: skip
    assert "next-code" in at


@pytest.mark.parametrize("order", [("next", "this"), ("this", "next")], ids=["rollback", "deploy"])
def test_a_pass_begun_by_one_release_is_ended_by_the_other_and_paid_once(
    tmp_path: Path,
    database_url: str,
    anthropic_server: AnthropicServer,
    releases: dict[str, Release],
    order: tuple[str, str],
) -> None:
    first, then = order
    migrated = releases["next"].run("migrate")
    assert "applying 9001_next" in migrated.stdout, migrated.stderr
    export = planted_export(conversations=24, filler_words=400, seed=3)
    anthropic_server.truth = Truth(export.truth)
    job = enqueued(database_url, export, tmp_path / "c.json")
    anthropic_server.hold(after_calls=2)
    worker = releases[first].start("worker")
    try:
        anthropic_server.wait_until(in_flight=1, timeout_seconds=40)
        worker.send_signal(signal.SIGTERM)
        anthropic_server.release()  # what is in flight lands within the grace
        assert worker.wait(40) == 0
    finally:
        worker.kill()
    (row,) = ask(database_url, "select status, attempts, pipeline_version from processing_jobs")
    assert tuple(row) == ("pending", 0, releases[first].version), "given back, no attempt used"
    assert ask(database_url, "select 1 from fullpass.llm_calls"), "some of it was read"

    done = releases[then].run("worker", "--once")
    assert done.returncode == 0, done.stderr
    assert f"completed  {job}" in done.stdout
    assert anthropic_server.record.paid_again() == {}
    (row,) = ask(database_url, "select status, pipeline_version from processing_jobs")
    assert tuple(row) == ("complete", releases[then].version)
    (facts,) = ask(database_url, "select count(*) as n from fullpass.facts")
    assert facts["n"] == len(export.truth)
    (shown,) = ask(database_url, "select pipeline_version, complete from fullpass.ops_overview")
    assert tuple(shown) == (releases[then].version, 1)


def test_the_release_before_finds_a_newer_schema_says_so_and_is_not_stopped_by_it(
    releases: dict[str, Release],
) -> None:
    releases["next"].run("migrate")
    here = releases["this"]
    # The platform runs this before it puts the old release back: it must not stand in the way.
    migrated = here.run("migrate")
    assert (migrated.returncode, migrated.stdout) == (0, "up to date: nothing to apply\n")
    checked = here.run("migrate", "--check")
    assert checked.returncode == 1
    assert "newer than code: version 9001" in checked.stdout
    doctor = here.run("doctor")
    assert re.search(r"^note +migrations +the database knows 1", doctor.stdout, re.MULTILINE)


def test_a_newer_release_on_a_schema_that_is_behind_says_to_migrate_and_claims_nothing(
    tmp_path: Path, database_url: str, releases: dict[str, Release]
) -> None:
    export = planted_export(conversations=2, filler_words=20, seed=4)
    enqueued(database_url, export, tmp_path / "c.json")
    done = releases["next"].run("worker", "--once")
    assert done.returncode == 1
    assert "run `fullpass migrate`" in done.stderr
    (row,) = ask(database_url, "select status, lease_epoch from processing_jobs")
    assert tuple(row) == ("pending", 0)


def test_the_sql_of_the_page_runs(database_url: str) -> None:
    page = (ROOT / "docs/rollback.md").read_text(encoding="utf-8")
    statements = [shown.text for shown in shown_in(page) if shown.kind == "sql"]
    assert statements
    for statement in statements:
        ask(database_url, statement)


# What a release that still runs may need: none of it is taken away by a migration. Of functions,
# those of the protocol keep their arguments; what only a migration calls may go.
TAKES_AWAY = re.compile(
    r"\b(drop\s+(table|column|view|schema)|rename\s+(to|column)|alter\s+column\s+\w+\s+(set\s+data\s+)?type"
    r"|drop\s+function\s+(if\s+exists\s+)?fullpass\.(claim|beat|hold|grip|complete|fail|release))\b",
    re.IGNORECASE,
)


def test_no_migration_takes_away_what_the_release_before_needs() -> None:
    for path in sorted((ROOT / "sql/migrations").glob("*.sql")):
        sql = re.sub(r"--[^\n]*", "", path.read_text(encoding="utf-8"))
        taken = TAKES_AWAY.search(sql)
        assert taken is None, f"{path.name}: {taken[0]}: add now, take away a release later"
    for sql in ("ALTER TABLE a DROP COLUMN b", "alter table a rename column b to c"):
        assert TAKES_AWAY.search(sql)
