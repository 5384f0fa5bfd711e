"""A turn too long for one chunk, cut into pieces that each fit one with their label.

Cut at paragraph or sentence ends, each piece overlapping the one before, nothing dropped: the
pieces, less their overlaps, are the text. Characters that are drawn as one (an accent and its
letter, a flag, a family of emoji, CR LF) stay together. Linear time.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from typing import TYPE_CHECKING

from daemon.fullpass.tokens import Weighed, Weight, estimate_tokens, weigh

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

JOINT = "\n\n"
"""What stands between two messages of a chunk."""

_RULER_CHARACTERS = 64 * 1024
_GUESSES = 12
_LONGEST_CHARACTER = 64
"""More code points than this drawn as one are no character of any language."""
_JOINER = "\u200d"
_VIRAMA = 9
"""The combining class of the sign that joins two consonants of an Indic script."""
_FLAG_LETTERS = frozenset(map(chr, range(0x1F1E6, 0x1F200)))
# Joiners, variation selectors, skin tones, the tags that end a flag.
_FOLLOWERS = frozenset(
    map(chr, (0x200C, 0x200D, *range(0xFE00, 0xFE10), *range(0x1F3FB, 0x1F400),
              *range(0xE0020, 0xE0080)))
)  # fmt: skip
# Where a long turn may be cut, best first: paragraph, line, sentence (of scripts with spaces after
# it, then of those without), space or comma.
_BREAKS = tuple(
    re.compile(pattern)
    for pattern in (
        r"\n\s*\n",
        r"\n",
        r"[.!?…।؟۔]['\"”’»)\]]*\s+|[。！？．｡]+[」』”）]*",  # noqa: RUF001 - as people write them
        r"\s+|[、，；]",  # noqa: RUF001
    )
)


@dataclass(frozen=True, slots=True)
class Tier:
    """One size of chunk. `name` is what this database calls it; sizes are in `measure`'s unit."""

    name: str
    size: int
    overlap: int
    measure: Callable[[str], int]


class Ruler:
    """Measures parts of one long text, each after a mark; in tokens, the text is weighed once.

    Only a stretch of it is held weighed at a time: that takes three times its bytes (promise 7).
    """

    def __init__(self, text: str, tier: Tier) -> None:
        self._text = text
        self._tier = tier
        self._start = self._stop = 0
        self._weighed: Weighed | None = None
        self._marks: dict[str, Weight] = {}

    def size(self, mark: str, start: int, stop: int) -> int:
        """Measure the mark and characters [start, stop) as one."""
        if self._tier.measure is not estimate_tokens:
            return self._tier.measure(mark + self._text[start:stop])
        if stop == start:
            return self._weight_of(mark).tokens if mark else estimate_tokens("")
        part = self._part(start, stop)
        return self._weight_of(mark).tokens_with(part) if mark else part.tokens

    def weight(self, mark: str, start: int, stop: int) -> Weight:
        """Weigh the mark and characters [start, stop), at least one, as one."""
        part = self._part(start, stop)
        return self._weight_of(mark).then(part) if mark else part

    def _part(self, start: int, stop: int) -> Weight:
        if stop - start > _RULER_CHARACTERS:
            return weigh(self._text[start:stop])
        if self._weighed is None or start < self._start or stop > self._stop:
            self._start = max(0, start)
            self._stop = min(len(self._text), start + 2 * _RULER_CHARACTERS)
            self._weighed = Weighed(self._text[self._start : self._stop])
        return self._weighed.part(start - self._start, stop - self._start)

    def room(self, mark: str) -> int:
        """Return what a chunk has room for after the mark."""
        if self._tier.measure is not estimate_tokens:
            return self._tier.size - self._tier.measure(mark)
        return self._tier.size - self._weight_of(mark).tokens

    def _weight_of(self, mark: str) -> Weight:
        if mark not in self._marks:
            self._marks[mark] = weigh(mark)
        return self._marks[mark]


