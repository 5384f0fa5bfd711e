"""What a pass would ask a model, what that would cost and how long it would take.

The extraction calls are known exactly: they are planned by the pass's own code. Everything after
depends on what the model finds, so it rests on the assumptions that stand here by name, and
`assumptions` says them; docs/decisions/0084 says where they come from. Prices are pricing.py's.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from decimal import Decimal
from math import ceil
from typing import TYPE_CHECKING, Protocol

from daemon.fullpass.facts import EXTRACT_SCHEMA, FACTS_PER_REPLY
from daemon.fullpass.prompts import prompt
from daemon.fullpass.tokens import estimate_tokens
from daemon.llm.pricing import cost_usd, model_named
from daemon.llm.request import Purpose, Usage
from daemon.llm.speed import (
    CHARACTERS_PER_TOKEN,
    FIRST_TOKEN_SECONDS,
    OUTPUT_TOKENS_PER_SECOND,
    Speeds,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from daemon.settings import Settings

OWN_TOKENS_PER_FACT = 60
"""Own words that yield one fact: 40 in the bundled example, which is dense; most hold fewer."""
SAVING_FACTOR = 2.0
"""A pass also writes rows: so many times the seconds that reading took here."""
BATCH_PRICE = Decimal("0.5")
"""Of the usual price, for what goes through Message Batches: the extraction calls."""

_REPEATED = 0.1
"""Share of facts that repeat another and become one with it."""
PAIRS_PER_FACT = 0.17
"""One for seven in the bundled example; many facts are more alike."""
FEW_FACTS = 10
"""Fewer hold no two that are alike."""
_MOST_PAIRS = 2_000
_PAIRS_A_CALL = 26
_SECOND_ROUND = 300
_FACT = {
    "category": "preferences",
    "statement": "Prefers to take the train to the office on most days",
    "slot": "commute",
    "polarity": "affirmed",
    "message": 12,
    "quote": "I prefer to take the train to the office",
    "valid_from": "",
    "confidence": "high",
}
_FACT_TOKENS = estimate_tokens(json.dumps(_FACT))
_STATEMENT_TOKENS = estimate_tokens(_FACT["statement"])  # type: ignore[arg-type]
_AROUND_FACT = 12
_LINE_TOKENS = _STATEMENT_TOKENS + _AROUND_FACT
"""A fact as later prompts show it; reduce.py counts it so too."""
_AROUND_LINE = '{"category":"decisions","text":"","facts":[123]},'
_AROUND_LINE_TOKENS = estimate_tokens(_AROUND_LINE)
AROUND_LINE_CHARACTERS = len(_AROUND_LINE)
"""A line of the answer that is MEMORY carries its category and citations beside its text."""
_VERDICT_TOKENS = estimate_tokens(json.dumps({"pair": 12, "relation": "separate"}))
_SCHEMA_TOKENS = 250
"""Of a later step's schema and prompt's frame."""
_BATCH_TOKENS = 6_000
_CATEGORIES = 5
_MOST_FACTS = 20_000
_SHRINKS = 0.7
"""Size of the facts after one level of joining."""
WRITTEN_ANEW = 0.15
"""Of their size: what says three facts in one takes the place of three times as much."""
_MAX_LEVELS = 4
_ROOM_PER_MEMORY_TOKEN = 4
_LEAST_MEMORY_TOKENS = 8_192
"""The reply may hold as many, however small MEMORY is to be: `memory.py` cuts afterwards."""
_SAMPLES_TOKENS = 16_000
_SECTIONS_TOKENS = 600
"""28 values, each a short sentence or a list of a few words: 15 tokens beside its name."""
SECTIONS_CHARACTERS = _SECTIONS_TOKENS * CHARACTERS_PER_TOKEN


class _Window(Protocol):
    @property
    def tokens(self) -> int: ...
    @property
    def own_tokens(self) -> int: ...


class Surveyed(Protocol):
    """What `estimate.py` counts in an export, as far as it matters here."""

    @property
    def windows(self) -> Sequence[_Window]: ...  # noqa: D102
    @property
    def own_tokens(self) -> int: ...  # noqa: D102
    @property
    def conversations_with_own_words(self) -> int: ...  # noqa: D102


@dataclass(frozen=True, slots=True)
class Calls:
    """The calls of one purpose, summed."""

    purpose: Purpose
    calls: int
    input_tokens: int
    output_tokens: int

    @property
    def usage(self) -> Usage:
        """What one such call uses, on average."""
        count = max(1, self.calls)
        return Usage(ceil(self.input_tokens / count), ceil(self.output_tokens / count))


@dataclass(frozen=True, slots=True)
class Forecast:
    """What a pass with a model would ask."""

    facts: int
    calls: tuple[Calls, ...]

    @property
    def total(self) -> int:
        """Calls in all."""
        return sum(c.calls for c in self.calls)


def forecast(found: Surveyed, settings: Settings) -> Forecast:
    """Foresee a first pass: nothing of this person read before, no reply lost or cut."""
    per_window = [min(FACTS_PER_REPLY, w.own_tokens / OWN_TOKENS_PER_FACT) for w in found.windows]
    facts = round(sum(per_window) * (1 - _REPEATED))
    skipped = found.conversations_with_own_words < settings.min_conversations
    steps = [
        _extraction(found, sum(per_window)),
        *after_extraction(facts, settings, own_tokens=found.own_tokens, sections=not skipped),
    ]
    return Forecast(facts, tuple(step for step in steps if step.calls))


def after_extraction(
    facts: int,
    settings: Settings,
    *,
    own_tokens: int,
    sections: bool = True,
    statement_tokens: float | None = None,
    pairs: float | None = None,
) -> list[Calls]:
    """Foresee the calls of the steps after extraction, in order; some may be none.

    `statement_tokens` is the length of a fact's statement and `pairs` how many pairs of them rules
    leave open, where that is known.
    """
    statement = _STATEMENT_TOKENS if statement_tokens is None else statement_tokens
    steps = [
        _comparisons(facts, pairs),
        _reduction(facts, settings, line_tokens=statement + _AROUND_FACT),
        _memory(facts, settings, statement_tokens=statement),
    ]
    return [*steps, _sections(own_tokens, facts, settings)] if sections else steps


def reply_tokens(*, own_tokens: float) -> float:
    """Foresee the reply to a window with so many tokens of the person's own words."""
    return min(FACTS_PER_REPLY, own_tokens / OWN_TOKENS_PER_FACT) * _FACT_TOKENS + 8


