"""Which facts a later one replaces.

Newest wins, history stays (promise 12). A fact is replaced when a later one, said in another
message, answers the same question and both cannot hold:

1. it denies the same claim ("Eats meat" / "Doesn't eat meat"), or affirms what was denied;
2. it fills the same frame with another value, where only one can hold: a birthday, an age, a count
   of what one has, the number or day of a slot, or the day of an event that had not yet happened;
3. it names another place of living or working, and no other slot;
4. it has the same slot, unless both can stand: tastes, wishes, languages and the like (several
   answers at a time), or slots that name a kind of thing ("hobbies"), or facts about different
   people or projects, or a denial of something else ("no longer works at" an earlier employer).

"Later" goes by when it was said; in one conversation then by the order of its messages, else by
the day it is about. What has no date is older than all that has one, and among the undated of
several conversations none replaces another. `doubts` are the pairs of which rules 2 to 4 only
guess; a model may settle them, and those of rule 4 also where it does not guess.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from math import inf
from typing import TYPE_CHECKING

from daemon.fullpass.meaning import overlap
from daemon.fullpass.wording import fold_slot, holds_many, is_kin, is_predicate

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from daemon.fullpass.sayings import Saying, Sayings
    from daemon.fullpass.wording import Reading

_LOOK_AHEAD = 8
"""How many later answers to one question are compared with each."""
_ENUMERATION = 12
"""Where rules doubt and so many answers stand side by side, they are a list, no contradiction."""
_MOST_DOUBTS = 10_000
_LARGEST_COUNT = 1_000
_SUBJECT = 2
"""First words of a statement that may name somebody else it is about."""
_ALIKE = 0.3
"""Overlap above which two answers of one slot speak of the same matter for certain."""


@dataclass(slots=True, eq=False)
class Meaning:
    """One meaning: its sayings of all sources, and what replaced it."""

    sayings: list[Saying]
    replaced_by: Meaning | None = None
    newest: Saying = field(init=False)
    """The saying that was said last."""

    def __post_init__(self) -> None:
        self.newest = max(self.sayings, key=lambda s: s.newest)


@dataclass(slots=True)
class Succession:
    """Replacements that are certain or likely, and the pairs that a model should settle."""

    doubts: list[tuple[Meaning, Meaning, bool]] = field(default_factory=list)
    """Older, newer, and what is assumed if nobody says."""


def succeed(
    known: Sayings,
    meanings: list[Meaning],
    settled: Mapping[tuple[int, int], bool],
    *,
    share: float = 1.0,
) -> Succession:
    """Set `replaced_by` of every meaning that a later one replaces.

    `settled` holds what a model said of pairs (older, newer), named by their meaning's number:
    whether the one replaces the other. `share`: `meanings` are so much of all there are.
    """
    found = Succession()

    def said(older: Meaning, newer: Meaning) -> bool | None:
        if not settled:
            return None
        return settled.get((known.meaning_of(older.newest), known.meaning_of(newer.newest)))

    subjects = _subjects(meanings)
    for questions, rule in _questions(known, meanings, subjects):
        for answers in questions.values():
            if len(answers) > 1:
                _settle_question(answers, rule, said, found, share)
    _follow_model(known, meanings, settled)
    return found


def _follow_model(
    known: Sayings, meanings: list[Meaning], settled: Mapping[tuple[int, int], bool]
) -> None:
    """Let a model's word replace what no rule compared, if time allows and nothing else did."""
    if not any(settled.values()):
        return
    by_number = {known.meaning_of(m.newest): m for m in meanings}
    for (first, second), replaces in sorted(settled.items()):
        older, newer = by_number.get(first), by_number.get(second)
        if (
            replaces
            and older is not None
            and newer is not None
            and older is not newer
            and older.replaced_by is None
            and _later(older.newest, newer.newest)
        ):
            older.replaced_by = newer


