"""What there is to know about one job and one person, ready for JSON.

Every function asks over a connection it is given, writes nothing, and answers at any moment of a
job's life, whoever is at work on it. Values are plain: ids and times are text (ISO 8601, UTC),
money is US dollars. `daemon.ops.why` says in words what these accounts mean.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from daemon.ops.costs import cost_of
from daemon.ops.plain import plain
from daemon.ops.why import why

if TYPE_CHECKING:
    from uuid import UUID

    from daemon.database import Connection

CATEGORIES = ("preferences", "projects", "dates", "beliefs", "decisions")
READ_OUTCOMES = frozenset({"ok", "empty", "salvaged", "split"})

# The rows of one job's person and source in the tier that extraction reads: the one whose chunks
# have outcomes, which before the first outcome is the one that is usually stored alone.
_JOB_CHUNKS = """
    from public.conversation_chunks c
    left join fullpass.chunk_outcomes o
        on o.user_id = c.user_id and o.content_hash = c.content_hash
    where c.user_id = $1 and c.source = $2
      and c.chunk_tier::text = coalesce(
          (select t.chunk_tier::text from fullpass.chunk_outcomes x
           join public.conversation_chunks t on t.id = x.chunk_id
           where x.user_id = $1 and x.source = $2 limit 1), 'medium')
"""


def _time(column: str) -> str:
    """Return SQL for a time that the app may write: one that no client could read is none."""
    readable = f"{column} between '1970-01-01 UTC' and '9999-01-01 UTC'"
    return f"case when {readable} then {column} end"


_JOB = f"""
select j.id, j.user_id, j.status, j.storage_path, j.file_type, j.priority, j.current_step as step,
       coalesce(j.progress, 0) as progress, coalesce(j.attempts, 0) as attempts, j.max_attempts,
       coalesce(j.crashes, 0) as crashes, j.lease_epoch,
       {_time("j.lease_expires_at")} as lease_expires_at, j.worker_id,
       {_time("j.created_at")} as created_at, {_time("j.started_at")} as started_at,
       {_time("j.completed_at")} as completed_at, {_time("j.updated_at")} as updated_at,
       {_time("j.cancel_requested_at")} as cancel_requested_at,
       {_time("j.run_at")} as run_at,
       coalesce(not isfinite(j.run_at), false) as reserved,
       j.pipeline_version, j.error_message as error, j.result::text as result,
       j.conversation_count as conversations, j.message_count as messages,
       coalesce(p.source, (select k.source from fullpass.conversations k
                           where k.user_id = j.user_id and k.last_job = j.id limit 1)) as source,
       p.ingest::text as export, p.ingested_at, p.memory_saved_at, p.sections_saved_at,
       p.claimed_at, p.last_progress_at, p.waiting_for,
       coalesce(p.waiting_since, case when p.waiting_for is not null then o.since end)
           as waiting_since,
       o.batches, o.windows_by_batch, o.since as batches_since,
       w.last_beat_at as worker_beat_at, w.waiting_for as worker_waits_for,
       w.rss_bytes as worker_rss_bytes, m.writer as memory_writer, m.facts as memory_facts,
       u.full_pass_status, u.progress_percent, u.import_stage, u.full_pass_error,
       (select x.erased_at from fullpass.erasures x
        where x.user_id = j.user_id and x.erased_at >= j.completed_at) as erased_at,
       (select r.id from public.processing_jobs r
        where r.user_id = j.user_id and r.status = 'processing' and r.id <> j.id limit 1
       ) as running_sibling,
       (select count(*) from fullpass.workers l
        where l.last_beat_at > clock_timestamp() - interval '1 minute') as live_workers,
       clock_timestamp() as now
from public.processing_jobs j
left join fullpass.passes p on p.job_id = j.id
left join fullpass.workers w on w.worker_id = j.worker_id
left join fullpass.memories m on m.job_id = j.id
left join public.user_profiles u on u.user_id = j.user_id
cross join lateral (
    select count(*) as batches, coalesce(sum(b.requests), 0) as windows_by_batch,
           min(coalesce(b.sent_at, b.created_at)) as since
    from fullpass.batches b
    where b.user_id = j.user_id and b.source = coalesce(p.source, b.source)
      and b.state <> 'done' and b.given_up_at is null
      and j.status in ('pending', 'processing')) as o
