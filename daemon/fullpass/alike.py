"""Pairs of sayings that may mean the same in other words: what a model is asked about.

Found by the rare words they share, in time that grows with the number of facts: each word (or, for
words that many facts hold, each pair of words) leads to a bounded bucket, only sayings of one
bucket are compared, and the comparisons and the questions are bounded too. Buckets are filled a
part at a time, so memory is bounded as well (promise 7).
"""

from __future__ import annotations

from array import array
from collections import Counter
from functools import lru_cache
from hashlib import blake2b
from itertools import chain, combinations
from math import fsum, log
from typing import TYPE_CHECKING

from daemon.fullpass.meaning import may_be_same
from daemon.fullpass.tokenise import NOT, unspaced
from daemon.fullpass.wording import fold_slot

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from daemon.fullpass.sayings import Saying, Sayings

_BUCKET = 24
"""A word that more sayings hold says too little; it counts in pairs with another."""
_RAREST = 5
_PARTNERS = 6
"""Questions whether one saying repeats another."""
_LEAST_ALIKE = 0.12
_CHANGED_PARTNERS = 3
_LEAST_CHANGED = 0.4
_MOST_COMPARED = 120_000
_TRANSLATIONS = 4
"""Questions whether one saying is a translation of another."""
_KEYS_A_PART = 60_000
_STEM = 4


def alike(known: Sayings, *, most: int, share: float = 1.0) -> list[tuple[Saying, Saying]]:
    """Return at most `most` pairs worth a question, the most alike first.

    `share`: `known` holds so much of all, and only such pairs count as would be found among all.
    """
    many = _BUCKET * share
    telling = [tuple(dict.fromkeys(_telling(saying))) for saying in known.all]
    seen = Counter(chain.from_iterable(telling))
    keys, owners = array("Q"), array("I")
    for saying, stems in zip(known.all, telling, strict=True):
        for key in _keys(saying, stems, seen, many):
            keys.append(key)
            owners.append(saying.number)
    seen["@"] = sum(n for stem, n in seen.items() if stem[0] == "@")
    weight = _Weights(seen, len(known.all) + 1)
    scored: list[tuple[float, int, int]] = []
    compared: set[int] = set()
    for bucket in _buckets(keys, owners, many):
        for first, second in combinations(bucket, 2):
            pair = first * len(known.all) + second
            if len(compared) >= _MOST_COMPARED:
                break
            if pair in compared:
                continue
            compared.add(pair)
            a, b = known.all[first], known.all[second]
            if known.meaning_of(a) != known.meaning_of(b):
                score = _likeness(a, b, telling[first], telling[second], weight)
                if score >= _LEAST_ALIKE and a.reading.frame != b.reading.frame:
                    scored.append((score, first, second))
        if len(scored) > 20 * most:
            scored = _best(scored, 10 * most)
    asked: Counter[tuple[bool, int]] = Counter()
    pairs: dict[bool, list[tuple[Saying, Saying]]] = {True: [], False: []}
    for score, first, second in _best(scored, len(scored)):
        a, b = known.all[first], known.all[second]
        same = may_be_same(a.reading, b.reading)
        # Another number or day can be no rewording, but a newer state it can.
        if same or score >= _LEAST_CHANGED:
            places = [(same, first), (same, second)]
            if max(asked[place] for place in places) < (_PARTNERS if same else _CHANGED_PARTNERS):
                asked.update(places)
                pairs[same].append((a, b))
    return [*pairs[True], *pairs[False]][:most]


def abroad(known: Sayings, *, most: int) -> list[tuple[Saying, Saying]]:
    """Return at most `most` pairs of one category in two languages that share no word to meet by.

    Each saying is paired with the few of a language used more that look most like its translation:
    the same slot, predicate, numbers or days.
    """
    used = Counter(saying.reading.language for saying in known.all)
    rank = {name: place for place, (name, _) in enumerate(used.most_common())}
    hosts: dict[str, list[Saying]] = {}
    pairs: list[tuple[Saying, Saying]] = []
    compared = 0
    for saying in sorted(known.all, key=lambda s: (rank[s.reading.language], s.number)):
        others = hosts.setdefault(saying.category, [])
        compared += len(others)
        if compared > _MOST_COMPARED or len(pairs) >= most:
            break
        scored = [
            (_translated(saying, other), other.number)
            for other in others
            if other.reading.language != saying.reading.language
            and known.meaning_of(saying) != known.meaning_of(other)
            and saying.reading.negated == other.reading.negated
            and may_be_same(saying.reading, other.reading)
        ]
        scored.sort(key=lambda s: (-s[0], s[1]))
        pairs += [(saying, known.all[n]) for score, n in scored[:_TRANSLATIONS] if score]
        others.append(saying)
    return pairs[:most]


