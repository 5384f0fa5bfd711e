"""The one model of a conversation that the rest of the house sees, whatever app exported it.

Readers turn every format into these frozen values; nothing above `export/` knows a vendor's shape.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Literal

import msgspec

if TYPE_CHECKING:
    from collections.abc import Sequence

Source = Literal["chatgpt", "claude", "gemini"]

Role = Literal["user", "assistant", "instructions", "memory", "quote"]
"""Who speaks.

`user` the person; `assistant` the model; `instructions` the person's custom instructions; `memory`
what the app itself remembered about the person; `quote` third-party text shown in the chat. Only
`user`, `instructions` and `memory` can support a fact (promise 12).
"""

EVIDENCE_ROLES: frozenset[str] = frozenset({"user", "instructions", "memory"})


class Message(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One visible message. `at` is timezone-aware UTC, or None when the export has no time."""

    id: str
    role: Role
    text: str
    at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Conversation:
    """One conversation along its active path, in reading order.

    `id` is unique and stable within (person, source) across exports. Custom instructions and saved
    memories, which exports repeat in every conversation, come once per distinct text as
    conversations of their own with ids `instructions:<hash>` and `memory:<hash>`.
    """

    source: Source
    id: str
    title: str
    messages: Sequence[Message]
    """A tuple, or for a conversation too large to be held a sequence on disk. Empty where the
    person asked that it be forgotten."""
    created_at: datetime | None = None
    updated_at: datetime | None = None
    place: str = ""
    """Where it stands in the export, for people: `conversations-003.json, item 12`."""


@dataclass(slots=True)
class ReadReport:
    """What a reader met so far; the reader updates it while it runs. Counts, never contents."""

    source: Source | None = None
    conversations: int = 0
    messages: int = 0
    damaged: int = 0
    damages: list[str] = field(default_factory=list)
    """The first twenty damages, each `place: reason`."""
    forgotten: int = 0
    """Conversations the person asked not to be remembered (is_do_not_remember, memory_scope)."""
    empty: int = 0
    duplicates: int = 0
    unknown_content_types: dict[str, int] = field(default_factory=dict)
    context_entries: int = 0
    """Custom instructions and saved memories yielded; not counted among the conversations."""
    ignored: dict[str, int] = field(default_factory=dict)
    """What was recognised and left out on purpose, by kind: `project documents`."""
    redacted: int = 0
    """Credentials replaced by a marker before anything was stored or sent."""
    members: list[str] = field(default_factory=list)
    bytes_read: int = 0
    bytes_total: int = 0
    newest: datetime | None = None
    """When a conversation of this export, read or not, was last updated: how far it goes."""
    whole: bool = False
    """True once every conversation was read and nothing was damaged or cut short (promise 10)."""
    part: bool = False
    """Whether the file calls itself one of several (`conversations-001.zip`), or lacks one."""
    memories: bool = False
    """Whether what the app itself remembered came in a file of its own, as Claude's does."""

    @property
    def tells_of_conversations(self) -> bool:
        """Whether a conversation that is not in it may be taken for gone, if it was read whole."""
        return not self.part and self.conversations + self.empty + self.forgotten > 0

    @property
    def tells_of_context(self) -> bool:
        """Whether the same holds of custom instructions and saved memories."""
        return self.memories if self.source == "claude" else self.tells_of_conversations

    def ignore(self, kind: str, count: int = 1) -> None:
        """Count something left out on purpose; kinds beyond fifty are counted together."""
        if kind not in self.ignored and len(self.ignored) >= 50:
            kind = "other"
        self.ignored[kind] = self.ignored.get(kind, 0) + count

    def unknown(self, content_type: str) -> None:
        """Count a content type that no table knows."""
        kind = content_type[:60] if content_type else "none"
        if kind not in self.unknown_content_types and len(self.unknown_content_types) >= 50:
            kind = "other"
        self.unknown_content_types[kind] = self.unknown_content_types.get(kind, 0) + 1

    def reaches(self, updated_at: datetime | None) -> None:
        """Note that the export holds a conversation as it was at that time."""
        if updated_at is not None and (self.newest is None or updated_at > self.newest):
            self.newest = updated_at

    def lose(self, conversation: Conversation, reason: str) -> None:
        """Take a conversation back that was counted as read, and count it as damaged."""
        if conversation.messages[0].id == conversation.id:
            self.context_entries -= 1
        else:
            self.conversations -= 1
            self.messages -= len(conversation.messages)
        self.damage(conversation.place, reason)

    def damage(self, place: str, reason: str) -> None:
        """Count one unreadable thing and keep its account while there is room."""
        self.damaged += 1
        if len(self.damages) < 20:
            self.damages.append(f"{place}: {reason}")
