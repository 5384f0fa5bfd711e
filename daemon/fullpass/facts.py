"""Facts as a model reports them: the schema asked for, tolerant reading, strict checking.

A reported fact is believed only if its quote stands in the very message it names and that message
is the person's own (promise 12). What is not believed is kept apart with the reason. Nothing that a
model can reply makes reading or checking raise anything but UselessReply, or take more than linear
time.
"""

from __future__ import annotations

import json
import re
import unicodedata
from dataclasses import dataclass
from datetime import date
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from daemon.errors import UselessReply
from daemon.export.conversation import EVIDENCE_ROLES
from daemon.fullpass.meaning import all_told
from daemon.fullpass.own_words import why_not_their_own
from daemon.fullpass.wording import read

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from daemon.llm.request import NumberedMessage

CATEGORIES = ("preferences", "projects", "dates", "beliefs", "decisions")
FACTS_PER_REPLY = 30
"""The prompt's limit; a reply with exactly so many may have more to say."""
_LONGEST_STATEMENT = 1000
_LONGEST_QUOTE = 2000
_SHORTEST_MOVABLE_QUOTE = 12
_MOST_TRIES = 100
"""Places where an object might begin that are tried before a reply is given up as no JSON."""

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

    Accepts fences and prose around the object, several objects (their lists are joined), a bare
    list, and saves the complete items of a list that broke off or holds a broken item. Raises
    UselessReply when there is no such list.
    """
    items: list[dict[str, Any]] = []
    found = False
    at = 0
    for value, end in objects(text):
        held = value.get(key) if isinstance(value, dict) else None
        if isinstance(held, list):
            found = True
            items.extend(i for i in held if isinstance(i, dict))
            at = end
    opening = re.compile(rf'"{re.escape(key)}"\s*:\s*\[').search(text, at)
    if opening is not None:
        saved, whole = _saved_items(text, opening.end())
        items.extend(saved)
        if items or whole:
            return ReadItems(tuple(items), whole=whole)
        raise UselessReply("the reply broke off before its first complete item")
    if found:
        return ReadItems(tuple(items), whole=True)
    for bare, _ in objects(text, "["):
        if all(isinstance(i, dict) for i in bare) and (bare or "{" not in text):
            return ReadItems(tuple(bare), whole=True)
    if not text.strip():
        raise UselessReply("the reply is empty")
    if "{" not in text:
        raise UselessReply("the reply holds no JSON object")
    raise UselessReply(f"the reply's JSON has no list {key!r}")


_DECODER = json.JSONDecoder(strict=False)


def objects(text: str, opening: str = "{") -> Iterator[tuple[Any, int]]:
    """Yield the values that begin with `opening` and stand in the text, with where they end."""
    tries = 0
    at = text.find(opening)
    while at >= 0 and tries < _MOST_TRIES:
        try:
            value, end = _DECODER.raw_decode(text, at)
        except (ValueError, RecursionError):
            tries += 1
            end = at + 1
        else:
            yield value, end
        at = text.find(opening, end)


_NEXT_ITEM = re.compile(r"[\s,]*(?=\{)")
_END_OF_LIST = re.compile(r"[\s,]*\]")
_LATER_ITEM = re.compile(r",\s*(?=\{\s*\")")


def _saved_items(text: str, at: int) -> tuple[list[dict[str, Any]], bool]:
    """Read items one by one from within a list; say whether its end was met with none broken."""
    items: list[dict[str, Any]] = []
    whole = True
    tries = 0
    while tries < _MOST_TRIES and (place := _NEXT_ITEM.match(text, at)) is not None:
        try:
            item, at = _DECODER.raw_decode(text, place.end())
        except (ValueError, RecursionError):
            whole = False
            tries += 1
            # One broken item, say a quotation mark not escaped: the next may be sound.
            later = _LATER_ITEM.search(text, place.end())
            if later is None:
                break
            at = later.end()
        else:
            items.append(item)
    return items, whole and _END_OF_LIST.match(text, at) is not None


def check_fact(item: dict[str, Any], messages: Sequence[NumberedMessage]) -> CheckedFact:
    """Check one reported fact against the messages of its window."""
    category = _text(item.get("category")).strip().lower()
    statement = one_line(_text(item.get("statement")))
    quote = _NOT_STORABLE.sub("", _text(item.get("quote"))).strip()
    polarity = "negated" if item.get("polarity") == "negated" else "affirmed"
    confidence = _text(item.get("confidence"))
    reason: str | None = None
    if category not in CATEGORIES:
        reason = "not one of the five categories"
    elif not statement:
        reason = "no statement"
    elif len(statement) > _LONGEST_STATEMENT:
        reason = f"statement of {len(statement)} characters"
    elif len(quote) > _LONGEST_QUOTE:
        reason = f"quote of {len(quote)} characters"
    elif not any(map(str.isalnum, quote)):
        reason = "no quote"
    place = None
    if reason is None:
        place, exact, moved, reason = _locate(quote, _number(item.get("message")), messages)
    else:
        exact, moved = quote, False
    if reason is None and polarity == "negated" and _denied(statement, exact):
        place, reason = None, "its statement affirms what its quote denies"
    return CheckedFact(
        category=category if category in CATEGORIES else "",
        slot=one_line(_text(item.get("slot")))[:80],
        statement=statement[:_LONGEST_STATEMENT],
        polarity=polarity,
        confidence=confidence if confidence in {"high", "low"} else "medium",
        quote=exact[:_LONGEST_QUOTE],
        valid_from=_day(item.get("valid_from")),
        message=place,
        moved=moved,
        rejected=reason,
    )


# What Postgres refuses in a text: NUL and lone surrogates.
_NOT_STORABLE = re.compile("[\x00\ud800-\udfff]")


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _number(value: object) -> int | None:
    """Return the number of a message, be it written as 3, 3.0 or "3"."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, str) and value.strip().isdecimal() and len(value) < 10:
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _locate(
    quote: str, number: int | None, messages: Sequence[NumberedMessage]
) -> tuple[int | None, str, bool, str | None]:
    """Find the person's own message that holds the quote: (number, exact text, moved, reason)."""
    named = next((m for m in messages if m.number == number), None)
    if named is not None and (exact := find_quote(quote, named.text)) is not None:
        if named.role not in EVIDENCE_ROLES:
            return None, quote, False, f"its quote is not the person's own words ({named.role})"
        if (reason := why_not_their_own(named, exact)) is not None:
            return None, quote, False, reason
        return named.number, exact, False, None
    # A miscounted number is forgiven when the quote is long enough to stand in one place only.
    if len(fold(quote)) >= _SHORTEST_MOVABLE_QUOTE:
        found = [
            (m, exact)
            for m in messages
            if m.role in EVIDENCE_ROLES and (exact := find_quote(quote, m.text)) is not None
        ]
        if len(found) == 1:
            message, exact = found[0]
            if why_not_their_own(message, exact) is None:
                return message.number, exact, True, None
    return None, quote, False, "its quote is not in the message it names"


