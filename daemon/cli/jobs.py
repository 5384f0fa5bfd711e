"""`enqueue`, `cancel`, `retry`, `forget`: the SQL functions of the lease protocol, for people."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import asyncpg
import click

from daemon.cli.target import connection_to, database_url, known_database, settings_and_logs
from daemon.errors import GiveUp, UsageError

if TYPE_CHECKING:
    from uuid import UUID


def enqueue_export(*, user: UUID, path: str, priority: int, file_type: str | None) -> int:
    """Queue one export and print its job's id alone."""
    path = path.strip()
    if not path.startswith("file://") and "/" not in path.strip("/"):
        raise UsageError(f"--path: {path!r} is no place in Storage: give bucket/path/in/bucket")
    url = database_url(settings_and_logs(quiet=True))
    try:
        job_id = asyncio.run(
            _value(
                url,
                "select fullpass.enqueue($1, $2, $3::smallint, p_file_type => $4)",
                user,
                path,
                priority,
                file_type,
            )
        )
    except asyncpg.ForeignKeyViolationError as error:
        raise UsageError(f"--user: {user} is nobody in auth.users: check the id") from error
    click.echo(str(job_id))
    return 0


def cancel_job(job: UUID) -> int:
    """Cancel a job and say what that means for it."""
    with known_database(settings_and_logs(quiet=True)) as url:
        if not asyncio.run(_value(url, "select fullpass.cancel($1)", job)):
            raise GiveUp(f"{job} cannot be cancelled: {asyncio.run(_state(url, job))}")
        state = asyncio.run(_state(url, job))
    if state == "it is processing":
        click.echo(f"{job} is asked to stop: its worker does so at its next call")
    else:
        click.echo(f"{job} is cancelled; `fullpass retry {job}` would go on from what it saved")
    return 0


def retry_job(job: UUID) -> int:
    """Queue a failed or cancelled job again."""
    with known_database(settings_and_logs(quiet=True)) as url:
        if not asyncio.run(_value(url, "select fullpass.retry($1)", job)):
            state = asyncio.run(_state(url, job))
            if state in {"it is failed", "it is cancelled"}:
                state += ", but the same path is pending already in another job"
            raise GiveUp(f"{job} cannot be retried: {state}")
    click.echo(f"{job} is pending again and goes on from what it saved")
    return 0


def forget_person(user: UUID, *, yes: bool, as_json: bool) -> int:
    """Erase what was derived from a person, after a question."""
    with known_database(settings_and_logs(quiet=True)) as url:
        if not yes:
            click.confirm(f"Erase everything derived from {user}?", abort=True, err=True)
        counts: dict[str, int] = json.loads(
            asyncio.run(_value(url, "select fullpass.forget($1)", user))
        )
    if as_json:
        click.echo(json.dumps({"user_id": str(user), "erased": counts}))
        return 0
    for name, count in counts.items():
        click.echo(f"{count:>8}  {name.replace('_', ' ')}")
    click.echo(f"Nothing derived from {user} is left but token and cost totals.")
    return 0


async def _value(url: str, query: str, *arguments: object) -> Any:
    async with connection_to(url) as connection:
        return await connection.fetchval(query, *arguments)


async def _state(url: str, job: UUID) -> str:
    status = await _value(url, "select status from public.processing_jobs where id = $1", job)
    return "there is no such job" if status is None else f"it is {status}"
