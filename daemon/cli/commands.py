"""Every command, its options and its help; what each does is imported when it is run.

So `fullpass --help` is quick, and this file reads as the table of contents. Help texts show how a
command is used, not only what it is called.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from daemon import __version__

if TYPE_CHECKING:
    from collections.abc import Callable
    from uuid import UUID

_Command = TypeVar("_Command", bound="Callable[..., Any]")

_SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 88}


def _json(what: str) -> Callable[[_Command], _Command]:
    return click.option("--json", "as_json", is_flag=True, help=f"Print {what} as JSON.")


def _user(text: str, *, required: bool = False) -> Callable[[_Command], _Command]:
    return click.option("--user", type=click.UUID, required=required, metavar="UUID", help=text)


_verbose = click.option(
    "-v", "--verbose", is_flag=True, help="Show the worker's log (LOG_LEVEL sets how much)."
)
_job = click.argument("job", type=click.UUID, metavar="JOB")


@click.group(
    context_settings=_SETTINGS,
    epilog="""
\b
Try it, with no key and no database:
  fullpass demo
Your own export (ChatGPT or Claude; the .zip or the conversations.json in it):
  fullpass run ~/Downloads/chatgpt-export.zip
As a service, on your own Postgres:
  export DATABASE_URL=postgresql://… ANTHROPIC_API_KEY=…
  fullpass migrate
  fullpass worker

Settings are environment variables, also read from .env. Exit codes: 0 done, 1 failed, 2 bad usage
or settings.
""",
)
@click.version_option(__version__, prog_name="fullpass")
@click.option(
    "--debug", is_flag=True, expose_value=False, help="On an error, show the traceback too."
)
def fullpass() -> None:
    """Turn a whole chat export into durable facts, a MEMORY and profile sections.

    Every fact quotes the message it comes from, no model call is paid twice, and what could not be
    read is counted and shown.
    """


@fullpass.command(
    epilog="""
\b
Examples:
  fullpass run chatgpt-export.zip
  fullpass run conversations.json --out ~/memory
  ANTHROPIC_API_KEY=… fullpass run chatgpt-export.zip
  DATABASE_URL=postgresql://… fullpass run export.zip --user 6f1c2a9e-…
  fullpass run chatgpt-export.zip --html

Stopped or killed, it goes on where it was when the same command is run again.
""",
)
@click.argument("export", type=click.Path(path_type=Path))
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("fullpass-out"),
    show_default=True,
    help="Folder for MEMORY.md, sections.json, facts.jsonl and report.json.",
)
@_user(
    "Whose export it is. Needed with DATABASE_URL; else each file is a person of its own, and a "
    "newer export is added to an earlier one by the user_id in that one's report.json."
)
@click.option("--html", is_flag=True, help="Also write report.html, a page to read and to keep.")
@_json("the report")
@_verbose
def run(
    export: Path, out: Path, user: UUID | None, *, html: bool, as_json: bool, verbose: bool
) -> int:
    """Read an export file into MEMORY.md, sections.json, facts.jsonl and report.json.

    EXPORT is the .zip as downloaded, or a conversations.json or .json.gz out of it. It is read on
    an embedded Postgres below FULLPASS_HOME, or on DATABASE_URL where that is set. Without
    ANTHROPIC_API_KEY no model is used: facts then come from plain English statements only.
    """
    from daemon.cli.run import run_export

    return run_export(export, out=out, user=user, html=html, as_json=as_json, verbose=verbose)


@fullpass.command(
    epilog="""
\b
Examples:
  fullpass demo
  fullpass demo > MEMORY.md
""",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("fullpass-out/demo"),
    show_default=True,
    help="Folder for the four files.",
)
@_verbose
def demo(out: Path, *, verbose: bool) -> int:
    """Run on the bundled example and print the MEMORY made from it.

    The example is two years of an invented person's chats. It has a database of its own below
    FULLPASS_HOME and never mixes with your data.
    """
    from daemon.cli.run import run_demo

    return run_demo(out=out, verbose=verbose)


@fullpass.command(
    epilog="""
\b
Examples:
  fullpass estimate chatgpt-export.zip
  fullpass estimate conversations.json --json | jq .dollars
  FACT_EXTRACTION_CONCURRENCY=10 fullpass estimate chatgpt-export.zip
