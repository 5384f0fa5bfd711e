"""Conversations into chunks: turn-aligned, complete, with a map of which message stands where.

A turn that fits a chunk is never cut. A longer one is split at paragraph or sentence ends, each
piece overlapping the one before, nothing dropped: the pieces of a message, less their overlaps, are
its text. No chunk measures more than its tier's size. Packing is greedy from the start, so text
that is appended to a conversation changes its last chunk only. Characters that are drawn as one
(an accent and its letter, a flag, a family of emoji, CR LF) stay together. Linear time.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections import Counter
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from hashlib import sha256
from json.encoder import encode_basestring_ascii
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from daemon.errors import UsageError
from daemon.fullpass.tokens import (
    Weighed,
    Weight,
    estimate_tokens,
    weigh,
    weigh_each,
    weigh_joined,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from daemon.export.conversation import Conversation, Message, Role
    from daemon.settings import Settings

CHUNKING_VERSION = 2
"""Number of this algorithm; 1 is the system before this one."""

_LABELS: dict[Role, str] = {
    "user": "User",
    "assistant": "Assistant",
    "instructions": "Custom instructions",
    "memory": "Saved memory",
    "quote": "Quoted",
}
_JOINT = "\n\n"
_JOINT_WEIGHT = weigh(_JOINT)
_RULER_CHARACTERS = 64 * 1024
_AT_ONCE_CHARACTERS = 64 * 1024
"""About so much text is weighed, or hashed, at a time: enough to be quick, too little to hold."""
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


class Span(msgspec.Struct, frozen=True):
    """A message, or a piece of one, within a chunk: characters [start, stop) of its content."""

    message_id: str
    role: str
    at: datetime | None
    start: int
    stop: int


class Chunk(msgspec.Struct, frozen=True):
    """A chunk of one conversation, ready to be stored."""

    tier: str
    index: int
    total: int
    content: str
    spans: tuple[Span, ...]
    token_count: int
    content_hash: str


def tiers_for(settings: Settings, accepted: dict[str, str]) -> tuple[Tier, ...]:
    """Return the tiers to store, medium always among them since extraction reads it.

    `accepted` maps micro, medium and macro to the names that this database accepts. Raises
    UsageError for a tier that it does not accept.
    """
    sizes = {
        "micro": (settings.micro_chunk_characters, 0, len),
        "medium": (settings.medium_chunk_tokens, settings.chunk_overlap_tokens, estimate_tokens),
        "macro": (settings.macro_chunk_characters, 0, len),
    }
    ranks = {**{name: rank for rank, name in accepted.items()}, **{r: r for r in accepted}}
    unknown = [name for name in settings.chunk_tiers if name not in ranks]
    if unknown:
        raise UsageError(
            f"CHUNK_TIERS: this database accepts {', '.join(accepted.values())} "
            f"(conversation_chunks.chunk_tier), not {', '.join(unknown)}"
        )
    wanted = {ranks[name] for name in settings.chunk_tiers} | {"medium"}
    return tuple(Tier(accepted[rank], *sizes[rank]) for rank in sizes if rank in wanted)


def chunk(conversation: Conversation, tier: Tier) -> list[Chunk]:
    """Cut one conversation into chunks of one tier."""
    return list(cut(conversation, tier))


def cut(conversation: Conversation, tier: Tier) -> Iterator[Chunk]:
    """Cut one conversation into chunks of one tier, one after the other."""
    packs: Iterable[list[_Piece]] = _packed(conversation.messages, tier)
    if isinstance(conversation.messages, tuple):
        packs = list(packs)
        total = len(packs)
    else:  # too large to be held: cut twice rather than keep the chunks
        total = sum(1 for _ in _packed(conversation.messages, tier))
    seen: Counter[bytes] = Counter()
    named = json.dumps([conversation.source, conversation.id, tier.name])[:-1]
    for index, pieces in enumerate(packs):
        content, spans = _joined(pieces)
        base = _digest(named, content, spans)
        mark = bytes.fromhex(base)
        seen[mark] += 1
        yield Chunk(
            tier=tier.name,
            index=index,
            total=total,
            content=content,
            spans=spans,
            token_count=_token_count(pieces, content),
            # Two equal chunks of one conversation are two chunks.
            content_hash=base if seen[mark] == 1 else _sha(f"{base}:{seen[mark]}"),
        )


def conversation_hash(conversation: Conversation, tiers: Sequence[Tier]) -> str:
    """Hash all that decides a conversation's chunks: its text and the way it is cut."""
    head = [
        CHUNKING_VERSION,
        [(t.name, t.size, t.overlap) for t in tiers],
        conversation.title,
        str(conversation.created_at),
    ]
    whole = sha256(_bytes(json.dumps(head)))
    parts: list[str] = []
    size = 0
    for m in conversation.messages:
        # The length tells where a text ends, so that no two conversations look alike.
        parts.append(f"\n{encode_basestring_ascii(m.id)} {m.role} {m.at} {len(m.text)}\n{m.text}")
        size += len(m.text)
        if size > _AT_ONCE_CHARACTERS:
            whole.update(_bytes("".join(parts)))
            parts, size = [], 0
    whole.update(_bytes("".join(parts)))
    return whole.hexdigest()


