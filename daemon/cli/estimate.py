"""`fullpass estimate`: what a pass over an export would read, ask, cost and take; nothing is paid.

No database is opened and no model is called. The account goes to stdout, for people in 80 columns
or as one JSON document; how far reading is goes to stderr.
"""

from __future__ import annotations

import json
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from daemon.cli.run import readable
from daemon.cli.summary import count, entry, left_out
from daemon.cli.target import settings_and_logs
from daemon.cli.terminal import printable_lines
from daemon.fullpass import forecast
from daemon.fullpass.estimate import survey
from daemon.llm.pricing import priced_models

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from decimal import Decimal
    from pathlib import Path

    from daemon.export.conversation import ReadReport
    from daemon.fullpass.estimate import Survey
    from daemon.fullpass.forecast import Forecast
    from daemon.settings import Settings

_QUIET_SECONDS = 0.7
"""An export that is read sooner shows no progress."""
_PLAIN_LINE_SECONDS = 3.0
_LOOK_SECONDS = 0.2
_LANGUAGES_SHOWN = 6

Account = dict[str, Any]


def estimate_export(export: Path, *, as_json: bool) -> int:
    """Survey an export file and say what a pass over it would be; return the exit code."""
    path = readable(export)
    settings = settings_and_logs(quiet=True)
    started = time.monotonic()
    with _progress_shown(path.name) as progress:
        found = survey(path, settings, progress=progress)
    seconds = time.monotonic() - started
    account = _account(found, forecast.forecast(found, settings), settings, seconds)
    account = {"export": export.name, **account}
    if as_json:
        click.echo(json.dumps(account, ensure_ascii=False))
    else:
        click.echo(printable_lines(_screen(account)))
    return 0


# --- the account


def _account(
    found: Survey, foreseen: Forecast, settings: Settings, reading_seconds: float
) -> Account:
    report = found.report
    minutes = forecast.minutes(foreseen, settings, reading_seconds=reading_seconds)
    return {
        "source": report.source,
        "conversations": report.conversations,
        "messages": report.messages,
        "context_entries": report.context_entries,
        "from": None if found.earliest is None else found.earliest.date().isoformat(),
        "to": None if found.latest is None else found.latest.date().isoformat(),
        "languages": {name: round(share, 4) for name, share in found.languages.items()},
        "chunks": found.chunks,
        "chunks_without_own_words": found.wordless_chunks,
        "tokens": {"text": found.text_tokens, "own": found.own_tokens},
        "facts": foreseen.facts,
        "calls": {
            "total": foreseen.total,
            **{
                c.purpose: {
                    "calls": c.calls,
                    "input_tokens": c.input_tokens,
                    "output_tokens": c.output_tokens,
                }
                for c in foreseen.calls
            },
        },
        "dollars": {
            "as_configured": _usd(forecast.configured_dollars(foreseen, settings)),
            "by_model": {
                model.id: {
                    "realtime": _usd(forecast.dollars(foreseen.calls, model.id)),
                    "batch": _usd(forecast.dollars(foreseen.calls, model.id, batch=True)),
                }
                for model in priced_models()
            },
        },
        "configured": {
            "extraction_model": settings.extraction_model,
            "memory_model": settings.memory_model,
            "sections_model": settings.sections_model,
            "extraction_mode": settings.extraction_mode,
            "concurrency": settings.fact_extraction_concurrency,
        },
        "minutes": round(minutes, 2),
        "reading_seconds": round(reading_seconds, 3),
        "skipped": {
            "damaged": report.damaged,
            "damages": report.damages,
            "not_to_be_remembered": report.forgotten,
            "without_visible_text": report.empty,
            "held_twice": report.duplicates,
            "left_out": report.ignored,
            "unknown_content_types": report.unknown_content_types,
        },
        "redacted": report.redacted,
        "whole": report.whole,
        "assumptions": list(forecast.assumptions(settings)),
    }


def _usd(amount: Decimal | None) -> float | None:
    return None if amount is None else round(float(amount), 6)


# --- for people


