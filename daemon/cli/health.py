"""`fullpass health`: is the worker of this very machine alive, for a container's HEALTHCHECK."""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING

import click

from daemon.cli.target import connection_to, database_url, settings_and_logs
from daemon.errors import TryAgain

if TYPE_CHECKING:
    from daemon.settings import Settings

_BEATS = 3


def check_health() -> int:
    """Print the newest worker of this host; raises TryAgain with the reason when none is live."""
    settings = settings_and_logs(quiet=True)
    click.echo(asyncio.run(_live_worker(database_url(settings), settings)))
    return 0


async def _live_worker(url: str, settings: Settings) -> str:
    # Worker ids are hostname-pid-random; the host's part is cut to 32 characters.
    host = socket.gethostname()[:32]
    async with connection_to(url) as connection:
        row = await connection.fetchrow(
            """
            select worker_id, waiting_for,
                   extract(epoch from clock_timestamp() - last_beat_at)::float8 as silent_seconds
            from fullpass.workers
            where starts_with(worker_id, $1 || '-')
            order by last_beat_at desc limit 1
            """,
            host,
        )
    if row is None:
        raise TryAgain(f"no worker of this host ({host}) has ever beaten in this database")
    silent = row["silent_seconds"]
    if silent > _BEATS * settings.heartbeat_seconds:
        raise TryAgain(
            f"{row['worker_id']} was last heard of {silent:.0f} s ago, more than "
            f"{_BEATS} × HEARTBEAT_SECONDS ({settings.heartbeat_seconds:g})"
        )
    waits = f", waiting for: {row['waiting_for']}" if row["waiting_for"] else ""
    return f"{row['worker_id']} beat {silent:.0f} s ago{waits}"
