"""`fullpass run` and `fullpass demo`: one export from file to MEMORY, in this process.

The job is one of the queue like any other, due at infinity so that no other worker takes it; all
that an interrupted run had saved or paid for is found again by the next one. Owns the embedded
database of people who have none.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import stat
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import NAMESPACE_URL, UUID, uuid5

import asyncpg
import click
import structlog

import daemon
from daemon import migrations
from daemon.cli.progress import Shown, progress_shown
from daemon.cli.results import (
    Results,
    prepare_folder,
    results_of,
    write_page,
    write_results,
)
from daemon.cli.summary import summary
from daemon.cli.target import (
    connection_to,
    local_data,
    require_schema,
    settings_and_logs,
)
from daemon.cli.terminal import printable_lines
from daemon.embedded import EmbeddedPostgres
from daemon.errors import FullpassError, GiveUp, TryAgain, UsageError
from daemon.settings import load_settings
from daemon.worker import Worker

if TYPE_CHECKING:
    from daemon.settings import Settings

_LOOK_AGAIN_SECONDS = 0.5

# What the command says at its end in its own words is not said by the log as well.
_TOLD_AT_THE_END = frozenset({"job.error", "worker.paused"})


@dataclass(frozen=True, slots=True)
class _Order:
    """What to run, on what, for whom."""

    export: Path
    out: Path
    settings: Settings
    user: UUID
    embedded: EmbeddedPostgres | None


@dataclass(frozen=True, slots=True)
class _Ending:
    """How the job ended for this command: its status, and why if it is not complete."""

    status: str
    reason: str
    stopped: bool = False
    """By the person, with Ctrl-C or SIGTERM."""


def run_export(
    export: Path, *, out: Path, user: UUID | None, html: bool, as_json: bool, verbose: bool
) -> int:
    """Run a pass over an export file; return the exit code."""
    export = readable(export)
    settings = _settings(verbose=verbose)
    embedded = None
    if settings.database_url is None:
        embedded = EmbeddedPostgres(local_data(settings))
    elif user is None:
        raise UsageError(
            "--user: needed where DATABASE_URL is set: whose export is it? Give the UUID of a "
            "user of that database, or unset DATABASE_URL to run on an embedded one"
        )
    prepare_folder(out)
    order = _Order(export, out, settings, user or local_person(export), embedded)
    results = _carried_out(order)
    if html:
        write_page(results, out / "report.html")
    if as_json:
        click.echo(json.dumps(results.report, ensure_ascii=False))
    else:
        click.echo(printable_lines(summary(results.report, folder=out, html=html)))
    return 0


def run_demo(*, out: Path, verbose: bool) -> int:
    """Run on the bundled example and print its MEMORY on stdout, the account on stderr."""
    settings = _settings(verbose=verbose)
    prepare_folder(out)
    folder = settings.fullpass_home / "demo" / "postgres"
    example = bundled_example()

    def order() -> _Order:
        return _Order(example, out, settings, local_person(example), EmbeddedPostgres(folder))

    try:
        results = _carried_out(order())
    except migrations.MigrationsBlocked:
        # Of a build between two releases: it holds nothing but the example, so it is made anew.
        shutil.rmtree(folder)
        results = _carried_out(order())
    _print_memory(results.memory)
    click.echo(printable_lines(summary(results.report, folder=out)), err=True)
    return 0


def local_person(export: Path) -> UUID:
    """Return the user of an export on the embedded database: whoever this file's person is.

    Nothing in two files says that they are one person's, and facts of two people must never meet in
    one MEMORY; `--user` is how to say it.
    """
    return uuid5(NAMESPACE_URL, export.as_uri())


def readable(export: Path) -> Path:
    """Return the export's absolute path, or raise UsageError saying what is there instead."""
    try:
        path = export.expanduser().resolve()
        if stat.S_ISDIR(path.stat().st_mode):
            inside = sorted(
                p.name for p in path.iterdir() if p.suffix == ".zip" or "conversations" in p.name
            )
            hint = f", e.g. {export / inside[0]}" if inside else ""
            raise UsageError(f"{export}: is a folder: give the export file itself{hint}")
        if not stat.S_ISREG(path.stat().st_mode):
            raise UsageError(f"{export}: is not a regular file: give the export file itself")
        with path.open("rb") as file:
            file.read(1)
    except FileNotFoundError as error:
        raise UsageError(
            f"{export}: no such file: give the .zip that ChatGPT or Claude sent you, or the "
            "conversations.json in it"
        ) from error
    except OSError as error:
        raise UsageError(f"{export}: cannot be read ({error.strerror})") from error
    return path


