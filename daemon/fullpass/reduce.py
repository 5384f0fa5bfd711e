"""Step reduce_facts: the current facts, made to fit the prompt that MEMORY is written from.

Facts that fit pass unchanged. Otherwise the model joins what belongs together, batch by batch, and
every join is checked; a level that does not shrink ends the joining. What still does not fit is
ranked out by a stated rule (`_rank`), and counted. No fact vanishes any other way.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from math import ceil
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from daemon.errors import BadCall, UselessReply
from daemon.fullpass import forecast
from daemon.fullpass.context import report_progress
from daemon.fullpass.facts import CATEGORIES, ReadItems, one_line, read_items
from daemon.fullpass.meaning import says_only
from daemon.fullpass.prompts import prompt
from daemon.fullpass.tokens import estimate_tokens
from daemon.fullpass.wording import read
from daemon.llm.request import NumberedFact, Reply, Request
from daemon.logs import get_logger

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from datetime import datetime
    from uuid import UUID

    from daemon.fullpass.context import Pass

_log = get_logger()
_BATCH_TOKENS = 6_000
_MAX_LEVELS = 4
_MUST_SHRINK = 0.95
_MOST_A_CATEGORY = 4_000
"""Facts of a category that are looked at, best-ranked first: bounds memory and cost."""
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


class Ranks(Protocol):
    """What the ranking looks at."""

    @property
    def category(self) -> str: ...  # noqa: D102
    @property
    def statement(self) -> str: ...  # noqa: D102
    @property
    def observed_at(self) -> datetime | None: ...  # noqa: D102
    @property
    def weight(self) -> int: ...  # noqa: D102


Ranked = TypeVar("Ranked", bound=Ranks)


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
    items, passed_over = await _current(work)
    room = work.settings.memory_max_tokens * _ROOM_PER_MEMORY_TOKEN
    before = len(items)
    level = 0
    while _size(items) > room and level < _MAX_LEVELS and not work.caller.offline:
        level += 1
        size = _size(items)
        later = forecast.levels(size, room)[1 : _MAX_LEVELS - level + 1]
        items = await _joined_level(work, items, later=sum(ceil(n / _BATCH_TOKENS) for n in later))
        async with work.lease.fenced() as connection:
            await report_progress(work, connection, share=level / _MAX_LEVELS)
        if _size(items) > size * _MUST_SHRINK:
            break  # it does not shrink any more: ranking is the honest way left
    joined = before - len(items)
    kept = _ranked(items, room)
    reduced = Reduced(tuple(kept), joined, passed_over + len(items) - len(kept), level)
    _log.info("facts.reduced", facts=before, joined=joined, ranked_out=reduced.ranked_out,
              levels=level)  # fmt: skip
    return reduced


async def _current(work: Pass) -> tuple[list[Item], int]:
    """Load the current facts, one item a meaning, and count those too many to look at.

    Facts of several sources that mean the same are one item: the newest wording, all their ids. The
    order follows from what they say alone, so prompts do too (promise 3).
    """
    rows = await work.fetch(
        """
        with current as (
            select *, mentions + case when evidence @? '$[*] ? (@.kind != "user")' then 2 else 0 end
                   as weight
            from fullpass.facts where user_id = $1 and superseded_by is null
        ), meanings as (
            select coalesce(meaning, id) as meaning,
                   (array_agg(category order by observed_at desc nulls last, statement))[1]
                       as category,
                   (array_agg(statement order by observed_at desc nulls last, statement))[1]
                       as statement,
                   max(observed_at) as observed_at, sum(weight)::int as weight,
                   array_agg(id order by observed_at desc nulls last, source) as ids
            from current group by 1
        ), ranked as (
            select *, row_number() over (
                       partition by category
                       order by weight desc, observed_at desc nulls last, statement) as place,
                   count(*) over () as of_all
            from meanings
        )
        select * from ranked where place <= $2
        order by array_position($3::text[], category), observed_at nulls first, statement
        """,
        work.job.user_id, _MOST_A_CATEGORY, list(CATEGORIES),
    )  # fmt: skip
    items = [
        Item(r["category"], r["statement"], r["observed_at"], tuple(r["ids"]), r["weight"])
        for r in rows
    ]
    return items, (rows[0]["of_all"] if rows else 0) - len(items)


def _size(items: Sequence[Item]) -> int:
    return sum(item.tokens for item in items)


def by_rank(items: Iterable[Ranked]) -> Iterator[Ranked]:
    """Yield what is to be kept first.

    The rule, the same wherever something must be left out: within a category the better founded
    come first (times it was said, and two more for what the person had saved on purpose), then the
    newer; categories take turns, so that none crowds out another.
    """
    queues: dict[str, list[Ranked]] = {category: [] for category in CATEGORIES}
    for item in items:
        queues[item.category].append(item)
    for queue in queues.values():
        queue.sort(
            key=lambda i: (
                i.weight, i.observed_at.timestamp() if i.observed_at else float("-inf"), i.statement
            )
        )  # fmt: skip
    while any(queues.values()):
        for queue in queues.values():
            if queue:
                yield queue.pop()


def _ranked(items: list[Item], room: int) -> list[Item]:
    """Keep the best-ranked items that fit, in their order; what does not fit is passed over."""
    kept: set[int] = set()
    for item in by_rank(items):
        if item.tokens <= room:
            room -= item.tokens
            kept.add(id(item))
    return [item for item in items if id(item) in kept]


async def _joined_level(work: Pass, items: list[Item], *, later: int) -> list[Item]:
    joined: list[Item] = []
    batches = list(_batches(items))
    written = sum(len(item.statement) for item in items) * forecast.WRITTEN_ANEW
    work.left.expect(
        "reduce", waves=len(batches) + later, characters=written / max(1, len(batches))
    )
    for batch in batches:
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
    work.left.answered("reduce", characters=len(answer.reply.text))
    taken: set[int] = set()
    groups: dict[int, Item] = {}
    for group in answer.value.items:
        members = _members(group.get("facts"), len(batch))
        statement = one_line(str(group.get("statement", "")))
        told = [batch[n - 1].statement for n in members]
        if len(members) < 2 or taken & set(members) or not joins(statement, told):
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


def joins(statement: str, originals: Sequence[str]) -> bool:
    """Whether a statement says all that its members say and nothing else."""
    return keeps_numbers(statement, originals) and says_only(
        read(statement), [read(text) for text in originals]
    )


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
