"""Cutting a statement into words, numbers and telling signs, whatever its script.

Folds what is no difference (case, the dotless i, Arabic vowel signs, digits of other scripts) and
nothing that is one: Indic and Thai marks are letters, a single capital (vitamin D) is a word, a
denial stays where it stands. Days in figures become one form, metric quantities one unit. What a
word means is left to wording.py.
"""

from __future__ import annotations

import re
import unicodedata
from itertools import groupby

NOT = "!"
MINUS = "-\u2212"
DAY_IN_FIGURES = "isomonth"
"""Stands before the number of a month that was written in figures."""


def _marks() -> str:
    """Return the combining marks as ranges of a character class: parts of words, no borders."""
    codes = (c for c in range(0x300, 0x1F000) if unicodedata.category(chr(c))[0] == "M")
    ranges = []
    for _, run in groupby(enumerate(codes), lambda pair: pair[1] - pair[0]):
        within = [code for _, code in run]
        ranges.append(f"{chr(within[0])}-{chr(within[-1])}")
    return "".join(ranges)


_LETTER = rf"(?:[^\W\d_]|[{_marks()}])"
# A word, a number with its sign, or a sign that tells things apart: C from C++, 5 € from 5 $.
_TOKEN = re.compile(
    r"(?<![\w.,:])[-\u2212]\d+(?:[.,:]\d+)*|\d+(?:[.,:]\d+)*"
    rf"|{_LETTER}+(?:'{_LETTER}+)*(?:\+\+|\+|\#)?"
    r"|[<>=≤≥%€$£¥₹₽₺°\u2190-\u2bff\U0001f000-\U0001faff]"
)
_THOUSANDS = re.compile(r"[1-9]\d{0,2}(?:[.,]\d{3})+")
_ORDINALS = frozenset({"st", "nd", "rd", "th", "er", "º", "ª"})
_CLITICS = frozenset({"s", "m", "re", "ve", "ll", "d"})
# A capital that stands alone names something: vitamin D, plan B, blood type A. "I" is a person.
_CAPITAL = re.compile(r"(?<=[\s(/])([A-HJ-Z])(?=[\s.,;:)!?/]|$)")
# Vowel signs that Arabic and Hebrew leave out as often as not, and the stroke that only stretches.
_OPTIONAL = dict.fromkeys((*range(0x591, 0x5C8), *range(0x64B, 0x653), 0x640, 0x670))
_SAME = {ord("’"): "'", ord("ʼ"): "'", ord("ı"): "i", ord("ё"): "е"}  # noqa: RUF001

# Days in figures: 2025-03-03, 3.3.2025, 2025年3月3日, 3월 3일. 3/4/2025 can be read in two ways.
_YEAR = r"(?:(?P<y>\d{4})\s?[年년]\s?)?(?<!\d)"
_DAYS = tuple((sign, re.compile(pattern)) for sign, pattern in (
    ("-", r"\b(?P<y>\d{4})-(?P<m>\d\d)-(?P<d>\d\d)\b"),
    (".", r"\b(?P<d>\d{1,2})\.(?P<m>\d{1,2})\.(?P<y>\d{4})\b"),
    ("月", _YEAR + r"(?P<m>\d{1,2})\s?月\s?(?P<d>\d{1,2})\s?[日号號]"),
    ("月", _YEAR + r"(?P<m>1[0-2]|[1-9])\s?月(?!\s?\d)(?P<d>)"),
    ("월", _YEAR + r"(?P<m>\d{1,2})\s?월\s?(?P<d>\d{1,2})\s?일"),
    ("월", _YEAR + r"(?P<m>1[0-2]|[1-9])\s?월(?!\s?\d)(?P<d>)"),
))  # fmt: skip

# Scripts written without spaces: their runs are read as pairs of characters.
_UNSPACED = re.compile(r"[\u0e00-\u0eff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff]")
_UNSPACED_NOT = re.compile(
    r"なくなった|なかった|ません|(?<![危少切])(?<!ければなら)ない|没有|沒有|不再"
    r"|(?<![差对對])不(?!错|錯|同(?!意)|过(?!敏)|過(?!敏)|但|仅|僅|久|只)|没|沒|無い|未(?![来來婚満满])|ไม่"
)
_UNSPACED_FILLER = re.compile(r"[了的是很也](?![\u3040-\u30ff])|(?:です|ます)$")
_HAN = "〇一二三四五六七八九"
_HAN_NUMBER = re.compile(
    r"[二两兩三四五六七八九十]+(?=[个個只隻匹本杯人名位口岁歳才年月日号號次回台辆輛枚条條头頭份部间間])"
    r"|一(?=[月日号號岁歳匹只隻])|十[一二三四五六七八九](?=[月日号號岁歳])"
)  # fmt: skip
_KOREAN_NOT = re.compile(r"^(?:않|못하|안하)|없(?:다|음|어|습니다)$|아니다$")

