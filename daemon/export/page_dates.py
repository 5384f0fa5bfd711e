"""Dates as Takeout's pages write them, in the language of whoever asked for the export.

Owns the order of day, month and year, the names of months, the halves of the day and the common
names of time zones. Without them an entry has no date of its own, and "newest wins" no meaning.
What cannot be read is None; an unknown zone counts as UTC.
"""

from __future__ import annotations

import re
import unicodedata
from datetime import UTC, datetime, timedelta, timezone

from daemon.export.values import time_of

_ZONES = {
    "PST": -8, "PDT": -7, "MST": -7, "MDT": -6, "CST": -6, "CDT": -5, "EST": -5, "EDT": -4,
    "AKST": -9, "AKDT": -8, "HST": -10, "BRT": -3, "BST": 1, "WET": 0, "WEST": 1, "CET": 1,
    "CEST": 2, "MEZ": 1, "MESZ": 2, "EET": 2, "EEST": 3, "MSK": 3, "TRT": 3, "IST": 5.5,
    "ICT": 7, "WIB": 7, "SGT": 8, "HKT": 8, "JST": 9, "KST": 9, "AEST": 10, "AEDT": 11, "NZST": 12,
    "NZDT": 13,
}  # fmt: skip
# How the names of months begin, accents apart: English, German, French, Spanish, Portuguese,
# Italian, Dutch, Scandinavian, Indonesian; Polish; Turkish; Russian; Ukrainian. None begins two.
_BEGINNINGS = (
    "jan ene gen sty oca янв січ",
    "feb fev lut sub фев лют",
    "mar mrt мар бер",  # noqa: RUF001 - as people write them, here and below
    "apr abr avr kwi nis апр квіт",
    "may mai mag mei maj май мая трав",
    "jun juin giu cze haz июн черв",
    "jul juil lug lip tem июл лип",
    "aug ago aou agu sie авг серп",
    "sep set wrz eyl сен вер",
    "oct okt out ott paz eki окт жовт",
    "nov lis kas ноя лист",
    "dec dez dic des gru ara дек груд",
)
_MONTHS = {
    beginning: month
    for month, beginnings in enumerate(_BEGINNINGS, start=1)
    for beginning in beginnings.split()
}
_CLOCK = re.compile(r"(?<!\d)(\d{1,2}):(\d\d):(\d\d)(?!\d)")
_YEAR = re.compile(r"(?<!\d)(?:19|20)\d\d(?!\d)")
_OFFSET = re.compile(r"(?:GMT|UTC)\s*([+\-\u2212])(\d{1,2})(?::?(\d\d))?")
_MORNING = re.compile(r"\b[aA]\.?\s?[mM]\b|午前|上午|오전|\bص\b|\bSA\b")
_AFTERNOON = re.compile(r"\b[pP]\.?\s?[mM]\b|午後|下午|오후|\bم\b|\bCH\b")
_LONGEST = 60


def is_date(line: str) -> bool:
    """Say whether a line is the date of an entry and nothing else."""
    if not 12 <= len(line) <= _LONGEST:
        return False
    line = _plain(line)
    return time_of(line) is not None or (
        _YEAR.search(line) is not None and _CLOCK.search(line) is not None
    )


def date_of(line: str) -> datetime | None:
    """Read the date that a line is."""
    line = _plain(line)
    if (at := time_of(line)) is not None:
        return at
    clock = _CLOCK.search(line)
    if clock is None:
        return None
    hour, minute, second = map(int, clock.groups())
    if _AFTERNOON.search(line) is not None:
        hour = hour % 12 + 12
    elif _MORNING.search(line) is not None:
        hour %= 12
    day = _day(line[: clock.start()])
    if day is None:
        return None
    try:
        return datetime(*day, hour, minute, second, tzinfo=_zone(line[clock.end() :])).astimezone(
            UTC
        )
    except (ValueError, OverflowError):
        return None


def _day(text: str) -> tuple[int, int, int] | None:
    """Read year, month and day; numbers alone stand with the year first, or with the day."""
    numbers = [int(number) for number in re.findall(r"\d+", text)]
    if len(numbers) == 3:
        year, month, day = numbers if numbers[0] > 31 else reversed(numbers)
        return year, month, day
    if len(numbers) != 2:
        return None
    for word in re.findall(r"[^\W\d_]{3,}", unicodedata.normalize("NFC", text.casefold())):
        for beginning in (word[:4], word[:3], _unaccented(word)[:3]):
            if beginning in _MONTHS:
                return max(numbers), _MONTHS[beginning], min(numbers)
    return None


def _zone(text: str) -> timezone:
    offset = _OFFSET.search(text)
    if offset is not None:
        hours = int(offset.group(2)) + int(offset.group(3) or 0) / 60
        hours = hours if offset.group(1) == "+" else -hours
    else:
        names = re.findall(r"[A-Z]{3,4}", text)
        hours = next((_ZONES[name] for name in names if name in _ZONES), 0)
    return timezone(timedelta(hours=hours if abs(hours) <= 14 else 0))


def _unaccented(word: str) -> str:
    return "".join(c for c in unicodedata.normalize("NFD", word) if not unicodedata.combining(c))


def _plain(line: str) -> str:
    """Write digits as ASCII and every space as one."""
    line = "".join(str(unicodedata.digit(c)) if c.isdecimal() else c for c in line[: 2 * _LONGEST])
    return " ".join(line.split())
