"""Which reader an object is for, and how one too large to be decoded whole is read nonetheless.

Such an object is walked member by member (members.py), its nodes or messages wait on disk
(spool.py), and what is held at any moment is the largest of them and an index of the rest
(promise 7). Damage anywhere in it costs it whole: half a conversation must not replace a stored one
(promise 10).
"""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING

from daemon.export.chatgpt import ChatGPTReader
from daemon.export.claude import ClaudeReader
from daemon.export.gemini import GeminiReader
from daemon.export.members import MemberScanner
from daemon.export.spool import DISK_TROUBLE
from daemon.export.values import DecodeError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from daemon.export.conversation import Conversation, ReadReport, Source
    from daemon.export.members import Member
    from daemon.export.scanner import ObjectScanner
    from daemon.export.spool import Room
    from daemon.export.streams import Limits

# The container by which a conversation is known that is not decoded whole.
_CONTAINERS: dict[str, Source] = {"mapping": "chatgpt", "chat_messages": "claude"}


class Readers:
    """One reader a source, all with one account."""

    def __init__(self, report: ReadReport) -> None:
        self.chatgpt = ChatGPTReader(report)
        self.claude = ClaudeReader(report)
        self.gemini = GeminiReader(report)

    def of(self, source: Source) -> ChatGPTReader | ClaudeReader | GeminiReader:
        """Return the reader of a source's objects."""
        if source == "chatgpt":
            return self.chatgpt
        return self.claude if source == "claude" else self.gemini


def read_large(
    scanner: ObjectScanner,
    readers: Readers,
    known: Source | None,
    place: str,
    *,
    limits: Limits,
    room: Room,
) -> tuple[Source, list[Conversation]]:
    """Read the large object that the scanner just met.

    `known` is the export's source where one was seen; `room` is for what waits on disk. Raises
    DecodeError; the scanner then stands behind the object all the same.
    """
    pieces = scanner.pieces()
    members = MemberScanner(
        pieces, containers=frozenset(_CONTAINERS), member_bytes=limits.message_bytes
    )
    found, damage = None, ""
    try:
        found = _read(iter(members), readers, known, place, limits=limits, room=room)
    except DecodeError as error:
        damage = str(error)
    except OSError as error:
        if error.errno in DISK_TROUBLE:
            raise  # this machine's trouble: the conversation is to be read where there is room
        damage = f"could not wait on disk ({error.strerror})"
    finally:
        left_bytes = sum(map(len, pieces))
    if left_bytes and not damage:
        damage = "its brackets do not match"
    if scanner.problem or damage or found is None:
        raise DecodeError(scanner.problem or damage)
    return found


def _read(
    members: Iterator[Member],
    readers: Readers,
    known: Source | None,
    place: str,
    *,
    limits: Limits,
    room: Room,
) -> tuple[Source, list[Conversation]]:
    head = []
    for member in members:
        head.append(member)
        if not member.within and not member.raw and member.key in _CONTAINERS:
            source = _CONTAINERS[member.key]
            break
    else:
        raise DecodeError(f"larger than {limits.held_bytes / 2**20:.3g} MB, and no conversation")
    if known not in {None, source}:
        raise DecodeError(f"a {source} conversation among {known} ones")
    reader = readers.chatgpt if source == "chatgpt" else readers.claude
    return source, list(reader.read_members(chain(head, members), place, room))
