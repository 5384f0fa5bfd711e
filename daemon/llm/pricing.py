"""What is known of each model: its full id, what it can do, what it costs.

Prices are US dollars per million tokens, from the vendor's price list, checked 2026-11-22. A model
that is not in the table works; its price is unknown and said to be, never guessed.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from daemon.llm.request import Usage


@dataclass(frozen=True, slots=True)
class Model:
    """Capabilities and prices of one model."""

    id: str
    structured_output: bool = True
    effort: bool = False
    """Whether `output_config.effort` is understood."""
    max_output_tokens: int = 64_000
    input_usd: Decimal | None = None
    output_usd: Decimal | None = None
    cache_read_usd: Decimal | None = None
    cache_write_usd: Decimal | None = None
    long_prompt_tokens: int | None = None
    """Above this many prompt tokens the whole request costs `long_prompt_factor` times as much."""
    long_prompt_factor: int = 1


_KNOWN = (
    Model(
        "claude-haiku-5-5",
        effort=True,
        max_output_tokens=128_000,
        input_usd=Decimal("0.10"),
        output_usd=Decimal("0.50"),
        cache_read_usd=Decimal("0.01"),
        cache_write_usd=Decimal("0.125"),
        long_prompt_tokens=100_000,
        long_prompt_factor=5,
    ),
    Model(
        "claude-haiku-4-5-20251001",
        input_usd=Decimal(1),
        output_usd=Decimal(5),
        cache_read_usd=Decimal("0.10"),
        cache_write_usd=Decimal("1.25"),
    ),
    Model(
        "claude-sonnet-5-5",
        effort=True,
        max_output_tokens=128_000,
        input_usd=Decimal(2),
        output_usd=Decimal(10),
    ),
)
_BY_ID = {model.id: model for model in _KNOWN}
_SHORT = {
    "haiku": "claude-haiku-5-5",
    "haiku-5.5": "claude-haiku-5-5",
    "haiku-5-5": "claude-haiku-5-5",
    "haiku-4.5": "claude-haiku-4-5-20251001",
    "haiku-4-5": "claude-haiku-4-5-20251001",
    "claude-haiku-4-5": "claude-haiku-4-5-20251001",
    "sonnet": "claude-sonnet-5-5",
    "sonnet-5.5": "claude-sonnet-5-5",
    "sonnet-5-5": "claude-sonnet-5-5",
}


def model_named(name: str) -> Model:
    """Return the model of a full id or a short name such as `haiku-4.5`; unknown ones as given."""
    model_id = _SHORT.get(name.strip().lower(), name.strip())
    return _BY_ID.get(model_id, Model(model_id))


def cost_usd(model_id: str, usage: Usage | None) -> Decimal | None:
    """Return the price of one answered call, or None when model, usage or a price is unknown."""
    model = _BY_ID.get(model_id)
    if model is None or usage is None or model.input_usd is None or model.output_usd is None:
        return None
    parts = [
        (usage.input_tokens, model.input_usd),
        (usage.output_tokens, model.output_usd),
        (usage.cache_read_tokens, model.cache_read_usd),
        (usage.cache_write_tokens, model.cache_write_usd),
    ]
    total = Decimal(0)
    for tokens, price in parts:
        if tokens and price is None:
            return None
        total += tokens * (price or Decimal(0))
    prompt_tokens = usage.input_tokens + usage.cache_read_tokens + usage.cache_write_tokens
    if model.long_prompt_tokens is not None and prompt_tokens > model.long_prompt_tokens:
        total *= model.long_prompt_factor
    return total / 1_000_000


def priced_models() -> tuple[Model, ...]:
    """Return every model of the table, the usual one first."""
    return _KNOWN
