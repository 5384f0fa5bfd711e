"""The Messages API's shapes on the wire: what is refused, how errors look, how replies look.

Checked against the SDK's types (anthropic 2.12) and the vendor's error pages on 2026-11-22. Tokens
are counted as a quarter of the characters, rounded: good for sums, wrong for any real tokenizer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec

from tests.support.loopback import Reply, json_reply

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from tests.support.anthropic_behaviour import Behaviour

SAMPLING = ("temperature", "top_p", "top_k")
MODELS: dict[str, tuple[str, int, int, int]] = {
    # display name, context tokens, output tokens, shortest prefix that is cached
    "claude-haiku-5-5": ("Claude Haiku 5.5", 1_000_000, 128_000, 512),
    "claude-haiku-4-5-20251001": ("Claude Haiku 4.5", 200_000, 64_000, 4_096),
    "claude-sonnet-5-5": ("Claude Sonnet 5.5", 1_000_000, 128_000, 1_024),
}
UNKNOWN_MODEL = ("A model", 200_000, 64_000, 1_024)

ERRORS: dict[str, tuple[int, str, str]] = {
    "rate_limited": (429, "rate_limit_error", "This request would exceed your rate limit."),
    "overloaded": (529, "overloaded_error", "Overloaded"),
    "server_error": (500, "api_error", "Internal server error"),
    "billing": (402, "billing_error", "There is an issue with your billing or payment details."),
    "spend_limit": (
        400,
        "invalid_request_error",
        "You have reached your specified API usage limits. Access resumes on 2026-12-01 UTC.",
    ),
    "tier_spend_cap": (
        429,
        "rate_limit_error",
        "Your organization has reached the monthly spend cap of its usage tier.",
    ),
    "unauthorized": (401, "authentication_error", "invalid x-api-key"),
    "forbidden": (403, "permission_error", "Your API key may not use the specified resource."),
    "no_such_model": (404, "not_found_error", "model: it was retired"),
    "too_large": (413, "request_too_large", "Request exceeds the maximum size"),
}
ERROR_CODES = {
    "spend_limit": "spend_limit_reached",
    "tier_spend_cap": "enforced_spend_limit_reached",
}
_UNSUPPORTED_KEYWORDS = frozenset(
    {
        *("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"),
        *("minLength", "maxLength", "pattern", "maxItems", "uniqueItems"),
        *("minProperties", "maxProperties"),
    }
)


class Refused(Exception):
    """A request the API does not take."""

    def __init__(self, status: int, kind: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.kind = kind


def invalid(message: str) -> Refused:
    """Give the 400 of a bad request."""
    return Refused(400, "invalid_request_error", message)


def error_reply(
    status: int,
    kind: str,
    message: str,
    request_id: str,
    *,
    headers: Mapping[str, str] | None = None,
    error_code: str = "",
) -> Reply:
    """Give an error in the API's shape."""
    error: dict[str, Any] = {"type": kind, "message": message}
    if error_code:
        error["details"] = {"error_code": error_code}
    body = {"type": "error", "error": error, "request_id": request_id}
    return json_reply(body, status=status, headers={"request-id": request_id, **(headers or {})})


# Reading a request


def check_key(headers: Mapping[str, str], how: Behaviour) -> None:
    """Raise the 401 of a missing or wrong key, as Bearer or x-api-key."""
    bearer = headers.get("authorization", "")
    scheme, _, token = bearer.partition(" ")
    if "x-api-key" in headers:
        if headers["x-api-key"] not in how.keys:
            raise Refused(401, "authentication_error", "invalid x-api-key")
    elif not bearer:
        raise Refused(401, "authentication_error", "x-api-key header is required")
    elif scheme.lower() != "bearer" or token not in how.keys:
        raise Refused(401, "authentication_error", "Invalid bearer token")


def check_messages_body(body: object, how: Behaviour, *, counting: bool = False) -> dict[str, Any]:
    """Give the body back, or raise what the API answers to a bad one."""
    if not isinstance(body, dict):
        raise invalid("The request body is not valid JSON: expected an object")
    for name in ("model", "messages") if counting else ("model", "max_tokens", "messages"):
        if name not in body:
            raise invalid(f"{name}: Field required")
    if body["model"] not in how.models:
        raise Refused(404, "not_found_error", f"model: {body['model']}")
    for name in SAMPLING:
        if name in body:
            raise invalid(f"{name}: Extra inputs are not permitted")
    messages = body["messages"]
    if not isinstance(messages, list) or not messages:
        raise invalid("messages: at least one message is required")
    if messages[-1].get("role") == "assistant":
        raise invalid("This model does not support assistant message prefill.")
    if counting:
        return body
    most = MODELS.get(body["model"], UNKNOWN_MODEL)[2]
    if not isinstance(body["max_tokens"], int) or body["max_tokens"] < 1:
        raise invalid("max_tokens: Input should be greater than or equal to 1")
    if body["max_tokens"] > most:
        raise invalid(f"max_tokens: {body['max_tokens']} > {most}, the maximum for this model")
    if body.get("stream"):
        raise invalid("stream: this server answers whole replies only")
    output = schema_of_output(body)
    if output is not None and how.strict_schemas:
        _check_schema(output, "output_config.format.schema")
    return body


