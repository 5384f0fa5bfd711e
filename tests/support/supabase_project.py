"""A Supabase project on loopback: Storage, and of the data API what apps use with fullpass.

Owns the routes `/rest/v1/rpc/NAME` (a function of schema public), `/rest/v1/TABLE` (rows read with
`eq`, `order` and `limit`) and `/auth/v1/user`. Each request becomes the role that its key stands
for, in a real Postgres, so that what a role may not do is refused by the database itself. Leaves
out everything else that PostgREST can do: an unknown operator is a failure of the test.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import msgspec

from tests.support.loopback import Reply, Request, json_reply
from tests.support.storage_objects import claims_of, signed_jwt
from tests.support.storage_server import StorageServer
from tests.support.supabase import acting_as

if TYPE_CHECKING:
    from uuid import UUID

_NAME = re.compile(r"^[a-z_][a-z0-9_]*$")
_REFUSED = {"42501": 403, "42883": 404, "42P01": 404, "42703": 400}

PUBLISHABLE_KEY = "sb_publishable_for_tests"


class SupabaseProject(StorageServer):
    """One address for Storage and the data API of `database_url`; `key` is the secret key."""

    def __init__(self, database_url: str) -> None:
        super().__init__()
        self._database_url = database_url

    def token_of(self, user: UUID | str) -> str:
        """Give the token that this person's browser would have after logging in."""
        return signed_jwt(role="authenticated", sub=str(user))

    async def handle(self, request: Request) -> Reply:
        """Answer one request."""
        if request.path == "/auth/v1/user":
            return self._user(request)
        if request.path.startswith("/rest/v1/"):
            return await self._data(request)
        return await super().handle(request)

    def _user(self, request: Request) -> Reply:
        claims = _claims(request)
        if claims is None:
            return json_reply(
                {"code": 403, "error_code": "bad_jwt", "msg": "invalid JWT"}, status=403
            )
        return json_reply({"id": claims["sub"], "aud": "authenticated", "role": claims["role"]})

    async def _data(self, request: Request) -> Reply:
        claims = _claims(request)
        if claims is not None:
            role, user = claims["role"], claims.get("sub", "")
        else:
            role, user = "anon", ""
            if request.headers.get("apikey") == self.key:
                role = "service_role"
        path = request.path.removeprefix("/rest/v1/")
        try:
            async with acting_as(self._database_url, role, user) as connection:
                if path.startswith("rpc/"):
                    return await _called(connection, path.removeprefix("rpc/"), request)
                return await _read(connection, path, request)
        except asyncpg.PostgresError as error:
            state = error.sqlstate or ""
            told = {"code": state, "message": str(error), "details": None, "hint": None}
            return json_reply(told, status=_REFUSED.get(state, 400))


async def _called(connection: Any, name: str, request: Request) -> Reply:
    """Call a function by its arguments' names, as PostgREST does, and answer its value."""
    given = request.json()
    found = await connection.fetchrow(
        """
        select p.proargnames as names, array(
            select t::regtype::text from unnest(p.proargtypes::oid[]) with ordinality u (t, n)
            order by n) as types
        from pg_proc p where p.pronamespace = 'public'::regnamespace and p.proname = $1
        """,
        name,
    )
    if found is None or not set(given) <= set(found["names"]):
        told = f"Could not find the function public.{name}({', '.join(given)})"
        return json_reply({"code": "PGRST202", "message": told}, status=404)
    types = dict(zip(found["names"], found["types"], strict=False))
    arguments = ", ".join(f"{a} => ${n}::text::{types[a]}" for n, a in enumerate(given, 1))
    values = [None if value is None else str(value) for value in given.values()]
    value = await connection.fetchval(
        f"select to_jsonb(public.{_name(name)}({arguments}))::text", *values
    )
    return Reply(200, (value or "null").encode(), {"content-type": "application/json"})


async def _read(connection: Any, table: str, request: Request) -> Reply:
    """Read rows of a table in public."""
    columns, order, limit, where, values = "*", "", "", [], []
    for key, value in request.query.items():
        if key == "select":
            columns = ", ".join(_name(c.strip()) for c in value.split(",") if c != "*") or "*"
        elif key == "order":
            column, _, way = value.partition(".")
            order = f"order by {_name(column)} {'desc' if way == 'desc' else 'asc'}"
        elif key == "limit":
            limit = f"limit {int(value)}"
        else:
            operator, _, operand = value.partition(".")
            if operator != "eq":
                raise NotImplementedError(f"the stand-in knows no operator {operator!r}")
            values.append(operand)
            where.append(f"{_name(key)}::text = ${len(values)}")
    condition = f"where {' and '.join(where)}" if where else ""
    rows = await connection.fetchval(
        f"select coalesce(jsonb_agg(to_jsonb(t)), '[]')::text from "
        f"(select {columns} from public.{_name(table)} {condition} {order} {limit}) t",
        *values,
    )
    if "application/vnd.pgrst.object+json" in request.headers.get("accept", ""):
        found = msgspec.json.decode(rows)
        if len(found) != 1:
            told = "JSON object requested, multiple (or no) rows returned"
            details = f"The result contains {len(found)} rows"
            return json_reply({"code": "PGRST116", "message": told, "details": details}, status=406)
        return json_reply(found[0])
    return Reply(200, rows.encode(), {"content-type": "application/json"})


def _claims(request: Request) -> dict[str, Any] | None:
    """Give what the caller's token claims; None for a key that is no token, or a bad one."""
    try:
        return claims_of(request.headers.get("authorization", "").removeprefix("Bearer "))
    except ValueError:
        return None


def _name(name: str) -> str:
    if not _NAME.match(name):
        raise NotImplementedError(f"the stand-in does not take {name!r} for a name")
    return name


def behind(url: str, *, user: str, password: str) -> str:
    """Give a database's URL for another login."""
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    return urlunsplit(parts._replace(netloc=f"{user}:{password}@{host}"))
