"""How long a model takes to answer, learned from the calls that every job of this process paid.

A call takes a while to its first token and then so much for each character of its reply. Both are
learned by model from the newest calls; how long a reply is beside what was foreseen, by purpose.
Characters, not tokens: what a model thinks before it answers is then part of its first wait, where
it belongs, and how it cuts words does not matter. Figures for an estimate only: nothing waits or
gives up by them.
"""

from __future__ import annotations

import time
from collections import deque
from math import copysign, fsum, inf
from operator import mul
from statistics import fmean, median
from typing import TYPE_CHECKING

from daemon.llm.pricing import model_named

if TYPE_CHECKING:
    from daemon.llm.request import Purpose

FIRST_TOKEN_SECONDS = 1.0
OUTPUT_TOKENS_PER_SECOND = 100
"""What is supposed of a model that was never called: the wait, then its output at this rate."""
CHARACTERS_PER_TOKEN = 4

NEWEST = 200
"""So many calls tell what a character of a reply takes."""
_NEWEST_LEVEL = 40
_CHANCE = 0.15
"""So many tell how quick a provider is now: it is not so all day. Less of a change is chance."""
_NEWEST_LENGTHS = 9
_BELIEF = 0.5
"""How far the supposed seconds of a character may be off, as a share of them."""
_SCATTER = 0.3
_SCATTER_CALLS = 4
"""Calls of one length differ by so much, as far as so many calls could tell."""
_LEAST_CALLS = 3
"""A slope through fewer is not looked at: two calls lie on a line whatever they took."""
_ROUNDS = 6
_FAR = 2.25
"""What lies further from the line than so many usual distances counts for less."""
_ABOVE = 0.3
"""Of a call that took longer than the line says, so much counts: any wait may come on top of what a
reply takes, and nothing makes it quicker."""


class Speeds:
    """What the calls of this process took, by model, and how long replies were, by purpose."""

    def __init__(self) -> None:
        self._calls: dict[str, deque[tuple[int, float]]] = {}
        self._first: dict[str, list[tuple[int, float]]] = {}
        self._first_answer: dict[str, float] = {}
        self._lines: dict[str, _Line] = {}
        self._lengths: dict[Purpose, deque[float]] = {}

    def seen(self, model: str, characters: int, seconds: float, *, past: bool = False) -> None:
        """Learn from one answered call, just now or once; `model` is any name of it."""
        name, now = model_named(model).id, time.monotonic()
        calls = self._calls.setdefault(name, deque(maxlen=NEWEST))
        if not past and now - seconds < self._first_answer.setdefault(name, now):
            # Begun before any was answered: it made its connection, and counts while few others do.
            self._first.setdefault(name, []).append((characters, seconds))
        else:
            calls.append((characters, seconds))
        self._lines.pop(name, None)

    def knows(self, model: str) -> bool:
        """Whether a call of this model was ever seen."""
        return model_named(model).id in self._calls

    def seconds(self, model: str, characters: float) -> float:
        """Return how long a reply of so many characters is likely to take."""
        name = model_named(model).id
        calls = list(self._calls.get(name, ()))
        if len(calls) < _LEAST_CALLS:
            calls += self._first.get(name, [])[-NEWEST:]
        if not calls:
            return _supposed(characters)
        if name not in self._lines:
            self._lines[name] = _Line(calls)
        return self._lines[name].at(characters)

    def wrote(self, purpose: Purpose, *, foreseen: float, characters: int) -> None:
        """Learn how long a reply was, which was foreseen to have so many characters."""
        if foreseen > 0:
            lengths = self._lengths.setdefault(purpose, deque(maxlen=_NEWEST_LENGTHS))
            lengths.append(characters / foreseen)

    def length(self, purpose: Purpose, foreseen: float) -> float:
        """Return how long a reply is likely to be, of which this was foreseen."""
        lengths = self._lengths.get(purpose)
        return foreseen * median(lengths) if lengths else foreseen


class _Line:
    """The line through some calls: seconds by the characters of the reply."""

    def __init__(self, calls: list[tuple[int, float]]) -> None:
        characters = [float(count) for count, _ in calls]
        took = _without_outliers(characters, [seconds for _, seconds in calls])
        mean, seconds = fmean(characters), fmean(took)
        slower = seconds / fmean(map(_supposed, characters))
        supposed = slower / (OUTPUT_TOKENS_PER_SECOND * CHARACTERS_PER_TOKEN)
        # No reply is quicker for being longer, and the first token takes no less than nothing.
        slope = max(0.0, _slope(characters, took, supposed=supposed))
        self._slope = min(slope, seconds / max(1.0, mean))
        self._wait = seconds - self._slope * mean
        newest = characters[-_NEWEST_LEVEL:]
        usual = fmean(map(self._at, newest))
        change = fmean(took[-_NEWEST_LEVEL:]) / usual - 1 if usual > 0 else 0.0
        self._now = 1 + copysign(max(0.0, abs(change) - _CHANCE), change)

    def _at(self, characters: float) -> float:
        return self._wait + self._slope * characters

    def at(self, characters: float) -> float:
        return self._now * self._at(characters)


def without_outliers(values: list[float]) -> list[float]:
    """Return the values, those above twice the median as that."""
    most = 2 * median(values)
    return [min(value, most) for value in values]


def _without_outliers(characters: list[float], seconds: list[float]) -> list[float]:
    """Let no call count for more than twice what is usual, as its length goes.

    The first one makes the connection, another met an overload.
    """
    usual_seconds, usual = median(seconds), _supposed(median(characters))
    return [
        min(took, 2 * usual_seconds * max(1.0, _supposed(count) / usual))
        for count, took in zip(characters, seconds, strict=True)
    ]


def _slope(characters: list[float], seconds: list[float], *, supposed: float) -> float:
    """Return the seconds of one more character.

    Replies of much the same length say little about longer ones, so the fitted slope and the one
    that is supposed count by how sure each is. Fitted by weights: waits have a long tail.
    """
    if len(characters) < _LEAST_CALLS:
        return supposed
    weights = [1.0] * len(seconds)
    slope, doubt = supposed, inf
    for _ in range(_ROUNDS):
        total = fsum(weights)
        mean = fsum(map(mul, weights, characters)) / total
        mean_seconds = fsum(map(mul, weights, seconds)) / total
        longer = [count - mean for count in characters]
        later = [took - mean_seconds for took in seconds]
        variance = fsum(w * x * x for w, x in zip(weights, longer, strict=True))
        if variance < total:
            return supposed
        slope = fsum(map(mul, weights, map(mul, longer, later))) / variance
        off = [y - slope * x for x, y in zip(longer, later, strict=True)]
        squares = fsum(w * d * d for w, d in zip(weights, off, strict=True))
        squares += _SCATTER_CALLS * (_SCATTER * mean_seconds) ** 2
        doubt = squares / max(1.0, total - 2 + _SCATTER_CALLS) / variance
        near = max(1e-9, _FAR * median(map(abs, off)))
        weights = [(1.0 if d < 0 else _ABOVE) * min(1.0, near / max(abs(d), 1e-12)) for d in off]
    belief = (_BELIEF * supposed) ** 2
    share = belief / (belief + doubt) if belief else 0.0
    return share * slope + (1 - share) * supposed


def _supposed(characters: float) -> float:
    return FIRST_TOKEN_SECONDS + characters / (OUTPUT_TOKENS_PER_SECOND * CHARACTERS_PER_TOKEN)
