"""Plain values out of what an export happens to hold: clean text, times, stable ids.

Owns the tolerance that every format needs: nulls anywhere, numbers as strings, text that Postgres
refuses. Nothing here raises on bad input; what cannot be used becomes None or "".
"""

from __future__ import annotations

import json
import re
import time
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any

import msgspec

TITLE_CHARACTERS = 300

_UNSTORABLE = re.compile("[\ud800-\udfff]")
_EARLIEST = datetime(1990, 1, 1, tzinfo=UTC).timestamp()
_LATEST = datetime(2200, 1, 1, tzinfo=UTC).timestamp()

_CLOCKS_DIFFER_SECONDS = 366 * 86_400
"""By more than this no clock is wrong that anybody keeps: it is damage, or stands for "never"."""

_decoder = msgspec.json.Decoder()


class DecodeError(ValueError):
    """The bytes are no JSON, even read with all tolerance; the message says where, never what."""


def decode(raw: bytes | memoryview, *, strict: bool = False) -> Any:
    """Turn JSON to plain objects: strictly and fast, else with every tolerance there is.

    The second try, unless `strict`, accepts invalid UTF-8, control characters in strings, lone
    surrogates and NaN. Raises DecodeError.
    """
    try:
        return _decoder.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return decode_tolerantly(raw, strict=strict)


def decode_tolerantly(raw: bytes | memoryview, *, strict: bool = False) -> Any:
    """Make the second try of `decode`, for callers with a first try of their own."""
    if strict:
        raise DecodeError("no JSON in the strict sense")
    try:
        return json.loads(str(raw, "utf-8", "replace"), strict=False)
    except RecursionError:
        raise DecodeError("nested too deeply") from None
    except json.JSONDecodeError as error:
        raise DecodeError(f"not valid JSON at its character {error.pos}") from None
    except ValueError:
        # int() refuses numbers of more than 4,300 digits.
        raise DecodeError("holds a number too long to be one") from None


def clean(value: object) -> str:
    """Make text that Postgres can store: no NUL, no lone surrogate; "" for what is no string."""
    if not isinstance(value, str):
        return ""
    if "\x00" in value:
        value = value.replace("\x00", "")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            # A pair that was escaped in halves is one character again; half a pair is none.
            value = value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
            value = _UNSTORABLE.sub("\ufffd", value)
    return value


def title_of(value: object) -> str:
    """Make a title of one line and bounded length."""
    text = clean(value)[: 4 * TITLE_CHARACTERS]
    return " ".join(text.split())[:TITLE_CHARACTERS]


def identifier(value: object) -> str:
    """Read an id as exports write it: a string, now and then a number; "" when there is none."""
    if isinstance(value, str):
        return clean(value).strip()[:200]
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value) if abs(value) < 10**60 else ""
    return ""


def time_of(value: object) -> datetime | None:
    """Read a moment in UTC from epoch seconds (or milli-, micro-, nanoseconds) or ISO 8601 text.

    Years before 1990 or after 2199 are damage or a placeholder, hence None.
    """
    if isinstance(value, bool) or value is None:
        return None
    if isinstance(value, str):
        return _time_of_text(value.strip())
    if not isinstance(value, int | float):
        return None
    if not abs(value) < 1e20:
        return None
    seconds = float(value)
    while seconds > 1e11:
        seconds /= 1000
    if not _EARLIEST <= seconds < _LATEST:
        return None
    return datetime.fromtimestamp(seconds, UTC)


def past_time_of(value: object) -> datetime | None:
    """Read a moment that cannot lie ahead, as when something last changed: None where it does far.

    Believed, it would make every later export look older than what is stored, for ever.
    """
    moment = time_of(value)
    if moment is None or moment.timestamp() > time.time() + _CLOCKS_DIFFER_SECONDS:
        return None
    return moment


def _time_of_text(text: str) -> datetime | None:
    if not text or len(text) > 64:
        return None
    try:
        number = float(text)
    except ValueError:
        pass
    else:
        return time_of(number)
    try:
        moment = datetime.fromisoformat(text)
        moment = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    except (ValueError, OverflowError):
        return None
    return moment if 1990 <= moment.year < 2200 else None


def fold(text: str) -> str:
    """Reduce text to what makes a difference: case and white space go."""
    return " ".join(text.casefold().split())


def short_hash(*parts: object) -> str:
    """Make 16 hex digits that stay the same as long as the parts do."""
    joined = "\x1f".join(str(part) for part in parts)
    return sha256(joined.encode("utf-8", "replace")).hexdigest()[:16]


def mapping_of(value: object) -> dict[Any, Any]:
    """Return the value if it is a JSON object, else an empty one."""
    return value if isinstance(value, dict) else {}


def list_of(value: object) -> list[Any]:
    """Return the value if it is a JSON array, else an empty one."""
    return value if isinstance(value, list) else []