""",
)
@click.argument("export", type=click.Path(path_type=Path))
@_json("the account")
def estimate(export: Path, *, as_json: bool) -> int:
    """Say what a pass over an export would read, ask of a model, cost and take.

    Nothing is paid: no model is called, and no database is needed. What would be left out is told
    with the reason. Chunks and extraction calls are counted as a pass makes them; what comes after
    rests on the assumptions it names.
    """
    from daemon.cli.estimate import estimate_export

    return estimate_export(export, as_json=as_json)


@fullpass.command(
    epilog="""
\b
Examples:
  fullpass worker
  fullpass worker --once --json
""",
)
@click.option(
    "--once", is_flag=True, help="End when nothing is due; exit 1 if a job failed or stays."
)
@_json("with --once, what became of the jobs")
def worker(*, once: bool, as_json: bool) -> int:
    """Work the queue of DATABASE_URL until stopped.

    SIGTERM or Ctrl-C lets paid calls land and gives the jobs back; a second one ends at once. With
    --once it waits up to a minute for near retries, then prints what was completed, what failed and
    what stays.
    """
    from daemon.cli.worker import run_worker

    return run_worker(once=once, as_json=as_json)


@fullpass.command(
    epilog="""
\b
Examples:
  fullpass migrate
  fullpass migrate --check
  fullpass migrate --print > fullpass.sql
""",
)
@click.option("--check", is_flag=True, help="Change nothing; exit 1 when behind or drifted.")
@click.option("--print", "as_sql", is_flag=True, help="Print the SQL for an editor instead.")
def migrate(*, check: bool, as_sql: bool) -> int:
    """Bring the database of DATABASE_URL to this release's schema.

    Safe to run again, and beside running workers. Rows that exist are kept; where they forbid an
    index, all else is applied and they are named, with the SQL to run.
    """
    from daemon.cli.schema import migrate_database

    return migrate_database(check=check, as_sql=as_sql)


@fullpass.command(
    epilog="""
\b
Examples:
  fullpass enqueue --user 6f1c2a9e-… --path exports/6f1c2a9e-…/export.zip
  fullpass enqueue --user 6f1c2a9e-… --path exports/big.zip --priority -10
""",
)
@_user("Whose export it is.", required=True)
@click.option("--path", required=True, help="Where it is in Storage: bucket/path/in/bucket.")
@click.option(
    "--priority", type=click.IntRange(-32768, 32767), default=0, help="Higher goes first."
)
@click.option("--file-type", type=click.Choice(["json", "zip"]), help="Default: looked at.")
def enqueue(user: UUID, path: str, priority: int, file_type: str | None) -> int:
    """Queue an export and print the job's id, and nothing else.

    The same path that is pending or running already is not queued twice: its id is printed. An app
    needs no command for this: one INSERT into processing_jobs does the same.
    """
    from daemon.cli.jobs import enqueue_export

    return enqueue_export(user=user, path=path, priority=priority, file_type=file_type)


@fullpass.command(
    epilog="""
\b
Examples:
  fullpass status
  fullpass status 0b9d3c1e-…
  fullpass status --user 6f1c2a9e-… --facts
  fullpass status 0b9d3c1e-… --json | jq .why
  fullpass status 0b9d3c1e-… --html report.html
""",
)
@click.argument("job", type=click.UUID, required=False, metavar="[JOB]")
@_user("The newest job of this person.")
@click.option("--facts", is_flag=True, help="List the person's facts with their evidence.")
@click.option("--watch", is_flag=True, help="Show it again every two seconds, until Ctrl-C.")
@click.option(
    "--html",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Write the job's report as a page instead: facts, evidence, what changed, cost.",
)
@_json("it")
def status(
    job: UUID | None,
    user: UUID | None,
    *,
    facts: bool,
    watch: bool,
    html: Path | None,
    as_json: bool,
) -> int:
    """Show the queue and its workers, or one job: its timeline and why it is where it is.

    Without DATABASE_URL it looks at the database of earlier `fullpass run` commands.
    """
    from daemon.cli.status import show_status, write_page

    if html is not None:
        if facts or watch or as_json:
            raise click.UsageError("--html goes with none of --facts, --watch and --json")
        return write_page(html, job=job, user=user)
    return show_status(job=job, user=user, facts=facts, watch=watch, as_json=as_json)


@fullpass.command(
    epilog="""
\b
Examples:
  fullpass dashboard
  fullpass dashboard --port 9000
  DASHBOARD_TOKEN=… fullpass dashboard --host 0.0.0.0 --allow-host jobs.example.org
