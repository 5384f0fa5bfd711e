"""How long a running pass will still take: what is left to do, at the pace it was done so far.

Reading goes by the share of the export's bytes, extraction by its windows and what each took, and
the steps after it by the calls they will make: as `forecast.py` foresees them from the facts found,
and exactly as soon as a step knows them. What a call takes is `llm/speed.py`'s, how many different
facts there will be `repeats.py`'s. Nothing is decided by it: it is for people who wait.
"""

from __future__ import annotations

import time
from collections import deque
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import ceil
from statistics import fmean
from typing import TYPE_CHECKING

from daemon.fullpass import forecast
from daemon.fullpass.pairs_ahead import PairsAhead
from daemon.fullpass.repeats import Repeats
from daemon.fullpass.tokens import estimate_tokens
from daemon.llm.speed import CHARACTERS_PER_TOKEN, without_outliers

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from daemon.fullpass.facts import CheckedFact
    from daemon.llm.request import Purpose
    from daemon.llm.speed import Speeds
    from daemon.settings import Settings

_READING = ("download_conversations", "chunk_conversations", "save_chunks")
_AFTER: tuple[tuple[str, Purpose], ...] = (
    ("consolidate_facts", "same"),
    ("reduce_facts", "reduce"),
    ("generate_memory", "memory"),
    ("regenerate_sections", "sections"),
)
_NEWEST = 15
"""So many windows say what the next one will take: an allowance for the first ones is soon used up,
and a provider is not as quick all day."""
_LEAST_SHARE = 0.02
"""Before so much of an export was read nothing can be said of the rest."""
_OVERDUE = 0.1
"""What takes longer than it should will take so much of that again, for all one knows."""
_OWN_SHARE = 0.3
"""The person's own share of a chat's tokens, where it was not counted."""
_SUPPOSED_WINDOWS = 0.3
"""What is supposed of the facts in a window counts as much as so many windows read: people differ
more from each other than their windows do."""
_WORTH_TELLING = 0.1
_WORTH_TELLING_SECONDS = 0.3
_SECONDS_A_FACT = 0.001
"""Comparing a fact with the others and storing it, measured on one core; no model is asked."""


@dataclass(slots=True)
class _Calls:
    """Calls that are before one step: waves of as many as go at once, one after the other."""

    waves: float
    characters: float
    """Of one reply."""
    began: float | None = None
    """When the wave under way began."""


