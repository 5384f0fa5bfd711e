"""Conversations into chunks: turn-aligned, complete, with a map of which message stands where.

A turn that fits a chunk is never cut. A longer one is split at paragraph or sentence ends, each
piece overlapping the one before, nothing dropped. Packing is greedy from the start, so text that is
appended to a conversation changes its last chunk only.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING

from daemon.errors import UsageError
from daemon.fullpass.tokens import estimate_tokens

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
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
# Where a long turn may be cut, best first: paragraph, line, sentence (Latin and CJK), space.
_BREAKS = tuple(
    re.compile(p) for p in (r"\n\s*\n", r"\n", r"[.!?…]['\")\]]*\s+|[。！？]+", r"\s+|[、，；]")
)


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
    packs = list(_packed(conversation.messages, tier))
    seen: Counter[str] = Counter()
    chunks = []
    for index, pieces in enumerate(packs):
        content, spans = _joined(pieces)
        base = _digest(conversation, tier, content, spans)
        seen[base] += 1
        chunks.append(
            Chunk(
                tier=tier.name,
                index=index,
                total=len(packs),
                content=content,
                spans=spans,
                token_count=estimate_tokens(content),
                # Two equal chunks of one conversation are two chunks.
                content_hash=base if seen[base] == 1 else _sha(f"{base}:{seen[base]}"),
            )
        )
    return chunks


def conversation_hash(conversation: Conversation, tiers: Sequence[Tier]) -> str:
    """Hash all that decides a conversation's chunks: its text and the way it is cut."""
    parts = [
        CHUNKING_VERSION,
        [(t.name, t.size, t.overlap) for t in tiers],
        conversation.title,
        str(conversation.created_at),
        [(m.id, m.role, m.text, str(m.at)) for m in conversation.messages],
    ]
    return _sha(json.dumps(parts, ensure_ascii=False))


@dataclass(frozen=True, slots=True)
class _Piece:
    message: Message
    label: str
    text: str
    size: int


def _pieces(message: Message, tier: Tier) -> Iterator[_Piece]:
    label = f"{_LABELS[message.role]}: "
    whole = tier.measure(label + message.text)
    if whole <= tier.size:
        yield _Piece(message, label, message.text, whole)
        return
    continued = f"{_LABELS[message.role]} (continued): "
    room = max(tier.size - tier.measure(continued), tier.size // 2)
    for number, (start, stop) in enumerate(_split(message.text, room, tier)):
        mark = label if number == 0 else continued
        text = message.text[start:stop]
        yield _Piece(message, mark, text, tier.measure(mark + text))


def _packed(messages: Sequence[Message], tier: Tier) -> Iterator[list[_Piece]]:
    pack: list[_Piece] = []
    size = 0
    for message in messages:
        for piece in _pieces(message, tier):
            # +2 units for the joint, and two pieces of one turn never share a chunk: they overlap.
            too_big = size + piece.size + 2 > tier.size
            if pack and (too_big or pack[-1].message is message):
                yield pack
                pack, size = [], 0
            pack.append(piece)
            size += piece.size + 2
    if pack:
        yield pack


def _split(text: str, room: int, tier: Tier) -> Iterator[tuple[int, int]]:
    """Yield [start, stop) spans that cover the text, each measuring at most `room`."""
    start = 0
    while start < len(text):
        stop = _fitting_stop(text, start, room, tier)
        if stop < len(text):
            stop = _break_before(text, start + max(1, (stop - start) // 2), stop)
        yield start, stop
        if stop >= len(text):
            return
        start = _overlapping_start(text, start, stop, tier)


def _fitting_stop(text: str, start: int, room: int, tier: Tier) -> int:
    """Return the furthest stop (within 2%) for which text[start:stop] measures at most `room`."""
    # No script yields more than about eight characters a token.
    low, high = start + 1, min(len(text), start + 8 * room)
    if tier.measure(text[start:high]) <= room:
        return high
    while high - low > max(1, (high - start) // 50):
        middle = (low + high) // 2
        if tier.measure(text[start:middle]) <= room:
            low = middle
        else:
            high = middle
    return low


def _break_before(text: str, low: int, high: int) -> int:
    """Return the best place to cut in [low, high], `high` itself if there is none."""
    for pattern in _BREAKS:
        best = None
        for match in pattern.finditer(text, low, high):
            best = match.end()
        if best is not None:
            return best
    return high


def _overlapping_start(text: str, start: int, stop: int, tier: Tier) -> int:
    """Return where the next piece starts: a little before `stop`, at a sentence if possible."""
    if not tier.overlap:
        return stop
    low = stop - (stop - start) * tier.overlap // max(1, tier.size)
    low = max(start + (stop - start) // 2, low)
    for pattern in _BREAKS[1:]:
        match = pattern.search(text, low, stop)
        if match is not None and match.end() < stop:
            return match.end()
    return stop


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
    return _sha(json.dumps(parts, ensure_ascii=False))


def _sha(text: str) -> str:
    return sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
