"""`fullpass backfill`: people whose chunks are of an older kind stand in line again, at its end."""

from __future__ import annotations

import asyncio
import json

import click

from daemon.cli.target import connection_to, database_url, settings_and_logs
from daemon.fullpass.chunks import CHUNKING_VERSION


def backfill_people(*, limit: int | None, as_json: bool) -> int:
    """Queue them and say how many, and for how many no export is known."""
    url = database_url(settings_and_logs(quiet=True))
    queued, without = asyncio.run(_backfill(url, limit))
    if as_json:
        click.echo(json.dumps({
            "chunking_version": CHUNKING_VERSION, "queued": queued, "without_export": without,
        }))  # fmt: skip
        return 0
    click.echo(f"{len(queued)} queued at low priority for chunking version {CHUNKING_VERSION}")
    if without:
        click.echo(f"{without} left as they are: no export in Storage is known of them")
    return 0


async def _backfill(url: str, limit: int | None) -> tuple[list[str], int]:
    queued: list[str] = []
    without = 0
    after: str | None = None
    async with connection_to(url) as connection:
        while True:
            page = json.loads(
                await connection.fetchval(
                    "select fullpass.backfill($1, $2, $3)",
                    CHUNKING_VERSION,
                    2_000_000_000 if limit is None else limit - len(queued),
                    after,
                )
            )
            queued += page["queued"]
            without += page["without_export"]
            after = page["after"]
            if after is None or (limit is not None and len(queued) >= limit):
                return queued, without
