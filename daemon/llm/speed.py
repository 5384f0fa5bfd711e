"""How long a model takes to answer, learned from the calls that every job of this process paid.

A call takes a while to its first token and then so much for each token of its reply. Both are
learned by model; the newest calls count most, so that a provider which slows down is believed
within some fifty calls. Figures for an estimate only: nothing waits or gives up by them.
"""

from __future__ import annotations

from dataclasses import dataclass

FIRST_TOKEN_SECONDS = 1.0
OUTPUT_TOKENS_PER_SECOND = 100
"""What is supposed of a model that was never called: the wait, then its output at this rate."""

_KEPT = 0.98
_CALLS_FOR_A_SLOPE = 8
_SPREAD_FOR_A_SLOPE = 0.2
"""Replies of nearly one length say nothing about longer ones."""


@dataclass(slots=True)
class _Line:
    """Decaying sums of a fit of seconds over output tokens."""

    weight: float = 0.0
    tokens: float = 0.0
    seconds: float = 0.0
    squares: float = 0.0
    products: float = 0.0
    supposed: float = 0.0
    calls: int = 0

    def add(self, tokens: int, seconds: float) -> None:
        self.calls += 1
        for name, value in (
            ("weight", 1.0),
            ("tokens", tokens),
            ("seconds", seconds),
            ("squares", tokens * tokens),
            ("products", tokens * seconds),
            ("supposed", _supposed(tokens)),
        ):
            setattr(self, name, getattr(self, name) * _KEPT + value)

    def at(self, tokens: float) -> float:
        mean_tokens, mean_seconds = self.tokens / self.weight, self.seconds / self.weight
        variance = self.squares / self.weight - mean_tokens**2
        scaled = _supposed(tokens) * self.seconds / self.supposed
        wide = variance > (_SPREAD_FOR_A_SLOPE * mean_tokens) ** 2
        if self.calls < _CALLS_FOR_A_SLOPE or not wide:
            return scaled
        slope = (self.products / self.weight - mean_tokens * mean_seconds) / variance
        # No reply is quicker for being longer, and the first token takes no less than nothing.
        slope = min(max(0.0, slope), mean_seconds / mean_tokens)
        return mean_seconds + slope * (tokens - mean_tokens)


class Speeds:
    """What the calls of this process took, by model."""

    def __init__(self) -> None:
        self._lines: dict[str, _Line] = {}

    def seen(self, model: str, output_tokens: int, seconds: float) -> None:
        """Learn from one answered call; `model` is the name it was asked for by."""
        self._lines.setdefault(model, _Line()).add(output_tokens, seconds)

    def seconds(self, model: str, output_tokens: float) -> float:
        """Return how long a reply of so many tokens is likely to take."""
        line = self._lines.get(model)
        return _supposed(output_tokens) if line is None else max(0.0, line.at(output_tokens))


def _supposed(output_tokens: float) -> float:
    return FIRST_TOKEN_SECONDS + output_tokens / OUTPUT_TOKENS_PER_SECOND
