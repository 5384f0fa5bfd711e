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
from hashlib import sha256
from typing import TYPE_CHECKING

from daemon.errors import UsageError
from daemon.fullpass.tokens import estimate_tokens

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from datetime import datetime

    from daemon.export.conversation import Conversation, Message
    from daemon.settings import Settings

CHUNKING_VERSION = 2
"""Number of this algorithm; 1 is the system before this one."""

_LABELS = {
    "user": "User",
    "assistant": "Assistant",
    "instructions": "Custom instructions",
    "memory": "Saved memory",
    "quote": "Quoted",
}
_JOINT = "\n\n"
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
_json = json.JSONEncoder(ensure_ascii=False).encode


@dataclass(frozen=True, slots=True)
class Tier:
    """One size of chunk. `name` is what this database calls it; sizes are in `measure`'s unit."""

    name: str
    size: int
    overlap: int
    measure: Callable[[str], int]


@dataclass(frozen=True, slots=True)
class Span:
    """A message, or a piece of one, within a chunk: characters [start, stop) of its content."""

    message_id: str
    role: str
    at: datetime | None
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Chunk:
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
    for index, pieces in enumerate(packs):
        content, spans = _joined(pieces)
        base = _digest(conversation, tier, content, spans)
        mark = bytes.fromhex(base)
        seen[mark] += 1
        yield Chunk(
            tier=tier.name,
            index=index,
            total=total,
            content=content,
            spans=spans,
            token_count=estimate_tokens(content),
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
    # The JSON of one list that ends with the list of messages, hashed as it is written: there may
    # be more of them than memory holds.
    whole = sha256()
    before = _json(head).removesuffix("]") + ", ["
    for m in conversation.messages:
        part = _json((m.id, m.role, m.text, str(m.at)))
        whole.update((before + part).encode("utf-8", "surrogatepass"))
        before = ", "
    whole.update(b"]]")
    return whole.hexdigest()


@dataclass(frozen=True, slots=True)
class _Piece:
    """A message or a part of it; `size` is what it adds to a chunk, its joint included.

    A measure promises that the whole of a chunk is no more than the sum of such sizes: lengths add
    up, and an estimate that begins at a line break has nothing to lose at the seam.
    """

    message: Message
    label: str
    text: str
    size: int


def _pieces(message: Message, tier: Tier) -> Iterator[_Piece]:
    label = _label(_LABELS[message.role], tier)
    joined = tier.measure(_JOINT + label + message.text)
    if joined <= tier.size or tier.measure(label + message.text) <= tier.size:
        yield _Piece(message, label, message.text, joined)
        return
    continued = _label(f"{_LABELS[message.role]} (continued)", tier)
    mark = label
    for start, stop in _split(message.text, label, continued, tier):
        text = message.text[start:stop]
        yield _Piece(message, mark, text, tier.measure(_JOINT + mark + text))
        mark = continued


def _label(speaker: str, tier: Tier) -> str:
    label = f"{speaker}: "
    # In a chunk so small that the label would be half of it, the text matters more.
    return label if 2 * tier.measure(_JOINT + label) <= tier.size else ""


def _packed(messages: Iterable[Message], tier: Tier) -> Iterator[list[_Piece]]:
    pack: list[_Piece] = []
    size = 0
    for message in messages:
        if not message.text:
            continue
        for piece in _pieces(message, tier):
            # Two pieces of one turn never share a chunk: they overlap.
            if pack and (size + piece.size > tier.size or pack[-1].message is message):
                yield pack
                pack, size = [], 0
            pack.append(piece)
            size += piece.size
    if pack:
        yield pack


def _split(text: str, label: str, continued: str, tier: Tier) -> Iterator[tuple[int, int]]:
    """Yield [start, stop) spans that cover the text, each fitting a chunk with its label."""
    start = covered = 0
    guess = tier.size
    mark = label
    while True:
        stop = _fitting_stop(text, start, guess, mark, tier)
        if stop < len(text):
            stop = _best_stop(text, start, stop, mark, tier)
        if stop <= covered:
            # The overlap alone fills a chunk, its text being dense: go on without it.
            start = covered
            continue
        yield start, stop
        if stop == len(text):
            return
        guess = stop - start
        covered = stop
        start = _overlapping_start(text, start, stop, tier)
        mark = continued


def _fitting_stop(text: str, start: int, guess: int, mark: str, tier: Tier) -> int:
    """Return the furthest stop, to a few percent, up to which the text fits a chunk.

    A guess is corrected by what it measures: since neighbouring text is much alike, two or three
    measurements do, whatever the script.
    """
    room = tier.size - tier.measure(_JOINT + mark)
    low, high = 1, len(text) - start  # low fits, or nothing does; beyond high there is no text
    length = min(max(guess, 1), high)
    for _ in range(_GUESSES):
        measured = tier.measure(_JOINT + mark + text[start : start + length])
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


def _best_stop(text: str, start: int, stop: int, mark: str, tier: Tier) -> int:
    """Return the best place to cut in the latter half of [start, stop)."""
    best = _break_before(text, start + max(1, (stop - start) // 2), stop)
    best = _whole_character(text, start, best)
    # Shorter text measures less, but for a token or so where a word is cut.
    while best - start > 1 and tier.measure(_JOINT + mark + text[start:best]) > tier.size:
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


def _overlapping_start(text: str, start: int, stop: int, tier: Tier) -> int:
    """Return where the next piece starts: a little before `stop`, at a sentence if possible."""
    if not tier.overlap:
        return stop
    length = (stop - start) * tier.overlap // max(1, tier.size)
    measured = tier.measure(text[stop - length : stop])
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


def _digest(conversation: Conversation, tier: Tier, content: str, spans: tuple[Span, ...]) -> str:
    parts = [
        conversation.source,
        conversation.id,
        tier.name,
        content,
        [(s.message_id, s.role, str(s.at), s.start, s.stop) for s in spans],
    ]
    return _sha(_json(parts))


def _sha(text: str) -> str:
    return sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
