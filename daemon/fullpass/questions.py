"""Which pairs of sayings rules leave open, so that a model is asked about them.

Doubts of the rules of replacing, pairs alike in other words, and possible translations; the most
telling first, so many at most. Of a part of all sayings it tells the pairs that are open among all.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from daemon.fullpass.alike import abroad, alike
from daemon.fullpass.supersede import Meaning, succeed

if TYPE_CHECKING:
    from daemon.fullpass.sayings import Saying, Sayings

MOST_QUESTIONS = 2_000
"""Pairs a model is asked about in one pass; the most alike first, the rest stay separate."""


def open_pairs(known: Sayings, *, share: float = 1.0) -> list[tuple[int, int]]:
    """Return the numbers of the sayings, the earlier first; there may be more than are asked.

    `share` is the part of all sayings that `known` holds: where many answer one question or share
    one word, they are a list and no pairs, and there are more of them than are seen here.
    """
    meanings = [Meaning(sayings) for sayings in known.meanings()]
    found = succeed(known, meanings, {}, share=share)
    doubts = [(a.newest, b.newest) for a, b, _ in found.doubts]
    pairs = [_in_time(a, b) for a, b in alike(known, most=MOST_QUESTIONS, share=share)]
    # Doubts first: there, silence would leave a guess standing.
    some = MOST_QUESTIONS // 2
    translated = [_in_time(a, b) for a, b in abroad(known, most=MOST_QUESTIONS // 4)]
    pairs = [*doubts[:some], *pairs, *doubts[some:], *translated]
    return list(dict.fromkeys((a.number, b.number) for a, b in pairs))


def _in_time(a: Saying, b: Saying) -> tuple[Saying, Saying]:
    return (a, b) if (a.newest, a.number) <= (b.newest, b.number) else (b, a)