@dataclass(slots=True)
class TimeLeft:
    """What one attempt has met so far; fed by the steps, asked where progress is written."""

    speeds: Speeds
    settings: Settings
    offline: bool
    tokens: int = 0
    own_tokens: int = 0
    sections: bool = True
    """Whether sections will be written at all."""
    facts: int | None = None
    """How many there are, once they are consolidated."""
    _step: str = ""
    _step_began: float = field(default_factory=time.monotonic)
    _reading_began: float = field(default_factory=time.monotonic)
    _windows: int | None = None
    _read: int = 0
    _answered: int = 0
    _said: Repeats = field(default_factory=Repeats)
    _pairs: PairsAhead = field(default_factory=PairsAhead)
    _said_before: int = 0
    _facts_before: float = 0.0
    _not_looked_at: int = 0
    _statements: int = 0
    _statement_tokens: int = 0
    _statement_characters: int = 0
    _known: dict[Purpose, _Calls] = field(default_factory=dict)
    """What a step has said of its calls."""
    _took_seconds: deque[float] = field(default_factory=lambda: deque(maxlen=_NEWEST))
    _first_took: list[float] = field(default_factory=list)
    """Those begun before any came back: they made connections, and count while few others do."""
    _told: tuple[float, float | None] = (0.0, None)
    _begun: dict[object, float | None] = field(default_factory=dict)
    """Windows under way, in order; None for one that waits until a call before it ends."""

    # -- what the steps tell ---------------------------------------------------------------------

    def saved(self, *, tokens: int, own_characters: int) -> None:
        """Note new text, which will have to be read by a model."""
        self.tokens += tokens
        self.own_tokens += own_characters // CHARACTERS_PER_TOKEN

    def planned(self, *, windows: int, tokens: int, facts: int, newest: Sequence[str]) -> None:
        """Note what extraction has before it, how many facts the person had, and some of them."""
        self._windows, self._not_looked_at = windows, max(0, facts - len(newest))
        for statement in newest:
            self._note(statement)
        self._said_before = self._said.said
        if newest:
            self._facts_before = self._said.different(of=len(newest)) * facts / len(newest)
        if not self.tokens:  # an earlier attempt saved them
            self.tokens, self.own_tokens = tokens, int(tokens * _OWN_SHARE)

    def split(self, parts: int) -> None:
        """Note that one window became so many, beside itself."""
        self._windows = (self._windows or 0) + parts

    @contextmanager
    def window(self) -> Iterator[None]:
        """Time the reading of one window; one that fails is left out.

        As many are read at once as there may be calls; what is begun beyond that waits for one of
        those before it. Whatever else holds calls up makes them slower, which comes to the same.
        """
        key, first = object(), not self._read
        calling = sum(at is not None for at in self._begun.values())
        self._begun[key] = time.monotonic() if calling < self._abreast else None
        try:
            yield
        finally:
            began, now = self._begun.pop(key), time.monotonic()
            if began is None:  # it was let in before one that is counted as under way: they swap
                held = [k for k, at in self._begun.items() if at is not None]
                if held:
                    began, self._begun[held[-1]] = self._begun[held[-1]], now
            elif waiting := [k for k, at in self._begun.items() if at is None]:
                self._begun[waiting[0]] = now
        self._read += 1
        if began is not None:
            (self._first_took if first else self._took_seconds).append(now - began)

    def found(self, facts: Sequence[CheckedFact]) -> None:
        """Note the facts of one window."""
        self._answered += 1
        self._pairs.add(facts)
        for fact in facts:
            self._note(fact.statement)

    def _note(self, statement: str) -> None:
        self._said.add(statement)
        self._statements += 1
        self._statement_tokens += estimate_tokens(statement)
        self._statement_characters += len(statement)

    def expect(self, purpose: Purpose, *, waves: int, characters: float) -> None:
        """Note the calls that a step is about to make; `characters` of a reply, as foreseen."""
        self._known[purpose] = _Calls(waves, characters, time.monotonic())

    def answered(self, purpose: Purpose, *, characters: int | None = None) -> None:
        """Note the end of a wave of a step's calls, and how long its one reply was."""
        if (calls := self._known.get(purpose)) is not None:
            calls.waves, calls.began = max(0, calls.waves - 1), time.monotonic()
            if characters is not None:
                self.speeds.wrote(purpose, foreseen=calls.characters, characters=characters)

    # -- what is left ----------------------------------------------------------------------------

    def seconds(self, step: str, share: float) -> float | None:
        """Return how long the pass will still take; None while nothing can be said."""
        if step != self._step:
            self._step, self._step_began = step, time.monotonic()
        if step in _READING:
            return self._while_reading(share)
        if step == "extract_facts":
            if self._windows is None:
                return self._while_reading(1.0)
            return self._extraction(self._windows) + self._after(self._all_facts(self._windows))
        return self._after(self._all_facts(0), at=step)

    def tell(self, seconds_left: float | None) -> None:
        """Note what people were told just now."""
        self._told = (time.monotonic(), seconds_left)

    def anew(self, step: str) -> float | None:
        """Return the time left if it is another than what people read now, else None."""
        at, told = self._told
        if told is None or step in _READING:  # reading tells itself, by its share
            return None
        seconds = self.seconds(step, 0.0)
        if seconds is None:
            return None
        reads = max(0.0, told - (time.monotonic() - at))
        off = abs(seconds - reads) > max(_WORTH_TELLING_SECONDS, _WORTH_TELLING * seconds)
        return seconds if off or in_words(seconds) != in_words(told) else None

    def _while_reading(self, share: float) -> float | None:
        if share < _LEAST_SHARE or not (self.tokens or self.offline):
            return None
        rest = (time.monotonic() - self._reading_began) * (1 - share) / share
        windows = self.tokens / share / self.settings.extraction_window_tokens
        facts = self.own_tokens / share / forecast.OWN_TOKENS_PER_FACT
        if self.offline:
            return rest
        return rest + ceil(windows) * self._window_seconds() / self._abreast + self._after(facts)

    @property
    def _abreast(self) -> int:
        return self.settings.fact_extraction_concurrency

    def _window_seconds(self) -> float:
        """Return what reading a window takes: so far, or by what is known of the model."""
        took = list(self._took_seconds)
        if len(took) < self._abreast:
            took += self._first_took
        if took:
            return fmean(without_outliers(took))
        if self.offline:
            return 0.0
        share = self.own_tokens / self.tokens if self.tokens else _OWN_SHARE
        size = min(self.tokens, self.settings.extraction_window_tokens)
        tokens = forecast.reply_tokens(own_tokens=size * share)
        return self.speeds.seconds(self.settings.extraction_model, tokens * CHARACTERS_PER_TOKEN)

    def _extraction(self, windows: int) -> float:
        one, now = self._window_seconds(), time.monotonic()
        ages = [now - at for at in self._begun.values() if at is not None]
        under_way = [max(_OVERDUE * one, one - age) for age in ages]
        waiting = max(0, windows - self._read - len(ages))
        even = (waiting * one + sum(under_way)) / self._abreast
        # The last ones cannot be shared out.
        return max([even, *under_way, one if waiting else 0.0])

    def _all_facts(self, windows: int) -> float:
        """Return how many facts there will be, if the rest is like what was read."""
        if self.facts is not None:
            return self.facts
        left, read = max(0, windows - self._answered), self._said.said - self._said_before
        if left:
            supposed = self.own_tokens / forecast.OWN_TOKENS_PER_FACT / max(1, windows)
            rate = (supposed * _SUPPOSED_WINDOWS + read) / (_SUPPOSED_WINDOWS + self._answered)
            read += round(left * rate)
        different = self._said.different(of=self._said_before + read)
        looked_at = max(1, self._said_before + read)
        return different * (1 + self._not_looked_at / looked_at)

    def _after(self, facts: float, *, at: str | None = None) -> float:
        """Return what the steps after extraction take, from step `at` on."""
        seconds, met = 0.0, at is None
        for step, purpose in _AFTER:
            if step == at:
                met = True
            if not (met or (at == "save_memory" and purpose == "sections")):
                continue
            if purpose == "same":
                spent = time.monotonic() - self._step_began if step == at else 0.0
                seconds += _remaining(_SECONDS_A_FACT * facts, spent)
            if not self.offline:
                seconds += self._calls_seconds(purpose, facts)
        return seconds

    def _calls_seconds(self, purpose: Purpose, facts: float) -> float:
        calls = self._known.get(purpose) or self._foreseen(purpose, facts)
        if not calls.waves:
            return 0.0
        model = forecast.model_of(purpose, self.settings)
        one = self.speeds.seconds(model, self.speeds.length(purpose, calls.characters))
        spent = 0.0 if calls.began is None else time.monotonic() - calls.began
        return max(0.0, calls.waves - 1) * one + _remaining(one, spent)

    def _foreseen(self, purpose: Purpose, facts: float) -> _Calls:
        """Foresee the calls of a step that does not know them itself yet."""
        if purpose == "sections" and not self.sections:
            return _Calls(0, 0.0)
        foreseen = forecast.after_extraction(
            round(facts),
            self.settings,
            own_tokens=self.own_tokens,
            statement_tokens=self._statement_tokens / self._statements
            if self._statements
            else None,
            pairs=self._pairs.among(facts, before=self._facts_before),
        )
        step = next(calls for calls in foreseen if calls.purpose == purpose)
        waves = float(step.calls)
        if purpose == "same" and waves:  # in two rounds, whose last calls are short
            waves = max(2.0, (step.calls - 1) / self._abreast)
        characters = step.usage.output_tokens * CHARACTERS_PER_TOKEN
        if purpose == "memory" and self._statement_tokens:
            # Characters are what counts; another script has fewer of them for a token.
            characters = round(
                characters
                * memory_characters(self._statement_characters, self._statements)
                / (
                    CHARACTERS_PER_TOKEN
                    * forecast.memory_tokens(self._statement_tokens, self._statements)
                )
            )
        return _Calls(waves, characters)


def memory_characters(statements: int, count: int) -> int:
    """Foresee the reply that writes MEMORY from `count` statements of so many characters in all."""
    return statements + count * forecast.AROUND_LINE_CHARACTERS


def _remaining(one: float, spent: float) -> float:
    return max(one - spent, _OVERDUE * max(one, spent))


def in_words(seconds: float) -> str:
    """Say a time that is left as people do: the longer, the rounder."""
    if seconds < 50:
        return "less than a minute left"
    minutes = round(seconds / 60)
    if minutes < 60:
        rounded = minutes if minutes < 10 else 5 * round(minutes / 5)
        if rounded < 60:
            return f"about {rounded} minute{'' if rounded == 1 else 's'} left"
    hours = max(1, round(seconds / 3600))
    return f"about {hours} hour{'' if hours == 1 else 's'} left"
