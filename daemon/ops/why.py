"""One sentence for the person on call: why a job is where it is, and what happens next."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datetime import datetime

Account = dict[str, Any]

_STEPS = (
    "download_conversations", "chunk_conversations", "save_chunks", "extract_facts",
    "consolidate_facts", "reduce_facts", "generate_memory", "save_memory", "regenerate_sections",
)  # fmt: skip


def why(job: Account) -> str:
    """Explain a job from its row and what belongs to it (`daemon.ops.status`)."""
    explain = {
        "pending": _pending,
        "processing": _processing,
        "complete": _complete,
        "failed": _failed,
        "cancelled": _cancelled,
    }.get(job["status"])
    if explain is None:
        return f"Its status {job['status']!r} is not one fullpass knows; nothing works on it."
    return explain(job)


def _pending(job: Account) -> str:
    if job["reserved"]:
        began = "was stopped" if job["started_at"] is not None else "has not begun"
        reason = job["waiting_for"] or (job["error"] if job["started_at"] is not None else None)
        told = f" ({_clause(reason)})" if reason else ""
        return (
            f"It belongs to a `fullpass run` that {began}{told}; no worker takes it: the same "
            "command goes on where it was."
        )
    if job["running_sibling"] is not None:
        return (
            f"Another job of the same person is running ({job['running_sibling']}); this one "
            "starts when that has ended."
        )
    later = job["run_at"] is not None and job["run_at"] > job["now"]
    when = f"at {_time(job['run_at'])}" if later else "now"
    if job["waiting_for"]:
        return (
            f"It waits, with no attempt used up, since {_time(job['waiting_since'])} for: "
            f"{_clause(job['waiting_for'])}; a worker tries again {when}."
        )
    if later and str(job["step"] or "").startswith("waiting: "):
        return f"It is {_clause(job['step'])}; it is due {when}."
    if job["error"]:
        return (
            f"Attempt {job['attempts']} of {job['max_attempts']} failed ({_clause(job['error'])}); "
            f"the next one is due {when} and goes on from what is saved."
        )
    if later:
        return f"It is not due before {_time(job['run_at'])}."
    begun = "It was given back and goes on from what is saved" if job["started_at"] else "It is due"
    if not job["live_workers"]:
        return (
            f"{begun}, but no worker has beaten within the last minute: start `fullpass worker` "
            "or look at why it stopped."
        )
    workers = "worker is" if job["live_workers"] == 1 else "workers are"
    return f"{begun} as soon as a worker has room for it; {job['live_workers']} {workers} live."


def _processing(job: Account) -> str:
    if not job["lease_epoch"]:
        return (
            "Its row says processing, but fullpass never leased it: an earlier system left it so; "
            "set it to pending to have it worked, or to failed."
        )
    if job["lease_expires_at"] is not None and job["lease_expires_at"] < job["now"]:
        return (
            f"Its worker {job['worker_id']} let the lease run out at "
            f"{_time(job['lease_expires_at'])}; the next claim by any worker takes it up and goes "
            "on from what is saved."
        )
    if job["cancel_requested_at"] is not None:
        asked = _time(job["cancel_requested_at"])
        return f"It was asked to stop at {asked}; it does so at its next call."
    waits = (
        f"; its worker waits for: {_clause(job['worker_waits_for'])}"
        if job["worker_waits_for"]
        else ""
    )
    read = ""
    if job["step"] == "extract_facts" and job["coverage"]["chunks"]:
        read = f" with {job['coverage']['read']} of {job['coverage']['chunks']} chunks read"
    following = _following(job["step"])
    then = f"; {following} comes next" if following else ""
    return (
        f"{job['worker_id']} is at {job['step'] or 'its start'} ({job['progress']}%){read}, last "
        f"progress {_time(job['last_progress_at'] or job['claimed_at'])}{waits}{then}."
    )


def _complete(job: Account) -> str:
    coverage, facts = job["coverage"], job["facts"]
    done = f"It is done since {_time(job['completed_at'])}"
    if job["erased_at"] is not None:
        return f"{done}; {_erased(job)}. Nothing more happens."
    read = f"{coverage['read']} of {coverage['chunks']} chunks read"
    parts = [f"{done}: {read}, {facts['current']} current facts"]
    export = job["export"] or {}
    if export.get("damaged"):
        places = "place" if export["damaged"] == 1 else "places"
        parts.append(f"{export['damaged']} damaged {places} left out")
    missing = coverage["chunks"] - coverage["read"]
    if missing:
        parts.append(f"{missing} chunks could not be read (see outcomes)")
    result = job["result"] or {}
    memory, sections = result.get("memory") or {}, result.get("sections") or {}
    if memory.get("applied") is False:
        parts.append("the offline MEMORY did not replace the one a model wrote")
    if sections.get("saved") is False:
        parts.append(
            f"sections not renewed ({_clause(sections.get('detail') or 'no reason noted')})"
        )
    if result.get("provider") == "offline":
        parts.append("no model was used")
    return "; ".join(parts) + ". Nothing more happens."


def _failed(job: Account) -> str:
    reason = _clause(job["error"] or "no reason noted")
    failed = f"It failed for good at {_time(job['completed_at'])}"
    if job["erased_at"] is not None:
        return f"{failed}; {_erased(job)}, and `fullpass retry {job['id']}` would begin anew."
    return (
        f"{failed}: {reason}; what was saved stays, and `fullpass retry {job['id']}` goes on from "
        "there once the cause is mended."
    )


def _cancelled(job: Account) -> str:
    cancelled = f"It was cancelled at {_time(job['completed_at'])}"
    if job["erased_at"] is not None:
        return f"{cancelled}; {_erased(job)}, and `fullpass retry {job['id']}` would begin anew."
    again = f"`fullpass retry {job['id']}` goes on from there"
    return f"{cancelled}; what was saved stays, and {again}."


def _erased(job: Account) -> str:
    return f"all that was derived from this person was erased at {_time(job['erased_at'])}"


def _following(step: str | None) -> str | None:
    if step not in _STEPS or step == _STEPS[-1]:
        return None
    return _STEPS[_STEPS.index(step) + 1]


def _clause(text: str) -> str:
    """Fit a message into the middle of a sentence."""
    return " ".join(text.split()).rstrip(".")


def _time(at: datetime | None) -> str:
    return "an unknown time" if at is None else f"{at:%Y-%m-%d %H:%M:%S} UTC"
