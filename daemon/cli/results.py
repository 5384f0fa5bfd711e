"""The four files a run leaves: MEMORY.md, sections.json, facts.jsonl and report.json.

Everything in them is read back from the database. Each file is replaced whole or not at all, so
that a reader never meets half of one.
"""

from __future__ import annotations

import json
import os
import tempfile
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from uuid import UUID

from daemon import __version__
from daemon.cli.page import page
from daemon.errors import UsageError
from daemon.ops.status import facts_of, job_account
from daemon.ops.words import no_facts_because

if TYPE_CHECKING:
    from pathlib import Path

    from daemon.database import Connection

SECTIONS = ("soul", "identity", "user", "agents", "tools")
FILES = ("MEMORY.md", "sections.json", "facts.jsonl", "report.json")


@dataclass(frozen=True, slots=True)
class Results:
    """What a pass left for its person."""

    memory: str
    sections: dict[str, Any]
    """Five objects; an empty one for a section that was never written."""
    facts: list[dict[str, Any]]
    report: dict[str, Any]


async def results_of(connection: Connection, job_id: UUID, *, seconds: float) -> Results:
    """Collect a finished job's results; `seconds` is how long this run took."""
    job = await job_account(connection, job_id)
    assert job is not None  # noqa: S101 - it was enqueued by this very command
    profile = await connection.fetchrow(
        """
        select memory_md, soul_md, identity_md, user_md, agents_md, tools_md
        from public.user_profiles where user_id = $1
        """,
        job["user_id"],
    )
    columns = {} if profile is None else dict(profile)
    facts = await facts_of(connection, job["user_id"])
    result = job["result"] or {}
    report: dict[str, Any] = {
        "job_id": job["id"],
        "user_id": job["user_id"],
        "status": job["status"],
        "error": job["error"],
        "storage_path": job["storage_path"],
        "provider": result.get("provider"),
        "source": job["source"],
        "conversations": job["conversations"],
        "messages": job["messages"],
        "export": job["export"],
        "coverage": job["coverage"],
        "outcomes": job["outcomes"],
        "facts": job["facts"],
        "rejected": job["facts"]["rejected"],
        "damaged": (job["export"] or {}).get("damaged", 0),
        "damages": (job["export"] or {}).get("damages", []),
        "memory": result.get("memory"),
        "sections": result.get("sections"),
        "cost": job["cost"],
        "seconds": round(seconds, 3),
        "started_at": job["started_at"],
        "completed_at": job["completed_at"],
        "versions": {"fullpass": __version__, "pipeline": job["pipeline_version"]},
        "earlier": await _earlier(connection, job),
        "why": job["why"],
        "why_no_facts": None,
    }
    if job["status"] == "complete" and not facts:
        report["why_no_facts"] = await no_facts_because(connection, job)
    return Results(
        memory=columns.get("memory_md") or "",
        sections={name: _section(columns.get(f"{name}_md")) for name in SECTIONS},
        facts=facts,
        report=report,
    )


async def _earlier(connection: Connection, job: dict[str, Any]) -> dict[str, Any]:
    """Count what MEMORY rests on besides this export: a person's sources and exports add up."""
    row = await connection.fetchrow(
        """
        select (select count(*) from fullpass.conversations
                where user_id = $1 and source = $2 and last_job <> $3
                  and chunk_count > 0) as conversations,
               (select count(*) from fullpass.facts
                where user_id = $1 and source <> $2 and superseded_by is null) as facts,
               (select array_agg(distinct source order by source) from fullpass.facts
                where user_id = $1 and source <> $2 and superseded_by is null) as sources
        """,
        UUID(job["user_id"]),
        job["source"] or "",
        UUID(job["id"]),
    )
    assert row is not None  # noqa: S101 - it selects without a table
    return {
        "conversations_of_this_source": row["conversations"],
        "facts_of_other_sources": row["facts"],
        "other_sources": row["sources"] or [],
    }


def prepare_folder(folder: Path) -> None:
    """Make the folder and try to write in it, before anything is paid for what could not be kept.

    Raises UsageError.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UsageError(
            f"--out: cannot write in {folder} ({error.strerror}): name another folder"
        ) from error


def write_results(results: Results, folder: Path) -> None:
    """Write the four files, each at once."""
    lines = [json.dumps(fact, ensure_ascii=False) for fact in results.facts]
    _replace(folder / "MEMORY.md", results.memory)
    _replace(folder / "sections.json", _document(results.sections))
    _replace(folder / "facts.jsonl", "".join(f"{line}\n" for line in lines))
    _replace(folder / "report.json", _document(results.report))


def write_page(results: Results, file: Path) -> None:
    """Write the report as one HTML page. Raises UsageError where it cannot."""
    try:
        _replace(file, page(results))
    except OSError as error:
        raise UsageError(f"--html: cannot write {file} ({error.strerror})") from error


def _section(text: str | None) -> Any:
    try:
        return json.loads(text) if text else {}
    except ValueError:
        return {}  # an app's own text from before the first pass


def _document(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, indent=2) + "\n"


def _replace(path: Path, text: str) -> None:
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        draft.write_text(text, encoding="utf-8")
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
