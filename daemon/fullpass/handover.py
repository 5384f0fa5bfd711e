"""What crosses the pipe between a pass and the process that reads its export.

Owns the two messages' shapes and their frames: a length, then MessagePack that is checked against
these types as it is decoded. Whoever reads a hostile export can be made to send any bytes; what the
pass makes of them is text, numbers and moments in known fields, never code or an object of its
choice (promise 7).
"""

from __future__ import annotations

from datetime import datetime
from struct import Struct as Layout
from typing import Literal, TypeAlias

import msgspec

from daemon.export.conversation import ReadReport, Source
from daemon.export.streams import Limits

FRAME = Layout(">I")
FRAME_BYTES = 64 * 2**20
"""No honest frame is nearly as large."""
SLICE_CHARACTERS = 1_000_000
"""A batch of conversations, or a slice of one, is sent when it holds this much."""


class TierOrder(msgspec.Struct, frozen=True):
    """A size of chunk; a tier's measure is named, for it cannot be sent."""

    name: str
    size: int
    overlap: int
    unit: Literal["tokens", "characters"]


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """What a reading process is to read, and within which bounds."""

    release: str
    """Of the process that orders: one deployed meanwhile may cut differently."""
    parent_pid: int
    path: str
    name: str
    file_type: Literal["json", "zip"] | None
    folder: str
    last_modified: datetime | None
    tiers: tuple[TierOrder, ...]
    limits: Limits
    memory_bytes: int


class Row(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One chunk as conversation_chunks stores it; `messages` is the JSON of its map."""

    tier: str
    index: int
    total: int
    content: str
    message_count: int
    token_count: int
    content_hash: str
    messages: str


class Part(msgspec.Struct, frozen=True, array_like=True):
    """A conversation with its rows, or a slice of one with some of them.

    `chunk_count` counts the rows up to and including this part: at the `last` one, all. If that is
    none, the conversation is to be forgotten, or, after other slices, could not be cut after all.
    """

    conversation_id: str
    title: str
    content_hash: str
    message_count: int
    own_characters: int
    dated: bool
    created_at: datetime
    updated_at: datetime | None
    rows: list[Row]
    chunk_count: int
    first: bool
    last: bool


class Batch(msgspec.Struct, frozen=True, tag="batch"):
    """Conversations in the order they were met, none for mere progress."""

    source: Source | None
    parts: list[Part]
    conversations: int
    messages: int
    share: float
    """How much of the file was read, 0 to 1."""


class Finished(msgspec.Struct, frozen=True, tag="finished"):
    """The export was read to its end."""

    report: ReadReport


class Broken(msgspec.Struct, frozen=True, tag="broken"):
    """Reading ended early; `told` is one line for people."""

    kind: Literal["export", "memory", "disk", "release", "defect"]
    told: str


Answer: TypeAlias = Batch | Finished | Broken
