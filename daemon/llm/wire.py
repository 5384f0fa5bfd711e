"""A Request as the Messages API takes it, and what comes back as a Reply.

Owns how the shape of an answer is asked for: a schema that constrains the reply where the model has
that, else a tool it must call, else words alone. The reply is never trusted to have the shape:
every step of the pass validates what it reads. A server that refuses one of these ways is asked the
next way from then on; one that ignores them is the reason for `schema_in_prompt`.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Literal

from daemon.llm.request import Reply, Usage

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from daemon.llm.pricing import Model
    from daemon.llm.rate_limits import RateLimits
    from daemon.llm.request import Bill, Request

Feature = Literal["cache", "effort", "tool", "schema"]
"""What a request may use and a server may refuse."""

_NAMED_BY: tuple[tuple[str, Feature], ...] = (
    ("cache_control", "cache"),
    ("effort", "effort"),
    ("tool", "tool"),
    ("output_config", "schema"),
    ("json_schema", "schema"),
    ("structured output", "schema"),
    ("output_config", "effort"),  # which is all of it that is left by then
)
_TOOL = "answer"
_IN_WORDS = (
    "\n\nAnswer with exactly one JSON object of this JSON schema, complete, and nothing else:\n"
)
_REPEATED = frozenset({"extract", "same", "reduce"})
"""Purposes whose instructions are sent many times a pass. Writing to the cache costs more than
plain input, so what is sent once or twice is not marked for it."""
_MOST_TOKENS = 10**9
"""No call has more: a server that says so is not believed, and the ledger's columns hold it."""
_LONGEST_WORD = 100
_BYTES_PER_TOKEN = 4
"""English prose has fewer bytes a token with the current tokenizers: this errs to no caching."""


def parameters(
    request: Request, model: Model, refused: Collection[Feature] = frozenset()
) -> dict[str, Any]:
    """Return the arguments of `messages.create` (or of a batch's item) but for the model's id.

    The same prefix comes first in every call of a purpose: schema or tool, then instructions; what
    differs, the text, comes last.
    """
    arguments: dict[str, Any] = {}
    system = request.system
    in_words = model.schema_in_prompt
    output: dict[str, Any] = {}
    if model.structured_output and "schema" not in refused:
        output["format"] = {"type": "json_schema", "schema": request.schema}
    elif model.forced_tool and "tool" not in refused:
        arguments["tools"] = [
            {
                "name": _TOOL,
                "description": "Give the answer.",
                "input_schema": request.schema,
            }
        ]
        arguments["tool_choice"] = {"type": "tool", "name": _TOOL}
    else:
        in_words = True
    if model.effort and "effort" not in refused:
        output["effort"] = "low"
    if output:
        arguments["output_config"] = output
    if in_words:
        system += _IN_WORDS + json.dumps(request.schema, ensure_ascii=False)
    return {
        "max_tokens": min(request.max_tokens, model.max_output_tokens),
        "system": _cached(system) if _is_cached(request, model, system, refused) else system,
        "messages": [{"role": "user", "content": request.text}],
        **arguments,
    }


def _is_cached(request: Request, model: Model, system: str, refused: Collection[Feature]) -> bool:
    return (
        model.cache_minimum_tokens is not None
        and "cache" not in refused
        and request.purpose in _REPEATED
        and len(system.encode()) >= model.cache_minimum_tokens * _BYTES_PER_TOKEN
    )


def _cached(system: str) -> list[dict[str, Any]]:
    return [{"type": "text", "text": system, "cache_control": {"type": "ephemeral"}}]


def refused_feature(said: str, arguments: Mapping[str, Any]) -> Feature | None:
    """Return the feature in use that a 400's words are about, if they are about one."""
    output = arguments.get("output_config", {})
    used: dict[Feature, bool] = {
        "cache": not isinstance(arguments["system"], str),
        "effort": "effort" in output,
        "tool": "tools" in arguments,
        "schema": "format" in output,
    }
    said = said.lower()
    return next((feature for word, feature in _NAMED_BY if word in said and used[feature]), None)


def read_message(
    message: Any,
    *,
    model: str,
    price: Callable[[Usage | None], Bill | None],
    limits: RateLimits | None = None,
    latency_ms: int = 0,
    batch: bool = False,
) -> Reply:
    """Return a Reply from an SDK Message, whatever parts of it are missing or odd.

    The SDK does not check what a server sends; what was paid is recorded even if nothing in the
    reply is of use (promise 2).
    """
    usage = _usage(getattr(message, "usage", None))
    return Reply(
        text=_text(getattr(message, "content", None)),
        stop_reason=_stop_reason(getattr(message, "stop_reason", None)),
        usage=usage,
        model=model,
        request_id=str(getattr(message, "_request_id", None) or ""),
        latency_ms=latency_ms,
        bill=price(usage),
        batch=batch,
        limits=limits,
    )


def _text(content: object) -> str:
    """Join the text blocks; a call of our tool is the text of its input.

    Text is not always the first block: thinking may come before it.
    """
    if isinstance(content, str):  # as a request may have it, and some servers reply
        return content
    blocks = content if isinstance(content, list) else []
    for block in blocks:
        if getattr(block, "type", None) == "tool_use" and (given := getattr(block, "input", None)):
            return given if isinstance(given, str) else json.dumps(given, ensure_ascii=False)
    texts = (b.text for b in blocks if getattr(b, "type", None) == "text")
    return "".join(text for text in texts if isinstance(text, str))


def _stop_reason(given: object) -> str:
    return holdable(given) or "unknown"


def holdable(given: object) -> str:
    """Return a word of a server's as a row can hold it: short, without NUL or half a pair."""
    said = str(given or "").encode("utf-8", "replace").decode()
    return said.replace("\x00", "")[:_LONGEST_WORD]


def _usage(given: object) -> Usage | None:
    def count(name: str) -> int | float:
        value = getattr(given, name, None)
        return value if isinstance(value, int | float) and value > 0 else 0

    counts = [
        count("input_tokens"),
        count("output_tokens"),
        count("cache_read_input_tokens"),
        count("cache_creation_input_tokens"),
    ]
    return Usage(*map(int, counts)) if 1 <= max(counts) <= _MOST_TOKENS else None