def _denied(statement: str, quote: str) -> bool:
    """Whether a statement says without its denial what the quote says with one.

    A model that marks "Drinks coffee" as negated means that they do not; MEMORY shows words alone.
    """
    said, proof = read(statement), read(quote)
    return proof.negated and not said.negated and all_told(said, [proof])


def find_quote(quote: str, text: str) -> str | None:
    """Return the piece of `text` that the quote is, up to what `fold` folds; None if it is none."""
    if quote in text:
        return quote or None
    wanted = fold(quote)
    if not wanted:
        return None
    at = _folded(text).find(wanted)
    if at < 0:
        return None
    origins = _origins(text, at + len(wanted))
    stop = origins[-1] + 1
    # The accents and joiners that folding takes away belong to the character before them.
    while stop < len(text) and not _FOLD[ord(text[stop])]:
        stop += 1
    return text[origins[at] : stop]


def fold(text: str) -> str:
    """Fold what does not matter when comparing a quote.

    Unicode form (ligatures and full width too), case, accents and vowel signs, the shape of
    quotation marks and dashes, white space, and what is not seen at all.
    """
    if text.isascii():
        return " ".join(text.lower().split())
    return " ".join(text.translate(_FOLD).split())


@lru_cache(maxsize=1024)
def _folded(text: str) -> str:
    """`fold`, remembered: each fact of a reply is looked for in the messages of one window."""
    return fold(text)


def _origins(text: str, size: int) -> list[int]:
    """Return for the first `size` characters of the folded text where each comes from."""
    origins: list[int] = []
    gap = -1
    for index, character in enumerate(text):
        if len(origins) >= size:
            break
        for piece in _FOLD[ord(character)]:
            if piece.isspace():
                gap = index if gap < 0 else gap
                continue
            if gap >= 0 and origins:
                origins.append(gap)
            gap = -1
            origins.append(index)
    return origins[:size]


_SAME = {
    **dict.fromkeys("’‘ʼ‚‛‹›′´", "'"),  # noqa: RUF001 - that they look alike is the point
    **dict.fromkeys("“”„‟«»″「」『』〝〞", '"'),
    **dict.fromkeys("‐‑‒–—―−", "-"),  # noqa: RUF001
    **dict.fromkeys("。｡", "."),
    **dict.fromkeys("、､", ","),
    "…": "...",
}
_UNSEEN = frozenset("\u00ad\u034f\u061c\u0640\u180e\u2060\ufeff") | frozenset(
    map(chr, (*range(0x200B, 0x2010), *range(0x202A, 0x202F), *range(0x2061, 0x2070),
              *range(0xFE00, 0xFE10), *range(0xE0100, 0xE01F0)))
)  # fmt: skip
_MOST_REMEMBERED = 20_000


class _Folding(dict[int, str]):
    """What each character folds to, worked out when it is first met."""

    def __missing__(self, code: int) -> str:
        character = chr(code)
        folded = ""
        if character not in _UNSEEN:
            same = _SAME.get(character, character)
            whole = unicodedata.normalize("NFKD", same).casefold()
            # Decomposed and stripped of marks: composed and decomposed text fold alike.
            folded = "".join(_SAME.get(c, c) for c in whole if not unicodedata.combining(c))
        if len(self) < _MOST_REMEMBERED:
            self[code] = folded
        return folded


_FOLD = _Folding()


def one_line(text: str) -> str:
    """Return the text on one line, without control characters or doubled spaces."""
    kept = "".join(c if c.isprintable() else " " for c in text)
    return " ".join(kept.split())


def _day(value: object) -> date | None:
    try:
        return date.fromisoformat(str(value)[:10])
    except ValueError:
        return None
