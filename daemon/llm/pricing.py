"""What is known of each model: its ids, what it can do, what it costs.

Owns the table and how MODEL_CAPABILITIES changes it. Prices are US dollars per million tokens.
Sources, checked 2026-11-22: the vendor's pages on models, prices and prompt caching; the cache-read
price of Sonnet 5.5 is the one in force since 2026-10-07. A model that is in neither the table nor
the setting works; its price is unknown and said to be, never guessed.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from daemon.errors import UsageError
from daemon.llm.request import Bill, Usage

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

CHECKED = "2026-11-22"
_MILLION = 1_000_000


@dataclass(frozen=True, slots=True)
class Model:
    """Capabilities and prices of one model; every field but the id can be set from outside."""

    id: str
    context_tokens: int | None = None
    max_output_tokens: int = 64_000
    structured_output: bool = True
    """Whether `output_config.format` constrains the reply."""
    forced_tool: bool = True
    """Whether `tool_choice` can force a tool, the next best way to a reply of a given shape."""
    schema_in_prompt: bool = True
    """Whether the schema is told in words as well: servers may ignore both of these silently."""
    effort: bool = False
    """Whether `output_config.effort` is understood."""
    thinking: Literal["none", "extended", "adaptive"] = "none"
    """How it thinks before it answers, paid from max_tokens; adaptive is on by itself."""
    cache_minimum_tokens: int | None = None
    """The shortest prefix that is cached; None: nothing is."""
    batch: bool = False
    """Whether Message Batches take it."""
    input_usd: Decimal | None = None
    output_usd: Decimal | None = None
    cache_read_usd: Decimal | None = None
    cache_write_usd: Decimal | None = None
    batch_factor: Decimal = Decimal("0.5")
    long_prompt_tokens: int | None = None
    """Above this many prompt tokens the whole request costs `long_prompt_factor` times as much."""
    long_prompt_factor: Decimal = Decimal(1)
    prices_checked: str | None = None
    bedrock: str | None = None
    """Its id on Bedrock. One with a version at its end is called by InvokeModel there."""
    vertex: str | None = None
    vertex_version: str | None = None
    """The `anthropic_version` that Vertex takes for it, where that is not the SDK's own."""

    def bill(
        self, usage: Usage | None, *, batch: bool = False, factor: Decimal = Decimal(1)
    ) -> Bill | None:
        """Price one answered call, or return None when usage or a price it needs is unknown.

        `factor` is what the platform asks on top of the list price.
        """
        if usage is None or self.input_usd is None or self.output_usd is None:
            return None
        read, write = self.cache_read_usd, self.cache_write_usd
        if (usage.cache_read_tokens and read is None) or (
            usage.cache_write_tokens and write is None
        ):
            return None
        prompt = usage.input_tokens + usage.cache_read_tokens + usage.cache_write_tokens
        if self.long_prompt_tokens is not None and prompt > self.long_prompt_tokens:
            factor *= self.long_prompt_factor
        plain = prompt * self.input_usd + usage.output_tokens * self.output_usd
        cached = usage.cache_read_tokens * (self.input_usd - (read or 0))
        cached -= usage.cache_write_tokens * ((write or 0) - self.input_usd)
        share = self.batch_factor if batch else Decimal(1)
        listed = plain - cached
        return Bill(
            cost_usd=listed * share * factor / _MILLION,
            saved_by_cache_usd=cached * share * factor / _MILLION,
            saved_by_batch_usd=listed * (1 - share) * factor / _MILLION,
        )


