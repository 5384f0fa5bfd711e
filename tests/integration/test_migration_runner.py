"""The runner: idempotent, safe in parallel, safe to kill, honest about what it could not do."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import pytest

from daemon import migrations
from daemon.errors import TryAgain, UsageError
from daemon.migrations import MigrationsBlocked

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

ROOT = Path(__file__).resolve().parents[2]

THINGS = "create table if not exists things (id int, kind text);"
MORE = "alter table things add column if not exists more text;"
INDEX = """-- no-transaction
-- One thing of a kind.
create unique index concurrently if not exists things_kind on public.things (kind);
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path


def put(folder: Path, **files: str) -> None:
    """Write files named by keyword: `_0001_things` becomes `0001_things.sql`."""
    for name, sql in files.items():
        (folder / f"{name.lstrip('_')}.sql").write_text(sql)


@contextlib.asynccontextmanager
async def connected(url: str) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(url, statement_cache_size=0)
    try:
        yield connection
    finally:
        await connection.close()


async def fetchval(url: str, query: str, *arguments: object) -> object:
    async with connected(url) as connection:
        return await connection.fetchval(query, *arguments)


async def execute(url: str, sql: str) -> None:
    async with connected(url) as connection:
        await connection.execute(sql)


async def index_is_valid(url: str) -> object:
    return await fetchval(
        url, "select indisvalid from pg_index where indexrelid = to_regclass('things_kind')"
    )


