"""The screens of `fullpass status`: made for 80 columns, and as clear without colour."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any

from rich.markup import escape

from daemon.cli.terminal import folded, printable
from daemon.ops.costs import savings, tokens
from daemon.ops.overview import counted
from daemon.ops.status import CATEGORIES

if TYPE_CHECKING:
    from rich.console import Console

Account = dict[str, Any]

_BAR_CELLS = 20
_LABEL_CELLS = 10
_EVENT_CELLS = 16
_LISTED = 5
_STYLES = {
    "pending": "yellow", "processing": "cyan", "complete": "green", "failed": "red",
    "cancelled": "magenta",
}  # fmt: skip


def overview_screen(console: Console, account: Account) -> None:
    """Show whether it works, on what, what is stuck, what went wrong and what it cost."""
    account = printable(account)
    queue, day = account["queue"], account["last_24_hours"]
    mark, style = ("OK", "green") if account["healthy"] else ("LOOK", "bold red")
    aligned(console, f"{mark:<6}", account["verdict"], style=style)
    _heading(console, "Queue")
    line = f"{queue['processing']} running · {queue['due']} due · {queue['later']} later"
    if queue["oldest_due_seconds"] is not None:
        line += f" · oldest due for {span(queue['oldest_due_seconds'])}"
    aligned(console, "  ", line)
    for job in account["waiting"]:
        aligned(console, "  waiting  ", f"{job['id']}")
        aligned(console, "           ", job["waiting_for"])
    if account["running"]:
        _heading(console, "Running")
        for job in account["running"]:
            _running(console, job)
    if account["stuck"]:
        _stuck(console, account["stuck"], queue["stuck"])
    _heading(console, "Workers")
    for worker in account["workers"]:
        _worker(console, worker)
    if not account["workers"]:
        console.print("  none has beaten in the last 10 minutes", markup=False)
    _heading(console, "Last 24 hours")
    spend = f"${day['cost_usd']:.4f} for {counted(day['calls'], 'call')}"
    if day["calls_of_unknown_price"]:
        spend += f" ({day['calls_of_unknown_price']:,} of unknown price not included)"
    ended = f"{day['complete']:,} complete · {day['failed']:,} failed"
    aligned(console, "  ", f"{ended} · {day['cancelled']:,} cancelled")
    aligned(console, "  ", f"{spend} · ${day['cost_usd_30_days']:.2f} in 30 days")
    for job in day["failures"][:_LISTED]:
        aligned(console, "  failed   ", f"{job['id']}  {clock(job['completed_at'])}", style="red")
        aligned(console, "           ", job["error"] or "no reason noted")


def job_screen(console: Console, job: Account) -> None:
    """Show one job: where it is and why, what it read, found and cost, its timeline."""
    job = printable(job)
    style = _STYLES.get(job["status"], "bold")
    console.print(f"[bold]Job {job['id']}[/]  [{style}]{escape(job['status'])}[/]")
    console.print(
        f"  {_bar(job['progress'])} {job['progress']:>3}%  {job['step'] or 'not begun'}",
        markup=False,
    )
    if job["seconds_left"]:
        aligned(console, " " * (_BAR_CELLS + 9), f"about {span(job['seconds_left'])} left")
    console.print()
    aligned(console, "", job["why"])
    console.print()
    for label, value in facts_of_job(job):
        aligned(console, f"{label:<{_LABEL_CELLS}}", value)
    _timeline(console, job["events"])


def facts_screen(console: Console, account: Account) -> None:
    """Show a person's facts by category, each with what it rests on."""
    account = printable(account)
    facts = account["facts"]
    if not facts:
        console.print(f"No facts about {account['user_id']}.", markup=False)
        return
    by_id = {fact["id"]: fact for fact in facts}
    for category in CATEGORIES:
        own = [fact for fact in facts if fact["category"] == category]
        if not own:
            continue
        current = sum(fact["superseded_by"] is None for fact in own)
        _heading(
            console, f"{category.title()} ({current} current, {len(own) - current} superseded)"
        )
        for fact in own:
            _fact(console, fact, by_id)


def _fact(console: Console, fact: Account, by_id: dict[str, Account]) -> None:
    seen = f"{_day(fact['observed_at'])}, {fact['source']}, {fact['confidence']} confidence"
    superseded = fact["superseded_by"] is not None
    aligned(console, "x " if superseded else "- ", f"{fact['statement']} ({seen})")
    newer = by_id.get(fact["superseded_by"] or "")
    if newer is not None:
        aligned(console, "    superseded by: ", newer["statement"], style="dim")
    for evidence in fact["evidence"] or []:
        quote = " ".join(str(evidence.get("quote", "")).split())
        aligned(console, "    ", f"“{quote}”")
        for name in ("conversation", "message"):
            place = evidence.get(f"{name}_id")
            console.print(f"      {name} {place}", style="dim", markup=False, soft_wrap=True)


