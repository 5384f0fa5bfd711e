"""How long a running pass will still take: what is left to do, at the pace it was done so far.

Reading goes by the share of the export's bytes, extraction by its windows and what each took, and
the steps after it by the calls that `forecast.py` foresees from the facts found, at the speed that
calls had so far (`llm/speed.py`). Nothing is decided by it: it is for people who wait.
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
from daemon.fullpass.tokens import estimate_tokens
from daemon.llm.speed import without_outliers

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from daemon.llm.request import Reply
    from daemon.llm.speed import Speeds
    from daemon.settings import Settings

_READING = ("download_conversations", "chunk_conversations", "save_chunks")
_AFTER: tuple[tuple[str, str], ...] = (
    ("consolidate_facts", "same"),
    ("reduce_facts", "reduce"),
    ("generate_memory", "memory"),
    ("regenerate_sections", "sections"),
)
_NEWEST = 30
"""So many windows say what the next one will take: a provider is not as quick all day."""
_LEAST_SHARE = 0.02
"""Before so much of an export was read nothing can be said of the rest."""
_OVERDUE = 0.1
"""What takes longer than it should will take so much of that again, for all one knows."""
_CHARACTERS_PER_TOKEN = 4
_OWN_SHARE = 0.3
"""The person's own share of a chat's tokens, where it was not counted."""


@dataclass(slots=True)
class TimeLeft:
    """What one attempt has met so far; fed by the steps, asked where progress is written."""

    speeds: Speeds
    settings: Settings
    offline: bool
    tokens: int = 0
    own_tokens: int = 0
    facts: int = 0
    """Found before and in this attempt: later steps work on all of a person's facts."""
    _step: str = ""
    _step_began: float = field(default_factory=time.monotonic)
    _reading_began: float = field(default_factory=time.monotonic)
    _windows: int | None = None
    _read: int = 0
    _facts_read: int = 0
    _statement_tokens: int = 0
    _billed_tokens: int = 0
    _estimated_tokens: int = 0
    _took_seconds: deque[float] = field(default_factory=lambda: deque(maxlen=_NEWEST))
    _begun: dict[object, float | None] = field(default_factory=dict)
    """Windows under way, in order; None for one that waits until a call before it ends."""

    # -- what the steps tell ---------------------------------------------------------------------

    def saved(self, *, tokens: int, own_characters: int) -> None:
        """Note new text, which will have to be read by a model."""
        self.tokens += tokens
        self.own_tokens += own_characters // _CHARACTERS_PER_TOKEN

    def planned(self, *, windows: int, tokens: int, facts: int) -> None:
        """Note what extraction has before it, and the facts that the person had."""
        self._windows, self.facts = windows, facts
        if not self.tokens:  # an earlier attempt saved them
            self.tokens, self.own_tokens = tokens, int(tokens * _OWN_SHARE)

    @contextmanager
    def window(self) -> Iterator[None]:
        """Time the reading of one window; one that fails is left out.

        As many are read at once as there may be calls; what is begun beyond that waits for one of
        those before it. Whatever else holds calls up makes them slower, which comes to the same.
        """
        key = object()
        calling = sum(at is not None for at in self._begun.values())
        self._begun[key] = time.monotonic() if calling < self._abreast else None
        try:
            yield
        finally:
            began, now = self._begun.pop(key), time.monotonic()
            waiting = next((k for k, at in self._begun.items() if at is None), None)
            if began is not None and waiting is not None:
                self._begun[waiting] = now
        self._read += 1
        self._took_seconds.append(0.0 if began is None else now - began)

    def replied(self, reply: Reply) -> None:
        """Note how the model counts what it says."""
        if reply.usage is not None and reply.text:
            self._billed_tokens += reply.usage.output_tokens
            self._estimated_tokens += estimate_tokens(reply.text)

    def found(self, statements: Sequence[str]) -> None:
        """Note the facts of one window."""
        self.facts += len(statements)
        self._facts_read += len(statements)
        self._statement_tokens += sum(map(estimate_tokens, statements))

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
        return self._after(self.facts, at=step)

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
        if self._took_seconds:
            return fmean(without_outliers(list(self._took_seconds)))
        if self.offline:
            return 0.0
        share = self.own_tokens / self.tokens if self.tokens else _OWN_SHARE
        size = min(self.tokens, self.settings.extraction_window_tokens)
        return self.speeds.seconds(
            self.settings.extraction_model, forecast.reply_tokens(own_tokens=size * share)
        )

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
        before = self.facts - self._facts_read
        if not self._read:
            return before + self.own_tokens / forecast.OWN_TOKENS_PER_FACT
        return before + self._facts_read * max(windows, self._read) / self._read

    def _after(self, facts: float, *, at: str | None = None) -> float:
        """Return what the steps after extraction take, from step `at` on."""
        if self.offline:
            return 0.0
        left = self._by_purpose(facts)
        seconds, met = 0.0, at is None
        for step, purpose in _AFTER:
            one = left.get(purpose, 0.0)
            if step == at:
                met = True
                spent = time.monotonic() - self._step_began
                seconds += max(one - spent, _OVERDUE * one)
            elif met or (at == "save_memory" and purpose == "sections"):
                seconds += one
        return seconds

    def _by_purpose(self, facts: float) -> Mapping[str, float]:
        read = self._facts_read
        foreseen = forecast.after_extraction(
            round(facts),
            self.settings,
            own_tokens=self.own_tokens,
            statement_tokens=self._statement_tokens / read if read else None,
        )
        share = self._billed_tokens / self._estimated_tokens if self._estimated_tokens else 1.0
        return {
            calls.purpose: forecast.seconds_of(
                calls, self.settings, self.speeds, billed_share=share
            )
            for calls in foreseen
        }


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