def bundled_example() -> Path:
    """Return the example: inside the package when installed, beside it in a checkout."""
    package = Path(daemon.__file__).resolve().parent
    for folder in (package / "_examples", package.parent / "examples"):
        if (folder / "conversations.json").is_file():
            return folder / "conversations.json"
    raise GiveUp(f"the bundled example is missing from {package}: install fullpass again")


def _settings(*, verbose: bool) -> Settings:
    """Load the settings of a run: local files, no daily limit, offline where there is no key."""
    settings = settings_and_logs(quiet=not verbose)
    if "log_level" not in settings.model_fields_set and not verbose:
        known: dict[str, Any] = structlog.get_config()
        structlog.configure(processors=[_untold, *known["processors"]])
    overrides: dict[str, Any] = {"allow_local_files": True, "max_jobs_per_user_per_day": None}
    keyless = settings.llm_provider == "anthropic" and settings.anthropic_api_key is None
    if keyless and "llm_provider" not in settings.model_fields_set:
        overrides["llm_provider"] = "offline"
    return load_settings(**overrides)


def _untold(_logger: object, _method: str, event: Any) -> Any:
    if event.get("event") in _TOLD_AT_THE_END:
        raise structlog.DropEvent
    return event


def _carried_out(order: _Order) -> Results:
    """Start what is needed, run the pass, write the files. Raises what ended it otherwise."""
    started = time.monotonic()
    if order.embedded is None:
        url = order.settings.database_url or ""
        return asyncio.run(_run(order, url, started))
    with order.embedded as server:
        return asyncio.run(_run(order, server.url, started))


async def _run(order: _Order, url: str, started: float) -> Results:
    if order.embedded is None:
        await require_schema(url)
    else:
        await migrations.apply(url)
        await _release_interrupted(url)
    job_id = await _enqueued(url, order)
    shown = Shown(started)
    async with progress_shown(url, job_id, shown):
        ending = await _worked(order, url, job_id, shown)
    again = "run the same command again to go on from what is saved"
    if ending.stopped:
        raise GiveUp(f"stopped before the end: {again}")
    if ending.status == "failed":
        raise GiveUp(ending.reason)
    if ending.status != "complete":
        raise TryAgain(f"{ending.reason.rstrip('.')}; nothing is lost: {again}")
    async with connection_to(url) as connection:
        results = await results_of(connection, job_id, seconds=time.monotonic() - started)
    write_results(results, order.out)
    return results


async def _release_interrupted(url: str) -> None:
    """Give back what a killed run left at work in our own database: nobody alive holds it.

    The server ended with that process, and this one has the database to itself. A person's kill is
    no crash of the job, so it is a release rather than an expired lease.
    """
    async with connection_to(url) as connection:
        await connection.execute(
            """
            select fullpass.release(id, lease_epoch, 0, 'its run was interrupted', 0)
            from public.processing_jobs where status = 'processing' and lease_epoch > 0
            """
        )


async def _enqueued(url: str, order: _Order) -> UUID:
    """Queue the export where no other worker takes it, or find the job an earlier run left."""
    try:
        async with connection_to(url) as connection:
            job_id: UUID = await connection.fetchval(
                "select fullpass.enqueue($1, $2, 0::smallint, 'infinity')",
                order.user,
                order.export.as_uri(),
            )
    except asyncpg.ForeignKeyViolationError as error:
        raise UsageError(f"--user: {order.user} is nobody in auth.users: check the id") from error
    return job_id