def facts_of_job(job: Account) -> list[tuple[str, str]]:
    """Give the lines between a job's sentence and its timeline, each with its label."""
    lines: list[tuple[str, str]] = []

    def add(label: str, text: str) -> None:
        lines.append((label, text))

    add("Export", job["storage_path"] or "no storage path")
    add("Person", job["user_id"])
    if job["conversations"] is not None:
        read = f"{job['conversations']:,} conversations, {job['messages'] or 0:,} messages"
        add("Read", f"{read} ({job['source'] or 'source not known yet'})")
    coverage, facts, cost = job["coverage"], job["facts"], job["cost"]
    if coverage["chunks"]:
        kinds = ", ".join(f"{n:,} {outcome}" for outcome, n in job["outcomes"].items())
        add("Chunks", f"{coverage['read']:,} of {coverage['chunks']:,} read: {kinds}")
    export = job["export"] or {}
    if export.get("damaged"):
        add("Damaged", f"{export['damaged']}: {'; '.join(export.get('damages', [])[:5])}")
    if facts["current"] or facts["found"]:
        kinds = ", ".join(f"{name} {facts['by_category'][name]['current']}" for name in CATEGORIES)
        add("Facts", f"{facts['current']:,} current ({kinds})")
        add("", f"{facts['superseded']:,} superseded, {facts['unverified']:,} not believed")
    if job["memory"] is not None:
        saved = f"written by {job['memory']['writer']} at {clock(job['memory']['saved_at'])}"
        add("Memory", f"{saved}; sections {'saved' if job['sections']['saved'] else 'not renewed'}")
    if cost["calls"]:
        by_purpose = ", ".join(f"{n['calls']} {name}" for name, n in cost["by_purpose"].items())
        add("Cost", f"${cost['cost_usd']:.4f}, {counted(cost['calls'], 'call')} ({by_purpose})")
        if cost["calls_of_unknown_price"]:
            add("", f"{cost['calls_of_unknown_price']:,} of unknown price not included")
        add("", tokens(cost))
    if saved := savings(cost):
        add("" if cost["calls"] else "Cost", saved)
    if job["batches"]["out"]:
        out = f"{job['batches']['out']} out with {job['batches']['windows']:,} windows"
        add("Batches", f"{out}, since {clock(job['batches']['since'])}")
    used = f"{job['attempts']} of {job['max_attempts'] or 5}"
    add("Attempts", f"{used}, {counted(job['crashes'], 'crash')}, lease epoch {job['lease_epoch']}")
    profile = job["profile"]
    if profile["full_pass_status"] is not None:
        percent = f"{profile['progress_percent'] or 0}%"
        stage = profile["import_stage"] or "no stage"
        add("Profile", f"{profile['full_pass_status']}, {percent}: {stage}")
    return lines


def _timeline(console: Console, events: list[Account]) -> None:
    if not events:
        return
    _heading(console, "Timeline (UTC)")
    for event in without_vain_looks(events):
        what = f"  {clock(event['at'])}  {event['event']:<{_EVENT_CELLS}}  "
        aligned(console, what, told_of(event))


def told_of(event: Account) -> str:
    """Say what an event of the timeline tells beside its name: its step, its figures."""
    if event["event"] == "claimed":
        return f"attempt {event['attempt']} by {event['worker_id']}"
    data = event["data"] or {}
    told = ", ".join(f"{name.replace('_', ' ')} {_short(value)}" for name, value in data.items())
    step = event["step"] if event["event"].startswith("step.") else ""
    return " ".join(filter(None, (step, told)))


def without_vain_looks(events: list[Account]) -> list[Account]:
    """Leave out looks that changed nothing: claims after which a job waits for just the same."""
    kept: list[Account] = []
    for event in events:
        if (
            event["event"] == "waited"
            and [e["event"] for e in kept[-2:]] == ["waited", "claimed"]
            and (event["data"] or {}).get("reason") == (kept[-2]["data"] or {}).get("reason")
        ):
            kept.pop()
            first = kept[-1]["data"]
            kept[-1] = {**kept[-1], "data": {**first, "looks": first.get("looks", 1) + 1}}
        else:
            kept.append(event)
    return kept


