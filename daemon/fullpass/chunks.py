"""Conversations into chunks: turn-aligned, complete, with a map of which message stands where.

A turn that fits a chunk is never cut. A longer one is split at paragraph or sentence ends, each
piece overlapping the one before, nothing dropped: the pieces of a message, less their overlaps, are
its text. No chunk measures more than its tier's size. Packing is greedy from the start, so text
that is appended to a conversation changes its last chunk only. Linear time. Leaves to turns.py
where a long turn is cut.
"""

from __future__ import annotations

import json
from collections import Counter
from datetime import datetime
from functools import lru_cache
from hashlib import sha256
from json.encoder import encode_basestring_ascii
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from daemon.errors import UsageError
from daemon.fullpass.tokens import Weight, estimate_tokens, weigh, weigh_each, weigh_joined
from daemon.fullpass.turns import JOINT, Ruler, Tier, split

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

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
_JOINT_WEIGHT = weigh(JOINT)
_AT_ONCE_CHARACTERS = 64 * 1024
"""About so much text is weighed, or hashed, at a time: enough to be quick, too little to hold."""

_encode_json = msgspec.json.Encoder().encode


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
    messages: str
    """The spans as JSON."""
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
    names = (conversation.source, conversation.id, tier.name)
    named = f"[{', '.join(map(encode_basestring_ascii, names))}"
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
            messages=_encode_json(spans).decode(),
            token_count=_token_count(pieces, content),
            # Two equal chunks of one conversation are two chunks.
            content_hash=base if seen[mark] == 1 else _sha(f"{base}:{seen[mark]}"),
        )


def conversation_hash(conversation: Conversation, tiers: Sequence[Tier]) -> str:
    """Hash all that decides a conversation's chunks: its text and the way it is cut."""
    described = map(encode_basestring_ascii, (conversation.title, str(conversation.created_at)))
    whole = sha256(_bytes(f"{_ways(tuple(tiers))}, {', '.join(described)}]"))
    group: list[Message] = []
    size = 0
    for message in conversation.messages:
        group.append(message)
        size += len(message.text)
        if size > _AT_ONCE_CHARACTERS:
            whole.update(_bytes(_told(group)))
            group, size = [], 0
    whole.update(_bytes(_told(group)))
    return whole.hexdigest()


@lru_cache
def _ways(tiers: tuple[Tier, ...]) -> str:
    return json.dumps([CHUNKING_VERSION, [(t.name, t.size, t.overlap) for t in tiers]])[:-1]


def _told(messages: Sequence[Message]) -> str:
    # The length tells where a text ends, so that no two conversations look alike.
    return "".join(
        [
            f"\n{encode_basestring_ascii(m.id)} {m.role} {at} {len(m.text)}\n{m.text}"
            for m, at in zip(messages, _moments(messages), strict=True)
        ]
    )


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
    """Cut a turn that fits no chunk."""
    continued = _label(f"{_LABELS[message.role]} (continued)", tier)
    ruler = Ruler(message.text, tier)
    mark = label
    for start, stop in split(message.text, label, continued, tier, ruler):
        text = message.text[start:stop]
        if weight is not None:
            weight = ruler.weight(mark, start, stop)
            size = _JOINT_WEIGHT.tokens_with(weight)
        else:
            size = tier.measure(JOINT + mark + text)
        yield _Piece(message, mark, text, size, weight)
        mark = continued


def _alone(message: Message, label: str, weight: Weight | None, tier: Tier) -> int:
    return weight.tokens if weight is not None else tier.measure(label + message.text)


@lru_cache
def _label(speaker: str, tier: Tier) -> str:
    label = f"{speaker}: "
    # In a chunk so small that the label would be half of it, the text matters more.
    return label if 2 * tier.measure(JOINT + label) <= tier.size else ""


def _packed(messages: Iterable[Message], tier: Tier) -> Iterator[list[_Piece]]:
    pack: list[_Piece] = []
    size = 0
    for message, label, weight in _weighed(messages, tier):
        if weight is not None:
            adds = _JOINT_WEIGHT.tokens_with(weight)
        else:
            adds = tier.measure(JOINT + label + message.text)
        pieces: Iterable[_Piece]
        if adds <= tier.size or _alone(message, label, weight, tier) <= tier.size:
            pieces = (_Piece(message, label, message.text, adds, weight),)
        else:
            pieces = _pieces(message, label, weight, tier)
        for piece in pieces:
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


def _joined(pieces: Sequence[_Piece]) -> tuple[str, tuple[Span, ...]]:
    parts: list[str] = []
    spans: list[Span] = []
    at = 0
    for piece in pieces:
        if parts:
            parts.append(JOINT)
            at += len(JOINT)
        start = at + len(piece.label)
        stop = start + len(piece.text)
        parts.extend((piece.label, piece.text))
        m = piece.message
        spans.append(Span(m.id, m.role, m.at, start, stop))
        at = stop
    return "".join(parts), tuple(spans)


def _digest(named: str, content: str, spans: Sequence[Span]) -> str:
    """Hash JSON of what the chunk is named and of its map, then its content."""
    places = ", ".join(
        [
            f'[{encode_basestring_ascii(s.message_id)}, "{s.role}", "{at}", {s.start}, {s.stop}]'
            for s, at in zip(spans, _moments(spans), strict=True)
        ]
    )
    return _sha(f"{named}, {len(content)}, [{places}]]{content}")


def _moments(spoken: Sequence[Message | Span]) -> list[str]:
    """Return when each was said as str() writes it, several times quicker."""
    if not spoken:
        return []
    moments = _encode_json([one.at for one in spoken]).decode()[1:-1]
    for written, wanted in (("null", "None"), ('"', ""), ("T", " "), ("Z", "+00:00")):
        moments = moments.replace(written, wanted)
    return moments.split(",")


def _sha(text: str) -> str:
    return sha256(_bytes(text)).hexdigest()


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")