def _check_schema(schema: object, place: str) -> None:
    if isinstance(schema, list):
        for number, part in enumerate(schema):
            _check_schema(part, f"{place}.{number}")
    if not isinstance(schema, dict):
        return
    if schema.get("type") == "object" and schema.get("additionalProperties") is not False:
        raise invalid(
            f"{place}: For 'object' type, 'additionalProperties' must be explicitly set to false"
        )
    if isinstance(schema.get("minItems"), int) and schema["minItems"] > 1:
        raise invalid(f"{place}: For 'array' type, 'minItems' values other than 0 or 1 are no good")
    for name, part in schema.items():
        if name in {"properties", "$defs"} and isinstance(part, dict):
            for key, value in part.items():
                _check_schema(value, f"{place}.{name}.{key}")
        elif name in _UNSUPPORTED_KEYWORDS:
            raise invalid(f"{place}: property '{name}' is not supported")
        elif name not in {"enum", "const", "default", "examples"}:
            _check_schema(part, f"{place}.{name}")


def schema_of_output(body: Mapping[str, Any]) -> dict[str, Any] | None:
    """Give output_config.format.schema, if it is there."""
    form = (body.get("output_config") or {}).get("format") or {}
    schema = form.get("schema")
    return schema if isinstance(schema, dict) else None


def forced_tool(body: Mapping[str, Any]) -> tuple[str, dict[str, Any]] | None:
    """Give name and schema of the tool that tool_choice forces."""
    choice = body.get("tool_choice") or {}
    for tool in body.get("tools") or ():
        if choice.get("type") == "any" or (
            choice.get("type") == "tool" and tool["name"] == choice.get("name")
        ):
            return tool["name"], tool.get("input_schema") or {}
    return None


def user_text(body: Mapping[str, Any]) -> str:
    """Give the text of the user turns, which alone hold material."""
    turns = (turn for turn in body["messages"] if turn.get("role") == "user")
    return "\n".join(text for turn in turns for text, _ in _blocks(turn.get("content")))


def _blocks(content: object) -> Iterator[tuple[str, bool]]:
    """Yield each text and whether a cache breakpoint stands after it."""
    if isinstance(content, str):
        yield content, False
    for block in content if isinstance(content, list) else ():
        yield block.get("text", ""), "cache_control" in block


def tokens(text: str) -> int:
    """Count tokens as a quarter of the characters."""
    return round(len(text) / 4)


@dataclass(frozen=True, slots=True)
class InputCount:
    """Input tokens, and the prefixes that the caller marked for caching, shortest first."""

    tokens: int
    prefixes: tuple[tuple[str, int], ...]


def count_input(body: Mapping[str, Any]) -> InputCount:
    """Count what the model reads: schema, tools, system and turns, in the order that is cached."""
    schema = schema_of_output(body)
    pieces: list[tuple[str, bool]] = []
    if schema is not None:
        pieces.append((msgspec.json.encode(schema).decode(), False))
    pieces.extend(
        (msgspec.json.encode(tool).decode(), "cache_control" in tool)
        for tool in body.get("tools") or ()
    )
    pieces.extend(_blocks(body.get("system")))
    for turn in body["messages"]:
        pieces.extend(_blocks(turn.get("content")))
    so_far: list[str] = []
    prefixes = []
    for text, breakpoint_after in pieces:
        so_far.append(text)
        if breakpoint_after:
            prefix = "\x00".join(so_far)
            prefixes.append((f"{body['model']}\x00{prefix}", tokens(prefix)))
    return InputCount(tokens("".join(so_far)), tuple(prefixes))


# Writing a reply


def model_info(name: str) -> dict[str, Any]:
    """Describe a model as GET /v1/models does."""
    display, context, output, _ = MODELS.get(name, UNKNOWN_MODEL)
    return {
        "type": "model",
        "id": name,
        "display_name": display,
        "created_at": "2026-10-01T00:00:00Z",
        "lifecycle": "retired" if "retired" in name else "active",
        "max_input_tokens": context,
        "max_tokens": output,
    }


def cut(data: bytes, share: float) -> bytes:
    """Give the first share of the bytes, at least one, never all."""
    return data[: max(1, min(len(data) - 1, int(len(data) * share)))]


def cut_text(text: str, share: float) -> str:
    """Cut a text at a byte, dropping a character cut in half."""
    return cut(text.encode(), share).decode(errors="ignore") if text else text