def seconds_of(calls: Calls, settings: Settings, speeds: Speeds) -> float:
    """Foresee how long the calls of a purpose take, as many at a time as there may be."""
    characters = calls.usage.output_tokens * CHARACTERS_PER_TOKEN
    one = speeds.seconds(model_of(calls.purpose, settings), characters)
    abreast = 1
    if calls.purpose in {"extract", "same"}:
        abreast = settings.fact_extraction_concurrency
    return ceil(calls.calls / abreast) * one


def model_of(purpose: Purpose, settings: Settings) -> str:
    """Return the model that a purpose's calls go to."""
    of_step = {"extract": settings.extraction_model, "sections": settings.sections_model}
    return of_step.get(purpose, settings.memory_model)


def _extraction(found: Surveyed, facts: float) -> Calls:
    fixed = estimate_tokens(prompt("extract").text) + estimate_tokens(json.dumps(EXTRACT_SCHEMA))
    calls = len(found.windows)
    return Calls(
        "extract",
        calls,
        sum(w.tokens for w in found.windows) + calls * fixed,
        round(facts * _FACT_TOKENS) + 8 * calls,
    )


def _comparisons(facts: int, pairs: float | None) -> Calls:
    """Pairs of facts that rules leave open, most of them put a second time."""
    if pairs is None:
        pairs = facts * PAIRS_PER_FACT if facts >= FEW_FACTS else 0
    pairs = min(_MOST_PAIRS, round(pairs))
    again = min(pairs, _SECOND_ROUND)
    # Batches have borders of their own: one more than the numbers ask for.
    calls = sum(ceil(n / _PAIRS_A_CALL) + 1 for n in (pairs, again) if n)
    asked = pairs + again
    fixed = estimate_tokens(prompt("same").text) + _SCHEMA_TOKENS
    return Calls(
        "same",
        calls,
        asked * (2 * _STATEMENT_TOKENS + 6) + calls * fixed,
        asked * _VERDICT_TOKENS,
    )