def _translated(a: Saying, b: Saying) -> int:
    """Score how much two sayings of two languages look like one."""
    shared = set(a.reading.words) & set(b.reading.words)
    same_slot = bool(a.slot) and fold_slot(a.slot) == fold_slot(b.slot)
    return 4 * same_slot + 2 * len(shared) + (bool(a.slot) and bool(b.slot))


def _best(scored: list[tuple[float, int, int]], most: int) -> list[tuple[float, int, int]]:
    # Sayings are numbered by what they say, so a tie is broken by content too.
    return sorted(scored, key=lambda s: (-s[0], s[1], s[2]))[:most]


def _buckets(keys: array[int], owners: array[int], many: float) -> Iterator[list[int]]:
    """Yield the sayings of each key that more than one and not too many share."""
    parts = 1 + len(keys) // _KEYS_A_PART
    for part in range(parts):
        buckets: dict[int, list[int]] = {}
        for key, owner in zip(keys, owners, strict=True):
            if key % parts == part:
                buckets.setdefault(key, []).append(owner)
        for key in sorted(buckets):
            if 1 < len(buckets[key]) <= max(2, many):
                yield buckets[key]


def _telling(saying: Saying) -> Iterator[str]:
    """Yield what tells of its matter: stems, so that endings and slips of the pen are no matter."""
    for word in saying.reading.words:
        if word not in {NOT, ">"}:
            yield from _stems(word, _STEM - (saying.reading.language not in _FEW_ENDINGS))


@lru_cache(maxsize=50_000)
def _stems(word: str, size: int) -> tuple[str, ...]:
    if unspaced(word):
        return (word, *(sign for sign in word if sign >= "\u3400"))
    if word.isalpha():
        stem = word if len(word) < 2 * _STEM else word[: _STEM + 1]
        latin = word.translate(_LATIN)  # Катя is Katya
        return (stem[:size],) if latin == word else (stem[:size], latin[:_STEM])
    return (word,)


_FEW_ENDINGS = frozenset({"en", "de", "fr", "es", "pt", "it", "nl"})
_LATIN = {
    **dict(zip(map(ord, "абвгдезийклмнопрстуфыэіґ"), "abvgdeziyklmnoprstufyeig", strict=True)),
    **{ord(c): latin for c, latin in (
        ("ж", "zh"), ("\u0445", "kh"), ("ц", "ts"), ("ч", "ch"), ("ш", "sh"), ("щ", "shch"),
        ("ъ", ""), ("ь", ""), ("ю", "yu"), ("я", "ya"), ("ї", "yi"), ("є", "ye"))},
}  # fmt: skip


def _keys(saying: Saying, stems: Iterable[str], seen: Counter[str], many: float) -> Iterator[int]:
    words = sorted(stems, key=lambda w: (seen[w], w))
    for word in words:
        if 1 < seen[word] <= max(2, many):
            yield _key(word)
    common = [w for w in words if seen[w] > max(2, many) or w[0] == "~"][:_RAREST]
    for pair in combinations(common, 2):
        yield _key(" ".join(pair))
    if saying.slot:
        yield _key(f"slot {fold_slot(saying.slot)}")


def _key(text: str) -> int:
    return int.from_bytes(blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest())


def _likeness(
    a: Saying, b: Saying, ones: Iterable[str], others: Iterable[str], weight: _Weights
) -> float:
    """Weighted Jaccard similarity: rare words tell more than common ones."""
    first, second = _opened(ones), _opened(others)
    # fsum: the order in which a set is walked must not decide which of two pairs is asked about.
    shared = fsum(map(weight.__getitem__, first & second))
    everything = fsum(map(weight.__getitem__, first | second))
    same_slot = 0.2 if a.slot and fold_slot(a.slot) == fold_slot(b.slot) else 0.0
    return shared / everything + same_slot if everything else 0.0


def _opened(stems: Iterable[str]) -> set[str]:
    """Return what tells of a matter with days left open: a plan may have moved."""
    return {"@" if stem[0] == "@" else stem for stem in stems}


class _Weights(dict[str, float]):
    """What each word tells, by how few sayings hold it; worked out when first asked for."""

    def __init__(self, seen: Counter[str], total: int) -> None:
        super().__init__()
        self._seen = seen
        self._total = total

    def __missing__(self, word: str) -> float:
        weight = self[word] = log(self._total / max(1, self._seen[word])) + 0.1
        return weight
