"""Answers requests: asks the database read-only, in one short transaction a page, and makes pages.

Each transaction sets its own time-out, for a pooler keeps nothing else (promise 8). What the
database says no to becomes a page that says why and what to do; the site stays up without it.
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from importlib.resources import files
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import parse_qs
from uuid import UUID

from daemon.cli.dashboard.frame import login, trouble
from daemon.cli.dashboard.guard import COOKIE, COOKIE_SECONDS, Access, Guarded
from daemon.cli.dashboard.job import NEWEST_EVENTS, job_page
from daemon.cli.dashboard.now import now_page
from daemon.cli.dashboard.past import past_page
from daemon.cli.target import SchemaBehind, schema_expected
from daemon.database import database_errors
from daemon.errors import NotAllowed, OutOfReach
from daemon.logs import get_logger, masked
from daemon.ops.overview import overview
from daemon.ops.status import job_account, newest_job
from daemon.ops.trends import ended_last, hours, steps_at_work, trends

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.types import ASGIApp

    from daemon.database import Connection, Pool

    Page = Callable[[Request], Awaitable[Response]]

_STATEMENT_SECONDS = 5
_ACQUIRE_SECONDS = 5.0
_LONGEST_FORM_BYTES = 4096
_FORM_SECONDS = 10.0
"""For a form to arrive whole: one that comes drop by drop would hold its place for ever."""

_log = get_logger()


def application(pool: Pool, access: Access) -> ASGIApp:
    """Return the site over a pool of connections."""
    from starlette.applications import Starlette
    from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response
    from starlette.routing import Route

    async def now(_request: Request) -> Response:
        async with _reading(pool) as connection:
            account = await overview(connection)
            running = [UUID(job["job_id"]) for job in account["running"]]
            steps = await steps_at_work(connection, running) if running else {}
            ended = await ended_last(connection)
            hourly = await hours(connection)
        return HTMLResponse(now_page(account, steps, ended, hourly))

    async def past(_request: Request) -> Response:
        async with _reading(pool) as connection:
            told = await trends(connection)
        return HTMLResponse(past_page(told))

    async def job(request: Request) -> Response:
        async with _reading(pool) as connection:
            account = await job_account(
                connection, request.path_params["job_id"], newest_events=NEWEST_EVENTS
            )
        if account is None:
            return HTMLResponse(trouble("No such job", "There is no job of this id."), 404)
        return HTMLResponse(job_page(account))

    async def find(request: Request) -> Response:
        try:
            asked = UUID(request.query_params.get("id", "").strip())
        except ValueError:
            return HTMLResponse(trouble("No such id", "Ids look like 0b9d3c1e-…: 32 digits."), 400)
        async with _reading(pool) as connection:
            known = await job_account(connection, asked)
            found = asked if known is not None else await newest_job(connection, asked)
        if found is None:
            return HTMLResponse(trouble("Not found", "No job and no person has this id."), 404)
        return RedirectResponse(f"/jobs/{found}", status_code=303)

    async def log_in(request: Request) -> Response:
        if request.method != "POST":
            return HTMLResponse(login(wrong=False))
        try:
            async with asyncio.timeout(_FORM_SECONDS):
                given = await _token_in(request)
        except TimeoutError:
            told = "The form did not arrive in time.\n"
            return PlainTextResponse(told, 408, {"connection": "close"})
        if given is None or not access.is_token(given):
            _log.warning("dashboard.refused", client=request.client.host if request.client else "")
            return HTMLResponse(login(wrong=True), 401)
        response = RedirectResponse("/", status_code=303)
        response.set_cookie(
            COOKIE, access.new_cookie(), max_age=COOKIE_SECONDS, httponly=True, samesite="strict",
            secure=request.url.scheme == "https",
        )  # fmt: skip
        return response

    style = "".join(
        files(package).joinpath(name).read_text(encoding="utf-8")
        for package, name in (("daemon.cli", "page.css"), (__package__, "dashboard.css"))
    )
    script = files(__package__).joinpath("live.js").read_text(encoding="utf-8")

    async def styles(_request: Request) -> Response:
        return Response(style, media_type="text/css")

    async def live(_request: Request) -> Response:
        return Response(script, media_type="text/javascript")

    async def nowhere(_request: Request, _error: Exception) -> Response:
        return HTMLResponse(trouble("No such page", "There is no such page."), 404)

    routes = [
        Route("/", _told(now)),
        Route("/past", _told(past)),
        Route("/jobs/{job_id:uuid}", _told(job)),
        Route("/find", _told(find)),
        Route("/style.css", styles),
        Route("/live.js", live),
        Route("/login", log_in, methods=["GET", "POST"]),
    ]
    return Guarded(Starlette(routes=routes, exception_handlers={404: nowhere}), access)


@asynccontextmanager
async def _reading(pool: Pool) -> AsyncIterator[Connection]:
    """Give a connection in a read-only transaction that sees one moment and ends in time."""
    with database_errors(), schema_expected():
        async with (
            pool.acquire(timeout=_ACQUIRE_SECONDS) as connection,
            connection.transaction(isolation="repeatable_read", readonly=True),
        ):
            await connection.execute(
                f"set local statement_timeout = '{_STATEMENT_SECONDS}s'; "
                f"set local idle_in_transaction_session_timeout = '{2 * _STATEMENT_SECONDS}s'"
            )
            yield cast("Connection", connection)  # what a pool lends is one to all who use it


def _told(ask: Page) -> Page:
    """Turn what goes wrong into a page that says what to do; the site goes on."""
    from starlette.responses import HTMLResponse

    async def page(request: Request) -> Response:
        try:
            return await ask(request)
        except (OutOfReach, SchemaBehind) as error:
            return HTMLResponse(trouble("The database does not answer", masked(str(error))), 503)
        except NotAllowed as error:
            told = (
                f"This login of the database may not read it ({masked(str(error))}). A member of "
                "fullpass_reader sees the first two pages, one of fullpass_worker jobs as well."
            )
            return HTMLResponse(trouble("Not for this login", told), 403)
        except Exception as error:  # noqa: BLE001 - the last stop: logged, and told without detail
            _log.error(
                "dashboard.failed", path=request.url.path, error_type=type(error).__name__,
                error=str(error).partition("\n")[0],
            )  # fmt: skip
            return HTMLResponse(
                trouble("This page failed", f"{type(error).__name__}: the log has more."), 500
            )

    return page


async def _token_in(request: Request) -> bytes | None:
    """Return the token of a posted form; None if there is none, or the form is overlong."""
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > _LONGEST_FORM_BYTES:
            return None
    form: dict[str, Any] = parse_qs(body.decode("utf-8", "replace"))
    return form["token"][0].strip().encode() if "token" in form else None