def levels(size: int, room: int) -> list[int]:
    """Return how large facts of `size` tokens are at each level of joining, until they fit."""
    sizes: list[int] = []
    while size > room and len(sizes) < _MAX_LEVELS:
        sizes.append(size)
        size = round(size * _SHRINKS)
    return sizes


def _reduction(facts: int, settings: Settings, *, line_tokens: float) -> Calls:
    room = settings.memory_max_tokens * _ROOM_PER_MEMORY_TOKEN
    sizes = levels(round(min(facts, _MOST_FACTS) * line_tokens), room)
    calls = sum(ceil(size / _BATCH_TOKENS) + _CATEGORIES // 2 for size in sizes)
    fixed = estimate_tokens(prompt("reduce").text) + _SCHEMA_TOKENS
    tokens = sum(sizes)
    return Calls("reduce", calls, tokens + calls * fixed, round(tokens * WRITTEN_ANEW))


def _memory_tokens(facts: int, settings: Settings) -> int:
    return min(facts * _LINE_TOKENS, settings.memory_max_tokens)


def memory_tokens(statements: float, count: float) -> float:
    """Foresee the reply that writes MEMORY from `count` statements of so many tokens in all."""
    return statements + count * _AROUND_LINE_TOKENS


def _memory(facts: int, settings: Settings, *, statement_tokens: float) -> Calls:
    if not facts:
        return Calls("memory", 0, 0, 0)
    room = settings.memory_max_tokens * _ROOM_PER_MEMORY_TOKEN
    written = min(float(facts), room / (statement_tokens + _AROUND_FACT))
    fixed = estimate_tokens(prompt("memory").text) + _SCHEMA_TOKENS
    answered = memory_tokens(written * statement_tokens, written)
    most = max(_LEAST_MEMORY_TOKENS, room)
    return Calls("memory", 1, min(facts * _LINE_TOKENS, room) + fixed, round(min(answered, most)))


def _sections(own_tokens: int, facts: int, settings: Settings) -> Calls:
    shown = _memory_tokens(facts, settings) + min(own_tokens, _SAMPLES_TOKENS)
    fixed = estimate_tokens(prompt("sections").text) + 3 * _SCHEMA_TOKENS
    return Calls("sections", 1, shown + fixed, _SECTIONS_TOKENS)


# --- money and time


def dollars(calls: Iterable[Calls], model: str, *, batch: bool = False) -> Decimal | None:
    """Price calls on one model; None when its price is not known."""
    total = Decimal(0)
    for step in calls:
        price = cost_usd(model_named(model).id, step.usage)
        if price is None:
            return None
        discount = BATCH_PRICE if batch and step.purpose == "extract" else Decimal(1)
        total += price * step.calls * discount
    return total


def configured_dollars(foreseen: Forecast, settings: Settings) -> Decimal | None:
    """Price a pass with the models and the mode that are set."""
    batch = settings.extraction_mode == "batch"
    prices = [
        dollars([step], model_of(step.purpose, settings), batch=batch) for step in foreseen.calls
    ]
    known = [price for price in prices if price is not None]
    return sum(known, Decimal(0)) if len(known) == len(prices) else None


def minutes(foreseen: Forecast, settings: Settings, *, reading_seconds: float) -> float:
    """Foresee how long a pass takes in realtime mode, at the configured concurrency."""
    unlearned = Speeds()
    calling = sum(seconds_of(step, settings, unlearned) for step in foreseen.calls)
    return (reading_seconds * SAVING_FACTOR + calling) / 60


def assumptions(settings: Settings) -> tuple[str, ...]:
    """Say what the figures rest on, for people."""
    facts = (
        f"one fact for {OWN_TOKENS_PER_FACT} tokens of the person's own words; steps after "
        "extraction follow from the number of facts"
    )
    time = (
        f"a call takes {FIRST_TOKEN_SECONDS:g} s and a second more for each "
        f"{OUTPUT_TOKENS_PER_SECOND} tokens of its reply, "
        f"{settings.fact_extraction_concurrency} calls at a time "
        "(FACT_EXTRACTION_CONCURRENCY); no rate limit"
    )
    tokens = (
        "tokens as the newest models count them (older ones count about a quarter fewer); "
        "a model's thinking is not included"
    )
    first = "nothing of this person was read before: what was, is not paid again"
    return facts, time, tokens, first