def aligned(console: Console, left: str, text: str, *, style: str = "") -> None:
    """Print text beside what stands left of it, its further lines below its first."""
    room = max(20, console.width - len(left))
    for line in folded(console, text, room):
        console.print(f"{left}{line}".rstrip(), style=style, markup=False, soft_wrap=True)
        left = " " * len(left)


def _running(console: Console, job: Account) -> None:
    aligned(console, f"  {_bar(job['progress'])} {job['progress']:>3}%  ", job["job_id"])
    told = [*whereabouts(job), f"${job['cost_usd']:.4f}"]
    aligned(console, f"  {'':<{_BAR_CELLS}}        ", " · ".join(told))
    if job["lease_left_seconds"] is not None and job["lease_left_seconds"] < 0:
        lost = f"{job['worker_id'] or 'its worker'} is lost; the next claim takes it up"
        aligned(console, f"  {'':<{_BAR_CELLS}}        ", lost, style="red")


def whereabouts(job: Account) -> list[str]:
    """Say where a running pass is: its step, what it has read, for how long, how long still."""
    told = [job["step"] or "starting"]
    to_read = job["chunks_read"] + job["chunks_unread"]
    if job["step"] == "extract_facts" and to_read:
        told.append(f"{job['chunks_read']:,} of {to_read:,} chunks")
    told.append(f"for {span(job['age_seconds'])}")
    if job["seconds_left"]:
        told.append(f"about {span(job['seconds_left'])} left")
    return told


def _stuck(console: Console, jobs: list[Account], of_all: int) -> None:
    """Show the longest of each kind: what helps one helps its like."""
    _heading(console, f"Stuck ({of_all})")
    kinds = {(job["reason"], job["remedy"]): job for job in reversed(jobs)}
    for (reason, remedy), job in list(reversed(kinds.items()))[:_LISTED]:
        alike = sum(j["reason"] == reason for j in jobs) - 1
        more = f", and {alike} more" if alike else ""
        aligned(console, "  ", f"{job['job_id']}  for {span(job['seconds'])}{more}")
        aligned(console, "    ", f"{reason}; {remedy}")


def _worker(console: Console, worker: Account) -> None:
    beat = span(worker["beat_age_seconds"])
    told = [
        counted(worker["jobs"], "job"), memory_of(worker) or "memory not known",
        f"calls {calls_of(worker)}",
        f"{worker['calls_per_minute']} a minute",
        f"beat {beat} ago" if worker["alive"] else f"silent for {beat}",
    ]  # fmt: skip
    aligned(console, "  ", f"{worker['worker_id']}  ({worker['version']})")
    aligned(console, "    ", " · ".join(told), style="" if worker["alive"] else "red")
    if worker["waiting_for"]:
        aligned(console, "    ", f"paused: {worker['waiting_for']}", style="yellow")


def memory_of(worker: Account) -> str | None:
    """Say what memory a worker has in use, and of how much; None when it has not told."""
    if worker["rss_bytes"] is None:
        return None
    used, limit = worker["rss_bytes"] >> 20, worker["memory_limit_bytes"]
    return f"{used:,} MB" + (f" of {limit >> 20:,}" if limit else "")


def calls_of(worker: Account) -> str:
    """Say how many LLM calls a worker has under way, of how many, and what holds them lower."""
    calls = f"{worker['llm_in_flight'] or 0} of {worker['llm_limit'] or 0}"
    held_by = worker["llm_held_by"]
    return f"{calls}, held by {held_by}" if held_by in {"memory", "rate"} else calls


def _heading(console: Console, text: str) -> None:
    console.print(f"\n[bold]{escape(text)}[/]")


def _bar(percent: int) -> str:
    filled = round(_BAR_CELLS * min(100, max(0, percent)) / 100)
    return "█" * filled + "░" * (_BAR_CELLS - filled)


def span(seconds: float | None) -> str:
    """Say how long in its two largest units."""
    if seconds is None:
        return "?"
    seconds = max(0, int(seconds))
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60:02} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60:02} min"


def clock(at: str | None) -> str:
    """Return the time of day with its date, to the second."""
    return "?" if at is None else f"{datetime.fromisoformat(at):%Y-%m-%d %H:%M:%S}"


def _day(at: str | None) -> str:
    return "undated" if at is None else at[:10]


def _short(value: object) -> str:
    text = f"{value:.1f}" if isinstance(value, float) else str(value)
    return text if len(text) <= 200 else text[:199] + "…"
