"""One extraction window: the question it asks, what its reply is worth, and what is saved of it.

The reply is the model's own or lies in the ledger already, from an earlier attempt or from a batch:
from there on everything is the same. Every chunk of a window that is closed has an outcome
(promise 4). Which windows are read, when and how, is `extract.py` and `batch.py`.
"""

from __future__ import annotations

import json
from collections import Counter
from functools import cache
from typing import TYPE_CHECKING

from daemon.errors import BadCall, GiveUp, UselessReply
from daemon.fullpass import windows
from daemon.fullpass.context import report_progress
from daemon.fullpass.facts import (
    EXTRACT_SCHEMA,
    FACTS_PER_REPLY,
    CheckedFact,
    ReadItems,
    check_fact,
    read_items,
)
from daemon.fullpass.prompts import prompt
from daemon.fullpass.tokens import estimate_tokens
from daemon.llm.request import Reply, Request
from daemon.logs import get_logger

if TYPE_CHECKING:
    from daemon.database import Connection
    from daemon.fullpass.context import Pass
    from daemon.fullpass.windows import Window, WindowMessage

_log = get_logger()
MAX_TOKENS = 8_192
"""The most a reply to a window may hold."""
_BROKEN = "the reply's JSON is broken; its complete items were kept"
_NOTHING_BEFORE_THE_CUT = "the reply was cut at max_tokens before its first fact"
_UNREAD_TO_GIVE_UP = 5
"""So many windows without a usable reply, and none with one, end the pass."""


async def read_window(work: Pass, window_id: int, share: float) -> int:
    """Read one window and write what came of it; return how many windows it became."""
    window = await windows.load(work, window_id)
    if window.missing:
        return 0  # replanned with the next attempt; its chunks still have no outcome
    request = request_for(work, window)
    items: ReadItems
    whole = True
    trouble: str | None = None
    outcome = "ok"
    tokens: tuple[int, int] | None = None
    try:
        answer = await work.caller.asked(work.scope, window.landed_as, request, read_reply)
        if answer is None:
            answer = await work.caller.ask(work.scope, request, read_reply)
            tokens = _tokens(request, answer.reply)
        items, stop_reason = answer.value, answer.reply.stop_reason
        if stop_reason == "refusal":
            whole, outcome, trouble = False, "refused", "the model refused to read it"
        elif answer.reply.cut_short and items.items:
            whole, outcome, trouble = False, "salvaged", "the reply was cut at max_tokens"
        elif answer.reply.cut_short:
            whole, outcome, trouble = False, "failed", _NOTHING_BEFORE_THE_CUT
        elif not items.whole:
            whole, outcome, trouble = False, "salvaged", _BROKEN
        elif len(items.items) == FACTS_PER_REPLY and not work.caller.offline:
            whole, outcome, trouble = False, "salvaged", "the reply holds as many facts as it may"
    except (BadCall, UselessReply) as error:
        items = ReadItems((), whole=False)
        whole, outcome, trouble = False, "failed", str(error)[:300]
    parts = [] if whole else windows.halves(window)
    if outcome in {"failed", "refused"} or not (whole or items.items):
        parts = _worth_another_try(work, window, parts, trouble)
    else:
        work.a_window_was_read = True
        if trouble == _BROKEN and len(window.content_hashes) == 1:
            parts = []  # broken, not too long: a part of the chunk would fare no better
    shown = [m.shown for m in window.messages]
    facts = [check_fact(item, shown) for item in items.items]
    work.left.found([fact for fact in facts if fact.rejected is None])
    async with work.lease.fenced() as connection:
        halves = await windows.close(work, connection, window, "split" if parts else "done", tokens)
        if halves is None:
            return 0
        await _save_facts(work, connection, window, facts)
        if not parts:
            await _save_outcomes(work, connection, window, facts, outcome=outcome, trouble=trouble)
        await report_progress(work, connection, share=share, advanced=True)
    if trouble is not None:
        _log.warning("window.troubled", window=window.id, outcome=outcome, split=len(parts),
                     trouble=trouble)  # fmt: skip
    return len(parts)


def _worth_another_try(
    work: Pass, window: Window, parts: list[windows.Part], trouble: str | None
) -> list[windows.Part]:
    """Decide whether a window that could not be read is split, and whether to go on at all.

    Splitting finds the one chunk that a model stumbles over; it makes no sense while nothing at all
    could be read: then each piece would be paid to no use, and after a few windows the pass ends.
    """
    if not work.a_window_was_read:
        work.windows_unread += 1
        if work.windows_unread >= _UNREAD_TO_GIVE_UP:
            raise GiveUp(
                f"the model's first {work.windows_unread} replies could not be used ({trouble}): "
                "check EXTRACTION_MODEL and ANTHROPIC_BASE_URL, then retry the job"
            )
    if trouble == _NOTHING_BEFORE_THE_CUT:
        return parts  # too long, which half of it may not be
    return parts if work.a_window_was_read and len(window.content_hashes) > 1 else []


