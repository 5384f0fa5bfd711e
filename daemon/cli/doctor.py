"""`fullpass doctor`: each check on a line, and what to do where something is wrong."""

from __future__ import annotations

import asyncio
import json
from dataclasses import asdict
from typing import TYPE_CHECKING

import click
from rich.console import Console

from daemon.cli.screen import aligned
from daemon.cli.target import database_url, settings_and_logs
from daemon.database import open_pool
from daemon.errors import FullpassError
from daemon.fullpass.tiers import accepted_tiers
from daemon.logs import masked
from daemon.ops.doctor import examine
from daemon.ops.finding import mend

if TYPE_CHECKING:
    from daemon.ops.finding import Finding
    from daemon.settings import Settings

_STYLES = {"ok": "green", "note": "yellow", "unknown": "yellow", "mend": "bold red"}
_CHECK_CELLS = 24


def see_doctor(*, as_json: bool) -> int:
    """Examine this set-up; exit 1 when something must be mended."""
    settings = settings_and_logs(quiet=True)
    found = asyncio.run(_examine(settings, database_url(settings)))
    healthy = not any(finding.state == "mend" for finding in found)
    if as_json:
        checks = [asdict(finding) for finding in found]
        click.echo(json.dumps({"healthy": healthy, "checks": checks}, ensure_ascii=False))
    else:
        _print(found)
    return 0 if healthy else 1


async def _examine(settings: Settings, url: str) -> list[Finding]:
    try:
        pool = await open_pool(url)
    except FullpassError as error:
        return [mend("database", masked(str(error)), "correct DATABASE_URL, or start the server")]
    try:
        return await examine(settings, url, tiers=accepted_tiers, pool=pool)
    finally:
        await pool.close()


def _print(found: list[Finding]) -> None:
    console = Console(highlight=False)
    for finding in found:
        left = f"{finding.state:<8} {finding.check:<{_CHECK_CELLS}}  "
        aligned(console, left, finding.told, style=_STYLES[finding.state])
        if finding.remedy is not None:
            aligned(console, " " * 9 + "to do: ", finding.remedy)