def _settle_question(
    answers: list[Meaning],
    rule: Callable[[Saying, Saying], tuple[bool, bool]],
    settled: Callable[[Meaning, Meaning], bool | None],
    found: Succession,
    share: float,
) -> None:
    answers.sort(key=lambda m: m.newest.newest)
    few = len(answers) <= _ENUMERATION * share
    ahead = _LOOK_AHEAD if few else 2
    for n in range(len(answers) - 2, -1, -1):
        older = answers[n]
        for newer in answers[n + 1 : n + 1 + ahead]:
            if newer is older or not _later(older.newest, newer.newest):
                continue
            verdict, certain = rule(older.newest, newer.newest)
            # A slot is a model's word too: what two votes call separate are two answers, unless
            # they are one sentence with two values.
            frames = older.newest.reading.frame, newer.newest.reading.frame
            if not certain or (rule is _answered and frames[0] != frames[1]):
                said = settled(older, newer)
                if said is not None:
                    verdict = said
                elif not certain and few and len(found.doubts) < _MOST_DOUBTS:
                    found.doubts.append((older, newer, verdict))
            if verdict:
                # The first to replace it, whichever question it was found by.
                if (
                    older.replaced_by is None
                    or newer.newest.newest < older.replaced_by.newest.newest
                ):
                    older.replaced_by = newer
                break


def _later(older: Saying, newer: Saying) -> bool:
    """Whether the one was said after the other, for certain, and not in one breath with it."""
    if older.place == newer.place:
        return False
    if older.place[0] == newer.place[0] and older.newest[0] == newer.newest[0]:
        return older.newest[1] < newer.newest[1]
    if older.newest[0] < newer.newest[0]:
        return True
    return older.newest[0] == newer.newest[0] > -inf and 0 < older.valid_from < newer.valid_from


def _questions(
    known: Sayings, meanings: list[Meaning], subjects: frozenset[str]
) -> Iterable[
    tuple[dict[tuple[str, ...], list[Meaning]], Callable[[Saying, Saying], tuple[bool, bool]]]
]:
    """Yield the meanings by the questions they answer, with the rule for each kind of question."""
    by_claim: dict[tuple[str, ...], list[Meaning]] = {}
    for meaning in meanings:
        by_claim.setdefault(meaning.newest.reading.claim, []).append(meaning)
    yield by_claim, _denied
    by_claim.clear()

    by_frame: dict[tuple[str, ...], list[Meaning]] = {}
    for meaning in meanings:
        reading = meaning.newest.reading
        if reading.values:
            by_frame.setdefault(reading.frame, []).append(meaning)
    yield by_frame, _revalued
    by_frame.clear()

    by_place: dict[tuple[str, ...], list[Meaning]] = {}
    for meaning in meanings:
        reading = meaning.newest.reading
        for n, word in enumerate(reading.words[:3]):
            if word in {"~live", "~work"} and reading.names and not reading.negated:
                by_place.setdefault(reading.words[: n + 1], []).append(meaning)
    yield by_place, _relocated
    by_place.clear()

    by_slot: dict[tuple[str, ...], list[Meaning]] = {}
    for meaning in meanings:
        newest = max(meaning.sayings, key=lambda s: s.order_of_slot)
        if not newest.slot:
            continue
        slot = known.question_of(newest)
        subject = next((w for w in newest.reading.words[:1] if w in subjects), "")
        # A slot of one word ("work", "status") means little without its category and subject.
        words = len(slot.split())
        by_slot.setdefault((slot, subject, newest.category) if words < 2 else (slot,), []).append(
            meaning
        )
    yield by_slot, _answered


def _subjects(meanings: list[Meaning]) -> frozenset[str]:
    """Names that statements begin with, known for names by standing capitalised elsewhere."""
    return frozenset(name for m in meanings for s in m.sayings for name in s.reading.names)


def _denied(older: Saying, newer: Saying) -> tuple[bool, bool]:
    return older.reading.negated != newer.reading.negated, True


def _revalued(older: Saying, newer: Saying) -> tuple[bool, bool]:
    """Decide on the same frame with other values."""
    words = older.reading.words
    if any(is_predicate(w, "single") and w != "~due" for w in words):
        return True, True
    if words[0] == "~has" and len(words) == 3 and _counts(words[1]):
        return True, True
    if older.slot and newer.slot:
        same = fold_slot(older.slot) == fold_slot(newer.slot) and not holds_many(older.slot)
        return same, same
    if any(w[0] == "@" for w in words) and _day_of(older) < newer.newest[0]:
        return False, True  # a plan can be changed only before it took place
    # "The launch is on …" has one day; "flies to Oslo on …" may be another flight.
    return "~due" in words, False


