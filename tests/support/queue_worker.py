"""A real worker process whose jobs are cheap: a few fenced steps each, counted in a table.

    python -m tests.support.queue_worker [--once]

What a job does stands in its storage path, e.g. `jobs/steps=5,ms=20`; see `short_pass`. Every
effect is a row in public.effects, which nothing keeps unique: a doubled effect is two rows. What
would be paid calls are lines of the file CALLS_FILE, which no database trouble can hold up.
"""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from daemon.logs import configure_logs
from daemon.ops.health_server import health_port
from daemon.settings import load_settings
from daemon.worker import Worker
from tests.support.worker_process import environment

if TYPE_CHECKING:
    from collections.abc import Iterator

    from daemon.fullpass.context import Pass

EFFECTS = (
    "create table if not exists public.effects (job_id uuid, step int, epoch bigint, worker text, "
    "at timestamptz default clock_timestamp())"
)


async def short_pass(work: Pass) -> tuple[dict[str, Any], dict[str, Any]]:
    """Do `steps` steps of `ms` milliseconds each, skipping those that are done.

    Further options, each for one step: `block=N:SECONDS` sleeps without the event loop,
    `gil=N:SECONDS` holds the interpreter, `hold=N:SECONDS` keeps its transaction open,
    `hang=N:SECONDS` waits in the loop, `die=N` kills the process.
    """
    options = dict(
        part.split("=") for part in (work.job.storage_path or "").split("/")[-1].split(",")
    )
    work.step = "extract_facts"

    def seconds_of(name: str, step: int) -> float:
        at, _, seconds = options.get(name, "-1:0").partition(":")
        return float(seconds) if int(at) == step else 0.0

    for step in range(int(options.get("steps", "1"))):
        if await work.fetchval(
            "select exists (select from effects where job_id = $1 and step = $2)",
            work.job.id,
            step,
        ):
            continue
        work.lease.check()
        _note_call(work, step)
        # The length of a call, and the fault of one that hangs.
        await asyncio.sleep(float(options.get("ms", "0")) / 1000 + seconds_of("hang", step))
        time.sleep(seconds_of("block", step))  # noqa: ASYNC251 - what is tested
        _hold_interpreter(seconds_of("gil", step))
        if int(options.get("die", "-1")) == step:
            os.kill(os.getpid(), 9)
        async with work.lease.fenced() as connection:
            await connection.execute(
                "insert into effects (job_id, step, epoch, worker) "
                "select id, $2, lease_epoch, worker_id from processing_jobs where id = $1",
                work.job.id,
                step,
            )
            await connection.execute(
                "select fullpass.progress($1, 'extract_facts', $2, 'x', p_advanced => true)",
                work.job.id,
                step,
            )
            if hold := seconds_of("hold", step):
                await asyncio.sleep(hold)  # the fault: a transaction held open
    return {}, {"cost_usd": 0.0, "calls": 0}


def _note_call(work: Pass, step: int) -> None:
    if path := os.environ.get("CALLS_FILE"):
        with Path(path).open("a", encoding="utf-8") as file:
            file.write(f"{time.time()} {work.job.id} {step} {work.job.lease_epoch}\n")


def _hold_interpreter(seconds: float) -> None:
    """Spend time in C code that never lets another thread run."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        re.match(r"(a+)+$", "a" * 22 + "b")


@contextmanager
def queue_worker(
    database_url: str,
    *arguments: str,
    calls: Path | None = None,
    log: Path | None = None,
    **settings: object,
) -> Iterator[subprocess.Popen[bytes]]:
    """Start a worker of short jobs; it is dead when this closes. Its log is appended to `log`."""
    quick = {"heartbeat_seconds": 0.2, "lease_seconds": 1.2, "max_concurrent_jobs": 4}
    env = environment(database_url, None, llm_provider="offline", **{**quick, **settings})
    if calls is not None:
        env["CALLS_FILE"] = str(calls)
    with Path(os.devnull if log is None else log).open("ab") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.queue_worker", *arguments],
            env=env,
            stdout=subprocess.DEVNULL,
            stderr=stderr,
        )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()


def main() -> None:
    settings = load_settings()
    configure_logs(log_format="json")
    assert settings.database_url is not None
    worker = Worker(settings, settings.database_url, run_pass=short_pass)
    with health_port(settings, worker.signs):
        asyncio.run(worker.run(once="--once" in sys.argv))


if __name__ == "__main__":
    main()
