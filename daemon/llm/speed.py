"""How long a model takes to answer, learned from the calls that every job of this process paid.

A call takes a while to its first token and then so much for each token of its reply, of which what
the model thought is a part; or a server answers any length in one time. Which it is, and how much
it is, is learned by model from the newest calls; how long a reply is beside what was foreseen, by
purpose. Figures for an estimate only: nothing waits or gives up by them.
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass
from math import copysign, exp, fsum, inf, log
from statistics import fmean, median
from typing import TYPE_CHECKING, NamedTuple

from daemon.llm.pricing import model_named

if TYPE_CHECKING:
    from daemon.llm.request import Purpose

FIRST_TOKEN_SECONDS = 1.0
OUTPUT_TOKENS_PER_SECOND = 100
"""What is supposed of a model that was never called: the wait, then its output at this rate."""
CHARACTERS_PER_TOKEN = 4

NEWEST = 200
"""So many calls tell what a token of a reply takes."""
_NEWEST_LEVEL = 40
_CHANCE = 0.15
"""So many tell how quick a provider is now: it is not so all day. Less of a change is chance."""
_NEWEST_LENGTHS = 9
_LEAST_CALLS = 3
"""With fewer, those that made their connection count too."""
_WAITS = tuple(100 * 2 ** (step / 2) for step in range(-10, 11))
"""What the wait before a reply may be worth: in tokens that would be written meanwhile."""
_BELIEF = 1.4
"""By which factor that is usually off from what is supposed."""
_FLAT = 0.05
"""How likely it is, before any call, that a server answers any length in one time."""
_SCATTER = 0.1
"""Calls of one length differ by so much, as far as one call could tell."""
_LEAST_SECONDS = 0.001
_TOKENS_A_CHARACTER = 0.05
"""How far a character may be from its usual share of a token: scripts and tokenizers differ."""
_TOKENS_SCATTER = 0.2
_LEAST_TOKENS_A_CHARACTER = 0.08
"""With fewer the server does not count the tokens it bills."""
_CLEARLY = 2.0
"""So much likelier (its logarithm) must be what goes by the text alone, where tokens are told."""


class _Call(NamedTuple):
    """One answered call."""

    characters: int
    tokens: int | None
    """Of all the model wrote, with what it thought; None where the server did not say."""
    seconds: float


class Speeds:
    """What the calls of this process took, by model, and how long replies were, by purpose."""

    def __init__(self) -> None:
        self._calls: dict[str, deque[_Call]] = {}
        self._first: dict[str, list[_Call]] = {}
        self._first_answer: dict[str, float] = {}
        self._lines: dict[str, _Line] = {}
        self._lengths: dict[Purpose, deque[float]] = {}

    def seen(
        self,
        model: str,
        characters: int,
        seconds: float,
        *,
        output_tokens: int | None = None,
        past: bool = False,
    ) -> None:
        """Learn from one answered call, just now or once; `model` is any name of it."""
        name, now = model_named(model).id, time.monotonic()
        calls = self._calls.setdefault(name, deque(maxlen=NEWEST))
        call = _Call(characters, output_tokens, seconds)
        if not past and now - seconds < self._first_answer.setdefault(name, now):
            # Begun before any was answered: it made its connection, and counts while few others do.
            self._first.setdefault(name, []).append(call)
        else:
            calls.append(call)
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
            return _supposed(characters / CHARACTERS_PER_TOKEN)
        if name not in self._lines:
            self._lines[name] = _line(calls)
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


@dataclass(frozen=True, slots=True)
class _Line:
    """The line through some calls: seconds by the tokens of the reply, these by its characters."""

    thought: float
    a_character: float
    """In tokens, beside what is thought whatever the length."""
    wait: float
    a_token: float
    """In seconds."""
    likelihood: float

    def at(self, characters: float) -> float:
        return self.wait + self.a_token * (self.thought + self.a_character * characters)


def _line(calls: list[_Call]) -> _Line:
    """Return the line that explains some calls best.

    What was billed says more than what can be read, since a model may think. Where time goes by the
    text all the same, the server bills something else.
    """
    characters = [float(call.characters) for call in calls]
    seconds = [call.seconds for call in calls]
    read = [count / CHARACTERS_PER_TOKEN for count in characters]
    by_text = _fitted(read, seconds, thought=0.0, a_character=1 / CHARACTERS_PER_TOKEN)
    tokens = [float(call.tokens) for call in calls if call.tokens is not None]
    if len(tokens) < len(calls) or fsum(tokens) < _LEAST_TOKENS_A_CHARACTER * fsum(characters):
        return by_text
    a_character = _tokens_a_character(characters, tokens)
    thought = max(0.0, fmean(tokens) - a_character * fmean(characters))
    by_tokens = _fitted(tokens, seconds, thought=thought, a_character=a_character)
    return by_text if by_text.likelihood > by_tokens.likelihood + _CLEARLY else by_tokens


def _tokens_a_character(characters: list[float], tokens: list[float]) -> float:
    """Return how many tokens one more character is.

    As fitted, and as is usual, by how sure each is: what is thought differs from call to call and
    hides what the text took.
    """
    usual = 1 / CHARACTERS_PER_TOKEN
    mean, mean_tokens = fmean(characters), fmean(tokens)
    longer = [count - mean for count in characters]
    variance = fsum(one * one for one in longer)
    more = [count - mean_tokens for count in tokens]
    if variance < len(longer):
        return usual
    fitted = fsum(one * other for one, other in zip(longer, more, strict=True)) / variance
    off = fsum((m - fitted * one) ** 2 for one, m in zip(longer, more, strict=True))
    doubt = (off + (_TOKENS_SCATTER * mean_tokens) ** 2) / max(1, len(longer) - 1) / variance
    believed = _TOKENS_A_CHARACTER**2 / (_TOKENS_A_CHARACTER**2 + doubt)
    return max(0.0, believed * fitted + (1 - believed) * usual)


def _fitted(
    lengths: list[float], seconds: list[float], *, thought: float, a_character: float
) -> _Line:
    """Fit what calls took to their lengths in tokens."""
    lengths = [max(1.0, length) for length in lengths]
    took = _without_outliers(lengths, [max(_LEAST_SECONDS, one) for one in seconds])
    worth, likelihood = _wait(lengths, took)
    a_token = 0.0
    if worth < inf:
        # The usual call tells what a token takes: what comes on top now and then is waiting.
        usual = fmean(log(t / (worth + x)) for x, t in zip(lengths, took, strict=True))
        a_token = min(exp(usual), fmean(took) / fmean(lengths))
    wait = fmean(took) - a_token * fmean(lengths)
    level = wait + a_token * fmean(lengths[-_NEWEST_LEVEL:])
    change = fmean(took[-_NEWEST_LEVEL:]) / level - 1 if level > 0 else 0.0
    now = 1 + copysign(max(0.0, abs(change) - _CHANCE), change)
    return _Line(thought, a_character, now * wait, now * a_token, likelihood)


def _wait(lengths: list[float], seconds: list[float]) -> tuple[float, float]:
    """Return what the wait is worth in tokens, and how likely that makes what was seen.

    Each is as likely as it was supposed to be, times how well it explains what calls took (Bayes).
    Either nothing goes by the length, which is a wait without end, or something does: what lies
    between the two is never right, so it is not said.
    """
    usual = FIRST_TOKEN_SECONDS * OUTPUT_TOKENS_PER_SECOND
    prior = [exp(-0.5 * (log(wait / usual) / log(_BELIEF)) ** 2) for wait in _WAITS]
    total = fsum(prior) / (1 - _FLAT)
    likely = [
        log(believed / total) + _explains([wait + length for length in lengths], seconds)
        for wait, believed in zip(_WAITS, prior, strict=True)
    ]
    flat = log(_FLAT) + _explains([1.0] * len(lengths), seconds)
    most = max(flat, *likely)
    weights = [exp(one - most) for one in likely]
    likelihood = most + log(exp(flat - most) + fsum(weights))
    if exp(flat - most) > fsum(weights):
        return inf, likelihood
    middle = fsum(w * log(wait) for w, wait in zip(weights, _WAITS, strict=True)) / fsum(weights)
    return exp(middle), likelihood


def _explains(shapes: list[float], seconds: list[float]) -> float:
    """Return how likely what calls took is, if it goes by these shapes (as a logarithm)."""
    off = [log(took / shape) for took, shape in zip(seconds, shapes, strict=True)]
    middle = fmean(off)
    return -0.5 * len(off) * log(_SCATTER**2 + fsum((one - middle) ** 2 for one in off))


def without_outliers(values: list[float]) -> list[float]:
    """Return the values, those above twice the median as that."""
    most = 2 * median(values)
    return [min(value, most) for value in values]


def _without_outliers(lengths: list[float], seconds: list[float]) -> list[float]:
    """Let no call count for more than twice what is usual, as its length goes.

    The first one makes the connection, another met an overload.
    """
    usual_seconds, usual = median(seconds), median(lengths)
    return [
        min(took, 2 * usual_seconds * max(1.0, length / usual))
        for length, took in zip(lengths, seconds, strict=True)
    ]


def _supposed(tokens: float) -> float:
    return FIRST_TOKEN_SECONDS + tokens / OUTPUT_TOKENS_PER_SECOND
