"""How many tokens a text is, estimated without a tokenizer.

Owns one closed formula and its weights. Promises, for texts of chunk size in any common language,
code, tables and mixes of them: not under the truth by more than 10%, nor over by more than 30%.
The truth meant is a byte-level BPE tokenizer's count × 1.3, which is what newer models bill.
Measure it with bench/bench_tokens.py; docs/decisions/0050 says how the weights came about.
"""

from __future__ import annotations

from array import array
from itertools import product
from typing import TYPE_CHECKING, NamedTuple
from zlib import adler32

if TYPE_CHECKING:
    from collections.abc import Sequence

_UNIT = 32
"""Weights are whole numbers of 1/32 token."""

# Such a tokenizer first cuts a text into runs of letters, digits, marks and white space, then
# splits each run into pieces it has in its vocabulary. Both show in bytes and pairs of bytes: a
# run starts where the class changes, and letters that English seldom uses make words of more
# pieces. The classes of bytes, sixteen so that two of them fit one byte; a text begins as if after
# a quotation mark:
_CLASSES: dict[str, bytes] = {
    '"': b'"',
    "t": b"t",
    "h": b"h",
    "k": b"kzj",
    "a": b"aeiougv",
    "n": b"nl",
    "s": b"bcdmpqrs",
    "f": b"fwxy",
    "A": b"ABCDEFGHIJKLMNOPQRSTUVWXYZ",
    "0": b"0123456789",
    "!": b"!$%&'()+,/:;<>?@[\\]^`{|}" + bytes({*range(32), 127} - {*b"\n\t\r\v\f"}),
    "-": b"-=_*#.~",
    " ": b" ",
    "/": b"\n\t\r\v\f",
    "<": bytes(range(0xC0, 0x100)),
    ">": bytes(range(0x80, 0xC0)),
}
_CODES = {name: code for code, name in enumerate(_CLASSES)}
_ANY = "".join(_CLASSES)
_SMALL = "thkansf"
_LETTERS = _SMALL + "A<>"
_MARKS = '"!-'


def _but(names: str) -> str:
    return "".join(name for name in _ANY if name not in names)


# What a byte of a class costs, and what it costs more, or less, after a byte of another.
_BYTE = {
    '"': 13, "t": -24, "h": 6, "k": 77, "a": 11, "n": 4, "s": -3, "f": -9, "A": 18,
    "0": 3, "!": 14, "-": -8, " ": 0,
}  # fmt: skip
_PAIR: tuple[tuple[str, str, int], ...] = (
    (_but(_LETTERS), _LETTERS, 36),  # a word starts
    (_but("0"), "0", 42),  # a number starts
    (_but(_MARKS), _MARKS, 39),  # a run of marks starts
    ("/", _but(" /"), 67),  # a line starts
    ("/", " ", 25),
    ("/", "/", 11),
    (" ", " ", 1),
    (" ", _MARKS, 2),
    ("-", "-", 15),
    ('"', "!-", 54),
    ("!-", '"', -10),
    (_LETTERS, '"', -64),
    ('"', _LETTERS, -19),
    ('"', "/", 23),
    ("!", "/", -7),
    (_SMALL, "A", 30),  # camelCase
    ("A", _SMALL, -10),
    ("A", "A", -10),
    (_SMALL + "A", "0", 3),
    ("0", _SMALL + "A", 26),
    ("t", "h", -37),  # the, this, with: words that are one token
    ("t", "t", 65),
    ("t", "a", 17),
    ("a", "h", 55),
    ("s", "h", 18),
    ("a", "a", 8),
    ("a", " ", 8),
    ("n", " ", 28),
    ("s", " ", -12),
    ("f", " ", -42),
)

