"""`fullpass status`: the queue on one screen, one job's story, a person's facts."""

from __future__ import annotations

import asyncio
import json
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NoReturn
from uuid import UUID

import click
from rich.console import Console

from daemon.cli.results import results_of
from daemon.cli.results import write_page as results_page
from daemon.cli.screen import facts_screen, job_screen, overview_screen
from daemon.cli.target import connection_to, known_database, settings_and_logs
from daemon.errors import GiveUp, OutOfReach, UsageError
from daemon.logs import masked
from daemon.ops.overview import overview
from daemon.ops.status import facts_of, job_account, newest_job

if TYPE_CHECKING:
    from pathlib import Path

    from daemon.database import Connection

_WATCH_SECONDS = 2.0


def show_status(
    *, job: UUID | None, user: UUID | None, facts: bool, watch: bool, as_json: bool
) -> int:
    """Show what was asked for, once or until Ctrl-C."""
    if watch and as_json:
        raise UsageError("--watch and --json exclude each other")
    settings = settings_and_logs(quiet=True)
    if facts and job is None and user is None and settings.database_url is not None:
        raise UsageError("--facts: whose? Name a JOB or give --user")
    with known_database(settings) as url:
        try:
            asyncio.run(_show(url, job=job, user=user, facts=facts, watch=watch, as_json=as_json))
        except KeyboardInterrupt:
            if not watch:  # Ctrl-C is how watching ends
                raise
    return 0


def write_page(file: Path, *, job: UUID | None, user: UUID | None) -> int:
    """Write the report of a job, or of the person's newest one, as an HTML page."""
    settings = settings_and_logs(quiet=True)
    with known_database(settings) as url:
        asyncio.run(_write_page(url, file, job=job, user=user))
    click.echo(f"wrote {file}", err=True)
    return 0


async def _write_page(url: str, file: Path, *, job: UUID | None, user: UUID | None) -> None:
    async with connection_to(url) as connection:
        account = await _account(connection, job=job, user=user, facts=False, of_a_job=True)
        started, ended = account["started_at"], account["completed_at"]
        seconds = 0.0
        if started and ended:
            took = datetime.fromisoformat(ended) - datetime.fromisoformat(started)
            seconds = took.total_seconds()
        results = await results_of(connection, UUID(account["id"]), seconds=seconds)
    results_page(results, file)


async def _show(
    url: str, *, job: UUID | None, user: UUID | None, facts: bool, watch: bool, as_json: bool
) -> None:
    console = Console(highlight=False)
    if watch:
        await _keep_showing(console, url, job=job, user=user, facts=facts)
    async with connection_to(url) as connection:
        account = await _account(connection, job=job, user=user, facts=facts)
    if as_json:
        click.echo(json.dumps(account, ensure_ascii=False))
    else:
        _print(console, account)


async def _keep_showing(
    console: Console, url: str, *, job: UUID | None, user: UUID | None, facts: bool
) -> NoReturn:
    """Show it again and again; a database that is away is shown as that, until it is back."""
    while True:
        try:
            async with connection_to(url) as connection:
                while True:
                    started = time.monotonic()
                    account = await _account(connection, job=job, user=user, facts=facts)
                    with console.capture() as screen:
                        _print(console, account)
                    _redraw(console, screen.get())
                    await asyncio.sleep(max(0.1, _WATCH_SECONDS + started - time.monotonic()))
        except OutOfReach as error:
            _redraw(console, f"The database does not answer: {masked(str(error))}\n")
            await asyncio.sleep(_WATCH_SECONDS)


def _redraw(console: Console, text: str) -> None:
    """Replace what the terminal shows; elsewhere one screen follows the other."""
    console.clear()
    at = f"{datetime.now(UTC):%H:%M:%S} UTC, again every {_WATCH_SECONDS:g} s until Ctrl-C"
    if console.is_terminal:
        text = _fitting(text, console.height - 4)
    console.out(f"{at}\n\n{text}", highlight=False)


def _fitting(text: str, rows: int) -> str:
    """Cut a screen that is too long at its end: its first line must not scroll away."""
    lines = text.splitlines()
    if len(lines) <= rows:
        return text
    kept = lines[: max(1, rows - 1)]
    return "\n".join([*kept, f"… {len(lines) - len(kept)} more lines without --watch"]) + "\n"


async def _account(
    connection: Connection,
    *,
    job: UUID | None,
    user: UUID | None,
    facts: bool,
    of_a_job: bool = False,
) -> dict[str, Any]:
    """Ask for what is to be shown: the queue, a job, or a person's facts."""
    if job is None and user is None and not (facts or of_a_job):
        return await overview(connection)
    if job is None and user is not None and facts:
        return {"user_id": str(user), "facts": await facts_of(connection, user)}
    if job is None:
        job = await newest_job(connection, user)
        if job is None:
            raise GiveUp(f"{user} has no job: enqueue one with `fullpass enqueue --user {user} …`")
    account = await job_account(connection, job)
    if account is None:
        raise GiveUp(f"{job}: there is no such job")
    if user is not None and account["user_id"] != str(user):
        raise GiveUp(f"{job} is not a job of {user}")
    if facts:
        person = UUID(account["user_id"])
        return {"user_id": str(person), "facts": await facts_of(connection, person)}
    return account


def _print(console: Console, account: dict[str, Any]) -> None:
    if "queue" in account:
        overview_screen(console, account)
    elif "events" in account:
        job_screen(console, account)
    else:
        facts_screen(console, account)
