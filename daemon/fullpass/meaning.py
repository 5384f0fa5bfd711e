"""When two statements say the same, and when one answers what the other answered before.

Only what is certain is decided here: equal readings are the same; equal claims of which one is
denied are opposed; equal frames with other numbers or days are other values. Everything between is
a question for a model, and `may_be_same` is the guard that no model's word gets past: numbers,
days, names and denial must agree (embedding and model similarity alone score "3 March" and
"3 April" as twins: FACTS section 4).
"""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from typing import TYPE_CHECKING

from daemon.fullpass.wording import NOT, sides

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from daemon.fullpass.wording import Reading

_SAME_SUBJECT = 0.5
"""Overlap of two claims above which a denial in one of them is a contradiction, not a rewording."""
_SHORTEST_REORDERED = 3


def reorderable(reading: Reading) -> tuple[str, ...] | None:
    """Return what two statements share that differ in word order only; None if order may matter.

    The first word must stay (who does it), no two names may stand in it (who does it to whom), and
    no word such as "than" or "from".
    """
    words = reading.key
    if reading.ordered or len(words) < _SHORTEST_REORDERED or len(reading.names) > 1:
        return None
    return (words[0], *sorted(words[1:]))


def overlap(a: Iterable[str], b: Iterable[str]) -> float:
    """Jaccard similarity of two bags of words, 0 to 1."""
    first, second = set(a), set(b)
    both = len(first & second)
    return both / (len(first) + len(second) - both) if both else 0.0


def may_be_same(a: Reading, b: Reading) -> bool:
    """Whether a model that calls two statements the same may be believed."""
    if not _values_agree(a.values, b.values):
        return False
    if a.negated != b.negated and overlap(a.claim, b.claim) >= _SAME_SUBJECT:
        return False
    if (a.ordered or b.ordered) and set(a.words) == set(b.words) and sides(a) != sides(b):
        return False  # "tea over coffee" and "coffee over tea"
    if "de" in {a.language, b.language}:
        return True  # every noun is written like a name there
    return not (set(a.names) - set(b.words) and set(b.names) - set(a.words))


def _values_agree(a: tuple[str, ...], b: tuple[str, ...]) -> bool:
    """Whether the numbers are the same, and the days too up to a year that one leaves out."""
    if Counter(v for v in a if v[0] == "#") != Counter(v for v in b if v[0] == "#"):
        return False
    days, others = [sorted(_day(v) for v in values if v[0] == "@") for values in (a, b)]
    return len(days) == len(others) and all(
        x[1] == y[1] and (x[0] == y[0] or not x[0] or not y[0])
        for x, y in zip(days, others, strict=True)
    )


def _day(value: str) -> tuple[str, str]:
    year, _, rest = value[1:].partition("-")
    return year, rest


def says_only(line: Reading, facts: Sequence[Reading]) -> bool:
    """Whether a line that rests on some facts flips or mixes none of them, as far as code can tell.

    Every denial of the facts is kept and none is added; no name comes from elsewhere; what may not
    change places did not; and what one fact alone says does not stand among another's words
    ("Anna lives in Ghent, Marta in Porto" must not become "Anna in Porto, Marta in Ghent").
    """
    if line.words.count(NOT) != sum(f.words.count(NOT) for f in facts):
        return False
    known = {w for f in facts for w in f.words}
    if any(n not in known and n.removesuffix("s") not in known for n in line.names):
        return False
    at = {word: n for n, word in reversed(list(enumerate(line.words)))}
    spans = []
    for fact in facts:
        if fact.ordered and not _in_order(
            [w for w in fact.words if w in at and w[0] not in "~!>"], line.words
        ):
            return False
        others = {w for f in facts if f is not fact for w in f.words}
        own = [at[w] for w in fact.words if w in at and w not in others and w[0] not in "~!>"]
        if own:
            spans.append((min(own), max(own)))
    spans.sort()
    return all(first[1] < second[0] for first, second in pairwise(spans))


def _in_order(words: Sequence[str], line: Sequence[str]) -> bool:
    rest = iter(line)
    return all(word in rest for word in words)
