"""What a worker counts and traces, whoever looks at it.

Owns the counters, and the one place through which spans and errors go to whatever was installed to
take them; with nothing installed they cost nothing. Promises bounded labels: words from lists in
the code, never an id, a path, a message or a text (promise 11). Leaves showing the figures, and
sending anything anywhere, to `ops/`.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

from prometheus_client import CollectorRegistry, Counter, Histogram, disable_created_metrics

disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series for each, of no use
REGISTRY = CollectorRegistry()

_SECONDS = (0.1, 0.3, 1, 3, 10, 30, 60, 120, 300, 900, 3600, 10800)

JOBS_CLAIMED = Counter("fullpass_jobs_claimed", "Attempts at jobs begun.", registry=REGISTRY)
JOBS_ENDED = Counter(
    "fullpass_jobs_ended",
    "Attempts at jobs ended, by outcome: complete, failed (for good), retry, released (waiting, "
    "no attempt used), cancelled, lost.",
    ["outcome"],
    registry=REGISTRY,
)
STEP_SECONDS = Histogram(
    "fullpass_step_seconds",
    "How long finished steps of passes took.",
    ["step"],
    buckets=_SECONDS,
    registry=REGISTRY,
)
LLM_CALLS = Counter(
    "fullpass_llm_calls",
    "Paid model calls with a receipt, by purpose and whether the reply could be used.",
    ["purpose", "usable"],
    registry=REGISTRY,
)
LLM_CALL_SECONDS = Histogram(
    "fullpass_llm_call_seconds",
    "How long paid model calls took; those answered by batch are left out.",
    ["purpose"],
    buckets=_SECONDS,
    registry=REGISTRY,
)
LLM_TOKENS = Counter(
    "fullpass_llm_tokens",
    "Tokens of paid model calls, by kind: input, output, cache_read, cache_write.",
    ["kind"],
    registry=REGISTRY,
)
LLM_COST_USD = Counter(
    "fullpass_llm_cost_usd",
    "Dollars of paid model calls whose price is known.",
    registry=REGISTRY,
)

# Series that exist from the start: a rate over a series that appears with its first event misses
# that event.
for _outcome in ("complete", "failed", "retry", "released", "cancelled", "lost"):
    JOBS_ENDED.labels(_outcome)
for _kind in ("input", "output", "cache_read", "cache_write"):
    LLM_TOKENS.labels(_kind)


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
