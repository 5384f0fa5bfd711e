"""How long a model takes to answer, learned from the calls that every job of this process paid.

A call takes a while to its first token and then so much for each token of its reply. Both are
learned by model from the newest calls. Figures for an estimate only: nothing waits or gives up by
them.
"""

from __future__ import annotations

from collections import deque
from statistics import fmean, median

from daemon.llm.pricing import model_named

FIRST_TOKEN_SECONDS = 1.0
OUTPUT_TOKENS_PER_SECOND = 100
"""What is supposed of a model that was never called: the wait, then its output at this rate."""

NEWEST = 60
"""So many calls tell what the next one will take: a provider is not as quick all day."""
_BELIEF = 0.1
"""How far the supposed seconds of a token may be off, as a share of them."""


class Speeds:
    """What the calls of this process took, by model."""

    def __init__(self) -> None:
        self._calls: dict[str, deque[tuple[int, float]]] = {}

    def seen(self, model: str, output_tokens: int, seconds: float) -> None:
        """Learn from one answered call; `model` is any name of it."""
        calls = self._calls.setdefault(model_named(model).id, deque(maxlen=NEWEST))
        calls.append((output_tokens, seconds))

    def knows(self, model: str) -> bool:
        """Whether a call of this model was ever seen."""
        return model_named(model).id in self._calls

    def seconds(self, model: str, output_tokens: float) -> float:
        """Return how long a reply of so many tokens is likely to take."""
        calls = self._calls.get(model_named(model).id)
        if not calls:
            return _supposed(output_tokens)
        tokens = [float(tokens) for tokens, _ in calls]
        took = _without_outliers(tokens, [seconds for _, seconds in calls])
        usual_tokens, usual_seconds = fmean(tokens), fmean(took)
        slower = usual_seconds / fmean(map(_supposed, tokens))
        slope = _slope(tokens, took, supposed=slower / OUTPUT_TOKENS_PER_SECOND)
        # No reply is quicker for being longer, and the first token takes no less than nothing.
        slope = min(max(0.0, slope), usual_seconds / max(1.0, usual_tokens))
        return usual_seconds + slope * (output_tokens - usual_tokens)


def without_outliers(values: list[float]) -> list[float]:
    """Return the values, those above twice the median as that."""
    most = 2 * median(values)
    return [min(value, most) for value in values]


def _without_outliers(tokens: list[float], seconds: list[float]) -> list[float]:
    """Let no call count for more than twice what is usual, as its length goes.

    The first one makes the connection, another met an overload.
    """
    usual_seconds, usual_tokens = median(seconds), median(tokens)
    return [
        min(took, 2 * usual_seconds * max(1.0, _supposed(count) / _supposed(usual_tokens)))
        for count, took in zip(tokens, seconds, strict=True)
    ]


def _slope(tokens: list[float], seconds: list[float], *, supposed: float) -> float:
    """Return the seconds of one more token.

    Replies of much the same length say little about longer ones, so the fitted slope and the one
    that is supposed count by how sure each is; the latter may well be a tenth more than it
    should, or less, so that it takes many lengths to say otherwise.
    """
    mean_tokens, mean_seconds = fmean(tokens), fmean(seconds)
    variance = fmean((t - mean_tokens) ** 2 for t in tokens)
    if variance < 1.0:
        return supposed
    pairs = list(zip(tokens, seconds, strict=True))
    fitted = fmean((t - mean_tokens) * (s - mean_seconds) for t, s in pairs) / variance
    scatter = fmean((s - mean_seconds - fitted * (t - mean_tokens)) ** 2 for t, s in pairs)
    doubt = max(scatter, 1e-9) / (variance * len(pairs))
    belief = (_BELIEF * supposed) ** 2
    share = belief / (belief + doubt)
    return share * fitted + (1 - share) * supposed


def _supposed(output_tokens: float) -> float:
    return FIRST_TOKEN_SECONDS + output_tokens / OUTPUT_TOKENS_PER_SECOND
