"""What the pass asks of a model and what comes back: plain values every provider understands."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Literal

import msgspec

if TYPE_CHECKING:
    from datetime import datetime

    from daemon.llm.rate_limits import RateLimits

_canonical = msgspec.json.Encoder(order="sorted")
Purpose = Literal["extract", "same", "reduce", "memory", "sections"]


@dataclass(frozen=True, slots=True)
class NumberedMessage:
    """A message as an extraction window shows it; `number` is what a fact's evidence cites."""

    number: int
    role: str
    at: datetime | None
    text: str


@dataclass(frozen=True, slots=True)
class NumberedFact:
    """A fact as a later prompt shows it; `number` is what a line of MEMORY cites."""

    number: int
    category: str
    statement: str
    observed_at: datetime | None


@dataclass(frozen=True, slots=True)
class Request:
    """One model call. Everything a model may see is in `system`, `text` and `schema`.

    `messages` and `facts` carry the same material in typed form for the offline provider, which
    reads no prompts; they never reach the wire and are no part of the content key. `ask` counts
    deliberate repetitions of the same input (a re-ask after a useless reply): each is its own call.
    `tries` bounds how often an answer of no use is put up with, for a call that work need not wait
    for; None leaves it to the caller's patience. It is no part of the key either.
    """

    purpose: Purpose
    prompt_version: str
    model: str
    system: str
    text: str
    schema: dict[str, Any]
    max_tokens: int
    timeout_seconds: float
    ask: int = 0
    messages: tuple[NumberedMessage, ...] = ()
    facts: tuple[NumberedFact, ...] = ()
    tries: int | None = None

    def content_key(self, user_id: str) -> str:
        """sha256 over all that decides the reply; holds no job id, row id or clock (promise 3)."""
        # The texts are long: hashed as they are, their lengths told before, and the rest as JSON.
        texts = [text.encode("utf-8", "surrogatepass") for text in (self.system, self.text)]
        parts = [
            user_id,
            self.purpose,
            self.prompt_version,
            self.model,
            self.max_tokens,
            self.schema,
            self.ask,
            [len(text) for text in texts],
        ]
        key = sha256(_canonical.encode(parts))
        for text in texts:
            key.update(text)
        return key.hexdigest()


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens the provider billed, by kind."""

    input_tokens: int = 0
    output_tokens: int = 0
    cache_read_tokens: int = 0
    cache_write_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Bill:
    """What one answered call cost, and what it would have cost more without caching or a batch."""

    cost_usd: Decimal
    saved_by_cache_usd: Decimal = Decimal(0)
    """Below zero for the call that writes a prefix: writing costs more than reading plainly."""
    saved_by_batch_usd: Decimal = Decimal(0)


@dataclass(frozen=True, slots=True)
class Reply:
    """One answered call, useful or not; `usage` None means the server did not say."""

    text: str
    stop_reason: str
    usage: Usage | None
    model: str
    request_id: str = ""
    latency_ms: int = 0
    from_ledger: bool = False
    limits: RateLimits | None = None
    """What the server said the account may still do."""
    bill: Bill | None = None
    """None: the price or the usage is not known."""
    batch: bool = False
    """Whether it came by a batch, at the batch's price."""

    @property
    def cut_short(self) -> bool:
        """Whether the model had to stop before it was done."""
        return self.stop_reason in {"max_tokens", "model_context_window_exceeded"}