# Metric quantities by their smallest unit, so that 1.82 m is 182 cm.
_UNITS = {
    "mm": ("mm", 1), "cm": ("mm", 10), "m": ("mm", 1_000), "km": ("mm", 1_000_000),
    "mg": ("mg", 1), "g": ("mg", 1_000), "kg": ("mg", 1_000_000),
    "ml": ("ml", 1), "cl": ("ml", 10), "dl": ("ml", 100), "l": ("ml", 1_000),
}  # fmt: skip


def fold_case(text: str) -> str:
    """Fold case, compatibility forms and what a script may leave out."""
    if text.isascii():
        return text.lower()
    folded = unicodedata.normalize("NFKC", text).casefold().replace("i\u0307", "i")
    return folded.translate(_SAME).translate(_OPTIONAL)


def tokens(statement: str) -> list[str]:
    """Cut a statement as the person wrote it; words are folded, numbers are "#" and their value."""
    text = _CAPITAL.sub(lambda c: f"{c[1]}{_ALONE}", statement)
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text)
        text = _HAN_NUMBER.sub(lambda n: _han_number(n[0]), text)
    for sign, pattern in _DAYS:
        if sign in text:
            text = pattern.sub(_day_in_figures, text)
    read: list[str] = []
    for word in words(text):
        if is_number(word):
            read.append(f"#{_value(word)}")
        elif word in _UNITS and read and read[-1][0] == "#" and read[-1][1:].isascii():
            read[-1] = _quantity(read[-1][1:], word)
        else:
            read.append(word)
    return read


_ALONE = "capital"


def words(text: str) -> list[str]:
    """Split text into folded words, numbers and telling signs."""
    split: list[str] = []
    for token in _TOKEN.findall(fold_case(text)):
        if "'" in token:
            *heads, last = filter(None, token.replace("n't", "'not").split("'"))
            split += [*heads, f"'{last}" if heads and last in _CLITICS else last]
        elif _UNSPACED.match(token):
            split += _unspaced(token)
        elif _KOREAN_NOT.search(token):
            split += [NOT, token]
        elif token in _ORDINALS and split and split[-1][-1].isdigit():
            continue  # 3rd, 1er
        else:
            split.append(token)
    return split


def is_number(word: str) -> bool:
    """Whether a word of `words` is a number."""
    return word[0].isdigit() or (len(word) > 1 and word[0] in MINUS and word[1].isdigit())


def unspaced(word: str) -> bool:
    """Whether a word is of a script that is written without spaces."""
    return _UNSPACED.match(word) is not None


def _unspaced(run: str) -> list[str]:
    """Read a run as pairs of characters, each denial where it stood."""
    kept: list[str] = []
    denials: list[int] = []
    size = at = 0
    for denial in _UNSPACED_NOT.finditer(run):
        kept.append(_UNSPACED_FILLER.sub("", run[at : denial.start()]))
        size += len(kept[-1])
        denials.append(size)
        at = denial.end()
    rest = "".join([*kept, _UNSPACED_FILLER.sub("", run[at:])]) or ("" if denials else run)
    pairs = [rest[i : i + 2] for i in range(len(rest) - 1)] or ([rest] if rest else [])
    for place in reversed(denials):
        pairs.insert(min(place, len(pairs)) if place < len(rest) else len(pairs), NOT)
    return pairs


def _han_number(text: str) -> str:
    """Return 二十三 as 23, and signs without a ten one by one."""
    tens, ten, ones = text.translate(_TWO).partition("十")
    figures = "".join(str(_HAN.index(sign)) for sign in tens)
    if not ten:
        return figures
    return str(int(figures or 1) * 10 + (_HAN.index(ones) if len(ones) == 1 else 0))


_TWO = {ord("两"): "二", ord("兩"): "二"}


def _day_in_figures(found: re.Match[str]) -> str:
    month, day = int(found["m"]), int(found["d"] or 1)
    if not (1 <= month <= 12 and 1 <= day <= 31):
        return found[0]
    return f" {found['d'].lstrip('0')} {DAY_IN_FIGURES} {month} {found['y'] or ''} "


def _value(word: str) -> str:
    sign = "-" if word[0] in MINUS else ""
    digits = "".join(str(unicodedata.digit(c)) if c.isdigit() else c for c in word.lstrip(MINUS))
    if _THOUSANDS.fullmatch(digits):
        digits = re.sub(r"[.,]", "", digits)
    return sign + digits.replace(",", ".")


def _quantity(value: str, unit: str) -> str:
    base, factor = _UNITS[unit]
    try:
        amount = round(float(value) * factor, 6)
    except ValueError:  # 10:30 m
        return f"#{value}{unit}"
    return f"#{amount:.12g}{base}"
