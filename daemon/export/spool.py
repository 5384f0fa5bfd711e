"""What is too large to be held waits in a file: an exported conversation's parts, its messages.

Owns temporary files without a name, which vanish with the process however it ends (promise 11).
`SpooledMessages` is a sequence like any other, read again from disk at each iteration.
"""

from __future__ import annotations

import errno
import tempfile
from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple, Self, TypeAlias, overload

import msgspec

from daemon.export.conversation import Message

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


DISK_TROUBLE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO})
"""What a disk says that takes no more, for whatever reason: no fault of what is written."""


def nobody() -> None:
    """Nobody waits for a sign of life."""


class Room(NamedTuple):
    """Where to wait, and who is told at each piece that the work goes on: it may take minutes."""

    folder: Path | None = None
    on_piece: Callable[[], None] = nobody


class Spool:
    """Byte strings by number, in the order they were put down."""

    def __init__(self, room: Room | None = None) -> None:
        folder, self._on_piece = room or Room()
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - closed in close()
        self._ends = array("Q")
        self._reading_at: int | None = None

    def __len__(self) -> int:
        return len(self._ends)

    def append(self, raw: bytes) -> int:
        """Put it down; return its number."""
        self._on_piece()
        if self._reading_at is not None:
            self._file.seek(0, 2)
            self._reading_at = None
        self._file.write(raw)
        self._ends.append((self._ends[-1] if self._ends else 0) + len(raw))
        return len(self._ends) - 1

    def __getitem__(self, number: int) -> bytes:
        self._on_piece()
        start = self._ends[number - 1] if number else 0
        size = self._ends[number] - start
        if self._reading_at != start:
            self._file.seek(start)
        self._reading_at = start + size
        return self._file.read(size)

    def close(self) -> None:
        """Let the disk space go."""
        self._file.close()

    def __del__(self) -> None:
        # An export may hold thousands: none waits for the collector's convenience.
        if hasattr(self, "_file"):
            self._file.close()


class SpooledMessages(Sequence[Message]):
    """Messages on disk. Iterating holds one at a time."""

    def __init__(self, room: Room | None = None) -> None:
        self._spool = Spool(room)
        self._encode = msgspec.msgpack.Encoder().encode
        self._decode = msgspec.msgpack.Decoder(Message).decode

    def append(self, message: Message) -> None:
        """Put one more down."""
        self._spool.append(self._encode(message))

    def extended(self, messages: Iterable[Message]) -> Self:
        """Put these down; return itself."""
        for message in messages:
            self.append(message)
        return self

    def __len__(self) -> int:
        return len(self._spool)

    @overload
    def __getitem__(self, index: int) -> Message: ...
    @overload
    def __getitem__(self, index: slice) -> list[Message]: ...
    def __getitem__(self, index: int | slice) -> Message | list[Message]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return self._decode(self._spool[range(len(self))[index]])

    def __iter__(self) -> Iterator[Message]:
        return (self[i] for i in range(len(self)))


Collected: TypeAlias = list[Message] | SpooledMessages
"""What a conversation's messages are collected in."""


def collected(messages: Collected) -> Sequence[Message]:
    """Return collected messages as a conversation holds them."""
    return tuple(messages) if isinstance(messages, list) else messages
