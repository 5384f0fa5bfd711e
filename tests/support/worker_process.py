"""A worker for tests: in this process where that suffices, as a real process where it is killed."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from daemon.settings import load_settings
from daemon.worker import Tally, Worker

if TYPE_CHECKING:
    from collections.abc import Iterator

QUICK = {
    "poll_interval_seconds": 0.1,
    "heartbeat_seconds": 0.3,
    "lease_seconds": 2.0,
    "shutdown_grace_seconds": 5.0,
    "max_jobs_per_user_per_day": None,
    "allow_local_files": True,
}


def environment(database_url: str, llm_url: str | None, **settings: object) -> dict[str, str]:
    """Return the environment of a worker process with quick beats and these settings."""
    named = {**QUICK, "max_jobs_per_user_per_day": 0, **settings}
    env = {k: v for k, v in os.environ.items() if k.upper() != "DATABASE_URL"}
    env |= {name.upper(): str(value) for name, value in named.items()}
    env["DATABASE_URL"] = database_url
    if llm_url is not None:
        env |= {"ANTHROPIC_BASE_URL": llm_url, "ANTHROPIC_API_KEY": "test-key"}
    return env


async def work_once(database_url: str, llm_url: str | None, **settings: Any) -> Tally:
    """Run a worker in this process until nothing is due."""
    provider: dict[str, Any] = (
        {"llm_provider": "offline"}
        if llm_url is None
        else {"anthropic_base_url": llm_url, "anthropic_api_key": "test-key"}
    )
    configured = load_settings(
        **{**QUICK, **provider, "database_url": database_url, **settings},
    )
    return await Worker(configured, database_url).run(once=True)


@contextmanager
def worker_process(
    database_url: str, llm_url: str | None, *arguments: str, **settings: object
) -> Iterator[subprocess.Popen[bytes]]:
    """Start `fullpass worker …` as a process of its own; it is dead when this closes."""
    process = subprocess.Popen(
        [sys.executable, "-m", "daemon", "worker", *arguments],
        env=environment(database_url, llm_url, **settings),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()
