"""Facts as a model reports them: the schema asked for, tolerant reading, strict checking.

A reported fact is believed only if its quote stands in the very message it names and that message
is the person's own (promise 12). What is not believed is kept apart with the reason.
"""

from __future__ import annotations

import json
import re
import unicodedata
from dataclasses import dataclass
from datetime import date
from typing import TYPE_CHECKING, Any

from daemon.errors import UselessReply
from daemon.export.conversation import EVIDENCE_ROLES
from daemon.fullpass.context import CATEGORIES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from daemon.llm.request import NumberedMessage

FACTS_PER_REPLY = 30
"""The prompt's limit; a reply with exactly so many may have more to say."""
_LONGEST_STATEMENT = 1000
_SHORTEST_MOVABLE_QUOTE = 12

EXTRACT_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "facts": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {
                    "category": {"type": "string", "enum": list(CATEGORIES)},
                    "statement": {"type": "string"},
                    "slot": {"type": "string"},
                    "polarity": {"type": "string", "enum": ["affirmed", "negated"]},
                    "message": {"type": "integer"},
                    "quote": {"type": "string"},
                    "valid_from": {"type": "string"},
                    "confidence": {"type": "string", "enum": ["high", "medium", "low"]},
                },
                "required": [
                    "category", "statement", "slot", "polarity", "message", "quote", "valid_from",
                    "confidence",
                ],
                "additionalProperties": False,
            },
        }
    },
    "required": ["facts"],
    "additionalProperties": False,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class ReadItems:
    """Objects read from a reply; `whole` is False when the reply broke off and some were saved."""

    items: tuple[dict[str, Any], ...]
    whole: bool


@dataclass(frozen=True, slots=True)
class CheckedFact:
    """One reported fact after the checks; `rejected` says why it is not believed, if it is not."""

    category: str
    slot: str
    statement: str
    polarity: str
    confidence: str
    quote: str
    valid_from: date | None
    message: int | None
    """Number of the message that holds the quote; None when none does."""
    moved: bool = False
    """The reply named another message; the quote stands in exactly this one."""
    rejected: str | None = None


def read_items(text: str, key: str) -> ReadItems:
    """Read the list `key` of the JSON object in a reply, however it is wrapped or cut off.

    Accepts fences and prose around the object, and saves the complete items of a truncated list.
    Raises UselessReply when there is no such list.
    """
    start = text.find("{")
    if start < 0:
        raise UselessReply("the reply holds no JSON object")
    try:
        value, _ = json.JSONDecoder(strict=False).raw_decode(text, start)
    except (ValueError, RecursionError):
        return ReadItems(_saved_items(text, key), whole=False)
    items = value.get(key) if isinstance(value, dict) else None
    if not isinstance(items, list):
        raise UselessReply(f"the reply's JSON has no list {key!r}")
    return ReadItems(tuple(i for i in items if isinstance(i, dict)), whole=True)


def _saved_items(text: str, key: str) -> tuple[dict[str, Any], ...]:
    opening = re.search(rf'"{re.escape(key)}"\s*:\s*\[', text)
    if opening is None:
        raise UselessReply("the reply is no valid JSON")
    decoder = json.JSONDecoder(strict=False)
    items: list[dict[str, Any]] = []
    at = opening.end()
    while (brace := re.compile(r"[\s,]*(?=\{)").match(text, at)) is not None:
        try:
            item, at = decoder.raw_decode(text, brace.end())
        except (ValueError, RecursionError):
            break
        items.append(item)
    if not items:
        raise UselessReply("the reply broke off before its first complete item")
    return tuple(items)


def check_fact(item: dict[str, Any], messages: Sequence[NumberedMessage]) -> CheckedFact:
    """Check one reported fact against the messages of its window."""
    category = str(item.get("category", "")).strip().lower()
    statement = one_line(str(item.get("statement", "")))
    quote = str(item.get("quote", "")).replace("\x00", "").strip()
    polarity = "negated" if item.get("polarity") == "negated" else "affirmed"
    confidence = item.get("confidence")
    number = item.get("message")
    reason: str | None = None
    if category not in CATEGORIES:
        reason = "not one of the five categories"
    elif not statement:
        reason = "no statement"
    elif len(statement) > _LONGEST_STATEMENT:
        reason = f"statement of {len(statement)} characters"
    elif not fold(quote):
        reason = "no quote"
    place = None
    if reason is None:
        place, exact, moved, reason = _locate(quote, number, messages)
    else:
        exact, moved = quote, False
    return CheckedFact(
        category=category if category in CATEGORIES else "",
        slot=one_line(str(item.get("slot", "")))[:80],
        statement=statement[:_LONGEST_STATEMENT],
        polarity=polarity,
        confidence=confidence if confidence in {"high", "medium", "low"} else "medium",
        quote=exact[:2000],
        valid_from=_day(item.get("valid_from")),
        message=place,
        moved=moved,
        rejected=reason,
    )


