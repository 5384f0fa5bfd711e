"""Who may do what: the reader, the worker's role, the app's users, the service role."""

from __future__ import annotations

import asyncio
import re
import secrets
from typing import TYPE_CHECKING
from uuid import UUID, uuid4

import asyncpg
import pytest

from daemon import migrations
from tests.support.cli import EXAMPLE, ROOT, Cli, ask
from tests.support.supabase import acting_as, login_in, look_of_supabase

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.anthropic_server import AnthropicServer
    from tests.support.storage_server import StorageServer

PATH = "exports/one/conversations.json"
VIEWS = (
    "overview", "running", "stuck", "durations", "errors", "hourly", "costs", "workers", "steps",
    "waiting", "ended", "now",
)  # fmt: skip


@pytest.fixture
def supabase_url(empty_database_url: str) -> str:
    """A Supabase project that was migrated, with two people."""
    look_of_supabase(empty_database_url)
    asyncio.run(migrations.apply(empty_database_url))
    for user in (ANNA, BEN):
        ask(empty_database_url, "insert into auth.users values ($1, 'x@example.org')", user)
    return empty_database_url


ANNA, BEN = UUID(int=1), UUID(int=2)


@pytest.fixture
def worker_url(supabase_url: str) -> Iterator[str]:
    with login_in(supabase_url, "fullpass_worker") as url:
        yield url


@pytest.fixture
def reader_url(supabase_url: str) -> Iterator[str]:
    with login_in(supabase_url, "fullpass_reader") as url:
        yield url


def refused(url: str, query: str, *arguments: object) -> None:
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        ask(url, query, *arguments)


def test_a_full_pass_succeeds_with_the_workers_role_alone(
    tmp_path: Path,
    supabase_url: str,
    worker_url: str,
    anthropic_server: AnthropicServer,
    storage_server: StorageServer,
) -> None:
    storage_server.put(PATH, EXAMPLE.read_bytes())
    (job,) = ask(
        supabase_url,
        "insert into processing_jobs (user_id, storage_path, max_attempts) values ($1, $2, 1) "
        "returning id",
        ANNA,
        PATH,
    )
    cli = Cli(
        tmp_path, DATABASE_URL=worker_url, ANTHROPIC_API_KEY="test-key",
        ANTHROPIC_BASE_URL=anthropic_server.url, SUPABASE_URL=storage_server.url,
        SUPABASE_SERVICE_KEY=storage_server.key,
    )  # fmt: skip
    worked = cli.run("worker", "--once")
    assert worked.returncode == 0, worked.stderr
    assert f"completed  {job['id']}" in worked.stdout
    (row,) = ask(
        supabase_url,
        "select full_pass_status, memory_md, soul_md, "
        "(select count(*) from conversation_chunks) as chunks from user_profiles",
    )
    assert row["full_pass_status"] == "complete"
    assert "## Preferences" in row["memory_md"]
    assert row["soul_md"] is not None
    assert row["chunks"] > 0
    # The rest of a worker's life: housekeeping, and the look that people take with the same URL.
    ask(worker_url, "select fullpass.mend_queue(), fullpass.prune(30)")
    assert cli.run("status").returncode == 0
    assert cli.run("status", job["id"]).returncode == 0


