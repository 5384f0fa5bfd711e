"""Step consolidate_facts: verified facts of a person into a current view with history.

What says the same is one fact with all its evidence; what a later fact replaces points to it and
stays (promise 12). Rules decide what is certain: reading a statement is `wording.py`, comparing two
`meaning.py`, succession `supersede.py`. A model is asked only about what stays open (`judge.py`),
and not at all offline. The result follows from the verified facts alone, so doing it again changes
nothing, and it reaches the table as a difference: rows that did not change are not touched.
"""

from __future__ import annotations

import json
from bisect import bisect_left
from collections import Counter
from datetime import date
from itertools import islice
from math import inf
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid5

from daemon.fullpass.context import report_progress
from daemon.fullpass.judge import judge
from daemon.fullpass.meaning import may_be_same
from daemon.fullpass.questions import MOST_QUESTIONS, open_pairs
from daemon.fullpass.sayings import CONFIDENCES, Mention, Saying, Sayings
from daemon.fullpass.supersede import Meaning, succeed
from daemon.logs import get_logger

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from daemon.fullpass.context import Pass
    from daemon.fullpass.judge import Pair, Relation

_log = get_logger()
_NAMESPACE = UUID("6d1f7c1e-5d0f-5c57-9a37-0f6ac2f6f1aa")
_PAGE = 2_000
_FACTS_A_BATCH = 2_000
MOST_EVIDENCE = 50
"""Quotes a fact keeps: of more, the oldest and the newest 49."""


async def consolidate(work: Pass) -> dict[str, int]:
    """Bring the person's facts up to date; return counts of what was merged and superseded."""
    work.step = "consolidate_facts"
    counts: Counter[str] = Counter()
    known = await _read_all(work)
    known.unite_certain()
    settled: dict[tuple[int, int], bool] = {}
    if not work.caller.offline:
        settled = await _ask(work, known, counts)
    meanings = [Meaning(sayings) for sayings in known.meanings()]
    succeed(known, meanings, settled)
    facts = sum(len(_by_source(meaning)) for meaning in meanings)
    replaced = sum(len(_by_source(m)) for m in meanings if m.replaced_by is not None)
    work.left.facts = facts - replaced
    saved = await _save(
        work, known, _facts(work.job.user_id, meanings, known.main_language()), facts
    )
    result = {
        "reported": len(known.rows),
        "facts": facts,
        "merged": len(known.rows) - facts,
        "superseded": replaced,
        **counts,
        **saved,
    }
    _log.info("facts.consolidated", **result)
    return result


async def _read_all(work: Pass) -> Sayings:
    """Read every verified mention, a page at a time."""
    known = Sayings()
    after = 0
    while True:
        rows = await work.fetch(
            """
            with page as (
                select * from fullpass.extracted_facts
                where user_id = $1 and rejected is null and id > $2
                order by id limit $3
            ), messages as (
                -- Of messages written in the same second, the later in its conversation counts.
                select c.source, c.content_hash, m.message_id,
                       min(c.chunk_index * 1000000 + m.ordinal) as position
                from public.conversation_chunks c
                join fullpass.chunk_messages m on m.chunk_id = c.id
                where c.user_id = $1 and c.conversation_id in (select conversation_id from page)
                group by 1, 2, 3
            )
            select p.id, p.source, p.category, p.slot, p.statement, p.confidence,
                   p.conversation_id || '/' || coalesce(p.message_id, '') as place,
                   coalesce(m.position, 0)::int8 as position,
                   extract(epoch from p.observed_at)::float8 as observed, p.valid_from
            from page p left join messages m using (source, content_hash, message_id)
            order by p.id
            """,
            work.job.user_id, after, _PAGE,
        )  # fmt: skip
        for r in rows:
            known.add(
                Mention(
                    row=r["id"],
                    source=r["source"],
                    category=r["category"],
                    slot=r["slot"],
                    statement=r["statement"],
                    confidence=r["confidence"],
                    place=r["place"],
                    position=r["position"],
                    observed=-inf if r["observed"] is None else r["observed"],
                    valid_from=r["valid_from"].toordinal() if r["valid_from"] else 0,
                )
            )
        if len(rows) < _PAGE:
            return known
        after = rows[-1]["id"]
        work.lease.check()


# Questions to a model


async def _ask(work: Pass, known: Sayings, counts: Counter[str]) -> dict[tuple[int, int], bool]:
    """Let a model settle what rules leave open; return its word on replacements.

    What it calls the same is united here, where the guards allow it.
    """
    distinct = open_pairs(known)
    counts["pairs_unasked"] += max(0, len(distinct) - MOST_QUESTIONS)
    distinct = distinct[:MOST_QUESTIONS]
    texts = await _statements(work, {n for pair in distinct for n in pair}, known)
    named: dict[tuple[int, int], Pair] = {(a, b): (texts[a], texts[b]) for a, b in distinct}
    said = await judge(work, list(named.values()), counts)
    counts["pairs_asked"] += len(distinct)
    replaced: dict[tuple[int, int], bool] = {}
    groups = {known.meaning_of(group[0]): group for group in known.meanings()}
    for (a, b), pair in named.items():
        relation: Relation | None = said.get(pair)
        if relation == "same" and not _united(known, groups, known.all[a], known.all[b]):
            counts["merges_refused"] += 1
        elif relation in {"replaces", "separate"}:
            replaced[a, b] = relation == "replaces"
    return {
        (known.meaning_of(known.all[a]), known.meaning_of(known.all[b])): verdict
        for (a, b), verdict in replaced.items()
    }


