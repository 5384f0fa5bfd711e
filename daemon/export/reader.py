"""From a file to conversations: sniffed, streamed, deduplicated, redacted, and accounted for.

Owns the order of things and the account of them (`report`); bytes are archive.py's and scanner.py's
affair, and each vendor's shape has a module of its own. Promises that memory stays bounded whatever
the file's size (promise 7), that one broken conversation costs only itself and is named
(promise 4), and that no credential leaves this room (promise 11). Plain and synchronous: the pass
runs it in a child process.
"""

from __future__ import annotations

import math
import re
from dataclasses import replace
from hashlib import blake2b
from itertools import chain
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from daemon.errors import BadExport
from daemon.export import gemini
from daemon.export.archive import Archive, shown
from daemon.export.chatgpt import is_chatgpt
from daemon.export.claude import is_claude
from daemon.export.conversation import Conversation, ReadReport
from daemon.export.large import Readers, read_large
from daemon.export.redact import redact_each
from daemon.export.refusals import error_text, why_nothing
from daemon.export.scanner import ObjectScanner
from daemon.export.sniff import looks_like
from daemon.export.spool import Room, SpooledMessages, collected, nobody
from daemon.export.streams import Limits
from daemon.export.values import DecodeError, decode

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from daemon.export.archive import Member
    from daemon.export.conversation import Source
    from daemon.export.scanner import Span
    from daemon.export.spool import Collected
    from daemon.export.streams import ByteStream

_CONTEXT_ROLES = frozenset({"instructions", "memory"})
_KEY_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,30}")
# With what an app puts before and after a name to keep two uploads apart; not `-2026-01-31`.
_NUMBERED = re.compile(
    r"(?:conversations-\d{3,}(?:[ _]?\(\d+\))?|(?:.*[\W_])?conversations-0\d\d(?:[\W_].*)?)"
    r"\.(?:json|zip)(?:\.gz)?",
    re.IGNORECASE,
)


