"""What a worker counts and traces, whoever looks at it.

Owns the counters, and the one place through which spans and errors go to whatever was installed to
take them; with nothing installed they cost nothing. Promises bounded labels: words from lists in
the code, never an id, a path, a message or a text (promise 11). Leaves showing the figures, and
sending anything anywhere, to `ops/`.
"""

from __future__ import annotations

from bisect import bisect_left
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

SECONDS = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 60.0, 120.0, 300.0, 900.0, 3600.0, 10800.0)
"""Upper bounds of the histograms' buckets."""


class Counter:
    """What only grows, by the values of its labels. Written on one thread, read on any."""

    def __init__(self, name: str, said: str, *labels: str) -> None:
        self.name = name
        self.said = said
        self.labels = labels
        self.values: dict[tuple[str, ...], float] = {} if labels else {(): 0.0}

    def inc(self, *labels: str, by: float = 1.0) -> None:
        """Count one more, or `by` more."""
        self.values[labels] = self.values.get(labels, 0.0) + by


class Histogram:
    """How long things took, by the value of its label: a count for each bucket, and the sum."""

    def __init__(self, name: str, said: str, label: str) -> None:
        self.name = name
        self.said = said
        self.label = label
        self.buckets: dict[str, list[int]] = {}
        self.sums: dict[str, float] = {}

    def observe(self, label: str, seconds: float) -> None:
        """Count one that took so long."""
        counts = self.buckets.setdefault(label, [0] * (len(SECONDS) + 1))
        counts[bisect_left(SECONDS, seconds)] += 1
        self.sums[label] = self.sums.get(label, 0.0) + seconds


JOBS_CLAIMED = Counter("fullpass_jobs_claimed_total", "Attempts at jobs begun.")
JOBS_ENDED = Counter(
    "fullpass_jobs_ended_total",
    "Attempts at jobs ended, by outcome: complete, failed (for good), retry, released (waiting, "
    "no attempt used), cancelled, lost.",
    "outcome",
)
STEP_SECONDS = Histogram("fullpass_step_seconds", "How long finished steps of passes took.", "step")
LLM_CALLS = Counter(
    "fullpass_llm_calls_total",
    "Paid model calls with a receipt, by purpose and whether the reply could be used.",
    "purpose",
    "usable",
)
LLM_CALL_SECONDS = Histogram(
    "fullpass_llm_call_seconds",
    "How long paid model calls took; those answered by batch are left out.",
    "purpose",
)
LLM_TOKENS = Counter(
    "fullpass_llm_tokens_total",
    "Tokens of paid model calls, by kind: input, output, cache_read, cache_write.",
    "kind",
)
LLM_COST_USD = Counter(
    "fullpass_llm_cost_usd_total", "Dollars of paid model calls whose price is known."
)
COUNTERS = (JOBS_CLAIMED, JOBS_ENDED, LLM_CALLS, LLM_TOKENS, LLM_COST_USD)
HISTOGRAMS = (STEP_SECONDS, LLM_CALL_SECONDS)

# Series that exist from the start: a rate over a series that appears with its first event misses
# that event.
for _outcome in ("complete", "failed", "retry", "released", "cancelled", "lost"):
    JOBS_ENDED.inc(_outcome, by=0.0)
for _kind in ("input", "output", "cache_read", "cache_write"):
    LLM_TOKENS.inc(_kind, by=0.0)


class Witness(Protocol):
    """Takes spans and errors to somewhere else."""

    def span(self, name: str, attributes: dict[str, str | int]) -> AbstractContextManager[object]:
        """Cover what is done while it is open."""
        ...

    def error(self, error: Exception, attributes: dict[str, str | int]) -> None:
        """Take note of what a job met."""
        ...


_witness: Witness | None = None


def install(witness: Witness | None) -> None:
    """Send spans and errors of this process there from now on; None: nowhere."""
    global _witness  # noqa: PLW0603 - one process, one place to send to
    _witness = witness


def span(name: str, **attributes: str | int) -> AbstractContextManager[object]:
    """Cover a piece of work; attributes are ids and words of ours, never a text of anybody's."""
    return nullcontext() if _witness is None else _witness.span(name, attributes)


def report(error: Exception, **attributes: str | int) -> None:
    """Tell of an error that a job met."""
    if _witness is not None:
        _witness.error(error, attributes)
