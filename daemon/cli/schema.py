"""`fullpass migrate`: apply, check or print the schema."""

from __future__ import annotations

import asyncio

import click

from daemon import migrations
from daemon.cli.target import database_url, settings_and_logs
from daemon.cli.terminal import printable
from daemon.errors import UsageError


def migrate_database(*, check: bool, as_sql: bool) -> int:
    """Do what was asked and return the exit code. Raises MigrationsBlocked with its problems."""
    if check and as_sql:
        raise UsageError("--check and --print exclude each other")
    if as_sql:
        click.echo(migrations.print_sql())
        return 0
    url = database_url(settings_and_logs())
    if check:
        problems = asyncio.run(migrations.check(url))
        for problem in problems:
            click.echo(printable(problem))
        if not problems:
            click.echo("up to date")
        return 1 if problems else 0
    done = asyncio.run(migrations.apply(url, on_progress=click.echo))
    click.echo(f"applied {len(done)}" if done else "up to date: nothing to apply")
    return 0