where j.id = $1
"""


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a running job stands, cheap enough to be asked a few times a second."""

    status: str
    step: str | None
    stage: str | None
    """The step in the words that the person's profile shows; None unless it is at work."""
    percent: int
    conversations: int | None
    cost_usd: float
    calls: int


@dataclass(frozen=True, slots=True)
class Read:
    """How many chunks a job has, how many were read, and how many facts were found in them."""

    chunks: int
    read: int
    facts: int


async def progress_of(connection: Connection, job_id: UUID) -> Progress:
    """Return where a job stands now."""
    row = await connection.fetchrow(
        """
        select j.status, j.current_step as step,
               case when j.status = 'processing' then u.import_stage end as stage,
               coalesce(j.progress, 0) as percent, j.conversation_count as conversations,
               coalesce(c.cost_usd, 0)::float8 as cost_usd, c.calls
        from public.processing_jobs j
        left join public.user_profiles u on u.user_id = j.user_id
        cross join lateral (select sum(l.cost_usd) as cost_usd, count(*) as calls
                            from fullpass.llm_calls l where l.job_id = j.id) as c
        where j.id = $1
        """,
        job_id,
    )
    return Progress("gone", None, None, 0, None, 0.0, 0) if row is None else Progress(**dict(row))


async def read_of(connection: Connection, job_id: UUID) -> Read:
    """Count a job's chunks and facts; grows with them, so ask it less often."""
    job = await connection.fetchrow(_JOB, job_id)
    if job is None or job["source"] is None:
        return Read(0, 0, 0)
    outcomes = await _outcomes(connection, job["user_id"], job["source"])
    facts = await connection.fetchval(
        "select count(*) from fullpass.extracted_facts where user_id = $1 and rejected is null",
        job["user_id"],
    )
    read = sum(n for outcome, n in outcomes.items() if outcome in READ_OUTCOMES)
    return Read(sum(outcomes.values()), read, facts)


async def job_account(
    connection: Connection, job_id: UUID, *, newest_events: int | None = None
) -> dict[str, Any] | None:
    """Return everything about one job as one consistent document; None if there is none.

    Of a long timeline only the `newest_events`, where that is given, of `event_count` in all.
    """
    async with connection.transaction(isolation="repeatable_read", readonly=True):
        row = await connection.fetchrow(_JOB, job_id)
        if row is None:
            return None
        job = dict(row)
        user, source = job["user_id"], job["source"]
        outcomes = await _outcomes(connection, user, source)
        facts = await _facts(connection, user, source)
        cost = await cost_of(connection, job_id)
        seconds_left = await connection.fetchval(
            "select seconds_left from fullpass.ops_running where job_id = $1", job_id
        )
        events = await connection.fetch(
            """
            select at, event, step, attempt, lease_epoch, worker_id, data::text as data
            from fullpass.job_events where job_id = $1 order by id desc limit $2
            """,
            job_id,
            newest_events,
        )
        event_count = len(events)
        if event_count == newest_events:
            event_count = await connection.fetchval(
                "select count(*) from fullpass.job_events where job_id = $1", job_id
            )
    if job["erased_at"] is not None:  # saved once, and no more
        job |= {"memory_saved_at": None, "sections_saved_at": None}
    chunks = sum(outcomes.values())
    read = sum(n for outcome, n in outcomes.items() if outcome in READ_OUTCOMES)
    account: dict[str, Any] = {
        **{name: job[name] for name in (
            "id", "user_id", "status", "storage_path", "file_type", "priority", "step", "progress",
            "attempts", "max_attempts", "crashes", "lease_epoch", "lease_expires_at", "worker_id",
            "created_at", "run_at", "started_at", "completed_at", "updated_at",
            "cancel_requested_at", "pipeline_version", "error", "waiting_since", "waiting_for",
            "last_progress_at", "source", "conversations", "messages", "erased_at",
        )},
        "result": _loaded(job["result"]),
        "export": _loaded(job["export"]),
        "coverage": {
            "chunks": chunks,
            "read": read,
            "share": round(read / chunks, 4) if chunks else None,
        },
        "seconds_left": seconds_left,
        "outcomes": outcomes,
        "facts": facts,
        "cost": cost,
        "batches": {
            "out": job["batches"], "windows": job["windows_by_batch"],
            "since": job["batches_since"],
        },
        "memory": None if job["memory_saved_at"] is None else {
            "writer": job["memory_writer"], "facts": job["memory_facts"],
            "saved_at": job["memory_saved_at"],
        },
        "sections": {
            "saved": job["sections_saved_at"] is not None, "saved_at": job["sections_saved_at"],
        },
        "profile": {
            "full_pass_status": job["full_pass_status"],
            "progress_percent": job["progress_percent"],
            "import_stage": job["import_stage"],
            "full_pass_error": job["full_pass_error"],
        },
        "worker": None if job["worker_beat_at"] is None else {
            "last_beat_at": job["worker_beat_at"],
            "waiting_for": job["worker_waits_for"],
            "rss_bytes": job["worker_rss_bytes"],
        },
        "events": [{**dict(event), "data": _loaded(event["data"])} for event in events[::-1]],
    }  # fmt: skip
    if newest_events is not None:
        account["event_count"] = event_count
    account["why"] = why({**job, **account})
    document: dict[str, Any] = plain(account)
    return document


