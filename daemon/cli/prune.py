"""`fullpass prune`: drop now what workers would drop a little at a time."""

from __future__ import annotations

import asyncio
import json
from collections import Counter

import click

from daemon.cli.target import connection_to, database_url, settings_and_logs

_AT_ONCE = 1000


def prune_database(*, as_json: bool) -> int:
    """Prune until nothing old is left, and say how much it was."""
    settings = settings_and_logs(quiet=True)
    days = settings.pipeline_retention_days
    dropped = asyncio.run(_prune(database_url(settings), days))
    if as_json:
        click.echo(json.dumps({"older_than_days": days, "dropped": dropped}))
        return 0
    for name, count in dropped.items():
        click.echo(f"{count:>8}  {name.replace('_', ' ')}")
    click.echo(f"Nothing of these is older than {days} days any more.")
    return 0


async def _prune(url: str, days: int) -> dict[str, int]:
    dropped: Counter[str] = Counter()
    async with connection_to(url) as connection:
        while True:
            # Each call is a short transaction of its own: nobody waits for a large prune.
            counts: dict[str, int] = json.loads(
                await connection.fetchval("select fullpass.prune($1, $2)", days, _AT_ONCE)
            )
            dropped.update(counts)
            if max(counts.values()) < _AT_ONCE:
                return dict(dropped)
