"""Checks a set-up before it is trusted: each line is ok, or says exactly what to do.

Owns what a healthy database, Storage, model and machine look like. Changes nothing, pays for
nothing, and prefers to say that it does not know: a server without a list of models is no missing
model. The worker runs the part that asks only its database, at its start (`at_start`).
"""

from __future__ import annotations

import asyncio
import secrets
import time
from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import asyncpg

from daemon import migrations
from daemon.database import connect, database_errors, first_line, pools_transactions
from daemon.errors import FullpassError, UsageError
from daemon.logs import get_logger, masked
from daemon.memory_gauge import RESERVE_BYTES, allowed_calls, read_gauge
from daemon.ops.doctor_outside import check_mail, check_model, check_storage
from daemon.ops.finding import mend, note, ok, unknown

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from daemon.database import Connection, Pool
    from daemon.ops.finding import Finding
    from daemon.settings import Settings

Tiers = dict[str, str]

_log = get_logger()
_OLDEST_SERVER = 140000
_SKEW_NOTED_SECONDS = 2.0
_SKEW_MENDED_SECONDS = 60.0
_LISTEN_TIMEOUT_SECONDS = 5.0
_TIGHT_BYTES = RESERVE_BYTES + 128 * 1024 * 1024

_SERVER = """
select current_setting('server_version_num')::int as version, clock_timestamp() as now,
       pg_is_in_recovery() as replica, quote_ident(current_database()) as name,
       current_setting('transaction_read_only')::boolean as read_only
"""
# What a worker cannot do without: one sample of each kind of right (sql/migrations/0031).
_MAY_ENTER = "select current_user where not has_schema_privilege('fullpass', 'usage')"
_RIGHTS = """
select current_user as role,
       array_remove(array[
           case when not has_table_privilege('public.processing_jobs', 'select')
                     or not has_column_privilege('public.processing_jobs', 'lease_epoch', 'update')
                then 'public.processing_jobs' end,
           case when not has_column_privilege('public.user_profiles', 'memory_md', 'update')
                     or not has_column_privilege('public.user_profiles', 'user_id', 'insert')
                then 'public.user_profiles' end,
           case when not has_column_privilege('public.conversation_chunks', 'content', 'insert')
                     or not has_table_privilege('public.conversation_chunks', 'delete')
                then 'public.conversation_chunks' end,
           case when not has_table_privilege('fullpass.llm_calls', 'insert')
                then 'fullpass.llm_calls' end,
           case when not has_function_privilege(
               'fullpass.grip(uuid, bigint)', 'execute') then 'functions of fullpass' end
       ], null) as missing
"""
# Row-level security of the app's tables, and whether it binds the role that asks: one that is bound
# needs a policy that lets it do everything.
_ROW_SECURITY = """
select c.relname as name, c.relrowsecurity as enabled, row_security_active(c.oid) as binds,
       (select count(*) from pg_policy p where p.polrelid = c.oid) as policies,
       exists (select from pg_policy p
               where p.polrelid = c.oid and p.polpermissive and p.polcmd = '*'
                 and exists (select from unnest(p.polroles) as r (role)
                             where r.role <> 0 and pg_has_role(r.role, 'usage'))) as lets_us,
       coalesce((select bool_or(has_table_privilege(r.oid, c.oid, 'select')) from pg_roles r
                 where r.rolname in ('anon', 'authenticated')), false) as exposed
from pg_class c
where c.oid in ('public.processing_jobs'::regclass, 'public.user_profiles'::regclass,
                'public.conversation_chunks'::regclass)
order by 1
"""


async def examine(
    settings: Settings, url: str, *, tiers: Callable[[Pool], Awaitable[Tiers]], pool: Pool
) -> list[Finding]:
    """Check everything a worker needs; `tiers` reads what the database calls the chunk tiers."""
    found = [*await check_database(pool, settings)]
    found.insert(1, await _check_pooler(settings, url))
    found += await _check_schema(url)
    found.append(await _check_tiers(pool, settings, tiers))
    found.append(await _check_listen(settings, url))
    found.append(await check_storage(settings))
    found += await check_model(settings)
    found += check_mail(settings)
    return found


async def at_start(pool: Pool | None, settings: Settings) -> None:
    """Log what a worker's database and machine look like, beside its first claim; None: nothing."""
    if pool is None:
        return
    try:
        found = await check_database(pool, settings)
    except (FullpassError, asyncpg.PostgresError) as error:
        _log.info("doctor.unknown", error=masked(first_line(error)))
        return
    wrong = {f.check: f"{f.told}: {f.remedy}" for f in found if f.state in {"mend", "note"}}
    log = _log.warning if any(f.state == "mend" for f in found) else _log.info
    log("doctor.looked", ok=len(found) - len(wrong), **wrong)


