"""Step reduce_facts: the current facts, made to fit the prompt that MEMORY is written from.

Facts that fit pass unchanged. Otherwise the model joins what belongs together, batch by batch, and
every join is checked; a level that does not shrink ends the joining. What still does not fit is
ranked out by a stated rule (`_rank`), and counted. No fact vanishes any other way.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from daemon.errors import BadCall, UselessReply
from daemon.fullpass.context import CATEGORIES, report_progress
from daemon.fullpass.facts import ReadItems, one_line, read_items
from daemon.fullpass.prompts import prompt
from daemon.fullpass.tokens import estimate_tokens
from daemon.llm.request import NumberedFact, Reply, Request
from daemon.logs import get_logger

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from datetime import datetime
    from uuid import UUID

    from daemon.fullpass.context import Pass

_log = get_logger()
_BATCH_TOKENS = 6_000
_MAX_LEVELS = 4
_MUST_SHRINK = 0.95
_ROOM_PER_MEMORY_TOKEN = 4
"""The prompt of MEMORY holds at most this many tokens of facts for each token it may write."""

_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "merged": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {
                    "statement": {"type": "string"},
                    "facts": {"type": "array", "items": {"type": "integer"}},
                },
                "required": ["statement", "facts"],
                "additionalProperties": False,
            },
        }
    },
    "required": ["merged"],
    "additionalProperties": False,
}


@dataclass(frozen=True, slots=True)
class Item:
    """One statement for MEMORY and the facts it rests on."""

    category: str
    statement: str
    observed_at: datetime | None
    ids: tuple[UUID, ...]
    weight: int
    """How well founded: pieces of evidence, plus two for what the person had saved on purpose."""

    @property
    def tokens(self) -> int:
        """What it costs in a prompt."""
        return estimate_tokens(self.statement) + 12


@dataclass(frozen=True, slots=True)
class Reduced:
    """What goes to MEMORY, and the account of what does not."""

    items: tuple[Item, ...]
    joined: int
    ranked_out: int
    levels: int


async def reduce(work: Pass) -> Reduced:
    """Return the current facts as items that fit MEMORY's prompt."""
    work.step = "reduce_facts"
    items = await _current(work)
    room = work.settings.memory_max_tokens * _ROOM_PER_MEMORY_TOKEN
    before = len(items)
    level = 0
    while _size(items) > room and level < _MAX_LEVELS and not work.caller.offline:
        level += 1
        size = _size(items)
        items = await _joined_level(work, items)
        async with work.lease.fenced() as connection:
            await report_progress(work, connection, share=level / _MAX_LEVELS)
        if _size(items) > size * _MUST_SHRINK:
            break  # it does not shrink any more: ranking is the honest way left
    joined = before - len(items)
    kept = _ranked(items, room)
    reduced = Reduced(tuple(kept), joined, len(items) - len(kept), level)
    _log.info("facts.reduced", facts=before, joined=joined, ranked_out=reduced.ranked_out,
              levels=level)  # fmt: skip
    return reduced


async def _current(work: Pass) -> list[Item]:
    """Load the current facts, one for each statement, in an order that content alone decides."""
    rows = await work.fetch(
        """
        select id, category, statement, observed_at, jsonb_array_length(evidence) as evidence,
               source
        from fullpass.facts
        where user_id = $1 and superseded_by is null
        order by array_position($2::text[], category), observed_at nulls first, statement, source
        """,
        work.job.user_id, list(CATEGORIES),
    )  # fmt: skip
    merged: dict[tuple[str, str], Item] = {}
    for r in rows:
        key = (r["category"], r["statement"])
        known = merged.get(key)
        ids = (*(known.ids if known else ()), r["id"])
        weight = r["evidence"] + (known.weight if known else 0)
        merged[key] = Item(r["category"], r["statement"], r["observed_at"], ids, weight)
    return list(merged.values())


def _size(items: Sequence[Item]) -> int:
    return sum(item.tokens for item in items)