async def _worked(order: _Order, url: str, job_id: UUID, shown: Shown) -> _Ending:
    """Work the job in this process, once nobody else does, and say how it ended."""
    while True:
        await _until_free(url, job_id, shown)
        worker = Worker(order.settings, url, only=job_id)
        running = asyncio.ensure_future(worker.run(once=True))
        await asyncio.sleep(0)  # it sets its signal handlers first; ours stands before its SIGINT
        stop = _stop_signal(shown)
        tally = await running
        if job_id not in tally.awaiting or stop.is_set():
            break
        # Its batches are at work elsewhere: nothing runs here until the next look.
        shown.note = f"Waiting for {tally.left[job_id]}"
        if await _stopped_within(tally.awaiting[job_id], stop):
            break
        shown.note = None
    if job_id in tally.failed:
        return _Ending("failed", tally.failed[job_id])
    async with connection_to(url) as connection:
        row = await connection.fetchrow(
            "select status, error_message from public.processing_jobs where id = $1", job_id
        )
    status = "gone" if row is None else row["status"]
    reason = tally.left.get(job_id) or (row and row["error_message"]) or f"the job is {status}"
    return _Ending(status, reason, stopped=stop.is_set() and status != "complete")


async def _stopped_within(seconds: float, stop: asyncio.Event) -> bool:
    """Wait so long; True as soon as the person wants to stop. No worker listens meanwhile."""
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    try:
        async with asyncio.timeout(seconds):
            await stop.wait()
    except TimeoutError:
        return False
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)
    return True


def _stop_signal(shown: Shown) -> asyncio.Event:
    """On Ctrl-C say what happens; the worker's own SIGTERM does it: first drain, then exit."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def asked() -> None:
        if not stop.is_set():
            stop.set()
            shown.note = "Stopping when running calls have landed"
        elif sys.stderr.isatty():
            # The process ends here and now: give the terminal its cursor back first.
            sys.stderr.write("\x1b[?25h\nstopped at once; the same command goes on from here\n")
            sys.stderr.flush()
        os.kill(os.getpid(), signal.SIGTERM)

    loop.add_signal_handler(signal.SIGINT, asked)
    return stop


async def _until_free(url: str, job_id: UUID, shown: Shown) -> None:
    """Wait while another process holds this job, or works another one of the same person."""
    while True:
        async with connection_to(url) as connection:
            holder = await connection.fetchrow(
                """
                select r.worker_id, r.id = j.id as same,
                       extract(epoch from r.lease_expires_at - clock_timestamp())::float8 as left
                from public.processing_jobs j
                join public.processing_jobs r on r.user_id = j.user_id
                where j.id = $1 and j.status in ('pending', 'processing')
                  and r.status = 'processing' and r.lease_epoch > 0
                  and r.lease_expires_at > clock_timestamp()
                """,
                job_id,
            )
        if holder is None:
            shown.note = None
            return
        what = "this export" if holder["same"] else "another export of this person"
        shown.note = (
            f"Waiting: {holder['worker_id']} has {what} (lease ends in {holder['left']:.0f} s)"
        )
        await asyncio.sleep(_LOOK_AGAIN_SECONDS)


def _print_memory(memory: str) -> None:
    """Render MEMORY on a terminal; write it as it is into a pipe."""
    if not sys.stdout.isatty():
        click.echo(memory, nl=False)
        return
    from rich.console import Console
    from rich.markdown import Markdown

    # A link is shown with where it leads: a terminal's own would hide that.
    Console().print(Markdown(printable_lines(memory), hyperlinks=False))
    click.echo()


__all__ = ["FullpassError", "bundled_example", "readable", "run_demo", "run_export"]
