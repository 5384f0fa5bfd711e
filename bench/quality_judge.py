"""Comparing a pass with the truth: what was found, merged, replaced and written."""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tests.support.planted_truth import Planted

if TYPE_CHECKING:
    from pathlib import Path

Json = dict[str, Any]


@dataclass
class Metric:
    """One measured number and its limit; `limit` None is told and not judged."""

    name: str
    value: float
    limit: float | None = None
    at_least: bool = True
    timed: bool = False

    @property
    def ok(self) -> bool:
        """Whether the limit is met."""
        if self.limit is None:
            return True
        return self.value >= self.limit if self.at_least else self.value <= self.limit


@dataclass
class Truth:
    """A truth file, read: facts with their mentions, and traps."""

    facts: list[Json]
    traps: list[Json]
    fact_of_sentence: dict[str, str] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> Truth:
        """Read the documented format, or a list of `truths` of one sentence each."""
        loaded = json.loads(path.read_text("utf-8"))
        facts = loaded.get("facts") or [
            {"id": f"truth-{n}", "category": t["category"], "current": t.get("current", True),
             "replaces": [], "mentions": [t]}
            for n, t in enumerate(loaded.get("truths", []))
        ]  # fmt: skip
        truth = cls(facts, loaded.get("traps", []))
        for fact in facts:
            fact.setdefault("current", True)
            fact.setdefault("replaces", [])
            for mention in fact["mentions"]:
                truth.fact_of_sentence[" ".join(mention["sentence"].split())] = fact["id"]
        return truth

    def planted(self) -> list[Planted]:
        """Return what a perfect reader reports."""
        return [
            Planted(
                sentence=m["sentence"], category=f["category"], statement=m["statement"],
                slot=m.get("slot", ""), polarity=m.get("polarity", "affirmed"),
                valid_from=m.get("valid_from", ""), fact=f["id"], replaces=tuple(f["replaces"]),
            )
            for f in self.facts for m in f["mentions"]
        ]  # fmt: skip

    def fact_of(self, quote: str) -> str | None:
        """Return the fact whose sentence holds a quote (or stands in it)."""
        quote = " ".join(quote.split())
        if (known := self.fact_of_sentence.get(quote)) is not None:
            return known
        if len(quote) < 12:
            return None
        return next((f for s, f in self.fact_of_sentence.items() if quote in s or s in quote), None)


