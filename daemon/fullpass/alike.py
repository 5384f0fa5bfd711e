"""Pairs of sayings that may mean the same in other words: what a model is asked about.

Found by the rare words they share, in time that grows with the number of facts: each word (or, for
words that many facts hold, each pair of words) leads to a bounded bucket, only sayings of one
bucket are compared, and the comparisons and the questions are bounded too. Buckets are filled a
part at a time, so memory is bounded as well (promise 7).
"""

from __future__ import annotations

from array import array
from collections import Counter
from hashlib import blake2b
from itertools import combinations
from math import fsum, log
from typing import TYPE_CHECKING

from daemon.fullpass.meaning import may_be_same
from daemon.fullpass.wording import NOT

if TYPE_CHECKING:
    from collections.abc import Iterator

    from daemon.fullpass.sayings import Saying, Sayings

_BUCKET = 24
"""A word that more sayings hold says too little; it counts in pairs with another."""
_RAREST = 5
_PARTNERS = 4
"""Questions whether one saying repeats another."""
_LEAST_ALIKE = 0.2
_LEAST_CHANGED = 0.4
_MOST_COMPARED = 120_000
_KEYS_A_PART = 60_000


def alike(known: Sayings, *, most: int) -> list[tuple[Saying, Saying]]:
    """Return at most `most` pairs worth a question, the most alike first."""
    seen = Counter(w for saying in known.all for w in set(_telling(saying)))
    keys, owners = array("Q"), array("I")
    for saying in known.all:
        for key in _keys(saying, seen):
            keys.append(key)
            owners.append(saying.number)
    weight = _Weights(seen, len(known.all) + 1)
    scored: list[tuple[float, int, int]] = []
    compared: set[int] = set()
    for bucket in _buckets(keys, owners):
        for first, second in combinations(bucket, 2):
            pair = first * len(known.all) + second
            if len(compared) >= _MOST_COMPARED:
                break
            if pair in compared:
                continue
            compared.add(pair)
            a, b = known.all[first], known.all[second]
            if known.meaning_of(a) != known.meaning_of(b):
                score = _likeness(a, b, weight)
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
            if max(asked[place] for place in places) < (_PARTNERS if same else 1):
                asked.update(places)
                pairs[same].append((a, b))
    return [*pairs[True], *pairs[False]][:most]


def _best(scored: list[tuple[float, int, int]], most: int) -> list[tuple[float, int, int]]:
    # Sayings are numbered by what they say, so a tie is broken by content too.
    return sorted(scored, key=lambda s: (-s[0], s[1], s[2]))[:most]


def _buckets(keys: array[int], owners: array[int]) -> Iterator[list[int]]:
    """Yield the sayings of each key that more than one and not too many share."""
    parts = 1 + len(keys) // _KEYS_A_PART
    for part in range(parts):
        buckets: dict[int, list[int]] = {}
        for key, owner in zip(keys, owners, strict=True):
            if key % parts == part:
                buckets.setdefault(key, []).append(owner)
        for key in sorted(buckets):
            if 1 < len(buckets[key]) <= _BUCKET:
                yield buckets[key]


def _telling(saying: Saying) -> Iterator[str]:
    return (w for w in saying.reading.words if w not in {NOT, ">"})


def _keys(saying: Saying, seen: Counter[str]) -> Iterator[int]:
    words = sorted(set(_telling(saying)), key=lambda w: (seen[w], w))
    for word in words:
        if 1 < seen[word] <= _BUCKET and word[0] != "~":
            yield _key(word)
    common = [w for w in words if seen[w] > _BUCKET or w[0] == "~"][:_RAREST]
    for pair in combinations(common, 2):
        yield _key(" ".join(pair))
    if saying.slot:
        yield _key(f"slot {saying.slot.casefold()}")


def _key(text: str) -> int:
    return int.from_bytes(blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest())


def _likeness(a: Saying, b: Saying, weight: _Weights) -> float:
    """Weighted Jaccard similarity: rare words tell more than common ones."""
    first, second = set(_telling(a)), set(_telling(b))
    # fsum: the order in which a set is walked must not decide which of two pairs is asked about.
    shared = fsum(map(weight.__getitem__, first & second))
    everything = fsum(map(weight.__getitem__, first | second))
    same_slot = 0.2 if a.slot and a.slot.casefold() == b.slot.casefold() else 0.0
    return shared / everything + same_slot if everything else 0.0


class _Weights(dict[str, float]):
    """What each word tells, by how few sayings hold it; worked out when first asked for."""

    def __init__(self, seen: Counter[str], total: int) -> None:
        super().__init__()
        self._seen = seen
        self._total = total

    def __missing__(self, word: str) -> float:
        weight = self[word] = log(self._total / self._seen[word]) + 0.1
        return weight