_KNOWN = (
    Model(
        "claude-haiku-5-5",
        context_tokens=1_000_000,
        max_output_tokens=128_000,
        forced_tool=False,
        schema_in_prompt=False,
        effort=True,
        thinking="adaptive",
        cache_minimum_tokens=512,
        batch=True,
        input_usd=Decimal("0.10"),
        output_usd=Decimal("0.50"),
        cache_read_usd=Decimal("0.01"),
        cache_write_usd=Decimal("0.125"),
        long_prompt_tokens=100_000,
        long_prompt_factor=Decimal(5),
        prices_checked=CHECKED,
        bedrock="anthropic.claude-haiku-5-5",
        vertex="claude-haiku-5-5",
    ),
    Model(
        "claude-haiku-4-5-20251001",
        context_tokens=200_000,
        max_output_tokens=64_000,
        schema_in_prompt=False,
        thinking="extended",
        cache_minimum_tokens=4_096,
        batch=True,
        input_usd=Decimal("1.00"),
        output_usd=Decimal("5.00"),
        cache_read_usd=Decimal("0.10"),
        cache_write_usd=Decimal("1.25"),
        prices_checked=CHECKED,
        bedrock="anthropic.claude-haiku-4-5-20251001-v1:0",
        vertex="claude-haiku-4-5@20251001",
        vertex_version="vertex-2023-10-16",
    ),
    Model(
        "claude-sonnet-5-5",
        context_tokens=1_000_000,
        max_output_tokens=128_000,
        forced_tool=False,
        schema_in_prompt=False,
        effort=True,
        thinking="adaptive",
        cache_minimum_tokens=1_024,
        batch=True,
        input_usd=Decimal("2.00"),
        output_usd=Decimal("10.00"),
        cache_read_usd=Decimal("0.10"),
        cache_write_usd=Decimal("2.50"),
        prices_checked=CHECKED,
        bedrock="anthropic.claude-sonnet-5-5",
        vertex="claude-sonnet-5-5",
    ),
)
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
_OF_BEDROCK = re.compile(r"^(?:[a-z][a-z-]*\.)?anthropic\.(claude-[a-z0-9-]+?)(?:-v\d+(?::\d+)?)?$")


def canonical_id(name: str) -> str:
    """Return the vendor's own id for a short name or a platform's id; unknown names as given."""
    name = name.strip()
    of_bedrock = _OF_BEDROCK.match(name)
    plain = (of_bedrock[1] if of_bedrock else name).replace("@", "-")
    known = _SHORT.get(plain.lower(), plain)
    return known if of_bedrock or "@" not in name or known in _BY_ID else name


class Models:
    """The table as one process uses it: built in, then changed by MODEL_CAPABILITIES."""

    def __init__(self, changes: Mapping[str, Mapping[str, Any]] | None = None) -> None:
        """Raise UsageError naming the entry that cannot be used and the rule."""
        self._by_id = dict(_BY_ID)
        for name, change in (changes or {}).items():
            model = _changed(self.named(name), name, change)
            self._by_id[model.id] = model

    def __iter__(self) -> Iterator[Model]:
        return iter(self._by_id.values())

    def named(self, name: str) -> Model:
        """Return a model by full id, short name or a platform's id; an unknown one bare."""
        model_id = canonical_id(name)
        return self._by_id.get(model_id) or Model(model_id)


def _changed(model: Model, name: str, change: Mapping[str, Any]) -> Model:
    known = [field for field in Model.__dataclass_fields__ if field != "id"]
    unknown = sorted(set(change) - set(known))
    if unknown:
        raise UsageError(
            f"MODEL_CAPABILITIES: {name}: no such capability: {', '.join(unknown)}; "
            f"known: {', '.join(known)}"
        )
    # A number of JSON is a decimal as it was written: 0.1 is a tenth, not its binary neighbour.
    tidy = {key: str(value) if isinstance(value, float) else value for key, value in change.items()}
    try:
        changed = msgspec.convert({**asdict(model), **tidy}, Model, strict=False)
    except msgspec.ValidationError as error:
        raise UsageError(f"MODEL_CAPABILITIES: {name}: {error}") from None
    numbers = [v for v in asdict(changed).values() if isinstance(v, int | Decimal)]
    if any(number < 0 for number in numbers) or changed.max_output_tokens < 1:
        raise UsageError(f"MODEL_CAPABILITIES: {name}: numbers must not be below 0")
    return changed


_BY_ID = {model.id: model for model in _KNOWN}
KNOWN = Models()
"""The table as it is built in."""


def model_named(name: str) -> Model:
    """Return what the built-in table knows of a model; see Models.named."""
    return KNOWN.named(name)


def cost_usd(model_id: str, usage: Usage | None) -> Decimal | None:
    """Return the list price of one answered call, or None when it is not known."""
    bill = model_named(model_id).bill(usage)
    return None if bill is None else bill.cost_usd


def priced_models() -> tuple[Model, ...]:
    """Return every model of the table, the usual one first."""
    return _KNOWN