class _Piece(NamedTuple):
    """A message or a part of it; `size` is what it adds to a chunk, its joint included.

    A measure promises that the whole of a chunk is no more than the sum of such sizes: lengths add
    up, and an estimate that begins at a line break has nothing to lose at the seam.
    """

    message: Message
    label: str
    text: str
    size: int
    weight: Weight | None
    """Of label and text, in a tier that is measured in tokens."""


def _weighed(
    messages: Iterable[Message], tier: Tier
) -> Iterator[tuple[Message, str, Weight | None]]:
    """Give each message that says something its label and, in tokens, the weight of both."""
    labels: dict[Role, str] = {role: _label(speaker, tier) for role, speaker in _LABELS.items()}
    if tier.measure is not estimate_tokens:
        for message in messages:
            if message.text:
                yield message, labels[message.role], None
        return
    waiting: list[Message] = []
    size = 0
    for message in messages:
        if not message.text:
            continue
        waiting.append(message)
        size += len(message.text)
        if size > _AT_ONCE_CHARACTERS:
            yield from _weighed_at_once(waiting, labels)
            waiting, size = [], 0
    yield from _weighed_at_once(waiting, labels)


def _weighed_at_once(
    messages: list[Message], labels: Mapping[Role, str]
) -> Iterator[tuple[Message, str, Weight]]:
    weights = weigh_each([labels[m.role] + m.text for m in messages])
    for message, weight in zip(messages, weights, strict=True):
        yield message, labels[message.role], weight


def _pieces(message: Message, label: str, weight: Weight | None, tier: Tier) -> Iterator[_Piece]:
    if weight is not None:
        size = _JOINT_WEIGHT.then(weight).tokens
    else:
        size = tier.measure(_JOINT + label + message.text)
    if size <= tier.size or _alone(message, label, weight, tier) <= tier.size:
        yield _Piece(message, label, message.text, size, weight)
        return
    continued = _label(f"{_LABELS[message.role]} (continued)", tier)
    mark = label
    for start, stop in _split(message.text, label, continued, tier):
        text = message.text[start:stop]
        if weight is not None:
            weight = weigh(mark + text)
            size = _JOINT_WEIGHT.then(weight).tokens
        else:
            size = tier.measure(_JOINT + mark + text)
        yield _Piece(message, mark, text, size, weight)
        mark = continued


def _alone(message: Message, label: str, weight: Weight | None, tier: Tier) -> int:
    return weight.tokens if weight is not None else tier.measure(label + message.text)


@lru_cache
def _label(speaker: str, tier: Tier) -> str:
    label = f"{speaker}: "
    # In a chunk so small that the label would be half of it, the text matters more.
    return label if 2 * tier.measure(_JOINT + label) <= tier.size else ""