async def check_database(pool: Pool, settings: Settings) -> list[Finding]:
    """Check what needs nothing but a look into the database and at this machine."""
    with database_errors():
        async with pool.acquire() as connection:
            asked = time.time()
            seen = await connection.fetchrow(_SERVER)
            answered = time.time()
            assert seen is not None  # noqa: S101 - a select without from always answers
            found = [_server(seen), _clock(seen["now"], (asked + answered) / 2)]
            if await connection.fetchval("select to_regnamespace('fullpass') is not null"):
                found += await _rights(connection)  # type: ignore[arg-type]
    return [*found, _memory(settings)]


def _server(seen: asyncpg.Record) -> Finding:
    version = seen["version"]
    told = f"PostgreSQL {version // 10000}.{version % 10000}"
    if version < _OLDEST_SERVER:
        return mend("database", told, "use PostgreSQL 14 or newer")
    if seen["replica"]:
        remedy = "set DATABASE_URL to the primary; after a failover, to the new one"
        return mend("database", f"{told}, a read-only replica", remedy)
    if seen["read_only"]:
        return mend(
            "database", f"{told}, which takes no writes (default_transaction_read_only)",
            "if its disk is full, enlarge it or make room: platforms go read-only then; else run: "
            f"begin read write; alter database {seen['name']} reset "
            "default_transaction_read_only; commit; (or the same of the role)",
        )  # fmt: skip
    return ok("database", told)


def _clock(database_now: datetime, here: float) -> Finding:
    skew = (datetime.fromtimestamp(here, UTC) - database_now).total_seconds()
    told = f"this machine's clock is {abs(skew):.1f} s {'ahead of' if skew > 0 else 'behind'} "
    told += "the database's"
    remedy = "set this machine's clock (NTP); leases go by the database's and are not affected"
    if abs(skew) > _SKEW_MENDED_SECONDS:
        return mend("clock", told, f"{remedy}, but log times and signed requests to a cloud are")
    return note("clock", told, remedy) if abs(skew) > _SKEW_NOTED_SECONDS else ok("clock", told)


async def _rights(connection: Connection) -> list[Finding]:
    try:
        role = await connection.fetchval(_MAY_ENTER)
        if role is not None:
            return [_lacks(role, "schema fullpass")]  # nothing in it may even be asked about
        rights = await connection.fetchrow(_RIGHTS)
        tables = await connection.fetch(_ROW_SECURITY)
    except (asyncpg.UndefinedTableError, asyncpg.UndefinedColumnError,
            asyncpg.UndefinedFunctionError):  # fmt: skip
        return []  # the schema is behind, which is a finding of its own
    assert rights is not None  # noqa: S101 - a select without from always answers
    role = rights["role"]
    if rights["missing"]:
        found = _lacks(role, *rights["missing"])
    else:
        found = ok("rights", f"{role} has what a worker needs")
    return [found, *(_row_security(table, role) for table in tables)]


def _lacks(role: str, *missing: str) -> Finding:
    return mend(
        "rights", f"{role} may not use {', '.join(missing)}",
        f'as the owner of the tables run: grant fullpass_worker to "{role}"; (docs/security.md)',
    )  # fmt: skip


def _row_security(table: asyncpg.Record, role: str) -> Finding:
    check = f"rls {table['name']}"
    if table["binds"] and not table["lets_us"]:
        return mend(
            check, f"row security is on and hides rows from {role}",
            f'run: create policy fullpass_worker_all on public.{table["name"]} for all to "{role}" '
            "using (true) with check (true);",
        )  # fmt: skip
    if table["enabled"]:
        policies = f"{table['policies']} " + ("policy" if table["policies"] == 1 else "policies")
        return ok(check, f"row security is on ({policies}) and lets {role} work")
    if table["exposed"]:
        return note(
            check, "row security is off, and the data API's roles may read the table",
            f"unless that is meant, run: alter table public.{table['name']} enable row level "
            "security; and give it a policy for its users",
        )  # fmt: skip
    return ok(check, "row security is off, and no role of a data API may read the table")