def _counts(word: str) -> bool:
    """Whether a number counts things, unlike the 2016 of a car."""
    return word[0] == "#" and word[1:].isdecimal() and int(word[1:]) < _LARGEST_COUNT


def _day_of(saying: Saying) -> float:
    """Return the last second of the day a statement is about, epoch seconds; -inf if unknown."""
    said = saying.newest[0]
    if said == -inf:
        return -inf
    year_said = datetime.fromtimestamp(said, UTC).year
    for value in saying.reading.values:
        if value[0] == "@":
            year, month, day = ([*value[1:].split("-"), "28"])[:3]
            for candidate in [int(year)] if year else [year_said, year_said + 1]:
                try:
                    at = datetime(candidate, int(month), int(day), 23, 59, 59, tzinfo=UTC)
                except ValueError:
                    return -inf
                if year or at.timestamp() >= said:
                    return at.timestamp()
    return -inf


def _relocated(older: Saying, newer: Saying) -> tuple[bool, bool]:
    old, new = older.reading, newer.reading
    if set(old.names) & set(new.names):
        return False, True
    if older.slot and newer.slot and fold_slot(older.slot) != fold_slot(newer.slot):
        return False, False  # "weekend home", "side job"
    told_more = any(w[0] != "~" and w not in r.names for r in (old, new) for w in r.claim)
    return True, not told_more


def _answered(older: Saying, newer: Saying) -> tuple[bool, bool]:
    """Decide on the same slot with another answer."""
    old, new = older.reading, newer.reading
    if _elsewhere(old, new, older.slot):
        return False, False
    if old.frame == new.frame:
        return _revalued(older, newer) if holds_many(older.slot) else (True, True)
    if old.negated == new.negated and (
        set(old.claim) < set(new.claim) or set(new.claim) < set(old.claim)
    ):
        return False, False  # one only says more than the other
    shared = {w for w in old.words if w[0] == "~"} & {w for w in new.words if w[0] == "~"}
    if holds_many(older.slot):
        return False, False
    if new.negated and not old.negated and not set(new.claim) <= set(old.claim):
        return not shared, False  # "no longer works at" what may be another employer
    single = [w for w in shared if is_predicate(w, "single")]
    if single:
        # "Mother's birthday" and "father's birthday" are two questions, whatever the slot says.
        same = any(_before(old, w) == _before(new, w) for w in single)
        return same, same
    if any(is_predicate(w, "many") for w in shared) and old.negated == new.negated:
        # Two tastes stand side by side; two views of the one thing that the slot names may not.
        return bool(set(fold_slot(older.slot).split()) & set(old.claim) & set(new.claim)), False
    if len(older.slot.split()) < 2 and old.values and new.values and _apart(old, new):
        return False, False  # "deadline" of the one thing and of the other
    return True, bool(shared - {"~has"}) or overlap(old.claim, new.claim) >= _ALIKE


def _elsewhere(old: Reading, new: Reading, slot: str) -> bool:
    """Whether two answers of one slot are about different people, so that both may stand."""
    ones, others = ({w for w in r.claim[:_SUBJECT] if is_kin(w)} for r in (old, new))
    named = [{w for w in r.claim[:_SUBJECT] if w in r.names} for r in (old, new)]
    if ones & others and all(named) and not named[0] & named[1]:
        return True  # two sisters, each by her name
    return ones != others and not (ones | others) & set(fold_slot(slot).split())


def _apart(old: Reading, new: Reading) -> bool:
    """Whether each has words of its own besides numbers and days."""
    ones, others = ({w for w in reading.claim if w[0] not in "#@~"} for reading in (old, new))
    return bool(ones - others) and bool(others - ones)


def _before(reading: Reading, word: str) -> frozenset[str]:
    return frozenset(reading.claim[: reading.claim.index(word)])