def _packed(messages: Iterable[Message], tier: Tier) -> Iterator[list[_Piece]]:
    pack: list[_Piece] = []
    size = 0
    for message, label, weight in _weighed(messages, tier):
        for piece in _pieces(message, label, weight, tier):
            # Two pieces of one turn never share a chunk: they overlap.
            if pack and (size + piece.size > tier.size or pack[-1].message is message):
                yield pack
                pack, size = [], 0
            pack.append(piece)
            size += piece.size
    if pack:
        yield pack


def _token_count(pieces: Sequence[_Piece], content: str) -> int:
    """Count a chunk's tokens from what its pieces weigh; exactly what its content measures."""
    weights = [piece.weight for piece in pieces if piece.weight is not None]
    return weigh_joined(weights, _JOINT_WEIGHT).tokens if weights else estimate_tokens(content)


class _Ruler:
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
        if self._tier.measure is not estimate_tokens or stop - start > _RULER_CHARACTERS:
            return self._tier.measure(mark + self._text[start:stop])
        if stop == start:
            return self._tier.measure(mark)
        if self._weighed is None or start < self._start or stop > self._stop:
            self._start = max(0, start)
            self._stop = min(len(self._text), start + 2 * _RULER_CHARACTERS)
            self._weighed = Weighed(self._text[self._start : self._stop])
        part = self._weighed.part(start - self._start, stop - self._start)
        return self._weight_of(mark).then(part).tokens if mark else part.tokens

    def room(self, mark: str) -> int:
        """Return what a chunk has room for after the mark."""
        if self._tier.measure is not estimate_tokens:
            return self._tier.size - self._tier.measure(mark)
        return self._tier.size - self._weight_of(mark).tokens

    def _weight_of(self, mark: str) -> Weight:
        if mark not in self._marks:
            self._marks[mark] = weigh(mark)
        return self._marks[mark]


def _split(text: str, label: str, continued: str, tier: Tier) -> Iterator[tuple[int, int]]:
    """Yield [start, stop) spans that cover the text, each fitting a chunk with its label."""
    ruler = _Ruler(text, tier)
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


def _fitting_stop(ruler: _Ruler, start: int, mark: str, *, guess: int, end: int, tier: Tier) -> int:
    """Return the furthest stop, to a few percent, up to which the text fits a chunk.

    A guess is corrected by what it measures: since neighbouring text is much alike, two or three
    measurements do, whatever the script.
    """
    room = ruler.room(_JOINT + mark)
    low, high = 1, end - start  # low fits, or nothing does; beyond high there is no text
    length = min(max(guess, 1), high)
    for _ in range(_GUESSES):
        measured = ruler.size(_JOINT + mark, start, start + length)
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


def _best_stop(ruler: _Ruler, text: str, start: int, stop: int, *, mark: str, tier: Tier) -> int:
    """Return the best place to cut in the latter half of [start, stop)."""
    best = _break_before(text, start + max(1, (stop - start) // 2), stop)
    best = _whole_character(text, start, best)
    # Shorter text measures less, but for a token or so where a word is cut.
    while best - start > 1 and ruler.size(_JOINT + mark, start, best) > tier.size:
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


def _overlapping_start(ruler: _Ruler, text: str, start: int, stop: int, tier: Tier) -> int:
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


def _joined(pieces: Sequence[_Piece]) -> tuple[str, tuple[Span, ...]]:
    parts: list[str] = []
    spans: list[Span] = []
    at = 0
    for piece in pieces:
        if parts:
            parts.append(_JOINT)
            at += len(_JOINT)
        start = at + len(piece.label)
        stop = start + len(piece.text)
        parts.extend((piece.label, piece.text))
        m = piece.message
        spans.append(Span(m.id, m.role, m.at, start, stop))
        at = stop
    return "".join(parts), tuple(spans)


def _digest(named: str, content: str, spans: tuple[Span, ...]) -> str:
    """Hash JSON of what the chunk is named and of its map, then its content."""
    places = ", ".join(
        [
            f'[{encode_basestring_ascii(s.message_id)}, "{s.role}", "{s.at}", {s.start}, {s.stop}]'
            for s in spans
        ]
    )
    return _sha(f"{named}, {len(content)}, [{places}]]{content}")


def _sha(text: str) -> str:
    return sha256(_bytes(text)).hexdigest()


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")
