"""A job's page: the sentence on why it is where it is, its steps, outcomes, cost and timeline.

From `daemon.ops.status.job_account`, in the words of `fullpass status JOB`.
"""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any

from daemon.cli.dashboard.frame import Section, moment, page, table
from daemon.cli.dashboard.now import waterfall
from daemon.cli.markup import plain_text, said
from daemon.cli.screen import facts_of_job, told_of, without_vain_looks

if TYPE_CHECKING:
    from daemon.ops.trends import Rows

Account = dict[str, Any]

NEWEST_EVENTS = 2_000
"""Events looked at: what the page takes must not grow with a timeline of tens of thousands."""
_EVENTS = 200
"""Events shown, the newest; a job that was given back a thousand times still has a page."""
_STEPS = 100
"""Steps drawn of an attempt, the newest."""
_LONGEST = 2_000


def job_page(job: Account) -> str:
    """Return the page."""
    sections = [
        Section("state", "", _where(job)),
        Section("steps", "Steps since the last claim", _steps(job)),
        Section("facts", "What is known of it", _known(job)),
    ]
    if job["outcomes"]:
        sections.append(Section("outcomes", "What became of its text", _outcomes(job)))
    if job["cost"]["calls"]:
        sections.append(Section("cost", "What it cost", _cost(job["cost"])))
    sections.append(Section("timeline", "Timeline", _timeline(job["events"], job["event_count"])))
    return page(
        f"Job {job['id'][:8]}, {job['status']}",
        f"Job <code>{plain_text(job['id'])}</code>",
        sections,
        at="",
    )


def _where(job: Account) -> str:
    kind = {"complete": "well", "failed": "ill"}.get(job["status"], "neither")
    percent = min(100, max(0, job["progress"]))
    return (
        f'<p class="verdict {kind}" role="status"><strong>{plain_text(job["status"], most=40)}'
        f"</strong> {said(job['why'], most=_LONGEST)}</p>"
        f'<p class="bar"><progress max="100" value="{percent}" aria-label="Progress">{percent}%'
        f"</progress> {percent}% {plain_text(job['step'] or 'not begun', most=60)}</p>"
    )


def _steps(job: Account) -> str:
    """Draw the steps of the last attempt that had any."""
    events: Rows = job["events"]
    following = len(events)
    for claim in reversed(range(len(events))):
        if events[claim]["event"] != "claimed":
            continue
        steps = _steps_between(events[claim:following], job)
        if steps:
            until = max(step["after_seconds"] + step["seconds"] for step in steps)
            return waterfall(steps[-_STEPS:], until, left_seconds=job["seconds_left"])
        following = claim
    if len(events) < job["event_count"]:
        return f"<p>None among its newest {len(events):,} events.</p>"
    return "<p>None has begun.</p>"


def _steps_between(events: Rows, job: Account) -> Rows:
    """Give the steps of one attempt as `ops_steps` gives those of a running one."""
    if not events:
        return []
    began = datetime.fromisoformat(events[0]["at"])
    # What a dead worker left unfinished lasted until the attempt's last sign of life.
    last_sign = datetime.fromisoformat(events[-1]["at"])
    if job["last_progress_at"] is not None and job["status"] == "processing":
        last_sign = max(last_sign, datetime.fromisoformat(job["last_progress_at"]))
    steps = []
    finished_at: dict[str, str] = {}  # the next end of each step, seen from behind
    for event in reversed(events):
        if event["event"] == "step.finished":
            finished_at[event["step"]] = event["at"]
        if event["event"] != "step.started":
            continue
        started = datetime.fromisoformat(event["at"])
        finished = finished_at.get(event["step"])
        ended = last_sign if finished is None else datetime.fromisoformat(finished)
        steps.append(
            {
                "step": event["step"],
                "after_seconds": (started - began).total_seconds(),
                "seconds": max(0.0, (ended - started).total_seconds()),
                "finished_at": finished,
            }
        )
    return steps[::-1]


def _known(job: Account) -> str:
    rows = "".join(
        f"<dt>{plain_text(label)}</dt><dd>{said(value, most=_LONGEST)}</dd>"
        if label
        else f"<dd>{said(value, most=_LONGEST)}</dd>"
        for label, value in facts_of_job(job)
    )
    times = "".join(
        f"<dt>{name}</dt><dd>{moment(job[key])} UTC</dd>"
        for key, name in (
            ("created_at", "Queued"), ("started_at", "First claim"), ("completed_at", "Ended"),
        )
        if job[key] is not None
    )  # fmt: skip
    return f'<dl class="known">{rows}{times}</dl>'


def _outcomes(job: Account) -> str:
    chunks = job["coverage"]["chunks"]
    rows = [
        (plain_text(outcome, most=40), f"{count:,}", f"{100 * count / chunks:.1f}%")
        for outcome, count in job["outcomes"].items()
    ]
    return table("Each chunk is accounted for", ("Outcome", "Chunks", "Share"), rows, figures=" nn")


def _cost(cost: Account) -> str:
    rows = [
        (
            plain_text(purpose, most=40), f"{n['calls']:,}", f"{n['useless_calls']:,}",
            f"{n['input_tokens']:,}", f"{n['output_tokens']:,}", f"${n['cost_usd']:.4f}",
        )
        for purpose, n in [*cost["by_purpose"].items(), ("in all", cost)]
    ]  # fmt: skip
    columns = ("For", "Calls", "Useless", "Tokens in", "Tokens out", "Cost")
    return table("Calls that this job paid for", columns, rows, figures=" nnnnn")


def _timeline(events: Rows, in_all: int) -> str:
    kept = without_vain_looks(events)
    shown = kept[-_EVENTS:]
    earlier = in_all - len(events) + len(kept) - len(shown)
    rows = [
        (
            moment(event["at"]),
            plain_text(event["event"], most=40),
            said(told_of(event), most=_LONGEST),
        )
        for event in reversed(shown)
    ]
    more = f"<p>And {earlier:,} earlier: <code>fullpass status JOB</code>.</p>" if earlier else ""
    return table("Newest first", ("When (UTC)", "What", "What it tells"), rows) + more