def _screen(account: Account) -> str:
    context = account["context_entries"]
    conversations = count(account["conversations"], "conversation")
    messages = count(account["messages"], "message")
    lines = [f"{conversations} and {messages} ({account['source']})", ""]
    if account["from"]:
        lines += entry("Time", [f"{account['from']} to {account['to']}"])
    if context:
        lines += entry("Besides", [f"{context:,} custom instructions and saved memories"])
    lines += entry("Languages", [_languages(account["languages"])])
    lines += entry("Chunks", _chunks(account))
    tokens = account["tokens"]
    lines += entry(
        "Tokens", [f"{tokens['text']:,} of text, {tokens['own']:,} of them the person's own words"]
    )
    lines += entry("Calls", _calls(account["calls"]))
    lines += entry("Dollars", _dollars(account))
    configured = account["configured"]
    lines += entry(
        "Minutes",
        [f"about {_minutes(account['minutes'])} at {configured['concurrency']} calls at a time"
         + (" in realtime; a batch mostly ends within the hour"
            if configured["extraction_mode"] == "batch" else "")],
    )  # fmt: skip
    skipped = left_out(_as_export(account))
    if skipped:
        lines += entry("Left out", skipped)
    lines += entry("Assumes", account["assumptions"])
    return "\n".join(lines)


def _languages(languages: dict[str, float]) -> str:
    if not languages:
        return "no words of the person's own"
    first = list(languages.items())[:_LANGUAGES_SHOWN]
    rest = 1 - sum(share for _, share in first)
    told = [f"{name} {share:.0%}" if share >= 0.01 else f"{name} <1%" for name, share in first]
    return ", ".join(told + ([f"others {rest:.0%}"] if rest >= 0.005 else []))


def _chunks(account: Account) -> list[str]:
    lines = [", ".join(f"{count:,} {tier}" for tier, count in account["chunks"].items())]
    if account["chunks_without_own_words"]:
        lines.append(
            f"{account['chunks_without_own_words']:,} without the person's own words: sent to "
            "no model"
        )
    return lines


def _calls(calls: Account) -> list[str]:
    steps = ", ".join(f"{name} {of['calls']:,}" for name, of in calls.items() if name != "total")
    return [f"{calls['total']:,}: {steps}" if steps else "none: there is nothing to read"]


def _dollars(account: Account) -> list[str]:
    configured, dollars = account["configured"], account["dollars"]
    models = dict.fromkeys(
        configured[f"{step}_model"] for step in ("extraction", "memory", "sections")
    )
    usd = dollars["as_configured"]
    told = "unknown" if usd is None else _money(usd)
    lines = [f"{told} as configured ({', '.join(models)}, {configured['extraction_mode']})"]
    for model, of in dollars["by_model"].items():
        if of["realtime"] is not None:
            lines.append(f"{model}: {_money(of['realtime'])}, as a batch {_money(of['batch'])}")
    return lines


def _money(usd: float) -> str:
    return f"${usd:,.2f}" if usd >= 1 else f"${usd:.4f}"


def _minutes(minutes: float) -> str:
    if minutes < 1:
        return "1"
    hours = minutes / 60
    return f"{minutes:,.0f}" if hours < 2 else f"{minutes:,.0f} ({hours:,.1f} hours)"


def _as_export(account: Account) -> Account:
    """Give what was skipped by the names that a run's report has."""
    skipped = account["skipped"]
    return {
        "export": {
            "forgotten": skipped["not_to_be_remembered"],
            "empty": skipped["without_visible_text"],
            "duplicates": skipped["held_twice"],
            "ignored": skipped["left_out"],
            "damaged": skipped["damaged"],
            "damages": skipped["damages"],
            "redacted": account["redacted"],
        }
    }


# --- progress


@contextmanager
def _progress_shown(name: str) -> Iterator[Callable[[ReadReport], None]]:
    """Show how far reading is: a bar on a terminal, else a line every few seconds."""
    console = Console(stderr=True)
    bar = Progress(
        TextColumn("Reading"), BarColumn(), DownloadColumn(), TimeRemainingColumn(),
        console=console, transient=True, auto_refresh=False,
    )  # fmt: skip
    task = bar.add_task(name)
    started = time.monotonic()
    next_look = started + _QUIET_SECONDS
    running = False

    def look(report: ReadReport) -> None:
        nonlocal next_look, running
        now = time.monotonic()
        if now < next_look:
            return
        if console.is_terminal:
            if not running:
                bar.start()
                running = True
            bar.update(task, completed=report.bytes_read, total=report.bytes_total, refresh=True)
            next_look = now + _LOOK_SECONDS
        else:
            share = report.bytes_read / max(1, report.bytes_total)
            console.print(
                f"{share:>4.0%}  Reading · {report.conversations:,} conversations",
                highlight=False, markup=False, soft_wrap=True,
            )  # fmt: skip
            next_look = now + _PLAIN_LINE_SECONDS

    try:
        yield look
    finally:
        if running:
            bar.stop()