def split(
    text: str, label: str, continued: str, tier: Tier, ruler: Ruler | None = None
) -> Iterator[tuple[int, int]]:
    """Yield [start, stop) spans that cover the text, each fitting a chunk with its label."""
    ruler = ruler or Ruler(text, tier)
    start = covered = 0
    guess = tier.size
    mark = label
    while True:
        stop = _fitting_stop(ruler, start, mark, guess=guess, end=len(text), tier=tier)
        if stop < len(text):
            stop = _best_stop(ruler, text, start, stop, mark=mark, tier=tier)
        if stop <= covered:
            # The overlap alone fills a chunk, its text being dense: go on without it.
            start = covered
            continue
        yield start, stop
        if stop == len(text):
            return
        guess = stop - start
        covered = stop
        start = _overlapping_start(ruler, text, start, stop, tier)
        mark = continued


def _fitting_stop(ruler: Ruler, start: int, mark: str, *, guess: int, end: int, tier: Tier) -> int:
    """Return the furthest stop, to a few percent, up to which the text fits a chunk.

    A guess is corrected by what it measures: since neighbouring text is much alike, two or three
    measurements do, whatever the script.
    """
    room = ruler.room(JOINT + mark)
    low, high = 1, end - start  # low fits, or nothing does; beyond high there is no text
    length = min(max(guess, 1), high)
    for _ in range(_GUESSES):
        measured = ruler.size(JOINT + mark, start, start + length)
        if measured <= tier.size:
            low = max(low, length)
        else:
            high = min(high, length - 1)
        if (
            low >= high
            or low * 100 >= high * 97
            or (low == length and measured * 50 >= tier.size * 49)
        ):
            break
        used = max(1, measured - (tier.size - room))
        length = min(high, max(low + 1, length * room // used))
    return start + low


def _best_stop(ruler: Ruler, text: str, start: int, stop: int, *, mark: str, tier: Tier) -> int:
    """Return the best place to cut in the latter half of [start, stop)."""
    best = _break_before(text, start + max(1, (stop - start) // 2), stop)
    best = _whole_character(text, start, best)
    # Shorter text measures less, but for a token or so where a word is cut.
    while best - start > 1 and ruler.size(JOINT + mark, start, best) > tier.size:
        best = _whole_character(text, start, best - max(1, (best - start) // 50))
    return best


def _break_before(text: str, low: int, high: int) -> int:
    """Return the best place to cut in [low, high], `high` itself if there is none."""
    for pattern in _BREAKS:
        best = None
        for match in pattern.finditer(text, low, high):
            best = match.end()
        if best is not None:
            return best
    return high


def _whole_character(text: str, start: int, at: int) -> int:
    """Return the last place in (start, at] that cuts no drawn character in half, else `at`.

    `start` is such a place itself.
    """
    for place in range(at, max(start, at - _LONGEST_CHARACTER), -1):
        if place >= len(text) or not _sticks(text, start, place):
            return place
    return at


def _sticks(text: str, start: int, at: int) -> bool:
    """Whether text[at] is drawn as one with what stands before it, from `start` on."""
    before, after = text[at - 1], text[at]
    if after < "\u0300":
        return before == "\r" and after == "\n"
    if before == _JOINER or after in _FOLLOWERS or unicodedata.category(after)[0] == "M":
        return True
    if unicodedata.combining(before) == _VIRAMA:  # a conjunct, as in Devanagari
        return after.isalpha()
    if "\u1160" <= after <= "\u11ff":  # Hangul written as separate vowels and finals
        return "\u1100" <= before <= "\u11ff"
    if after in _FLAG_LETTERS:
        first = at
        while first > start and text[first - 1] in _FLAG_LETTERS:
            first -= 1
        return (at - first) % 2 == 1
    return False


def _overlapping_start(ruler: Ruler, text: str, start: int, stop: int, tier: Tier) -> int:
    """Return where the next piece starts: a little before `stop`, at a sentence if possible."""
    if not tier.overlap:
        return stop
    length = (stop - start) * tier.overlap // max(1, tier.size)
    measured = ruler.size("", stop - length, stop)
    if measured > tier.overlap:
        length = length * tier.overlap // measured
    low = max(start + (stop - start) // 2, start + 1, stop - length)
    for pattern in _BREAKS[1:]:
        match = pattern.search(text, low, stop)
        if match is not None and match.end() < stop:
            return _whole_character(text, start, match.end())
    return _whole_character(text, start, low)