""",
)
@click.option("--host", default="127.0.0.1", show_default=True, help="Where to listen.")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=8080, show_default=True, help="0: any free."
)
@click.option(
    "--token",
    help="What a visitor must show; better set as DASHBOARD_TOKEN, which a list of processes does "
    "not show.",
)
@click.option(
    "--allow-host", "allow_hosts", multiple=True, metavar="NAME",
    help="A name under which it is asked for, such as a proxy's; addresses always are.",
)  # fmt: skip
def dashboard(host: str, port: int, token: str | None, allow_hosts: tuple[str, ...]) -> int:
    """Serve a read-only page on the queue, its workers, costs and each job.

    On this machine alone, or on another address behind a token. It shows what `fullpass status`
    shows and never a word of a conversation. Needs the extra: pip install 'fullpass[dashboard]'.
    """
    from daemon.cli.dashboard.serve import serve_dashboard

    return serve_dashboard(host=host, port=port, token=token, allow_hosts=allow_hosts)


@fullpass.command(epilog="\b\nExample:\n  fullpass cancel 0b9d3c1e-…")
@_job
def cancel(job: UUID) -> int:
    """Cancel a job: a pending one now, a running one at its next call.

    What is saved stays saved, and `fullpass retry JOB` goes on from there.
    """
    from daemon.cli.jobs import cancel_job

    return cancel_job(job)


@fullpass.command(epilog="\b\nExample:\n  fullpass retry 0b9d3c1e-…")
@_job
def retry(job: UUID) -> int:
    """Put a failed or cancelled job back in the queue; it goes on from what it saved."""
    from daemon.cli.jobs import retry_job

    return retry_job(job)


@fullpass.command(
    epilog="""
\b
Examples:
  fullpass forget --user 6f1c2a9e-…
  fullpass forget --user 6f1c2a9e-… --yes --json
""",
)
@_user("Whose data to erase.", required=True)
@click.option("--yes", is_flag=True, help="Do not ask.")
@_json("the counts")
def forget(user: UUID, *, yes: bool, as_json: bool) -> int:
    """Erase everything derived from a person: chunks, facts, MEMORY, sections, model replies.

    Their running jobs are cancelled. Token and cost totals stay, without content. The export itself
    lies in your Storage and is not touched.
    """
    from daemon.cli.jobs import forget_person

    return forget_person(user, yes=yes, as_json=as_json)


@fullpass.command(epilog="\b\nExample, in a Dockerfile:\n  HEALTHCHECK CMD fullpass health")
def health() -> int:
    """Exit 0 when this machine's worker is live, 1 with the reason when it is not.

    Live means that a worker started on this host has beaten within three heartbeats, by the
    database's clock.
    """
    from daemon.cli.health import check_health

    return check_health()


@fullpass.command(
    epilog="""
\b
Examples:
  fullpass doctor
  fullpass doctor --json | jq '.checks[] | select(.state == "mend")'
""",
)
@_json("the findings")
def doctor(*, as_json: bool) -> int:
    """Check database, rights, Storage, model, memory and clock; each line ok or what to do.

    Changes nothing and pays for nothing. Exit 1 when something must be mended before a worker can
    do its work.
    """
    from daemon.cli.doctor import see_doctor

    return see_doctor(as_json=as_json)


@fullpass.command(epilog="\b\nExamples:\n  fullpass prune\n  fullpass prune --json")
@_json("the counts")
def prune(*, as_json: bool) -> int:
    """Drop what is older than PIPELINE_RETENTION_DAYS: timelines, texts of model replies.

    Workers do the same by themselves, a little every hour. Facts, MEMORY and cost totals stay until
    `fullpass forget`.
    """
    from daemon.cli.prune import prune_database

    return prune_database(as_json=as_json)


@fullpass.command(
    epilog="\b\nExamples:\n  fullpass backfill --limit 100\n  fullpass backfill --json"
)
@click.option("--limit", type=click.IntRange(min=1), help="Queue at most this many. Default: all.")
@_json("what was queued")
def backfill(limit: int | None, *, as_json: bool) -> int:
    """Queue again, at low priority, people whose chunks were cut by an older algorithm.

    Each is queued once for a version of the algorithm, with the newest export that was read of each
    source. What did not change is not paid for again.
    """
    from daemon.cli.backfill import backfill_people

    return backfill_people(limit=limit, as_json=as_json)