async def until(condition: Callable[[], object], *, seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not await condition():  # type: ignore[misc]
        assert time.monotonic() < end, "the condition never came true"
        await asyncio.sleep(0.02)  # polls another process up to the deadline above


def applying_process(url: str, folder: Path) -> subprocess.Popen[str]:
    code = (
        "import asyncio, pathlib, sys; from daemon import migrations\n"
        "done = asyncio.run(migrations.apply(sys.argv[1], directory=pathlib.Path(sys.argv[2])))\n"
        "print(len(done))"
    )
    return subprocess.Popen(
        [sys.executable, "-c", code, url, str(folder)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )


async def test_applies_in_order_once_and_then_changes_nothing(
    empty_database_url: str, folder: Path
) -> None:
    put(folder, _0001_things=THINGS, _0002_more=MORE, _0003_index=INDEX)
    assert [
        p.split(":")[0] for p in await migrations.check(empty_database_url, directory=folder)
    ] == ["behind"] * 3

    heard: list[str] = []
    done = await migrations.apply(empty_database_url, directory=folder, on_progress=heard.append)
    assert [m.label for m in done] == ["0001_things", "0002_more", "0003_index"]
    assert heard == [f"applying {m.label}" for m in done]
    assert await index_is_valid(empty_database_url) is True

    assert await migrations.apply(empty_database_url, directory=folder) == []
    assert await migrations.check(empty_database_url, directory=folder) == []


async def test_a_changed_file_stops_everything_before_anything_is_applied(
    empty_database_url: str, folder: Path
) -> None:
    put(folder, _0001_things=THINGS)
    await migrations.apply(empty_database_url, directory=folder)
    put(folder, _0001_things=THINGS + " -- changed", _0002_more=MORE)
    with pytest.raises(MigrationsBlocked, match="0001_things was applied with another text"):
        await migrations.apply(empty_database_url, directory=folder)
    state = await migrations.inspect(empty_database_url, directory=folder)
    assert [m.label for m in state.pending] == ["0002_more"]
    assert len(state.drifted) == 1


async def test_line_ends_of_a_windows_checkout_are_no_drift(
    empty_database_url: str, folder: Path
) -> None:
    (folder / "0001_things.sql").write_bytes(b"create table if not exists things\n(id int);\n")
    await migrations.apply(empty_database_url, directory=folder)
    (folder / "0001_things.sql").write_bytes(b"create table if not exists things\r\n(id int);\r\n")
    assert await migrations.check(empty_database_url, directory=folder) == []


async def test_an_older_release_reports_a_newer_schema_and_leaves_it_alone(
    empty_database_url: str, folder: Path
) -> None:
    put(folder, _0001_things=THINGS, _0002_more=MORE)
    await migrations.apply(empty_database_url, directory=folder)
    (folder / "0002_more.sql").unlink()
    assert await migrations.apply(empty_database_url, directory=folder) == []
    state = await migrations.inspect(empty_database_url, directory=folder)
    assert state.newer == (2,)
    assert state.pending == ()
    assert "newer than code: version 0002" in state.problems[0]


async def test_a_failing_file_leaves_nothing_of_itself_and_names_itself(
    empty_database_url: str, folder: Path
) -> None:
    put(folder, _0001_things=THINGS, _0002_bad="create table half (); select 1/0;", _0003_more=MORE)
    with pytest.raises(TryAgain, match=r"0002_bad: division by zero.*run fullpass migrate again"):
        await migrations.apply(empty_database_url, directory=folder)
    assert await fetchval(empty_database_url, "select to_regclass('half')") is None
    state = await migrations.inspect(empty_database_url, directory=folder)
    assert [m.label for m in state.pending] == ["0002_bad", "0003_more"]


async def test_rows_that_prevent_an_index_stop_only_that_index(
    empty_database_url: str, folder: Path
) -> None:
    put(
        folder,
        _0001_things=THINGS + "insert into things values (1, 'twice'), (2, 'twice');",
        _0002_index=INDEX,
        _0003_more=MORE,
    )
    with pytest.raises(MigrationsBlocked) as blocked:
        await migrations.apply(empty_database_url, directory=folder)
    (problem,) = blocked.value.problems
    assert "(kind)=(twice)" in problem
    assert "create unique index concurrently if not exists things_kind" in problem
    assert await index_is_valid(empty_database_url) is None, "a broken index was left behind"
    assert await fetchval(empty_database_url, "select count(more) from things") == 0
    assert await fetchval(empty_database_url, "select count(*) from things") == 2

    await execute(empty_database_url, "delete from things where id = 2")
    done = await migrations.apply(empty_database_url, directory=folder)
    assert [m.label for m in done] == ["0002_index"]
    assert await index_is_valid(empty_database_url) is True


async def test_an_index_left_invalid_by_a_crash_is_built_again(
    empty_database_url: str, folder: Path
) -> None:
    put(folder, _0001_things=THINGS)
    await migrations.apply(empty_database_url, directory=folder)
    await execute(empty_database_url, "insert into things values (1, 'a'), (2, 'a')")
    with pytest.raises(asyncpg.UniqueViolationError):
        await execute(empty_database_url, INDEX)
    assert await index_is_valid(empty_database_url) is False
    await execute(empty_database_url, "delete from things where id = 2")

    put(folder, _0002_index=INDEX)
    await migrations.apply(empty_database_url, directory=folder)
    assert await index_is_valid(empty_database_url) is True


async def test_what_the_schema_reports_is_passed_on_after_all_is_applied(
    empty_database_url: str, folder: Path
) -> None:
    put(
        folder,
        _0001_things=THINGS,
        _0002_problems="""
            create or replace function fullpass.migration_problems() returns setof text
            language sql as $$
                select 'things ' || id || ' has no kind: run' || chr(10) || 'update things ...'
                  from public.things where kind is null order by id
            $$;""",
    )
    await migrations.apply(empty_database_url, directory=folder)
    await execute(empty_database_url, "insert into things values (4, null), (5, 'x')")
    put(folder, _0003_more=MORE)
    with pytest.raises(MigrationsBlocked) as blocked:
        await migrations.apply(empty_database_url, directory=folder)
    assert blocked.value.problems == ("things 4 has no kind: run update things ...",)
    state = await migrations.inspect(empty_database_url, directory=folder)
    assert state.pending == ()
    assert state.problems == list(blocked.value.problems)


async def test_several_processes_apply_at_once_and_each_file_is_applied_once(
    empty_database_url: str, folder: Path
) -> None:
    # The sleep holds the lock until all three have come for it.
    put(
        folder,
        _0001_count="create table if not exists runs (at timestamptz default clock_timestamp());",
        _0002_things=THINGS + "insert into runs default values; select pg_sleep(0.3);",
        _0003_index=INDEX,
        _0004_more=MORE + "insert into runs default values;",
    )
    processes = [applying_process(empty_database_url, folder) for _ in range(3)]
    counts = [process.communicate(timeout=60)[0].strip() for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert sum(map(int, counts)) == 4
    assert await fetchval(empty_database_url, "select count(*) from runs") == 2
    assert await index_is_valid(empty_database_url) is True


async def test_a_concurrent_index_is_not_dead_locked_by_those_who_wait_for_the_lock(
    empty_database_url: str, folder: Path
) -> None:
    put(folder, _0001_things=THINGS)
    await migrations.apply(empty_database_url, directory=folder)
    await execute(
        empty_database_url, "insert into things select n, n::text from generate_series(1, 50000) n"
    )
    put(folder, _0002_index=INDEX, _0003_more=MORE)
    done = await asyncio.gather(
        *(migrations.apply(empty_database_url, directory=folder) for _ in range(6))
    )
    assert sum(map(len, done)) == 2
    assert await index_is_valid(empty_database_url) is True


async def test_kill_9_in_the_middle_leaves_nothing_locked_and_nothing_half_done(
    empty_database_url: str, folder: Path
) -> None:
    # Asleep in the middle of its transaction until it is killed.
    slow = "create table if not exists half (); select pg_sleep(60);"
    put(folder, _0001_things=THINGS, _0002_slow=slow)
    process = applying_process(empty_database_url, folder)
    asleep = "select exists (select from pg_stat_activity where wait_event = 'PgSleep' and datname = current_database())"
    await until(lambda: fetchval(empty_database_url, asleep))
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()

    put(folder, _0002_slow="create table if not exists whole ();")
    killed_at = time.monotonic()
    done = await migrations.apply(empty_database_url, directory=folder, wait_seconds=20)
    assert [m.label for m in done] == ["0002_slow"]
    assert time.monotonic() - killed_at < 10, "the dead process's statement held the lock"
    assert await fetchval(empty_database_url, "select to_regclass('half')") is None


async def test_waiting_for_another_process_ends_with_advice(
    empty_database_url: str, folder: Path
) -> None:
    put(folder, _0001_things=THINGS)
    async with connected(empty_database_url) as other, other.transaction():
        await other.execute(f"select pg_advisory_xact_lock({migrations.LOCK_KEY})")
        with pytest.raises(TryAgain, match="another process is applying migrations"):
            await migrations.apply(empty_database_url, directory=folder, wait_seconds=0.2)
    assert len(await migrations.apply(empty_database_url, directory=folder)) == 1


async def test_a_table_in_use_is_waited_for_without_holding_up_the_app(
    empty_database_url: str, folder: Path
) -> None:
    put(folder, _0001_things=THINGS)
    await migrations.apply(empty_database_url, directory=folder)
    put(folder, _0002_more=MORE)
    waits = (
        "select exists (select from pg_locks where not granted and relation = 'things'::regclass)"
    )
    async with connected(empty_database_url) as app:
        transaction = app.transaction()
        await transaction.start()
        await app.execute("insert into things values (1, 'a')")
        applying = asyncio.create_task(migrations.apply(empty_database_url, directory=folder))
        await until(lambda: fetchval(empty_database_url, waits))
        # A queued ALTER blocks every later reader; ours must step back from the queue.
        started = time.monotonic()
        async with connected(empty_database_url) as reader:
            await reader.fetchval("select count(*) from things", timeout=15)
        assert time.monotonic() - started < migrations.LOCK_TIMEOUT_SECONDS + 2
        await transaction.commit()
        assert [m.label for m in await applying] == ["0002_more"]


async def test_the_printed_script_does_what_apply_does(
    empty_database_url: str, folder: Path
) -> None:
    put(folder, _0001_things=THINGS, _0002_more=MORE)
    script = migrations.print_sql(folder)
    await execute(empty_database_url, script)
    await execute(empty_database_url, script)
    assert await migrations.check(empty_database_url, directory=folder) == []
    put(folder, _0003_index=INDEX)
    parts = migrations.print_sql(folder).split("-- ---- 0003_index ----")
    assert "begin" not in parts[1]
    assert "values (3, 'index'" in parts[1]


@pytest.mark.parametrize(
    ("name", "sql", "rule"),
    [
        ("1_short.sql", "select 1;", "named NNNN_name.sql"),
        ("0001_two.sql", INDEX + INDEX, "exactly one CONCURRENTLY statement"),
        ("0001_plain.sql", "-- no-transaction\nselect 1;", "exactly one CONCURRENTLY statement"),
        ("0001_own.sql", "begin;\nselect 1;\ncommit;", "the runner owns the transaction"),
    ],
)
def test_a_file_that_breaks_the_rules_is_refused_by_name(
    folder: Path, name: str, sql: str, rule: str
) -> None:
    (folder / name).write_text(sql)
    with pytest.raises(UsageError, match=rule) as refused:
        migrations.load_migrations(folder)
    assert name in str(refused.value)


def test_two_files_of_one_version_are_refused(folder: Path) -> None:
    put(folder, _0001_a=THINGS, _0001_b=MORE)
    with pytest.raises(UsageError, match="two files have version 0001"):
        migrations.load_migrations(folder)


async def test_missing_rights_are_said_with_who_should_run_it(
    empty_database_url: str, folder: Path
) -> None:
    role = f"fp_test_{secrets.token_hex(4)}"
    async with connected(empty_database_url) as owner:
        await owner.execute(f"create role {role} login password 'x'")
        limited = urlsplit(empty_database_url)
        netloc = f"{role}:x@{limited.netloc.rpartition('@')[2]}"
        url = urlunsplit(limited._replace(netloc=netloc))
        put(folder, _0001_things=THINGS)
        try:
            with pytest.raises(UsageError, match="as the owner of the tables"):
                await migrations.apply(url, directory=folder)
        finally:
            await owner.execute(f"drop role {role}")


async def test_an_unreachable_server_is_named_without_its_password() -> None:
    with pytest.raises(TryAgain, match=r"127\.0\.0\.1:9: cannot connect") as refused:
        await migrations.check("postgresql://me:hush@127.0.0.1:9/x")
    assert "hush" not in str(refused.value)


async def test_the_released_migrations_apply_twice_on_every_supported_version(
    each_postgres_empty_url: str,
) -> None:
    released = list(migrations.load_migrations())
    assert await migrations.apply(each_postgres_empty_url) == released
    assert await migrations.apply(each_postgres_empty_url) == []
    assert await migrations.check(each_postgres_empty_url) == []