def _united(known: Sayings, groups: dict[int, list[Saying]], a: Saying, b: Saying) -> bool:
    """Unite the meanings of two sayings unless a guard forbids it for any two of their members."""
    first, second = known.meaning_of(a), known.meaning_of(b)
    if first == second:
        return True
    ones, others = groups[first], groups[second]
    if not all(may_be_same(x.reading, y.reading) for x in ones[:20] for y in others[:20]):
        return False
    known.unite(a, b)
    groups[known.meaning_of(a)] = [*ones, *others]
    return True


async def _statements(work: Pass, numbers: set[int], known: Sayings) -> dict[int, str]:
    """Load the newest wording of some sayings."""
    rows = {known.all[n].newest_row: n for n in numbers}
    texts: dict[int, str] = {}
    wanted = sorted(rows)
    for at in range(0, len(wanted), _PAGE):
        for r in await work.fetch(
            "select id, statement from fullpass.extracted_facts where id = any ($1)",
            wanted[at : at + _PAGE],
        ):
            texts[rows[r["id"]]] = r["statement"]
    return texts


# Facts and their way into the table


class Fact:
    """One row of fullpass.facts: what one source holds of one meaning."""

    __slots__ = ("id", "meaning", "sayings", "superseded_by", "worded")

    def __init__(self, fact_id: UUID, meaning: UUID, sayings: list[Saying], main: str) -> None:
        self.id = fact_id
        self.meaning = meaning
        self.sayings = sayings
        self.worded = worded(sayings, main)
        self.superseded_by: UUID | None = None


def worded(sayings: Sequence[Saying], main: str) -> Saying:
    """Return the saying whose words stand: the newest in the person's main language, if any."""
    own = [s for s in sayings if s.reading.language == main]
    return max(own or sayings, key=lambda s: s.newest)


def _facts(user_id: UUID, meanings: Sequence[Meaning], main: str) -> Iterator[Fact]:
    """Yield the facts of all meanings, each pointing to the one that replaces it."""
    for meaning in meanings:
        shared = _id(user_id, "", meaning.sayings)
        by_source = _by_source(meaning)
        heirs = _by_source(meaning.replaced_by) if meaning.replaced_by is not None else {}
        for source, sayings in by_source.items():
            fact = Fact(_id(user_id, source, sayings), shared, sayings, main)
            if heirs:
                # Of the same source where it has one, else of the source that said it last.
                last = max(heirs, key=lambda s: max(x.newest for x in heirs[s]))
                heir = source if source in heirs else last
                fact.superseded_by = _id(user_id, heir, heirs[heir])
            yield fact


def _by_source(meaning: Meaning) -> dict[str, list[Saying]]:
    by_source: dict[str, list[Saying]] = {}
    for saying in meaning.sayings:
        by_source.setdefault(saying.source, []).append(saying)
    return by_source


def _id(user_id: UUID, source: str, sayings: Iterable[Saying]) -> UUID:
    """Derive an id from what was said first: a fact keeps its id when it is said again."""
    first = min(sayings, key=lambda s: (s.first, s.first_tie, s.reading.key))
    return uuid5(_NAMESPACE, "\x1f".join((str(user_id), source, *first.first_key)))


async def _save(work: Pass, known: Sayings, facts: Iterator[Fact], count: int) -> dict[str, int]:
    """Stage the facts in bounded transactions, then make them the person's in one step."""
    user = work.job.user_id
    members = _members(known)
    async with work.lease.fenced() as connection:
        await connection.execute("delete from fullpass.staged_facts where user_id = $1", user)
        await report_progress(work, connection)
    done = 0
    while batch := list(islice(facts, _FACTS_A_BATCH)):
        rows: list[int] = []
        fact_of: list[UUID] = []
        for fact in batch:
            for saying in fact.sayings:
                own = members(saying.number)
                rows.extend(own)
                fact_of.extend([fact.id] * len(own))
        async with work.lease.fenced() as connection:
            await connection.execute(
                "select fullpass.stage_facts($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)",
                user, [f.id for f in batch], [f.meaning for f in batch],
                [f.worded.source for f in batch], [f.worded.newest_row for f in batch],
                [_slot(f.sayings) for f in batch],
                [CONFIDENCES[max(s.confidence for s in f.sayings)] for f in batch],
                [_valid_from(f.sayings) for f in batch], [f.superseded_by for f in batch],
                rows, fact_of, MOST_EVIDENCE,
            )  # fmt: skip
            done += len(batch)
            await report_progress(work, connection, share=0.9 * done / count)
    async with work.lease.fenced() as connection:
        applied: dict[str, Any] = json.loads(
            await connection.fetchval("select fullpass.apply_facts($1, $2)", user, work.job.id)
        )
        await report_progress(work, connection, share=1.0)
    return {f"rows_{name}": count for name, count in applied.items()}


def _members(known: Sayings) -> Any:
    """Return a function from a saying's number to the rows of its mentions."""
    order = sorted(range(len(known.rows)), key=known.said_by_row.__getitem__)
    numbers = known.said_by_row

    def rows_of(number: int) -> list[int]:
        start = bisect_left(order, number, key=numbers.__getitem__)
        rows = []
        while start < len(order) and numbers[order[start]] == number:
            rows.append(known.rows[order[start]])
            start += 1
        return rows

    return rows_of


def _slot(sayings: Sequence[Saying]) -> str:
    return max(sayings, key=lambda s: s.order_of_slot).slot


def _valid_from(sayings: Sequence[Saying]) -> date | None:
    told = [s for s in sayings if s.valid_from]
    if not told:
        return None
    return date.fromordinal(max(told, key=lambda s: s.newest).valid_from)
