"""The look of Supabase on plain Postgres: its roles, its `auth` schema, its default grants."""

from __future__ import annotations

import secrets
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING
from urllib.parse import urlsplit, urlunsplit

import asyncpg

from tests.support.cli import ask

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

_LOOK = """
do $$
declare
    r text;
begin
    foreach r in array array['anon nologin', 'authenticated nologin',
                             'service_role nologin bypassrls'] loop
        begin
            execute 'create role ' || r;
        exception when duplicate_object or unique_violation then null;
        end;
    end loop;
    create schema auth;
    create table auth.users (id uuid primary key, email text);
    create function auth.uid() returns uuid language sql stable as
        $f$ select nullif(current_setting('request.jwt.claim.sub', true), '')::uuid $f$;
    grant usage on schema auth, public to anon, authenticated, service_role;
    grant execute on function auth.uid() to anon, authenticated, service_role;
    grant select on auth.users to service_role;
    alter default privileges in schema public
        grant all on tables to anon, authenticated, service_role;
    alter default privileges in schema public
        grant execute on functions to anon, authenticated, service_role;
end
$$
"""


def look_of_supabase(url: str) -> None:
    """Give an empty database what a Supabase project starts with."""
    ask(url, _LOOK)


@asynccontextmanager
async def acting_as(url: str, role: str, user: object = "") -> AsyncIterator[asyncpg.Connection]:
    """Give a connection that has become a role, as the data API does, on behalf of a user."""
    connection = await asyncpg.connect(url, statement_cache_size=0)
    try:
        await connection.execute("select set_config('request.jwt.claim.sub', $1, false)", str(user))
        await connection.execute(f"set role {role}")
        yield connection
    finally:
        await connection.close()


@contextmanager
def login_in(url: str, role: str | None = None) -> Iterator[str]:
    """Make a login that is a member of a role, or of none; give its URL of the database."""
    name, password = f"fp_test_{secrets.token_hex(4)}", secrets.token_hex(8)
    member = f"in role {role}" if role else ""
    ask(url, f"do $$ begin create role {name} login password '{password}' {member}; end $$")
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    try:
        yield urlunsplit(parts._replace(netloc=f"{name}:{password}@{host}"))
    finally:
        ask(
            url,
            "select pg_terminate_backend(pid, 5000) from pg_stat_activity where usename = $1",
            name,
        )
        ask(url, f"drop owned by {name}")
        ask(url, f"drop role {name}")
