"""What a pass over an export would read: counted from the file alone, before anything is paid.

Owns the survey: conversations, languages, chunks and the extraction windows, cut and packed by the
very code that a pass uses. No database, no model; the text is let go of as it is read, what stays
is a few numbers a chunk (promise 7). What the calls would cost is forecast.py's affair.
"""

from __future__ import annotations

from array import array
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import pairwise
from typing import TYPE_CHECKING

from daemon.export.conversation import EVIDENCE_ROLES
from daemon.export.reader import ExportReader
from daemon.fullpass import windows
from daemon.fullpass.chunks import cut, tiers_for
from daemon.fullpass.languages import language_of
from daemon.fullpass.tiers import named_tiers
from daemon.fullpass.tokens import estimate_tokens
from daemon.llm.request import NumberedMessage

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from daemon.export.conversation import Conversation, ReadReport
    from daemon.fullpass.chunks import Chunk
    from daemon.fullpass.turns import Tier
    from daemon.settings import Settings

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_SHOWN = NumberedMessage(12, "assistant", _EPOCH, "A")
_UNDATED_TOKENS = estimate_tokens("\n" + windows.shown(_SHOWN, day=None))
_DAY_TOKENS = estimate_tokens("\n" + windows.shown(_SHOWN, day="2026-03-05")) - _UNDATED_TOKENS
# What a window puts around a message, beyond the label that the chunk's own text has.
_AROUND_TOKENS = _UNDATED_TOKENS - estimate_tokens("\n\nAssistant: A")


@dataclass(frozen=True, slots=True)
class PlannedWindow:
    """One extraction call: the tokens of its messages, and how many of them are the person's."""

    tokens: int
    own_tokens: int


@dataclass(frozen=True, slots=True)
class Survey:
    """What is in an export, as a pass would see it."""

    report: ReadReport
    earliest: datetime | None
    latest: datetime | None
    languages: dict[str, float]
    """Share of the person's own characters by language, the largest first; they sum to 1."""
    chunks: dict[str, int]
    """By tier, by the names of CHUNK_TIERS."""
    wordless_chunks: int
    """Medium chunks without a word of the person's own: accounted for, sent to no model."""
    text_tokens: int
    """Of all medium chunks, overlaps and labels included."""
    own_tokens: int
    """The person's own words, custom instructions and saved memories among them."""
    conversations_with_own_words: int
    windows: tuple[PlannedWindow, ...]


@dataclass(slots=True)
class _Kept:
    """What is remembered of one conversation: numbers, in the order of its chunks."""

    at: float
    own_characters: int
    languages: tuple[tuple[str, int], ...]
    tier_counts: list[int] = field(default_factory=list)
    tokens: array[int] = field(default_factory=lambda: array("L"))
    around: array[int] = field(default_factory=lambda: array("L"))
    own: array[int] = field(default_factory=lambda: array("L"))


def survey(
    path: Path, settings: Settings, *, progress: Callable[[ReadReport], None] | None = None
) -> Survey:
    """Read an export and count; `progress` is called with the account after each conversation.

    Raises BadExport when nothing can be read, UsageError for an unknown tier.
    """
    tiers = tiers_for(settings, named_tiers(settings.chunk_tiers))
    medium = next(n for n, tier in enumerate(tiers) if tier.measure is estimate_tokens)
    reader = ExportReader(path)
    kept: dict[str, _Kept] = {}
    for conversation in reader:
        # A later state of a conversation takes the place of the one before, as in the database.
        kept[conversation.id] = _kept(conversation, tiers, medium)
        if progress is not None:
            progress(reader.report)
    return _surveyed(reader.report, settings, tiers, kept)


def _kept(conversation: Conversation, tiers: tuple[Tier, ...], medium: int) -> _Kept:
    spoken: Counter[str] = Counter()
    own_characters = 0
    for message in conversation.messages:
        if message.role == "user":
            spoken[language_of(message.text)] += len(message.text)
        if message.role in EVIDENCE_ROLES:
            own_characters += len(message.text)
    found = _Kept(_dated(conversation).timestamp(), own_characters, tuple(spoken.items()))
    for n, tier in enumerate(tiers):
        count = 0
        for c in cut(conversation, tier):
            count += 1
            if n == medium:
                found.tokens.append(c.token_count)
                found.around.append(_around_tokens(c))
                found.own.append(_own_tokens(c))
        found.tier_counts.append(count)
    return found


def _own_tokens(c: Chunk) -> int:
    return sum(
        estimate_tokens(c.content[s.start : s.stop])
        for s in c.spans
        if s.role in EVIDENCE_ROLES and s.stop > s.start
    )


def _dated(conversation: Conversation) -> datetime:
    """Date a conversation, by the contract's order; chunks are planned in this order."""
    earliest = min((m.at for m in conversation.messages if m.at), default=None)
    return conversation.created_at or earliest or conversation.updated_at or _EPOCH


def _surveyed(
    report: ReadReport, settings: Settings, tiers: tuple[Tier, ...], kept: dict[str, _Kept]
) -> Survey:
    ordered = [kept[name] for name in sorted(kept, key=lambda name: (kept[name].at, name))]
    spoken: Counter[str] = Counter()
    for k in ordered:
        spoken.update(dict(k.languages))
    said = sum(spoken.values())
    dated = [k.at for k in ordered if k.at]
    unread = [
        ((tokens, around, own), tokens)
        for k in ordered
        for tokens, around, own in zip(k.tokens, k.around, k.own, strict=True)
        if own
    ]
    planned: list[PlannedWindow] = []
    for page in range(0, len(unread), windows.PLANNED_AT_ONCE):
        packs = windows.packed(
            unread[page : page + windows.PLANNED_AT_ONCE], settings.extraction_window_tokens
        )
        planned += [
            PlannedWindow(sum(t + around for t, around, _ in pack), sum(own for _, _, own in pack))
            for pack, _ in packs
        ]
    return Survey(
        report=report,
        earliest=datetime.fromtimestamp(min(dated), UTC) if dated else None,
        latest=datetime.fromtimestamp(max(dated), UTC) if dated else None,
        languages={name: count / said for name, count in spoken.most_common()} if said else {},
        chunks={t.name: sum(k.tier_counts[n] for k in ordered) for n, t in enumerate(tiers)},
        wordless_chunks=sum(len(k.tokens) for k in ordered) - len(unread),
        text_tokens=sum(sum(k.tokens) for k in ordered),
        own_tokens=sum(sum(k.own) for k in ordered),
        conversations_with_own_words=sum(k.own_characters > 0 for k in ordered),
        windows=tuple(planned),
    )


def _around_tokens(chunk: Chunk) -> int:
    """Estimate what a window puts around a chunk's messages; each day is told where it begins."""
    days = [span.at and span.at.date() for span in chunk.spans]
    told = 1 + sum(day != before for before, day in pairwise(days))
    return _AROUND_TOKENS * len(days) + _DAY_TOKENS * told