@pytest.mark.parametrize(
    "query",
    [
        "drop table fullpass.facts",
        "drop schema fullpass cascade",
        "create table fullpass.mine ()",
        "truncate fullpass.llm_calls",
        "select * from auth.users",
        "insert into processing_jobs (user_id, storage_path) values (gen_random_uuid(), 'a/b')",
        "delete from processing_jobs",
        "update processing_jobs set user_id = gen_random_uuid()",
        "update processing_jobs set storage_path = 'exports/another.zip'",
        "select favourite_colour from user_profiles",
        "update user_profiles set favourite_colour = 'grey'",
        "update user_profiles set user_id = gen_random_uuid()",
        "delete from user_profiles",
        "select embedding from conversation_chunks",
        "update conversation_chunks set embedding = null",
        "update conversation_chunks set content = 'another text'",
        "update fullpass.job_events set event = 'never happened'",
        "delete from fullpass.llm_calls",
        "update fullpass.llm_calls set cost_usd = 0",
        "delete from fullpass.memories",
        "update fullpass.schema_migrations set sha256 = ''",
        "select fullpass.forget(gen_random_uuid())",
        "select fullpass.enqueue(gen_random_uuid(), 'exports/a.zip')",
        "select fullpass.secure()",
        "select public.fullpass_forget(gen_random_uuid())",
    ],
)
def test_the_workers_role_cannot(supabase_url: str, worker_url: str, query: str) -> None:
    ask(supabase_url, "alter table user_profiles add favourite_colour text")
    ask(supabase_url, "alter table conversation_chunks add embedding real[]")
    refused(worker_url, query)


def test_the_reader_sees_the_views_and_nothing_else(supabase_url: str, reader_url: str) -> None:
    for view in VIEWS:
        ask(reader_url, f"select * from fullpass.ops_{view}")
    tables = ask(
        supabase_url,
        "select n.nspname, c.relname from pg_class c join pg_namespace n on n.oid = c.relnamespace "
        "where n.nspname in ('public', 'fullpass', 'auth') and c.relkind in ('r', 'p')",
    )
    assert len(tables) > 15
    for row in tables:
        refused(reader_url, f"select * from {row['nspname']}.{row['relname']}")
    for query in (
        "select fullpass.cancel(gen_random_uuid())",
        "select fullpass.next_turn(gen_random_uuid())",
        "select fullpass.sweep()",
        "delete from fullpass.ops_workers",
        "create table fullpass.mine ()",
    ):
        refused(reader_url, query)


def test_every_table_of_ours_is_covered_by_the_roles_and_by_row_security(
    supabase_url: str,
) -> None:
    """A migration that makes a table and does not end with `select fullpass.secure()` fails here."""
    uncovered = ask(
        supabase_url,
        """
        select c.relname from pg_class c
        where c.relnamespace = 'fullpass'::regnamespace and c.relkind = 'r'
          and not (has_table_privilege('fullpass_worker', c.oid, 'select')
                   and (c.relpersistence = 'u'
                        or c.relrowsecurity
                           and exists (select from pg_policy p where p.polrelid = c.oid)))
        union all
        select p.proname from pg_proc p
        where p.pronamespace = 'fullpass'::regnamespace
          and has_function_privilege('public', p.oid, 'execute')
        """,
    )
    assert uncovered == []


async def test_a_user_reads_their_own_rows_and_writes_none(supabase_url: str) -> None:
    for user in (ANNA, BEN):
        ask(supabase_url, "select fullpass.enqueue($1, 'exports/mine.zip')", user)
        ask(supabase_url, "insert into user_profiles (user_id) values ($1)", user)
        ask(
            supabase_url,
            "insert into conversation_chunks (user_id, content, created_at) "
            "values ($1, 'said', now())",
            user,
        )
    tables = ("processing_jobs", "user_profiles", "conversation_chunks")
    async with acting_as(supabase_url, "authenticated", ANNA) as anna:
        for table in tables:
            assert [r["user_id"] for r in await anna.fetch(f"select * from {table}")] == [ANNA]
            assert await anna.execute(f"update {table} set user_id = user_id") == "UPDATE 0"
            assert await anna.execute(f"delete from {table}") == "DELETE 0"
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await anna.execute(
                "insert into processing_jobs (user_id, storage_path) values ($1, 'exports/b.zip')",
                ANNA,
            )
        for query in (
            "select * from fullpass.facts",
            "select * from fullpass.ops_overview",
            "select public.fullpass_forget(auth.uid())",
            "select public.fullpass_enqueue(auth.uid(), 'exports/c.zip')",
        ):
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await anna.execute(query)
    async with acting_as(supabase_url, "anon") as anybody:
        for table in tables:
            assert await anybody.fetch(f"select * from {table}") == []
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await anybody.execute("select public.fullpass_cancel(gen_random_uuid())")