async def newest_job(connection: Connection, user_id: UUID | None) -> UUID | None:
    """Return the job that was made last: the person's, or anybody's."""
    found: UUID | None = await connection.fetchval(
        """
        select id from public.processing_jobs
        where $1::uuid is null or user_id = $1 order by created_at desc, id limit 1
        """,
        user_id,
    )
    return found


async def facts_of(connection: Connection, user_id: UUID) -> list[dict[str, Any]]:
    """Return a person's facts with their evidence: by category, current ones and newest first."""
    rows = await connection.fetch(
        """
        select id, category, statement, slot, polarity, confidence, observed_at, source,
               superseded_by, evidence::text as evidence
        from fullpass.facts where user_id = $1
        order by array_position($2::text[], category), superseded_by is not null,
                 observed_at desc nulls last, statement, id
        """,
        user_id,
        list(CATEGORIES),
    )
    return [plain({**dict(row), "evidence": _loaded(row["evidence"])}) for row in rows]


async def _outcomes(connection: Connection, user: UUID, source: str | None) -> dict[str, int]:
    """Count the chunks of a person and source by outcome; `unread` are still to come."""
    if source is None:
        return {}
    rows = await connection.fetch(
        f"""
        select coalesce(o.outcome, 'unread') as outcome, count(*) as chunks {_JOB_CHUNKS}
        group by 1 order by 2 desc, 1
        """,
        user,
        source,
    )
    return {row["outcome"]: row["chunks"] for row in rows}


async def _facts(connection: Connection, user: UUID, source: str | None) -> dict[str, Any]:
    """Count the person's consolidated facts, and what was found and not believed in this source."""
    rows = await connection.fetch(
        """
        select category, count(*) filter (where superseded_by is null) as current,
               count(*) filter (where superseded_by is not null) as superseded
        from fullpass.facts where user_id = $1 group by 1
        """,
        user,
    )
    counted = {row["category"]: row for row in rows}
    by_category = {
        name: {
            "current": counted[name]["current"] if name in counted else 0,
            "superseded": counted[name]["superseded"] if name in counted else 0,
        }
        for name in CATEGORIES
    }
    found = await connection.fetch(
        """
        select rejected, count(*) as facts from fullpass.extracted_facts
        where user_id = $1 and source = $2 group by 1 order by 2 desc
        """,
        user,
        source or "",
    )
    rejected = {row["rejected"]: row["facts"] for row in found if row["rejected"] is not None}
    return {
        "current": sum(n["current"] for n in by_category.values()),
        "superseded": sum(n["superseded"] for n in by_category.values()),
        "by_category": by_category,
        "found": sum(row["facts"] for row in found),
        "unverified": sum(rejected.values()),
        "rejected": rejected,
    }


def _loaded(text: str | None) -> Any:
    return None if text is None else json.loads(text)
