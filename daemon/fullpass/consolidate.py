"""Step consolidate_facts: verified facts of a person into a current view with history.

Deterministic and linear. Within one source, facts that say the same are merged and keep all their
evidence. A fact that answers the same question (slot) as a later one, or that a later one negates,
is superseded by it, across sources too, and stays as history (promise 12). The result is computed
from the verified facts alone, so doing it again changes nothing.

Merging is deliberately strict: two statements are the same only if they agree word for word once
case, punctuation and filler words are set aside. Similar-looking facts that differ in a number, a
name, an order or a negation are different facts.
"""

from __future__ import annotations

import json
import re
import unicodedata
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from itertools import pairwise
from typing import TYPE_CHECKING
from uuid import UUID, uuid5

from daemon.fullpass.context import report_progress
from daemon.logs import get_logger

if TYPE_CHECKING:
    from daemon.fullpass.context import Pass

_log = get_logger()
_NAMESPACE = UUID("6d1f7c1e-5d0f-5c57-9a37-0f6ac2f6f1aa")
_LONG_AGO = datetime(1, 1, 1, tzinfo=UTC)
_MOST_EVIDENCE = 50

# Words whose presence does not change what an English statement says of a person.
_FILLER = frozenset(
    [
        "a",
        "an",
        "the",
        "is",
        "are",
        "was",
        "be",
        "been",
        "being",
        "am",
        "to",
        "of",
        "for",
        "in",
        "on",
        "at",
        "with",
        "that",
        "this",
        "it",
        "its",
        "as",
        "and",
        "so",
        "very",
        "really",
        "quite",
        "also",
        "just",
        "currently",
        "now",
        "has",
        "have",
        "had",
        "their",
        "they",
        "them",
        "user",
        "person's",
    ]
)
_NEGATIONS = frozenset(
    [
        "no",
        "not",
        "never",
        "none",
        "nothing",
        "neither",
        "nor",
        "cannot",
        "without",
        "stopped",
        "quit",
        "longer",
        "don't",
        "doesn't",
        "didn't",
        "isn't",
        "aren't",
        "wasn't",
        "won't",
        "can't",
        "nicht",
        "kein",
        "keine",
        "nie",
        "não",
        "nunca",
        "jamais",
        "pas",
        "sin",
        "nunca",
    ]
)
_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")


@dataclass(slots=True)
class _Fact:
    """One consolidated fact while it is put together."""

    source: str
    category: str
    slot: str
    statement: str
    polarity: str
    confidence: str
    valid_from: date | None
    observed_at: datetime | None
    first_observed_at: datetime | None
    evidence: list[dict[str, str]] = field(default_factory=list)
    superseded_by: _Fact | None = None

    @property
    def order(self) -> tuple[datetime, str]:
        """Newest last; ties by text, so that the result never depends on row order."""
        return (self.observed_at or _LONG_AGO, self.statement)

    def id_for(self, user_id: UUID) -> UUID:
        """Derive an id from what the fact says: the same fact keeps its id from pass to pass."""
        return uuid5(
            _NAMESPACE, "\x1f".join((str(user_id), self.source, self.category, self.statement))
        )


async def consolidate(work: Pass) -> dict[str, int]:
    """Rebuild the person's facts; return counts of what was merged and superseded."""
    work.step = "consolidate_facts"
    merged: dict[tuple[str, str, str], _Fact] = {}
    reported = 0
    rows = await work.fetch(
        """
        select source, category, slot, statement, polarity, confidence, quote, message_id,
               conversation_id, observed_at, valid_from, origin
        from fullpass.extracted_facts
        where user_id = $1 and rejected is null
        order by observed_at nulls first, statement, conversation_id, message_id, quote
        """,
        work.job.user_id,
    )
    for row in rows:
        reported += 1
        _merge(merged, row)
    facts = list(merged.values())
    _supersede(facts)
    await _save(work, facts)
    counts = {
        "reported": reported,
        "facts": len(facts),
        "merged": reported - len(facts),
        "superseded": sum(f.superseded_by is not None for f in facts),
    }
    _log.info("facts.consolidated", **counts)
    return counts


