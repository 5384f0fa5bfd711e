"""Migrations on the databases they will meet: empty, in production with odd rows, and again."""

from __future__ import annotations

import uuid

import asyncpg
import pytest

from daemon import migrations
from daemon.database import open_pool
from daemon.errors import UsageError
from daemon.fullpass.tiers import accepted_tiers

# The app's tables as production has them (CONTRACT, "existing"), with columns of the app's own.
PRODUCTION = """
create schema auth;
create table auth.users (id uuid primary key);
create function auth.uid() returns uuid language sql stable as
    $$ select nullif(current_setting('request.jwt.claim.sub', true), '')::uuid $$;
create function public.touch() returns trigger language plpgsql as
    $$ begin new.updated_at := now(); return new; end $$;
create table public.processing_jobs (
    id uuid primary key default gen_random_uuid(),
    user_id uuid not null references auth.users (id) on delete cascade,
    status text not null default 'pending', storage_path text, conversation_count int,
    message_count int, current_step text, progress int default 0, error_message text,
    attempts int default 0, created_at timestamptz default now(),
    updated_at timestamptz default now(), completed_at timestamptz);
create trigger touch before update on public.processing_jobs
    for each row execute function public.touch();
create table public.user_profiles (
    user_id uuid unique, soul_md text, identity_md text, user_md text, agents_md text,
    tools_md text, soulprint_text text, favourite_colour text, import_cost_json text);
create type public.tier as enum ('small', 'medium', 'large');
create table public.conversation_chunks (
    id uuid primary key default gen_random_uuid(), user_id uuid, conversation_id text, title text,
    content text not null, message_count int, created_at timestamptz not null,
    updated_at timestamptz, is_recent boolean, chunk_tier public.tier default 'medium',
    embedding real[]);
"""


async def in_production(url: str) -> tuple[asyncpg.Connection[asyncpg.Record], uuid.UUID]:
    db = await asyncpg.connect(url)
    user = uuid.uuid4()
    await db.execute(PRODUCTION)
    await db.execute("insert into auth.users values ($1)", user)
    await db.execute(
        """
        insert into processing_jobs (user_id, status, storage_path, progress, attempts) values
            ($1, 'pending', 'exports/a.zip', 0, 0),
            ($1, 'done-ish', 'exports/b.zip', 250, 7),
            ($1, 'processing', 'exports/c.zip', 40, 1),
            ($1, 'complete', null, null, null)
        """,
        user,
    )
    await db.execute(
        "insert into user_profiles (user_id, favourite_colour, import_cost_json) "
        "values ($1, 'teal', '{}')",
        user,
    )
    await db.execute(
        "insert into conversation_chunks (user_id, conversation_id, content, created_at, embedding)"
        " values ($1, 'c1', 'old text', now(), '{1,2}')",
        user,
    )
    return db, user


async def schema_of(db: asyncpg.Connection[asyncpg.Record]) -> list[asyncpg.Record]:
    return await db.fetch(
        """
        select table_schema, table_name, column_name, data_type, column_default
        from information_schema.columns where table_schema in ('public', 'fullpass')
        union all select n.nspname, c.relname, con.conname, pg_get_constraintdef(con.oid), ''
        from pg_constraint con join pg_class c on c.oid = con.conrelid
        join pg_namespace n on n.oid = c.relnamespace where n.nspname in ('public', 'fullpass')
        union all select schemaname, tablename, indexname, indexdef, '' from pg_indexes
        where schemaname in ('public', 'fullpass')
        union all select n.nspname, c.relname, t.tgname, '', '' from pg_trigger t
        join pg_class c on c.oid = t.tgrelid join pg_namespace n on n.oid = c.relnamespace
        where n.nspname in ('public', 'fullpass') and not t.tgisinternal
        order by 1, 2, 3, 4
        """
    )


