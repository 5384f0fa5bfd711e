"""The first page: is it healthy, what runs and how far, what is stuck, who works, what failed.

From `daemon.ops.overview`, the document that `fullpass status` shows too. Its size is bounded
whatever the queue holds: each list of it is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from daemon.cli.dashboard.charts import bars, lane, mirrored
from daemon.cli.dashboard.frame import (
    LONGEST_TOLD,
    Section,
    figures,
    job_link,
    moment,
    page,
    table,
)
from daemon.cli.markup import plain_text, said
from daemon.cli.screen import calls_of, memory_of, span, whereabouts
from daemon.ops.overview import counted

if TYPE_CHECKING:
    from daemon.ops.trends import Rows

Account = dict[str, Any]

_DRAWN = 10
"""Running passes shown with their steps; of the others the bar alone."""


def now_page(account: Account, steps: dict[str, Rows], ended: Rows, hourly: Rows) -> str:
    """Return the page."""
    sections = [
        Section("health", "", _health(account)),
        Section(
            "running", f"Running ({account['queue']['processing']:,})", _running(account, steps)
        ),
    ]
    if account["stuck"]:
        sections.append(Section("stuck", f"Stuck ({account['queue']['stuck']:,})", _stuck(account)))
    if account["waiting"]:
        sections.append(Section("waiting", "Waiting", _waiting(account)))
    sections += [
        Section("workers", "Workers", _workers(account["workers"])),
        Section("failures", "Failures of the last 24 hours", _failures(account["last_24_hours"])),
        Section("ended", "Ended last", _ended(ended)),
        Section("hours", "The last 48 hours", hours_charts(hourly)),
    ]
    mark = "OK" if account["healthy"] else "LOOK"
    return page(mark, "fullpass", sections, at="/")


def hours_charts(hourly: Rows) -> str:
    """Draw two days by the hour: what ended well and not, and how long it took."""
    well, ill = [h["complete"] for h in hourly], [h["failed"] for h in hourly]
    took = [h["mean_seconds"] for h in hourly]
    longest = span(max((t for t in took if t), default=0))
    ended = f"{sum(well):,} complete and {sum(ill):,} failed"
    axis = '<p class="axis"><span>48 h ago</span><span>now</span></p>'
    return (
        f"<figure><figcaption>Passes that ended, by hour: {ended}. Failed ones stand below the "
        f"line; the highest bar is {max(well, default=0):,}.</figcaption>"
        f"{mirrored(f'Passes by hour: {ended}', well, ill)}{axis}</figure>"
        f"<figure><figcaption>Mean time of a complete pass, by hour; the longest is {longest}."
        f"</figcaption>{bars(f'Mean time by hour, at most {longest}', took)}{axis}</figure>"
    )


def _health(account: Account) -> str:
    queue, day = account["queue"], account["last_24_hours"]
    mark, kind = ("OK", "well") if account["healthy"] else ("LOOK", "ill")
    oldest = queue["oldest_due_seconds"]
    due = "due" if oldest is None else f"due, oldest for {span(oldest)}"
    spent = f"spent in 24 hours, {counted(day['calls'], 'call')}"
    if day["calls_of_unknown_price"]:
        spent += f" ({day['calls_of_unknown_price']:,} of unknown price not included)"
    spent += f"; ${day['cost_usd_30_days']:,.2f} in 30 days"
    cards = [
        (f"{queue['processing']:,}", "running"),
        (f"{queue['due']:,}", due),
        (f"{queue['later']:,}", "due later"),
        (f"{day['complete']:,}", "complete in 24 hours"),
        (f"{day['failed']:,}", f"failed, {day['cancelled']:,} cancelled"),
        (f"${day['cost_usd']:,.2f}", spent),
    ]
    verdict = said(account["verdict"], most=LONGEST_TOLD)
    return (
        f'<p class="verdict {kind}" role="status"><strong>{mark}</strong> {verdict}</p>'
        f"{figures(cards)}"
    )


def _running(account: Account, steps: dict[str, Rows]) -> str:
    jobs = account["running"]
    if not jobs:
        return "<p>Nothing runs.</p>"
    shown = "".join(
        _pass(job, steps.get(job["job_id"], []) if n < _DRAWN else []) for n, job in enumerate(jobs)
    )
    more = account["queue"]["processing"] - len(jobs)
    return shown + (f"<p>And {more:,} more, begun later.</p>" if more > 0 else "")


def _pass(job: Account, steps: Rows) -> str:
    told = [plain_text(part, most=60) for part in whereabouts(job)]
    told.append(f"${job['cost_usd']:.4f}, {counted(job['calls'], 'call')}")
    told.append(f"by {plain_text(job['worker_id'] or 'nobody', most=60)}")
    if job["lease_left_seconds"] is not None and job["lease_left_seconds"] < 0:
        told.append('<strong class="ill">its worker is lost; the next claim takes it up</strong>')
    if job["waiting_for"]:
        told.append(f"waits for: {said(job['waiting_for'], most=LONGEST_TOLD)}")
    percent = min(100, max(0, job["progress"]))
    return (
        f"<article><h3>{job_link(job['job_id'])}</h3>"
        f'<p class="bar"><progress max="100" value="{percent}" aria-label="Progress">{percent}%'
        f"</progress> {percent}%</p><p>{' · '.join(told)}</p>"
        f"{waterfall(steps, job['age_seconds'], left_seconds=job['seconds_left'])}</article>\n"
    )


def waterfall(steps: Rows, age_seconds: float | None, *, left_seconds: float | None) -> str:
    """Draw the steps of a pass below each other, each from its beginning; time left comes last."""
    if not steps:
        return ""
    until = max([age_seconds or 0, *(s["after_seconds"] + s["seconds"] for s in steps)])
    total = until + (left_seconds or 0)
    rows = [
        _step(
            plain_text(s["step"], most=40),
            lane(
                s["after_seconds"], s["seconds"], total,
                kind="going" if s["finished_at"] is None else "done",
            ),
            span(s["seconds"]) + (" so far" if s["finished_at"] is None else ""),
        )
        for s in steps
    ]  # fmt: skip
    if left_seconds:
        ahead = lane(until, left_seconds, total, kind="ahead")
        rows.append(_step("still to come", ahead, f"about {span(left_seconds)}"))
    return f'<ol class="steps" aria-label="Steps">{"".join(rows)}</ol>'


def _step(name: str, drawn: str, took: str) -> str:
    return f"<li><span>{name}</span>{drawn}<span>{took}</span></li>"


def _stuck(account: Account) -> str:
    rows = [
        (
            job_link(job["job_id"]),
            span(job["seconds"]),
            said(job["reason"], most=LONGEST_TOLD),
            said(job["remedy"], most=LONGEST_TOLD),
        )
        for job in account["stuck"]
    ]
    return table("Jobs that ought to be further", ("Job", "For", "Why", "What to do"), rows)


def _waiting(account: Account) -> str:
    rows = [
        (
            job_link(job["id"]),
            said(job["waiting_for"], most=LONGEST_TOLD),
            moment(job["waiting_since"]),
            moment(job["run_at"]),
        )
        for job in account["waiting"]
    ]
    return table("With no attempt used up", ("Job", "Waits for", "Since (UTC)", "Again"), rows)


def _workers(workers: Rows) -> str:
    if not workers:
        return "<p>None has beaten in the last 10 minutes.</p>"
    columns = ("Worker", "Beat", "Jobs", "Memory", "Calls", "A minute", "Release")
    rows = [_worker(worker) for worker in workers]
    return table("Workers that beat in the last 10 minutes", columns, rows, figures="  n  n ")


def _worker(worker: Account) -> tuple[str, ...]:
    beat = span(worker["beat_age_seconds"])
    name = said(worker["worker_id"], most=80)
    if worker["waiting_for"]:
        waits = said(worker["waiting_for"], most=LONGEST_TOLD)
        name += f'<br><strong class="ill">paused:</strong> {waits}'
    return (
        name,
        f"{beat} ago" if worker["alive"] else f'<strong class="ill">silent for {beat}</strong>',
        f"{worker['jobs']:,}",
        memory_of(worker) or "not known",
        calls_of(worker),
        f"{worker['calls_per_minute']:,}",
        plain_text(worker["version"] or "?", most=40),
    )


def _failures(day: Account) -> str:
    if not day["failures"]:
        return "<p>None.</p>"
    rows = [
        (
            job_link(job["id"]),
            moment(job["completed_at"]),
            said(job["error"] or "no reason noted", most=LONGEST_TOLD),
        )
        for job in day["failures"]
    ]
    more = day["failed"] - len(rows)
    return table("Failed for good, newest first", ("Job", "When (UTC)", "Why"), rows) + (
        f'<p>And {more:,} more: see <a href="/past#errors">errors</a>.</p>' if more > 0 else ""
    )


def _ended(jobs: Rows) -> str:
    if not jobs:
        return "<p>None in the last 24 hours.</p>"
    rows = [
        (
            job_link(job["job_id"]),
            moment(job["completed_at"]),
            f'<strong class="ill">{job["status"]}</strong>'
            if job["status"] == "failed"
            else plain_text(job["status"]),
            span(job["seconds"]) if job["seconds"] is not None else "",
            plain_text(job["pipeline_version"] or "", most=40),
        )
        for job in jobs
    ]
    columns = ("Job", "When (UTC)", "How", "After", "Release")
    return table("From first claim to end, newest first", columns, rows)