def request_for(work: Pass, window: Window) -> Request:
    """Return the question that a window asks: the same by whatever way it is sent."""
    instructions = prompt("extract")
    return Request(
        purpose="extract",
        prompt_version=instructions.version,
        model=work.settings.extraction_model,
        system=instructions.text,
        text=window.text(),
        schema=EXTRACT_SCHEMA,
        max_tokens=MAX_TOKENS,
        timeout_seconds=work.settings.llm_timeout_seconds,
        messages=tuple(m.shown for m in window.messages),
    )


def _tokens(request: Request, reply: Reply) -> tuple[int, int] | None:
    """Return what a request was estimated at and what was billed for it, in tokens."""
    usage = reply.usage
    if usage is None:
        return None
    billed = usage.input_tokens + usage.cache_read_tokens + usage.cache_write_tokens
    estimated = _fixed_tokens(request.system) + estimate_tokens(request.text)
    return (estimated, billed) if billed else None


@cache
def _fixed_tokens(instructions: str) -> int:
    return estimate_tokens(instructions) + estimate_tokens(json.dumps(EXTRACT_SCHEMA))


def read_reply(reply: Reply) -> ReadItems:
    """Return what a reply reports. Raises UselessReply when it is of no use."""
    if reply.stop_reason == "refusal":
        return ReadItems((), whole=False)
    try:
        return read_items(reply.text, "facts")
    except UselessReply:
        if reply.cut_short:
            # Thinking may use up all there is, or a tool's input be dropped: the same text again
            # would end the same way, half of it may not.
            return ReadItems((), whole=False)
        raise


async def _save_facts(
    work: Pass, connection: Connection, window: Window, facts: list[CheckedFact]
) -> None:
    """Write the window's facts, verified or not, in place of an offline reader's."""
    if work.extractor == "llm":
        await connection.execute(
            """
            delete from fullpass.extracted_facts e using fullpass.chunk_outcomes o
            where e.user_id = $1 and e.content_hash = any ($2)
              and o.user_id = e.user_id and o.content_hash = e.content_hash
              and o.extractor = 'offline'
            """,
            work.job.user_id, list(window.content_hashes),
        )  # fmt: skip
        await connection.execute(
            """
            delete from fullpass.chunk_outcomes
            where user_id = $1 and content_hash = any ($2) and extractor = 'offline'
            """,
            work.job.user_id, list(window.content_hashes),
        )  # fmt: skip
    by_number: dict[int | None, WindowMessage] = {m.shown.number: m for m in window.messages}
    first = window.messages[0]
    await connection.executemany(
        """
        insert into fullpass.extracted_facts (
            user_id, source, job_id, content_hash, conversation_id, message_id, origin, category,
            slot, statement, polarity, confidence, quote, observed_at, valid_from, rejected)
        values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16)
        """,
        [
            (
                work.job.user_id, work.source, work.job.id, m.content_hash, m.conversation_id,
                m.message_id if f.message is not None else None, m.shown.role, f.category, f.slot,
                f.statement, f.polarity, f.confidence, f.quote, m.observed_at, f.valid_from,
                f.rejected,
            )
            for f in facts
            for m in [by_number.get(f.message, first)]
        ],
    )  # fmt: skip


async def _save_outcomes(
    work: Pass,
    connection: Connection,
    window: Window,
    facts: list[CheckedFact],
    *,
    outcome: str,
    trouble: str | None,
) -> None:
    """Account for every chunk of a closed window (promise 4)."""
    by_number = {m.shown.number: m for m in window.messages}
    kept: Counter[str] = Counter()
    rejected: Counter[str] = Counter()
    for fact in facts:
        if fact.message is None:
            rejected[window.content_hashes[0]] += 1
        else:
            (kept if fact.rejected is None else rejected)[by_number[fact.message].content_hash] += 1
    chunk_ids = {m.content_hash: m.chunk_id for m in window.messages}
    for content_hash in window.content_hashes:
        if window.first is not None and outcome in {"ok", "salvaged"}:
            said = "split"  # it took several calls to read this one chunk
        elif outcome == "ok":
            said = "ok" if kept[content_hash] else "empty"
        else:
            said = outcome
        await connection.execute(
            """
            insert into fullpass.chunk_outcomes as o (
                user_id, content_hash, job_id, chunk_id, source, extractor, outcome, facts,
                rejected, detail)
            values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)
            on conflict (user_id, content_hash) do update set
                job_id = excluded.job_id, chunk_id = excluded.chunk_id,
                extractor = excluded.extractor,
                outcome = case when $11 and o.outcome in ('refused', 'failed') then o.outcome
                               else excluded.outcome end,
                facts = case when $11 then o.facts else 0 end + excluded.facts,
                rejected = case when $11 then o.rejected else 0 end + excluded.rejected,
                detail = coalesce(excluded.detail, case when $11 then o.detail end)
            """,
            work.job.user_id, content_hash, work.job.id, chunk_ids[content_hash], work.source,
            work.extractor, said, kept[content_hash], rejected[content_hash], trouble,
            window.first is not None,
        )  # fmt: skip