async def test_production_tables_keep_every_row_and_gain_what_the_contract_names(
    each_postgres_empty_url: str,
) -> None:
    db, user = await in_production(each_postgres_empty_url)
    before = await db.fetch(
        "select id, status, progress, attempts from processing_jobs order by id"
    )
    try:
        await migrations.apply(each_postgres_empty_url)
        assert before == await db.fetch(
            "select id, status, progress, attempts from processing_jobs order by id"
        )
        assert await db.fetchval("select favourite_colour from user_profiles") == "teal"
        assert await db.fetchval("select embedding from conversation_chunks") == [1.0, 2.0]
        # Old rows break this rule: it binds new rows only.
        assert not await db.fetchval(
            "select convalidated from pg_constraint where conname = 'processing_jobs_status_check'"
        )
        with pytest.raises(asyncpg.CheckViolationError):
            await db.execute(
                "insert into processing_jobs (user_id, status) values ($1, 'odd')", user
            )
        with pytest.raises(asyncpg.UniqueViolationError):
            await db.execute(
                "insert into processing_jobs (user_id, storage_path) values ($1, 'exports/a.zip')",
                user,
            )
        # One touch trigger, the app's own.
        assert 1 == await db.fetchval(
            "select count(*) from pg_trigger where tgrelid = 'processing_jobs'::regclass "
            "and not tgisinternal and (tgtype & 19) = 19"
        )
        # A row that was never leased is nobody's to sweep, and blocks no one's claim but its own.
        assert await db.fetchval("select fullpass.sweep()") == 0
        assert await migrations.check(each_postgres_empty_url) == []
        # The profile's cost column is text here: completion writes it all the same.
        await db.execute("update processing_jobs set status = 'failed' where status = 'processing'")
        job = await db.fetchrow("select * from fullpass.claim('w', 60, 'v')")
        await db.execute(
            "select fullpass.complete($1, $2, '{}', '{\"calls\": 1}')",
            job["id"],
            job["lease_epoch"],
        )
        assert await db.fetchval("select import_cost_json from user_profiles") == '{"calls": 1}'
    finally:
        await db.close()


async def test_migrating_again_changes_nothing(each_postgres_empty_url: str) -> None:
    db, _ = await in_production(each_postgres_empty_url)
    try:
        await migrations.apply(each_postgres_empty_url)
        first = await schema_of(db)
        assert await migrations.apply(each_postgres_empty_url) == []
        # Even with the record of it lost, the files themselves are idempotent.
        await db.execute("delete from fullpass.schema_migrations")
        await migrations.apply(each_postgres_empty_url)
        assert first == await schema_of(db)
    finally:
        await db.close()


async def test_rows_that_prevent_an_index_are_named_and_everything_else_is_applied(
    each_postgres_empty_url: str,
) -> None:
    db, user = await in_production(each_postgres_empty_url)
    try:
        await db.execute(
            "insert into processing_jobs (user_id, storage_path) values ($1, 'exports/a.zip')", user
        )
        await db.execute(
            "insert into processing_jobs (user_id, status) values ($1, 'processing')", user
        )
        twins = await db.fetch(
            "select id from processing_jobs where storage_path = 'exports/a.zip'"
        )
        with pytest.raises(migrations.MigrationsBlocked) as blocked:
            await migrations.apply(each_postgres_empty_url)
        said = "\n".join(blocked.value.problems)
        assert "processing_jobs_one_pending_path" in said
        assert "processing_jobs_one_running" in said
        assert all(str(twin["id"]) in said for twin in twins)
        assert await db.fetchval("select to_regclass('fullpass.llm_calls') is not null")
        assert await migrations.check(each_postgres_empty_url) != []
        # The named SQL mends it.
        await db.execute("delete from processing_jobs where id = $1", twins[0]["id"])
        await db.execute("update processing_jobs set status='failed' where status='processing'")
        for problem in await migrations.check(each_postgres_empty_url):
            await db.execute("CREATE" + problem.partition("CREATE")[2])
        assert await migrations.check(each_postgres_empty_url) == []
    finally:
        await db.close()


@pytest.mark.parametrize(
    ("column", "names"),
    [
        ("text", {"micro": "micro", "medium": "medium", "macro": "macro"}),
        (
            "text check (chunk_tier in ('small', 'medium', 'large'))",
            {"micro": "small", "medium": "medium", "macro": "large"},
        ),
        ("text check (chunk_tier = 'medium')", {"medium": "medium"}),
        ("tier", {"micro": "small", "medium": "mid", "macro": "large"}),
        ("checked", {"micro": "small", "medium": "medium", "macro": "large"}),
        ("narrowed", {"micro": "small", "medium": "mid", "macro": "large"}),
        (
            "text check (chunk_tier <> 'none')",
            {"micro": "micro", "medium": "medium", "macro": "macro"},
        ),
    ],
)
async def test_chunk_tiers_are_read_from_the_database_never_assumed(
    database_url: str, column: str, names: dict[str, str]
) -> None:
    pool = await open_pool(database_url)
    try:
        await pool.execute("create type tier as enum ('small', 'mid', 'large')")
        await pool.execute(
            "create domain checked as text "
            "check (value is not null and value in ('small', 'medium', 'large'))"
        )
        await pool.execute("create domain narrowed as tier")
        await pool.execute("alter table conversation_chunks drop column chunk_tier")
        await pool.execute(f"alter table conversation_chunks add chunk_tier {column}")
        assert await accepted_tiers(pool) == names
        await pool.execute("alter table conversation_chunks drop column chunk_tier")
        await pool.execute(
            "alter table conversation_chunks add chunk_tier text check (chunk_tier in ('a', 'b'))"
        )
        with pytest.raises(UsageError, match="medium"):
            await accepted_tiers(pool)
    finally:
        await pool.close()
