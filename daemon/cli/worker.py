"""`fullpass worker`: the daemon, and with --once one round of it with an account."""

from __future__ import annotations

import asyncio
import gc
import importlib
import json
import pkgutil
import signal
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

import daemon
from daemon.cli.target import (
    SchemaBehind,
    connection_to,
    database_url,
    require_schema,
    settings_and_logs,
)
from daemon.cli.terminal import printable_lines
from daemon.errors import TryAgain
from daemon.logs import get_logger
from daemon.ops.health_server import health_port
from daemon.ops.overview import due_jobs
from daemon.ops.telemetry import telemetry
from daemon.worker import Worker

if TYPE_CHECKING:
    from collections.abc import Iterator

    from daemon.ops.alerts import Alarm
    from daemon.worker import Tally

_log = get_logger()
_LONGEST_PAUSE_SECONDS = 30.0
_OTHERS = (
    "daemon.cli.", "daemon.export.", "daemon.fullpass.reading", "daemon.fullpass.estimate",
    "daemon.embedded", "daemon.ops.costs", "daemon.ops.status", "daemon.ops.trends",
    "daemon.ops.why",
)  # fmt: skip
_IF_CHOSEN = ("daemon.llm.offline", "daemon.llm.bedrock", "daemon.llm.vertex", "daemon.ops.mail")


def run_worker(*, once: bool, as_json: bool) -> int:
    """Serve until told to stop; with `once`, until nothing is due. Return the exit code."""
    settings = settings_and_logs()
    url = database_url(settings)
    import_everything()
    worker = Worker(settings, url)
    with telemetry(settings):
        if not once:
            with health_port(settings, worker.signs), _ended_by_sigterm():
                asyncio.run(_serve(worker, url, once=False))
            return 0
        tally, still_due = asyncio.run(_serve(worker, url, once=True))
    account = _account(tally, still_due)
    told = json.dumps(account, ensure_ascii=False) if as_json else printable_lines(_table(account))
    click.echo(told)
    return 1 if account["failed"] or account["left"] else 0


def import_everything() -> None:
    """Import every module now: a deploy that lacks one must fail before it claims a job.

    Not what only other commands run: a screen that cannot be drawn is no reason to do no work, and
    takes memory. Nor what only the reading process runs, which holds it itself; what one setting
    brings is imported where the worker is built from the settings. What stays for good needs no
    look for garbage, neither while it comes nor ever after.
    """
    gc.disable()
    for module in pkgutil.walk_packages(daemon.__path__, "daemon."):
        if not module.name.startswith((*_OTHERS, *_IF_CHOSEN)):
            importlib.import_module(module.name)
    gc.freeze()
    gc.enable()


@contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """End well at a SIGTERM that comes before the worker listens for it itself.

    Without a handler the first process of a container would not hear it at all, and a worker that
    waits for its database would be killed when the platform's patience is over.
    """

    def ended(_number: int, _frame: object) -> None:
        raise SystemExit(0)

    before = signal.signal(signal.SIGTERM, ended)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


async def _serve(worker: Worker, url: str, *, once: bool) -> tuple[Tally, list[dict[str, Any]]]:
    await _schema_ready(url, patient=not once, alarm=worker.alarm)
    tally = await worker.run(once=once)
    if not once:
        return tally, []
    async with connection_to(url) as connection:
        return tally, await due_jobs(connection)


async def _schema_ready(url: str, *, patient: bool, alarm: Alarm) -> None:
    """Require the schema; a daemon waits for a database that is not up yet, `--once` does not."""
    pause = 0.5
    while True:
        try:
            await require_schema(url)
        except SchemaBehind:
            raise
        except TryAgain as error:
            if not patient:
                raise
            _log.warning("worker.waiting", waits_for=str(error), seconds=pause)
            alarm.out_of_reach(str(error))
            await asyncio.sleep(pause)
            pause = min(_LONGEST_PAUSE_SECONDS, 2 * pause)
        else:
            return


def _account(tally: Tally, still_due: list[dict[str, Any]]) -> dict[str, Any]:
    """Put together what became of each job; `left` has those that are pending or due."""
    ended = {*tally.completed, *tally.failed}
    left = {str(i): why for i, why in tally.left.items() if i not in ended}
    for job in still_due:
        left.setdefault(job["id"], job["why"])
    return {
        "completed": [str(i) for i in tally.completed],
        "failed": {str(i): why for i, why in tally.failed.items()},
        "left": left,
    }


def _table(account: dict[str, Any]) -> str:
    rows = [("completed", job, "") for job in account["completed"]]
    rows += [("failed", job, why) for job, why in account["failed"].items()]
    rows += [("left", job, why) for job, why in account["left"].items()]
    lines = [f"{state:<10} {job}  {why}".rstrip() for state, job, why in rows]
    counts = ", ".join(f"{len(account[name])} {name}" for name in ("completed", "failed", "left"))
    return "\n".join([*lines, counts if rows else "nothing was due"])