def _locate(
    quote: str, number: object, messages: Sequence[NumberedMessage]
) -> tuple[int | None, str, bool, str | None]:
    """Find the person's own message that holds the quote: (number, exact text, moved, reason)."""
    named = next((m for m in messages if m.number == number and not isinstance(number, bool)), None)
    if named is not None and (exact := find_quote(quote, named.text)) is not None:
        if named.role not in EVIDENCE_ROLES:
            return None, quote, False, f"its quote is not the person's own words ({named.role})"
        if _orders_the_model(named.text, exact):
            return None, quote, False, "its quote is an order to the model"
        return named.number, exact, False, None
    # A miscounted number is forgiven when the quote is long enough to stand in one place only.
    if len(fold(quote)) >= _SHORTEST_MOVABLE_QUOTE:
        found = [
            (m.number, exact, m.text)
            for m in messages
            if m.role in EVIDENCE_ROLES and (exact := find_quote(quote, m.text)) is not None
        ]
        if len(found) == 1 and not _orders_the_model(found[0][2], found[0][1]):
            return found[0][0], found[0][1], True, None
    return None, quote, False, "its quote is not in the message it names"


_ORDERS = re.compile(
    r"(?i)\b(?:ignore|disregard|forget|override)\b.{0,40}\b(?:previous|prior|above|earlier|all)\b"
    r".{0,40}\b(?:instruction|prompt|rule|message)s?|system prompt|<\s*/?\s*message"
)


def _orders_the_model(text: str, quote: str) -> bool:
    """Whether the line that holds the quote tries to steer the reader of the export."""
    at = text.find(quote)
    start = text.rfind("\n", 0, max(at, 0)) + 1
    stop = text.find("\n", at + len(quote))
    return _ORDERS.search(text, start, len(text) if stop < 0 else stop) is not None


def find_quote(quote: str, text: str) -> str | None:
    """Return the piece of `text` that the quote is, up to Unicode form, case and white space."""
    if quote in text:
        return quote
    folded_quote = fold(quote)
    if not folded_quote:
        return None
    folded, origins = _fold_with_origins(text)
    at = folded.find(folded_quote)
    if at < 0:
        return None
    return text[origins[at] : origins[at + len(folded_quote) - 1] + 1]


_SAME = str.maketrans(
    {"’": "'", "‘": "'", "ʼ": "'", "“": '"', "”": '"', "„": '"', "«": '"', "»": '"', "–": "-",
     "—": "-", "‑": "-", "…": "..."}
)  # fmt: skip
_UNSEEN = frozenset("\u200b\u200c\u200d\u2060\ufeff\u00ad")


def fold(text: str) -> str:
    """Fold what does not matter when comparing a quote: form, case, quotation marks, spaces."""
    return _fold_with_origins(text)[0]


def _fold_with_origins(text: str) -> tuple[str, list[int]]:
    """Return the folded text and, for each of its characters, where it came from."""
    out: list[str] = []
    origins: list[int] = []
    for index, character in enumerate(text):
        if character in _UNSEEN or unicodedata.combining(character):
            continue
        # Decomposed and stripped of marks: composed and decomposed input fold alike.
        for piece in unicodedata.normalize("NFKD", character).translate(_SAME).casefold():
            if unicodedata.combining(piece):
                continue
            if piece.isspace():
                if not out or out[-1] == " ":
                    continue
                piece = " "  # noqa: PLW2901
            out.append(piece)
            origins.append(index)
    while out and out[-1] == " ":
        out.pop()
        origins.pop()
    return "".join(out), origins


def one_line(text: str) -> str:
    """Return the text on one line, without control characters or doubled spaces."""
    kept = "".join(c if c.isprintable() else " " for c in text)
    return " ".join(kept.split())


def _day(value: object) -> date | None:
    try:
        return date.fromisoformat(str(value)[:10])
    except ValueError:
        return None