# What a character costs by the first byte of its UTF-8 form, which tells the script.
_LEAD: tuple[tuple[range, int], ...] = (
    (range(0xC2, 0xC3), 30), (range(0xC3, 0xC4), 62), (range(0xC4, 0xC6), 84),  # Latin
    (range(0xC6, 0xCC), 124), (range(0xCC, 0xCE), 48),  # rarer Latin, combining marks
    (range(0xCE, 0xCF), 48), (range(0xCF, 0xD0), 66),  # Greek
    (range(0xD0, 0xD1), 20), (range(0xD1, 0xD2), 24), (range(0xD2, 0xD6), 96),  # Cyrillic
    (range(0xD6, 0xD8), 41), (range(0xD8, 0xDA), 44), (range(0xDA, 0xE0), 75),  # Hebrew, Arabic
    (range(0xE0, 0xE1), 120), (range(0xE1, 0xE2), 134), (range(0xE2, 0xE3), 79),
    (range(0xE3, 0xE4), 40),  # kana
    (range(0xE4, 0xE7), 39), (range(0xE7, 0xE8), 16), (range(0xE8, 0xE9), 92),  # Han
    (range(0xE9, 0xEA), 43),
    (range(0xEA, 0xEB), 85), (range(0xEB, 0xED), 42), (range(0xED, 0xEE), 85),  # Hangul
    (range(0xEE, 0xF0), 147), (range(0xF0, 0x100), 115),  # full width, emoji
)  # fmt: skip

# What two bytes tell beyond the first: scripts, Chinese characters by their radicals.
_PREFIX: tuple[tuple[int, str, int], ...] = (
    (0xD9, "d98b d98c d98d d98e d98f d990 d991 d992", 28),  # the vowel signs of Arabic
    (0xE0, "e0a4 e0a5", -65),  # Devanagari
    (0xE0, "e0a6 e0a7 e0ae e0af e0b6 e0b7 e0b8 e0b9", -34),  # Bengali, Tamil, Sinhala, Thai
    (0xE1, "e180 e182 e183", -84),  # Burmese, Georgian
    (0xE2, "e280", -72), (0xE2, "e294 e295", -68),  # dashes and quotation marks, box drawing
    (0xE3, "e384 e385", 48),  # single letters of Hangul, as Korean chats laugh and cry
    (0xE8, "e899 e8aa e8ad", 201), (0xE9, "e981 e9a0", 201), (0xE6, "e6aa", 201),  # traditional
    (0xE8, "e8ae e8af e8bf", -96), (0xE7, "e7bb e7bc", -96),  # simplified
    (0xD1, "d18b", -7), (0xD1, "d196", 92),  # Russian; Ukrainian and Belarusian
)  # fmt: skip
_PREFIXES: dict[int, tuple[tuple[bytes, int], ...]] = {
    lead: tuple(
        (bytes.fromhex(prefix), weight)
        for at, prefixes, weight in _PREFIX
        for prefix in prefixes.split()
        if at == lead
    )
    for lead, _, _ in _PREFIX
}

# What pairs cannot see. A deep indentation is one token or two, however deep; data packed as text
# (a picture, a program, in base64) is of pieces that no vocabulary holds.
_INDENTATION = b" " * 16
_INDENTATION_WEIGHT = -10
_PACKED = b"a" * 64
_PACKED_WEIGHT = 300
_PACKED_LETTERS = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
_PACKED_ROWS = bytes(ord("a" if code in _PACKED_LETTERS else " ") for code in range(256))

_SUM_BLOCK = 256
_PAIR_BLOCK = 65_536
_OFFSETS_EVERY = 256


def _class_table() -> bytes:
    table = bytearray(256)
    for name, members in _CLASSES.items():
        for byte in members:
            table[byte] = _CODES[name]
    return bytes(table)


def _pair_table() -> tuple[bytes, int]:
    """Return the weight of every pair of classes, raised to be positive, and by how much."""
    weights = [_BYTE.get(second, 0) for _, second in product(_ANY, _ANY)]
    for firsts, seconds, weight in _PAIR:
        for first, second in product(firsts, seconds):
            weights[_CODES[first] * 16 + _CODES[second]] += weight
    lowest = min(weights)
    return bytes(weight - lowest for weight in weights), -lowest