class ExportReader:
    """Iterate over it once; `report` is true at every moment of the iteration.

    `name` is what messages call the file (its storage path, say). `file_type` is what the app
    believes the file to be; the content decides. `folder` is where a conversation too large to be
    held may wait (the system's temporary one by default). `on_read` is called at each piece of the
    file, and of long work on one. With `tell_forgotten`, a conversation that the person asked not
    to be remembered comes too, without messages, so that what is stored of it can go. Raises
    BadExport when nothing can be read.
    """

    def __init__(
        self,
        path: Path,
        *,
        file_type: Literal["json", "zip"] | None = None,
        name: str | None = None,
        limits: Limits | None = None,
        folder: Path | None = None,
        on_read: Callable[[], None] | None = None,
        tell_forgotten: bool = False,
    ) -> None:
        self._path = path
        self._on_read = on_read or nobody
        self._room = Room(folder, self._on_read)
        self._name = shown(name or path.name)
        self._file_type = file_type
        self._limits = limits or Limits()
        self.report = ReadReport(part=_NUMBERED.fullmatch(self._base_name()) is not None)
        self._readers = Readers(self.report)
        self._latest: dict[int, float] = {}
        self._tell_forgotten = tell_forgotten
        self._forgotten: set[int] = set()
        self._archive: Archive | None = None
        self._closed = True
        self._met = 0
        self._unrecognised: dict[str, int] = {}
        self._error_body = ""

    def __iter__(self) -> Iterator[Conversation]:
        """Yield each conversation as it is met; a later, newer state of one may follow it."""
        report = self.report
        with Archive(self._path, self._name, self._limits) as archive:
            self._archive = archive
            report.members = [
                shown(member.name) for member in archive.members[:1000] if member.name
            ]
            report.bytes_total = archive.bytes_total
            report.part = report.part or archive.lacks_shards
            for kind, count in archive.ignored.items():
                report.ignore(kind, count)
            for member_name, reason in archive.problems:
                report.damage(shown(member_name) or self._base_name(), reason)
            for member in archive.members:
                yield from self._member(member)
        report.bytes_read = report.bytes_total
        forgotten = self._tell_forgotten and self._forgotten
        if not report.conversations and not report.context_entries and not forgotten:
            raise BadExport(
                why_nothing(
                    self._name,
                    report,
                    met=self._met,
                    unrecognised=self._unrecognised,
                    error_body=self._error_body,
                    other_products=self._readers.gemini.other_products,
                )
            )
        report.whole = self._closed and not report.damaged

    # --- one member

    def _member(self, member: Member) -> Iterator[Conversation]:
        assert self._archive is not None  # noqa: S101 - for the type checker
        stream = self._archive.stream(member)
        place = shown(PurePosixPath(member.name).name) or self._base_name()
        head = stream.read(4096)
        text = _Rewound(head, stream, self._on_read)
        if (seen := looks_like(head)) is not None and seen.what == "UTF-16 text":
            self.report.damage(place, f"is {seen.what}; {seen.remedy}")
            return
        try:
            if head.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"<"):
                yield from self._page(text, place)
            else:
                yield from self._json(text, place)
        except BadExport as error:
            raise BadExport(f"{self._name}: {place} {error}") from None
        finally:
            self._archive.done(stream)
        if stream.problem:
            self.report.damage(place, stream.problem)

    def _json(self, text: _Rewound, place: str) -> Iterator[Conversation]:
        report = self.report
        scanner = ObjectScanner(text.read, object_bytes=self._limits.held_bytes)
        lost = False
        while (span := scanner.next_span()) is not None:
            self._progress(text)
            here = f"{place}, item {span.ordinal}"
            found = None
            if span.guessed:
                found = self._at_first_sight(scanner, span, here)
                if found is None:
                    span = scanner.measure(span)
            if span.problem:
                # A stretch that follows a broken object is the same damage, told once.
                if not (lost and span.stray):
                    report.damage(here, span.problem)
                self._met += not span.stray
                lost = True
                continue
            try:
                if span.large:
                    found = self._large_object(scanner, here)
                elif found is None:
                    found = self._object(scanner, span, here, lost=lost)
            except (DecodeError, MemoryError) as error:
                report.damage(here, str(error) or "needs more memory than there is")
                self._met += 1
                if not span.large:
                    scanner.reject(span)
                lost = True
                continue
            if found is None:
                continue
            lost = False
            self._met += 1
            yield from self._finished(found)
        if not scanner.closed:
            self._closed = False
            if not scanner.offset:
                report.damage(place, "it is empty")
            elif not text.problem and not report.damaged:
                report.damage(place, "the file is cut short; what came before the cut was read")

    def _at_first_sight(
        self, scanner: ObjectScanner, span: Span, here: str
    ) -> list[Conversation] | None:
        """Read an object like the ones before; None where it is another or its end was missed."""
        source = self.report.source
        if source is None:
            return None
        view = scanner.view(span)
        try:
            if _MARKS[source] not in bytes(view[:65_536]):
                return None
            return list(self._readers.of(source).read_object(view, here, strict=True))
        except (DecodeError, MemoryError):
            return None
        finally:
            view.release()

    def _object(
        self, scanner: ObjectScanner, span: Span, here: str, *, lost: bool
    ) -> list[Conversation] | None:
        """Read one object; None where it is no conversation, which is counted here."""
        view = scanner.view(span)
        try:
            source = self.report.source
            if source is None or (_MARKS[source] not in bytes(view[:65_536])):
                value = decode(view)
                recognised = recognise(value)
                if recognised is None:
                    self._no_conversation(value, here, lost=lost)
                    return None
                if source is not None and recognised != source:
                    self.report.damage(here, f"a {recognised} conversation among {source} ones")
                    return None
                source = recognised
            found = list(self._readers.of(source).read_object(view, here))
        finally:
            view.release()
        self.report.source = source
        scanner.learn(span)
        return found

    def _large_object(self, scanner: ObjectScanner, here: str) -> list[Conversation]:
        """Read an object too large to be held, member by member; raises DecodeError."""
        known = self.report.source
        source, found = read_large(
            scanner, self._readers, known, here, limits=self._limits, room=self._room
        )
        self.report.source = source
        return found

    def _page(self, text: _Rewound, place: str) -> Iterator[Conversation]:
        """Read a Takeout page of activity cells."""
        reader = self._readers.gemini
        if self.report.source is None:
            self.report.source = "gemini"
        cells = gemini.cells(text.read, cell_bytes=self._limits.message_bytes)
        for ordinal, (cell, problem) in enumerate(cells, start=1):
            self._progress(text)
            here = f"{place}, item {ordinal}"
            if problem:
                self.report.damage(here, problem)
            else:
                self._met += 1
                yield from self._finished(list(reader.read_cell(cell, here)))

    # --- one conversation

    def _finished(self, found: list[Conversation]) -> Iterator[Conversation]:
        """Redact, make message ids unique, drop what was met in a newer state, and count."""
        report = self.report
        for conversation in found:
            key = int.from_bytes(blake2b(conversation.id.encode(), digest_size=8).digest())
            updated = conversation.updated_at
            at = updated.timestamp() if updated is not None else 0.0
            if not conversation.messages:
                at = at or math.inf  # without a time, it holds of every state
                if at >= self._latest.get(key, at):
                    self._latest[key] = at
                    self._forgotten.add(key)
                    if self._tell_forgotten:
                        yield conversation
                continue
            is_context = conversation.messages[0].role in _CONTEXT_ROLES and (
                conversation.id == conversation.messages[0].id
            )
            first = True
            if not is_context:
                report.reaches(updated)
                known = self._latest.get(key)
                first = known is None
                if known is not None:
                    report.duplicates += 1
                    if at <= known:
                        continue
                    if key in self._forgotten:  # until then
                        self._forgotten.remove(key)
                        first = True
                self._latest[key] = at
            try:
                redacted = self._redacted(conversation)
            except MemoryError:
                report.damage(conversation.place, "needs more memory than there is")
                continue
            if is_context:
                report.context_entries += 1
            else:
                report.conversations += first
                report.messages += len(redacted.messages)
            yield redacted

    def _redacted(self, conversation: Conversation) -> Conversation:
        texts = redact_each(
            chain([conversation.title], (m.text for m in conversation.messages)), self._on_read
        )
        title, count = next(texts)
        held = isinstance(conversation.messages, tuple)
        messages: Collected = [] if held else SpooledMessages(self._room)
        ids: set[str] = set()
        for message, (text, hits) in zip(conversation.messages, texts, strict=True):
            self._on_read()  # a large conversation may take minutes
            count += hits
            own_id = message.id
            while own_id in ids:
                own_id = f"{message.id}#{len(messages)}"
                if own_id in ids:
                    own_id += "'"
                message = msgspec.structs.replace(message, id=own_id)  # noqa: PLW2901 - the same message, told apart
            ids.add(own_id)
            messages.append(msgspec.structs.replace(message, text=text) if hits else message)
        self.report.redacted += count
        return replace(conversation, title=title, messages=collected(messages))

    # --- accounts

    def _base_name(self) -> str:
        return PurePosixPath(self._name).name or self._name

    def _progress(self, text: _Rewound) -> None:
        if self._archive is not None:
            self.report.bytes_read = self._archive.bytes_read(text.stream)

    def _no_conversation(self, value: Any, here: str, *, lost: bool) -> None:
        """Count an object that is no conversation of any known shape."""
        keys = [str(key) for key in value] if isinstance(value, dict) else []
        if isinstance(value, dict) and not value:
            self._met += 1
            self.report.empty += 1
            return
        if not self._error_body and isinstance(value, dict):
            self._error_body = error_text(value)
        named = ", ".join([key for key in keys if _KEY_NAME.fullmatch(key)][:5]) or "none"
        if len(self._unrecognised) < 5:
            self._unrecognised[named] = self._unrecognised.get(named, 0) + 1
        if not lost:
            self.report.damage(here, f"no conversation (its keys: {named})")


class _Rewound:
    """A stream whose first bytes were looked at and come again."""

    def __init__(self, head: bytes, stream: ByteStream, on_read: Callable[[], None]) -> None:
        self._head = head
        self._on_read = on_read
        self.stream = stream

    @property
    def problem(self) -> str:
        return self.stream.problem

    def read(self, size: int) -> bytes:
        self._on_read()
        if self._head:
            head, self._head = self._head, b""
            return head
        return self.stream.read(size)


# Once the source is known, an object with this mark near its start needs no second decoding.
_MARKS: dict[Source, bytes] = {
    "chatgpt": b'"mapping"',
    "claude": b'"chat_messages"',
    "gemini": b'"title"',
}


def recognise(value: object) -> Source | None:
    """Name the app whose conversation (or memory, or activity) a decoded object is."""
    if not isinstance(value, dict):
        return None
    if is_chatgpt(value):
        return "chatgpt"
    if is_claude(value):
        return "claude"
    if gemini.is_gemini(value):
        return "gemini"
    return None