def _merge(merged: dict[tuple[str, str, str], _Fact], row: object) -> None:
    """Add one verified fact (rows come oldest first) to the one that says the same."""
    r: dict[str, object] = dict(row)  # type: ignore[call-overload]
    key = (str(r["source"]), str(r["category"]), meaning_key(str(r["statement"])))
    evidence = {
        "conversation_id": str(r["conversation_id"]),
        "message_id": str(r["message_id"]),
        "quote": str(r["quote"]),
    }
    observed = r["observed_at"] if isinstance(r["observed_at"], datetime) else None
    fact = merged.get(key)
    if fact is None:
        merged[key] = fact = _Fact(
            source=key[0],
            category=key[1],
            slot=str(r["slot"]),
            statement=str(r["statement"]),
            polarity=str(r["polarity"]),
            confidence=str(r["confidence"]),
            valid_from=r["valid_from"] if isinstance(r["valid_from"], date) else None,
            observed_at=observed,
            first_observed_at=observed,
        )
    else:
        # The newest wording stands; the first sighting is remembered.
        fact.statement = str(r["statement"])
        fact.slot = str(r["slot"]) or fact.slot
        fact.observed_at = observed or fact.observed_at
        if isinstance(r["valid_from"], date):
            fact.valid_from = r["valid_from"]
        if r["confidence"] == "high":
            fact.confidence = "high"
    if evidence not in fact.evidence:
        fact.evidence.append(evidence)
        if len(fact.evidence) > _MOST_EVIDENCE:
            del fact.evidence[_MOST_EVIDENCE // 2]  # keep the first and the latest sightings


def _supersede(facts: list[_Fact]) -> None:
    """Let the newest answer to each question stand, the others point to the next newer one."""
    by_question: dict[tuple[str, ...], list[_Fact]] = {}
    for fact in facts:
        if fact.slot:
            slot = " ".join(_words(fact.slot))
            by_question.setdefault(("slot", fact.category, slot), []).append(fact)
        by_question.setdefault(("claim", fact.category, *_claim(fact.statement)), []).append(fact)
    for question, answers in by_question.items():
        answers.sort(key=lambda f: f.order)
        for older, newer in pairwise(answers):
            if meaning_key(older.statement) == meaning_key(newer.statement):
                continue  # the same answer in two sources: each stands
            if question[0] == "claim" and _negated(older) == _negated(newer):
                continue  # nothing is taken back
            older.superseded_by = newer


def _words(text: str) -> list[str]:
    folded = unicodedata.normalize("NFKC", text).casefold().replace("’", "'")
    return _WORD.findall(folded)


def meaning_key(statement: str) -> str:
    """Return what two statements share exactly when they say the same thing."""
    words = _words(statement)
    return " ".join(w for w in words if w not in _FILLER) or " ".join(words) or statement


def _claim(statement: str) -> tuple[str, ...]:
    """Return the statement without its negation: what it affirms or denies."""
    words = [w for w in _words(statement) if w not in _FILLER and w not in _NEGATIONS]
    return tuple(w.removesuffix("s") if len(w) > 3 else w for w in words)


def _negated(fact: _Fact) -> bool:
    return fact.polarity == "negated" or any(w in _NEGATIONS for w in _words(fact.statement))


async def _save(work: Pass, facts: list[_Fact]) -> None:
    """Replace the person's consolidated facts in one fenced transaction."""
    user = work.job.user_id
    columns = (
        "id", "user_id", "source", "job_id", "category", "slot", "statement", "polarity",
        "confidence", "evidence", "observed_at", "first_observed_at", "valid_from",
        "superseded_by",
    )  # fmt: skip
    unique = {f.id_for(user): f for f in facts}
    async with work.lease.fenced() as connection:
        await connection.execute("delete from fullpass.facts where user_id = $1", user)
        await connection.copy_records_to_table(
            "facts",
            schema_name="fullpass",
            columns=columns,
            records=[
                (
                    fact_id, user, f.source, work.job.id, f.category, f.slot, f.statement,
                    f.polarity, f.confidence, json.dumps(f.evidence), f.observed_at,
                    f.first_observed_at, f.valid_from,
                    None if f.superseded_by is None else f.superseded_by.id_for(user),
                )
                for fact_id, f in unique.items()
            ],
        )  # fmt: skip
        await report_progress(work, connection)