def _lead_table() -> bytes:
    table = bytearray(256)
    for leads, weight in _LEAD:
        for byte in leads:
            table[byte] = weight
    return bytes(table)


_CLASS = _class_table()
_PAIR_WEIGHT, _RAISED = _pair_table()
_LEAD_WEIGHT = _lead_table()
_FIRST = [_PAIR_WEIGHT[first] - _RAISED for first in range(16)]
"""What the first byte of a text weighs."""
_SEAM = [_PAIR_WEIGHT[pair] - _RAISED - _FIRST[pair % 16] for pair in range(256)]
"""What a text weighs more after another: by the class of that one's last byte, its own first."""


class Weight(NamedTuple):
    """What a text weighs, so that the tokens of texts put together need no second look at them.

    `raw` counts 1/32 tokens, as if the text began after a quotation mark; `solid` its bytes that
    are no spaces; `first` and `last` are the classes of its first and last byte.
    """

    raw: int
    solid: int
    first: int
    last: int

    @property
    def tokens(self) -> int:
        """The tokens of the text by itself, at least 1."""
        return _tokens(self.raw, self.solid)

    def tokens_with(self, following: Weight) -> int:
        """Return the tokens of this text and another right after it."""
        seam = _SEAM[self.last * 16 + following.first]
        return _tokens(self.raw + seam + following.raw, self.solid + following.solid)

    def then(self, following: Weight) -> Weight:
        """Weigh this text and another right after it."""
        return Weight(
            self.raw + _SEAM[self.last * 16 + following.first] + following.raw,
            self.solid + following.solid,
            self.first,
            following.last,
        )


def estimate_tokens(text: str) -> int:
    """Estimate the tokens of a text, at least 1; linear time, more than 100 MB a second.

    The whole is never more than the sum of its parts where these begin at a line break, so whoever
    packs paragraphs by sums stays within a limit.
    """
    return weigh(text).tokens if text else 1


def weigh(text: str) -> Weight:
    """Weigh a text that is not empty."""
    data = text.encode("utf-8", "replace")
    raw = sum(
        _sum(weights) - _RAISED * len(weights)
        for weights in (_pair_weights(data, at) for at in range(0, len(data), _PAIR_BLOCK))
    )
    if not text.isascii():
        raw += _sum(data.translate(_LEAD_WEIGHT))
        for lead, prefixes in _PREFIXES.items():
            if lead in data:
                raw += sum(weight * data.count(prefix) for prefix, weight in prefixes)
    raw += _INDENTATION_WEIGHT * data.count(_INDENTATION)
    if len(data) >= len(_PACKED):
        raw += _PACKED_WEIGHT * data.translate(_PACKED_ROWS).count(_PACKED)
    return Weight(raw, len(data) - data.count(b" "), _CLASS[data[0]], _CLASS[data[-1]])


def weigh_each(texts: Sequence[str]) -> list[Weight]:
    """Weigh texts that are not empty, each as `weigh` does: short ones cost less together."""
    pieces = [b"" if len(text) > _PAIR_BLOCK else text.encode("utf-8", "replace") for text in texts]
    look = _Look(b"".join(pieces))
    weights = []
    stop = 0
    for text, piece in zip(texts, pieces, strict=True):
        if not piece:  # long: alone, a block after the other, it takes less memory
            weights.append(weigh(text))
            continue
        start, stop = stop, stop + len(piece)
        weights.append(look.part(start, stop))
    return weights


def weigh_joined(weights: Sequence[Weight], joint: Weight) -> Weight:
    """Weigh texts as they stand with a joint between each two, at least one text."""
    raw, solid, first, last = weights[0]
    for weight in weights[1:]:
        raw += _SEAM[last * 16 + joint.first] + _SEAM[joint.last * 16 + weight.first] + weight.raw
        solid += weight.solid
        last = weight.last
    joints = len(weights) - 1
    return Weight(raw + joints * joint.raw, solid + joints * joint.solid, first, last)