async def test_the_service_role_works_the_queue_by_rows_and_by_rpc(supabase_url: str) -> None:
    """It has no rights in schema fullpass: all that it does there, it does through these."""
    async with acting_as(supabase_url, "service_role") as app:
        job = await app.fetchval(
            "insert into processing_jobs (user_id, storage_path) values ($1, $2) returning id",
            ANNA,
            PATH,
        )
        assert await app.fetchval("select fullpass_enqueue($1, $2)", ANNA, PATH) == job
        assert await app.fetchval("select fullpass_cancel($1)", job)
        assert await app.fetchval("select fullpass_retry($1)", job)
        # An app may also write rows itself, whatever state they are in.
        await app.execute("update processing_jobs set status = 'processing' where id = $1", job)
        await app.execute("update processing_jobs set status = 'failed' where id = $1", job)
        await app.execute("update processing_jobs set status = 'processing' where id = $1", job)
        await app.execute("delete from processing_jobs where id = $1", job)
        assert await app.fetchval("select fullpass_forget($1)", ANNA) is not None
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await app.execute("select * from fullpass.facts")


async def test_an_app_whose_triggers_name_no_schema_can_use_the_rpcs(supabase_url: str) -> None:
    ask(supabase_url, "create table audit (at timestamptz)")
    ask(
        supabase_url,
        "create function note() returns trigger language plpgsql as "
        "$$ begin insert into audit values (now()); return new; end $$",
    )
    ask(
        supabase_url,
        "create trigger note after insert on processing_jobs for each row execute function note()",
    )
    async with acting_as(supabase_url, "service_role") as app:
        assert await app.fetchval("select fullpass_enqueue($1, $2)", BEN, PATH) is not None
    assert len(ask(supabase_url, "select from audit")) == 1


async def test_a_login_that_may_not_create_roles_migrates_all_the_same(
    empty_database_url: str,
) -> None:
    name = f"fp_test_{secrets.token_hex(4)}"
    db = await asyncpg.connect(empty_database_url)
    try:
        await db.execute(f"create role {name} login password 'secret-word'")
        await db.execute(f"grant create on schema public to {name}")
        (database,) = await db.fetchrow("select current_database()")
        await db.execute(f'grant create on database "{database}" to {name}')
        at = empty_database_url.rpartition("@")[2]
        url = f"postgresql://{name}:secret-word@{at}"
        await migrations.apply(url)
        assert await migrations.check(url) == []
        job = (await db.fetchrow("select fullpass.enqueue($1, $2) as id", uuid4(), PATH))["id"]
        assert job is not None
    finally:
        await db.execute(f"drop owned by {name} cascade")
        await db.execute(f"drop role {name}")
        await db.close()


def test_the_sql_of_the_security_page_makes_logins_that_work(supabase_url: str) -> None:
    page = (ROOT / "docs/security.md").read_text()
    (block,) = re.findall(r"^```sql\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    mark = secrets.token_hex(3)
    block = block.replace("role dashboard", f"role fp_test_d{mark}")
    block = block.replace("role worker", f"role fp_test_w{mark}").replace("…", mark)
    ask(supabase_url, f"do $$ begin {block} end $$")
    at = supabase_url.rpartition("@")[2]
    try:
        ask(f"postgresql://fp_test_d{mark}:{mark}@{at}", "select * from fullpass.ops_overview")
        ask(f"postgresql://fp_test_w{mark}:{mark}@{at}", "select fullpass.mend_queue()")
        refused(f"postgresql://fp_test_d{mark}:{mark}@{at}", "select * from fullpass.facts")
    finally:
        for name in ("d", "w"):
            ask(supabase_url, f"drop role fp_test_{name}{mark}")