def _ranked(items: list[Item], room: int) -> list[Item]:
    """Keep the best-ranked items that fit, in their order.

    The rule: within each category the better founded come first, then the more recent; categories
    take turns, so that none crowds out another.
    """
    if _size(items) <= room:
        return items
    queues = {
        category: sorted(
            (i for i in items if i.category == category),
            key=lambda i: (
                -i.weight, -(i.observed_at.timestamp() if i.observed_at else 0), i.statement
            ),
        )
        for category in CATEGORIES
    }  # fmt: skip
    kept: set[int] = set()
    while any(queues.values()):
        for queue in queues.values():
            if queue:
                item = queue.pop(0)
                room -= item.tokens
                if room >= 0:
                    kept.add(id(item))
    return [item for item in items if id(item) in kept]


async def _joined_level(work: Pass, items: list[Item]) -> list[Item]:
    joined: list[Item] = []
    for batch in _batches(items):
        joined.extend(await _joined_batch(work, batch))
    return joined


def _batches(items: list[Item]) -> Iterator[list[Item]]:
    """Split by category, then into batches that fit a prompt."""
    batch: list[Item] = []
    size = 0
    for item in items:
        if batch and (item.category != batch[-1].category or size + item.tokens > _BATCH_TOKENS):
            yield batch
            batch, size = [], 0
        batch.append(item)
        size += item.tokens
    if batch:
        yield batch


async def _joined_batch(work: Pass, batch: list[Item]) -> list[Item]:
    """Let the model join facts of one batch; on any trouble the batch stays as it is."""
    if len(batch) < 2:
        return batch
    instructions = prompt("reduce")
    facts = numbered(batch)
    request = Request(
        purpose="reduce",
        prompt_version=instructions.version,
        model=work.settings.memory_model,
        system=instructions.text,
        text=fact_lines(facts),
        schema=_SCHEMA,
        max_tokens=8_192,
        timeout_seconds=work.settings.llm_timeout_seconds,
        facts=facts,
    )
    try:
        answer = await work.caller.ask(work.scope, request, _read)
    except (BadCall, UselessReply) as error:
        _log.warning("reduce.kept", facts=len(batch), error=str(error))
        return batch
    taken: set[int] = set()
    groups: dict[int, Item] = {}
    for group in answer.value.items:
        members = _members(group.get("facts"), len(batch))
        statement = one_line(str(group.get("statement", "")))
        if (
            len(members) < 2
            or taken & set(members)
            or not keeps_numbers(statement, [batch[n - 1].statement for n in members])
        ):
            continue
        taken.update(members)
        parts = [batch[n - 1] for n in members]
        dates = [p.observed_at for p in parts if p.observed_at is not None]
        groups[members[0]] = Item(
            category=parts[0].category,
            statement=statement,
            observed_at=max(dates, default=None),
            ids=tuple(i for p in parts for i in p.ids),
            weight=sum(p.weight for p in parts),
        )
    return [
        groups.get(n, item)
        for n, item in enumerate(batch, start=1)
        if n in groups or n not in taken
    ]


def _read(reply: Reply) -> ReadItems:
    if reply.stop_reason == "refusal":
        return ReadItems((), whole=False)
    return read_items(reply.text, "merged")


def _members(value: object, count: int) -> list[int]:
    """Return the distinct valid fact numbers of a group, in order."""
    if not isinstance(value, list):
        return []
    return sorted({n for n in value if isinstance(n, int) and 1 <= n <= count})


def keeps_numbers(statement: str, originals: Sequence[str]) -> bool:
    """Whether a joined statement has exactly the numbers of its members: a cheap honesty check."""
    numbers = {n for text in originals for n in re.findall(r"\d+", text)}
    return bool(statement) and set(re.findall(r"\d+", statement)) == numbers


def numbered(items: Sequence[Item]) -> tuple[NumberedFact, ...]:
    """Return items numbered from 1 in their order, which content alone decides."""
    return tuple(
        NumberedFact(n, item.category, item.statement, item.observed_at)
        for n, item in enumerate(items, start=1)
    )


def fact_lines(facts: Sequence[NumberedFact]) -> str:
    """Render facts as every later prompt shows them."""
    return "\n".join(
        f"[{f.number}] ({f.category}"
        + (f", {f.observed_at:%Y-%m-%d}" if f.observed_at else "")
        + f") {f.statement}"
        for f in facts
    )