def _memory(settings: Settings) -> Finding:
    gauge = read_gauge(memory_limit_mb=settings.memory_limit_mb)
    ceiling = settings.fact_extraction_concurrency
    calls = allowed_calls(gauge, ceiling=ceiling)
    told = (
        f"{gauge.limit_bytes >> 20} MB ({gauge.source}), {gauge.available_bytes >> 20} MB free: "
        f"{calls} of {ceiling} calls at once"
    )
    if gauge.available_bytes < RESERVE_BYTES:
        return mend("memory", told, "give it 512 MB, or stop what else runs under this limit")
    if calls < ceiling or gauge.available_bytes < _TIGHT_BYTES:
        return note("memory", told, "more memory allows more calls; it works, slower")
    return ok("memory", told)


async def _check_pooler(settings: Settings, url: str) -> Finding:
    try:
        pools = await pools_transactions(url)
    except FullpassError as error:
        if "statement pooling" in str(error):  # PgBouncer's words
            return mend("pooler", "it pools statements, so no transaction can be had",
                        "set its pool_mode to session or transaction")  # fmt: skip
        return unknown("pooler", masked(str(error)))
    if not pools:
        return ok("pooler", "direct connection or session pooler")
    told = "transaction pooler: everything works through it but LISTEN"
    if settings.database_listen_url is None:
        return note(
            "pooler", f"{told}, so new jobs are found by polling",
            f"set DATABASE_LISTEN_URL to a direct connection to start jobs at once instead of "
            f"within {settings.poll_interval_seconds:g} s",
        )  # fmt: skip
    return ok("pooler", f"{told}, which has DATABASE_LISTEN_URL")


async def _check_schema(url: str) -> list[Finding]:
    try:
        state = await migrations.inspect(url)
    except FullpassError as error:
        return [unknown("migrations", masked(str(error)))]
    found = []
    if state.pending:
        names = ", ".join(m.label for m in state.pending[:3])
        more = f" and {len(state.pending) - 3} more" if len(state.pending) > 3 else ""
        found.append(mend("migrations", f"not applied: {names}{more}", "run `fullpass migrate`"))
    for line in (*state.drifted, *state.blocked):
        told, _, remedy = line.removeprefix("drifted: ").partition(": ")
        found.append(mend("migrations", told, remedy))
    if state.newer:
        found.append(
            note("migrations", f"the database knows {len(state.newer)} that this release does not",
                 "upgrade fullpass; until then this release goes on working")
        )  # fmt: skip
    return found or [ok("migrations", "all applied")]


async def _check_tiers(
    pool: Pool, settings: Settings, tiers: Callable[[Pool], Awaitable[Tiers]]
) -> Finding:
    try:
        accepted = await tiers(pool)
    except UsageError as error:
        told, _, remedy = str(error).partition(": ")
        return mend("chunk tiers", told, remedy or told)
    except (FullpassError, asyncpg.PostgresError) as error:
        return unknown("chunk tiers", masked(first_line(error)))
    names = ", ".join(accepted.values())
    # A tier may be named by its rank or by what the database calls it.
    missing = [t for t in settings.chunk_tiers if t not in {*accepted, *accepted.values()}]
    if missing:
        return mend(
            "chunk tiers", f"the database accepts {names}, not {', '.join(missing)}",
            f"set CHUNK_TIERS to some of {names}",
        )  # fmt: skip
    return ok("chunk tiers", f"the database accepts {names}")


async def _check_listen(settings: Settings, url: str) -> Finding:
    """Send a notice to ourselves and wait for it."""
    heard = asyncio.Event()
    channel = f"fullpass_doctor_{secrets.token_hex(4)}"
    at = settings.database_listen_url or url
    remedy = (
        "set DATABASE_LISTEN_URL to a direct connection; without it new jobs are found by polling"
    )
    try:
        connection = await connect(at, command_timeout_seconds=_LISTEN_TIMEOUT_SECONDS)
    except FullpassError as error:
        name = "DATABASE_LISTEN_URL" if settings.database_listen_url else "DATABASE_URL"
        told = masked(str(error)).removeprefix("DATABASE_URL: ")
        return mend("listen", told, f"correct {name}")
    try:
        with database_errors():
            await connection.add_listener(channel, lambda *_: heard.set())
            sender = await connect(url, command_timeout_seconds=_LISTEN_TIMEOUT_SECONDS)
            try:
                await sender.execute("select pg_notify($1, '')", channel)
                with suppress(TimeoutError):
                    async with asyncio.timeout(_LISTEN_TIMEOUT_SECONDS / 2):
                        await heard.wait()
            finally:
                await sender.close(timeout=2)
    except FullpassError as error:
        return note("listen", masked(str(error)), remedy)
    finally:
        connection.terminate()
    if heard.is_set():
        return ok("listen", "notices arrive")
    return note("listen", "a notice did not arrive", remedy)