def judge_pass(
    truth: Truth, got: Json, label: str, *, heard_only: bool
) -> tuple[list[Metric], Json]:
    """Compare a pass with the truth. `heard_only`: what the reader left out is not held against it."""
    rows_of: dict[str, set[Any]] = defaultdict(set)
    facts_in: dict[Any, Counter[str]] = defaultdict(Counter)
    by_row = {row["id"]: row for row in got["facts"]}
    foreign = 0
    for row in got["facts"]:
        for piece in row["evidence"]:
            fact = truth.fact_of(piece["quote"])
            if fact is None:
                foreign += 1
            else:
                rows_of[fact].add(row["id"])
                facts_in[row["id"]][fact] += 1
    heard = {f for q in got["reported"] if (f := truth.fact_of(q)) is not None}
    wanted = [f for f in truth.facts if not heard_only or f["id"] in heard]
    lost = [f["id"] for f in wanted if not rows_of[f["id"]]]

    merged = wrong = 0
    wrong_rows = []
    for row_id, inside in facts_in.items():
        total = sum(inside.values())
        right = sum(n * (n - 1) // 2 for n in inside.values())
        pairs = total * (total - 1) // 2
        merged += pairs
        wrong += pairs - right
        if len(inside) > 1:
            wrong_rows.append((by_row[row_id]["statement"], dict(inside)))
    wrong_facts = {f for inside in facts_in.values() if len(inside) > 1 for f in inside}
    repeated = [
        f for f in wanted if len({m["sentence"] for m in f["mentions"]} & got["reported"]) > 1
    ]
    missed = [f for f in repeated if len(rows_of[f["id"]]) > 1]

    replaced = {r: f["id"] for f in truth.facts for r in f["replaces"]}
    known_ids = {f["id"] for f in wanted}
    chains = [(old, new) for old, new in replaced.items() if {old, new} <= known_ids]

    def current(fact: str) -> bool:
        return any(by_row[r]["superseded_by"] is None for r in rows_of[fact])

    stale = [c for c in chains if current(c[0])]
    newest_gone = [c for c in chains if c[1] not in replaced and not current(c[1])]
    alive = [f for f in wanted if f["current"] and rows_of[f["id"]]]
    buried = [f for f in alive if not current(f["id"])]

    lines = memory_lines(got["memory"])
    prefix = {str(r["id"]).replace("-", "")[:8]: r for r in got["facts"]}
    invented = [
        text for text, cites in lines
        if not cites or any(c not in prefix for c in cites) or not says_only(text, [prefix[c] for c in cites])
    ]  # fmt: skip
    snares = {" ".join(t["sentence"].split()) for t in truth.traps}
    trapped = {
        c for c, row in prefix.items()
        if all(" ".join(e["quote"].split()) in snares for e in row["evidence"])
    }  # fmt: skip
    invented += [
        text for text, cites in lines
        if trapped.intersection(cites)
        or any(t.get("statement", "\x00").casefold() in text.casefold() for t in truth.traps)
    ]  # fmt: skip
    shown = [f for f in alive if any(told_by(by_row[r], lines) for r in rows_of[f["id"]])]
    metrics = [
        Metric(f"{label}.facts_recall", 1 - len(lost) / max(1, len(wanted)), 0.99),
        Metric(f"{label}.quotes_verified", got["proven"], 1.0),
        Metric(
            f"{label}.wrong_merges", len(wrong_facts) / max(1, len(wanted)), 0.005, at_least=False
        ),
        Metric(f"{label}.missed_merges", len(missed) / max(1, len(repeated)), 0.03, at_least=False),
        Metric(
            f"{label}.contradictions_current_is_newest",
            1 - (len({*stale, *newest_gone})) / max(1, len(chains)),
            1.0,
        ),
        Metric(
            f"{label}.current_facts_buried", len(buried) / max(1, len(alive)), 0.005, at_least=False
        ),
        Metric(f"{label}.memory_recall", len(shown) / max(1, len(alive)), 0.97),
        Metric(f"{label}.memory_invented_lines", len(invented), 0, at_least=False),
        Metric(f"{label}.foreign_evidence", foreign),
    ]
    details = {"lost": lost, "wrong": wrong_rows, "invented": invented,
               "missed": [[by_row[r]["statement"] for r in rows_of[f["id"]]] for f in missed],
               "stale": [(names(rows_of[a], by_row), names(rows_of[b], by_row)) for a, b in stale],
               "buried": [(names(rows_of[f["id"]], by_row),
                           [by_row[by_row[r]["superseded_by"]]["statement"] for r in rows_of[f["id"]]]) for f in buried],
               "unshown": [names(rows_of[f["id"]], by_row) for f in alive if f not in shown],
               "memory": got["result"]["memory"], "facts": got["result"]["facts"]}  # fmt: skip
    return metrics, details


def names(rows: set[Any], by_row: Json) -> list[str]:
    return sorted(by_row[r]["statement"] for r in rows)


def memory_lines(markdown: str) -> list[tuple[str, list[str]]]:
    """Every list item of a MEMORY with the ids that it cites."""
    items = re.findall(
        r"^- (.*?)(?: \[((?:f:[0-9a-f]{8}(?:, )?)+)\])?$", markdown or "", re.MULTILINE
    )
    return [(text, re.findall(r"f:([0-9a-f]{8})", cites)) for text, cites in items]


_OPENING = 4
"""First words of a line that may be another verb: "Made up their mind"."""
_BEGINNING = 4


def says_only(text: str, rows: list[Json]) -> bool:
    """Whether the numbers of a line, its date aside, are those of the facts that it cites.

    So must be every word after its verb, by its first letters, that is longer than "and".
    """
    plain = re.sub(r" \(\d{4}-\d\d-\d\d\)$", "", text)
    told = " ".join(r["statement"] for r in rows)
    words = {w[:_BEGINNING] for w in re.findall(r"\w+", told.casefold())}
    own = re.findall(r"\w+", plain.casefold())[_OPENING:]
    return set(re.findall(r"\d+", plain)) <= set(re.findall(r"\d+", told)) and all(
        w[:_BEGINNING] in words for w in own if len(w) >= _BEGINNING
    )


def told_by(row: Json, lines: list[tuple[str, list[str]]]) -> bool:
    """Whether a line that cites a fact says at least half of its words: to be cited is not enough.

    The line may be worded after another source's row of the same meaning.
    """
    words = re.findall(r"\w+", row["statement"].casefold())
    return any(
        str(row["id"]).replace("-", "")[:8] in cites
        and sum(w in text.casefold() for w in words) >= len(words) / 2
        for text, cites in lines
    )


def best_ranked(got: Json) -> float:
    """Share of the current facts that are in MEMORY or rightly out of it by the stated ranking.

    One that was left out is wronged by a lower-ranked one of its category that was kept and is no
    shorter: where that fitted, it would have.
    """
    cited = {c for _, cites in memory_lines(got["memory"]) for c in cites}
    by_meaning: dict[Any, list[Json]] = defaultdict(list)
    for row in got["facts"]:
        if row["superseded_by"] is None:
            by_meaning[row["meaning"]].append(row)
    groups: dict[str, list[tuple[tuple[float, float], bool, int]]] = defaultdict(list)
    for rows in by_meaning.values():
        newest = max((r["observed_at"] for r in rows if r["observed_at"]), default=None)
        weight = sum(r["mentions"] for r in rows) + 2 * any(
            e.get("kind") in {"memory", "instructions"} for r in rows for e in r["evidence"]
        )
        shown = any(str(r["id"]).replace("-", "")[:8] in cited for r in rows)
        rank = (float(weight), newest.timestamp() if newest else 0.0)
        size = len(rows[0]["statement"].encode())
        groups[rows[0]["category"]].append((rank, shown, size))
    wronged = total = 0
    for ranked in groups.values():
        kept = [(rank, size) for rank, shown, size in ranked if shown]
        for rank, shown, size in ranked:
            total += 1
            # A quarter more: tokens do not follow bytes exactly.
            wronged += not shown and any(k[0] < rank and k[1] >= 1.25 * size for k in kept)
    return 1 - wronged / max(1, total)
