"""From the model's answer to the bytes of a reply: content blocks, stop reason, usage, and faults.

Owns what a reply costs (output tokens, prompt cache) and how each fault of `Behaviour` spoils it.
When a reply is given and what is recorded belongs to the server.
"""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import TYPE_CHECKING, Any

import msgspec

from tests.support.anthropic_wire import (
    ERROR_CODES,
    ERRORS,
    MODELS,
    UNKNOWN_MODEL,
    InputCount,
    cut,
    cut_text,
    error_reply,
    forced_tool,
    tokens,
)
from tests.support.loopback import Reply, json_reply

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tests.support.anthropic_behaviour import Behaviour, Fault, Scripted
    from tests.support.model_answers import Answer

CACHE_SECONDS = 300.0
HTML = b"<!doctype html><html><body><h1>502 Bad Gateway</h1></body></html>"
SPOILT_TEXT = frozenset({"malformed", "fenced", "prefixed", "wrong_shape", "empty_text"})


class PromptCache:
    """Prefixes marked with cache_control, kept five minutes from their last use."""

    def __init__(self) -> None:
        self._used_at: dict[str, float] = {}

    def usage(self, counted: InputCount, model: str) -> dict[str, int]:
        """Split a call's input into fresh, written and read tokens, and remember its prefixes."""
        shortest = MODELS.get(model, UNKNOWN_MODEL)[3]
        now = time.monotonic()
        read = longest = 0
        for prefix, length in counted.prefixes:
            if length < shortest:  # too short to be cached, and nothing says so
                continue
            key = sha256(prefix.encode(errors="surrogatepass")).hexdigest()
            if now - self._used_at.get(key, -CACHE_SECONDS) < CACHE_SECONDS:
                read = max(read, length)
            self._used_at[key] = now
            longest = max(longest, length)
        written = longest - read
        return {
            "input_tokens": counted.tokens - read - written,
            "cache_read_input_tokens": read,
            "cache_creation_input_tokens": written,
        }


@dataclass(frozen=True, slots=True)
class Spoken:
    """An answer on its way out."""

    body: Mapping[str, Any]
    answer: Answer
    behaviour: Behaviour
    fault: Fault
    usage: Mapping[str, int]
    headers: Mapping[str, str]

    def reply(self) -> tuple[Reply, dict[str, Any]]:
        """Give the reply and what the record shall say of it."""
        content, stop_reason, output_tokens = self._content()
        usage = {**self.usage, "output_tokens": output_tokens}
        message: dict[str, Any] = {
            "id": f"msg_{secrets.token_hex(12)}",
            "type": "message",
            "role": "assistant",
            "model": self.body["model"],
            "content": content,
            "stop_reason": stop_reason,
            "stop_sequence": None,
            "usage": usage,
        }
        if self.fault == "no_usage":
            del message["usage"]
        reply = json_reply(message, headers=self.headers)
        assert isinstance(reply.body, bytes)
        accounted = {
            "stop_reason": stop_reason,
            "input_tokens": usage["input_tokens"],
            "output_tokens": output_tokens,
            "cache_read_tokens": usage["cache_read_input_tokens"],
            "cache_write_tokens": usage["cache_creation_input_tokens"],
            "output_bytes": len(reply.body),
        }
        return self._on_the_wire(reply, reply.body), accounted

    def _content(self) -> tuple[list[dict[str, Any]], str, int]:
        """Content blocks, stop reason and output tokens, within max_tokens."""
        how, most_tokens = self.behaviour, int(self.body["max_tokens"])
        value = self.answer.value
        text = value if isinstance(value, str) else msgspec.json.encode(value).decode()
        text = _spoilt(text, self.fault)
        # Thinking is paid from max_tokens too and can leave nothing for the answer.
        thinking = min(how.thinking_tokens, most_tokens)
        content: list[dict[str, Any]] = []
        if thinking:
            thought = "hmm " * thinking
            content.append({"type": "thinking", "thinking": thought, "signature": "c2ln"})
        if self.fault == "refusal":
            return content, "refusal", max(1, thinking)
        if self.fault == "empty_content":
            return [], "end_turn", max(1, thinking)
        cut_off = self.fault == "max_tokens" or self._cut_on_purpose()
        if cut_off:
            text = cut_text(text, how.cut_share)
        if tokens(text) > most_tokens - thinking:
            text, cut_off = text[: (most_tokens - thinking) * 4], True
        tool = None if self.fault in SPOILT_TEXT else forced_tool(self.body)
        if tool is not None:
            # A tool's input that was cut off arrives as whatever parsed: here, nothing.
            used = {"name": tool[0], "input": {} if cut_off else value}
            content.append({"type": "tool_use", "id": f"toolu_{secrets.token_hex(12)}", **used})
        elif text or self.fault == "empty_text":
            content.append({"type": "text", "text": text})
        stop_reason = "max_tokens" if cut_off else "end_turn" if tool is None else "tool_use"
        return content, stop_reason, max(1, thinking + tokens(text))

    def _cut_on_purpose(self) -> bool:
        most_messages = self.behaviour.cut_above_messages
        most_facts = self.behaviour.cut_above_facts
        return (most_messages is not None and self.answer.messages > most_messages) or (
            most_facts is not None and self.answer.facts > most_facts
        )

    def _on_the_wire(self, reply: Reply, body: bytes) -> Reply:
        share, seconds = self.behaviour.cut_share, self.behaviour.stall_seconds
        match self.fault:
            case "truncated_body":
                return replace(reply, body=cut(body, share))
            case "cut_connection":
                return replace(reply, close_after_bytes=len(cut(body, share)))
            case "stall_mid_body":
                at = len(cut(body, share))
                return replace(reply, stall_after_bytes=at, stall_seconds=seconds)
            case _:
                return reply


def _spoilt(text: str, fault: Fault) -> str:
    match fault:
        case "malformed":
            middle = len(text) // 2
            return f'{text[:middle]}"}}{{,,{text[middle:]}'
        case "fenced":
            return f"```json\n{text}\n```"
        case "prefixed":
            return f"Here is what I found:\n\n{text}\n\nLet me know if you need more."
        case "wrong_shape":
            return '{"result": "done"}'
        case "empty_text":
            return ""
        case _:
            return text


def failure(step: Scripted, how: Behaviour, headers: Mapping[str, str]) -> Reply | None:
    """Give the reply of a fault that leaves no message at all; None for the others."""
    match step.fault:
        case "reset":
            return Reply(reset=True)
        case "html":
            return Reply(200, HTML, {"content-type": "text/html"})
        case "firewall":
            return Reply(403, HTML, {"content-type": "text/html"})
        case "bad_gateway":
            return Reply(502, HTML, {"content-type": "text/html"})
        case fault if fault in ERRORS:
            status, kind, message = ERRORS[fault]
            seconds = step.retry_after_seconds
            if seconds is None and fault == "rate_limited":
                seconds = how.retry_after_seconds
            told = {} if seconds is None else {"retry-after": f"{seconds:g}"}
            return error_reply(
                status,
                kind,
                message,
                headers["request-id"],
                headers={**headers, **told},
                error_code=ERROR_CODES.get(fault, ""),
            )
        case _:
            return None