class _Look:
    """Bytes of UTF-8 that were looked at once; what a part weighs is then a sum."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._pairs = b"".join(_pair_weights(data, at) for at in range(0, len(data), _PAIR_BLOCK))
        self.is_ascii = data.isascii()
        self._leads = b"" if self.is_ascii else data.translate(_LEAD_WEIGHT)
        self._prefixes = [
            found
            for lead, prefixes in _PREFIXES.items()
            if self._leads and lead in data
            for found in prefixes
            if found[0] in data
        ]
        self._indented = _INDENTATION in data
        rows = data.translate(_PACKED_ROWS)
        self._rows = rows if _PACKED in rows else b""

    def part(self, start: int, stop: int) -> Weight:
        """Weigh bytes [start, stop), at least one, that cut no character."""
        data = self._data
        size = stop - start
        first = _CLASS[data[start]]
        raw = _FIRST[first] - _RAISED * (size - 1)
        pairs = self._pairs
        at = start + 1
        while stop - at > _SUM_BLOCK:
            raw += (adler32(pairs[at : at + _SUM_BLOCK]) & 0xFFFF) - 1
            at += _SUM_BLOCK
        raw += (adler32(pairs[at:stop]) & 0xFFFF) - 1
        if not self.is_ascii and not (part := data[start:stop]).isascii():
            raw += _sum(self._leads[start:stop])
            raw += sum([weight * part.count(prefix) for prefix, weight in self._prefixes])
        if self._indented:
            raw += _INDENTATION_WEIGHT * data.count(_INDENTATION, start, stop)
        if self._rows:
            raw += _PACKED_WEIGHT * self._rows.count(_PACKED, start, stop)
        return Weight(raw, size - data.count(b" ", start, stop), first, _CLASS[data[stop - 1]])


class Weighed:
    """A text of which many parts will be weighed: looked at once, each part is then a sum."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._look = _Look(text.encode("utf-8", "replace"))
        self._offsets = array("Q", [0])
        if not self._look.is_ascii:
            for at in range(0, len(text), _OFFSETS_EVERY):
                piece = text[at : at + _OFFSETS_EVERY].encode("utf-8", "replace")
                self._offsets.append(self._offsets[-1] + len(piece))

    def part(self, start: int, stop: int) -> Weight:
        """Weigh characters [start, stop), at least one."""
        return self._look.part(self._offset(start), self._offset(stop))

    def _offset(self, character: int) -> int:
        if self._look.is_ascii:
            return character
        known, rest = divmod(character, _OFFSETS_EVERY)
        start = character - rest
        return self._offsets[known] + len(self._text[start:character].encode("utf-8", "replace"))


def _tokens(raw: int, solid: int) -> int:
    # No text is so English that six letters and marks in a row cost less than a token.
    least = -(-solid * _UNIT // 6)
    return max(1, -(-(max(least, raw)) // _UNIT))


def _pair_weights(data: bytes, at: int) -> bytes:
    """Give the raised weight of each pair of neighbours whose second is in the block from `at`.

    The classes of all bytes, as one number, shifted by half a byte and laid over itself, hold in
    each byte a class and the class before it: one translation weighs all pairs.
    """
    before = 1 if at else 0
    block = data[at - before : at + _PAIR_BLOCK]
    classes = int.from_bytes(block.translate(_CLASS), "big")
    pairs = (classes | classes >> 4).to_bytes(len(block), "big")[before:]
    return pairs.translate(_PAIR_WEIGHT)


def _sum(data: bytes) -> int:
    """Sum all bytes at memory speed: adler32's low half is 1 + their sum, modulo 65,521."""
    if len(data) <= _SUM_BLOCK:
        return (adler32(data) & 0xFFFF) - 1
    total = 0
    for at in range(0, len(data), _SUM_BLOCK):
        total += (adler32(data[at : at + _SUM_BLOCK]) & 0xFFFF) - 1
    return total
