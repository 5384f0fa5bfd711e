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

from daemon.fullpass.tokenise import NOT
from daemon.fullpass.wording import is_filler, sides

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from daemon.fullpass.wording import Reading

_SAME_SUBJECT = 0.5
"""Overlap of two claims above which a denial in one of them is a contradiction, not a rewording."""
_SHORTEST_MISSPELT = 5


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
    return not any(
        latin(one) == latin(other) for one in _unknown_names(a, b) for other in _unknown_names(b, a)
    )


def _unknown_names(a: Reading, b: Reading) -> list[str]:
    """Return the names of `a` that `b` does not know in any spelling or case of theirs."""
    return [n for n in a.names if not any(_one_name(n, w, a.language) for w in b.words)]


def _one_name(name: str, word: str, language: str) -> bool:
    """Whether a word is a name misspelt by two letters that changed places, or another case of it.

    Cases only where languages have them: elsewhere Marta is not Maria.
    """
    if name == word:
        return True
    if len(name) == len(word) >= _SHORTEST_MISSPELT:
        apart = [n for n, (x, y) in enumerate(zip(name, word, strict=True)) if x != y]
        if len(apart) == 2 and name[apart[0]] + name[apart[1]] == word[apart[1]] + word[apart[0]]:
            return apart[0] + 1 == apart[1]
    if language in _WITHOUT_CASES:
        return False
    shared = _shared_beginning(name, word)
    return shared >= max(3, len(name) - 2, len(word) - 3)


def _shared_beginning(a: str, b: str) -> int:
    """Return how many letters two words share before they part."""
    pairs = enumerate(zip(a, b, strict=False))
    return next((n for n, (x, y) in pairs if x != y), min(len(a), len(b)))


_WITHOUT_CASES = frozenset({"en", "fr", "es", "pt", "it", "nl"})


def latin(word: str) -> bool:
    """Whether a word is in Latin letters; a name in two scripts cannot be compared."""
    return word[:1] < "\u0250"


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
    """Whether a line says what its facts say, as far as code can tell: all of it and no more.

    Every word that tells is in both, but for its ending; every denial of the facts is kept and none
    is added; no name comes from elsewhere; what may not change places did not; and what one fact
    alone says does not stand among another's words ("Anna lives in Ghent, Marta in Porto" must not
    become "Anna in Porto, Marta in Ghent").
    """
    if not (all_told(line, facts) and all(all_told(fact, [line]) for fact in facts)):
        return False
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
        own = [at[w] for w in fact.words if w in at and w not in others and w != ">"]
        if own:
            spans.append((min(own), max(own)))
    spans.sort()
    if line.words.count(NOT) > 1 and not all(fact.negated for fact in facts):
        return False  # which of the denials is whose cannot be told
    return all(first[1] < second[0] for first, second in pairwise(spans))


def all_told(reading: Reading, others: Sequence[Reading]) -> bool:
    """Whether all that a reading tells is told by the others too."""
    known = {word for other in others for word in other.words}
    return all(
        word in known or is_filler(word) or any(_inflected(word, other) for other in known)
        for word in reading.words
        if word not in _JOINING
        and word[0] not in f"#@>{NOT}"  # values and denials are compared one by one elsewhere
        and not (word == "~has" and all(w in _PLACES for w in known if w[0] == "~"))
    )


_JOINING = frozenset(["but", "while", "both", "aber", "mais", "pero", "mas", "ma", "maar", "но"])
_PLACES = frozenset({"~live", "~work"})
"""Whoever lives in Ghent with two cats has them; whoever hates cats and dogs need not."""


def _inflected(a: str, b: str) -> bool:
    """Whether two words differ by their endings only: "plays" and "play"."""
    shared = _shared_beginning(a, b)
    return a[0] not in "~#@" and shared >= max(_STEM, len(a) - 3, len(b) - 3)


_STEM = 3


def _in_order(words: Sequence[str], line: Sequence[str]) -> bool:
    rest = iter(line)
    return all(word in rest for word in words)
