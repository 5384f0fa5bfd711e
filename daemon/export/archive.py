"""What a file on disk holds: plain text, gzip or a zip, as bounded streams of decompressed bytes.

Owns sniffing (from content, never from names), the choice of members that can hold conversations,
and the limits that a hostile archive runs into. Nothing is ever extracted to a path. A stream that
breaks in the middle ends there and says so in `problem`: what came before is kept (promise 4).
"""

from __future__ import annotations

import re
import stat
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Self

from daemon.errors import BadExport
from daemon.export import zipfiles
from daemon.export.sniff import HEAD_BYTES, looks_like
from daemon.export.streams import ByteStream, Limits, PlainStream, ZlibStream

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import BinaryIO

# Also as a browser names what it downloads again: `conversations-000 (1).json`.
_CONVERSATIONS = re.compile(
    r"conversations(?:[-_](\d{1,9}))?(?:[ _]?\(\d{1,3}\))?\.json", re.IGNORECASE
)
_MEMORIES = re.compile(r"(?:.*/)?memories(?:(?:-\d{1,9})?|/[^/]+)\.json", re.IGNORECASE)
_SINGLE = re.compile(r"(?:.*/)?conversations/[^/]+\.json", re.IGNORECASE)
_LEFT_OUT = re.compile(
    r"(?:.*/)?(projects|design_chats|reflections)(?:(?:-\d{1,9})?|/[^/]+)\.json", re.IGNORECASE
)
_KINDS_LEFT_OUT = {
    "projects": "project documents",
    "design_chats": "design chats",
    "reflections": "reflections",
}
_READABLE = (".json", ".jsonl", ".ndjson", ".html", ".htm")
_GEMINI = re.compile(r"gemini|\bbard\b", re.IGNORECASE)
_COMPANIONS = frozenset(
    {
        "user.json",
        "users.json",
        "user_settings.json",
        "message_feedback.json",
        "model_comparisons.json",
        "shared_conversations.json",
        "group_chats.json",
        "export_manifest.json",
        "chat.html",
    }
)
_SNIFFED_MEMBERS = 200
_CONVERSATION_MARK = re.compile(
    rb'"(?:mapping|chat_messages|current_node|conversations_memory|safeHtmlItem)"'
    rb'|"header"\s*:[^{}]*"title"\s*:|class="outer-cell'
)


@dataclass(frozen=True, slots=True)
class Member:
    """One readable text of the export. `name` is "" for a file that is no archive."""

    name: str
    entry: zipfiles.Entry | None = None


class Archive:
    """An export file opened for reading; a context manager. Raises BadExport, one line, on entry.

    `ignored` holds kinds of members left out on purpose; `problems` what is wrong with the archive
    itself, each `(member, reason)`. `lacks_shards` where a number is missing before or between
    others.
    """

    def __init__(self, path: Path, name: str, limits: Limits) -> None:
        self._path = path
        self._name = name
        self._limits = limits
        self._file: BinaryIO | None = None
        self._spent = 0
        self.members: list[Member] = []
        self.ignored: dict[str, int] = {}
        self.problems: list[tuple[str, str]] = []
        self.bytes_total = 0
        self.lacks_shards = False
        self._kind = ""

    def __enter__(self) -> Self:
        try:
            self._file = self._path.open("rb")
        except OSError as error:
            reason = error.strerror or type(error).__name__
            raise BadExport(f"{self._name}: cannot be opened ({reason}); check the path") from None
        try:
            self._open()
        except BaseException:  # nobody gets to __exit__, which would close it
            self._file.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    def stream(self, member: Member) -> ByteStream:
        """Open a member's decompressed bytes from the start; one stream at a time."""
        file = self._opened()
        if member.entry is not None:
            return zipfiles.stream(file, member.entry, self._limits)
        file.seek(0)
        plain = PlainStream(file, None)
        return ZlibStream(plain, self._limits, gzip=True) if self._kind == "gzip" else plain

    def bytes_read(self, stream: ByteStream) -> int:
        """Bytes of the file behind what was read so far, for progress."""
        return self._spent + stream.raw_bytes

    def done(self, stream: ByteStream) -> None:
        """Close a member's account."""
        self._spent += stream.raw_bytes

    # --- opening

    def _opened(self) -> BinaryIO:
        if self._file is None:
            raise RuntimeError("the archive is not open")
        return self._file

    def _open(self) -> None:
        file = self._opened()
        head = file.read(HEAD_BYTES)
        if not head:
            raise BadExport(f"{self._name}: the file is empty; upload the export again")
        self.bytes_total = self._path.stat().st_size
        if head.startswith((b"PK\x03\x04", b"PK\x05\x06", b"PK\x07\x08")):
            self._kind = "zip"
            self._open_zip()
            return
        self._kind = "gzip" if head.startswith(b"\x1f\x8b") else "plain"
        self.members = [Member("")]
        if self._kind == "gzip":
            head = self.stream(self.members[0]).read(HEAD_BYTES)
            if not head:
                raise BadExport(
                    f"{self._name}: the gzip file is empty or broken at its start; "
                    "upload the export again"
                )
        if (seen := looks_like(head)) is not None:
            inside = "a gzip file that holds " if self._kind == "gzip" else ""
            raise BadExport(
                f"{self._name}: this is {inside}{seen.what}, not a chat export; {seen.remedy}"
            )

    def _open_zip(self) -> None:
        entries, problem = zipfiles.entries(self._opened(), self._name, self._limits)
        if problem:
            self.problems.append(("", problem))
        files = [entry for entry in entries if not entry.name.endswith("/")]
        if not files:
            raise BadExport(f"{self._name}: the zip holds no files; upload the export again")
        chosen = list(self._chosen(files))
        refused: list[tuple[str, str]] = []
        for entry in chosen:
            reason = self._refusal(entry)
            if reason:
                refused.append((entry.name, reason))
            else:
                self.members.append(Member(entry.name, entry))
        if not self.members and refused:
            member, reason = refused[0]
            raise BadExport(f"{self._name}: {shown(member)} {reason}")
        self.problems += refused
        if not self.members:
            inner = _inner_zip(files)
            raise BadExport(
                f"{self._name}: the zip holds {_inventory(files)} but no conversations; upload "
                + (
                    f"{shown(inner)} out of it"
                    if inner
                    else "the zip that the chat app sent, unchanged"
                )
            )
        declared = sum(member.entry.size for member in self.members if member.entry is not None)
        if declared > self._limits.decompressed_bytes:
            raise BadExport(
                f"{self._name}: unpacked it would be {declared / 2**30:.1f} GB, more than the "
                f"{self._limits.decompressed_bytes / 2**30:.1f} GB allowed"
            )
        self.bytes_total = sum(m.entry.packed for m in self.members if m.entry is not None)

    def _chosen(self, files: list[zipfiles.Entry]) -> Iterator[zipfiles.Entry]:
        """Yield the members that hold conversations, in order, then what stands beside them."""
        files = [entry for entry in files if not _is_litter(entry.name)]
        shards: list[tuple[str, int, zipfiles.Entry]] = []
        singles = []
        memories = []
        rest = []
        for entry in files:
            path = PurePosixPath(entry.name.replace("\\", "/"))
            if found := _CONVERSATIONS.fullmatch(path.name):
                shards.append((str(path.parent), int(found.group(1) or -1), entry))
            elif _SINGLE.fullmatch(str(path)):
                singles.append(entry)
            elif _MEMORIES.fullmatch(str(path)):
                memories.append(entry)
            elif found := _LEFT_OUT.fullmatch(str(path)):
                kind = _KINDS_LEFT_OUT[found.group(1).lower()]
                self.ignored[kind] = self.ignored.get(kind, 0) + 1
            elif path.suffix.lower() in _READABLE and path.name.lower() not in _COMPANIONS:
                rest.append(entry)
        shards.sort(key=lambda shard: shard[:2])
        self.lacks_shards = _gap({number for _, number, _ in shards if number >= 0})
        yield from (entry for _, _, entry in shards)
        # One file a conversation, beside an index of them.
        yield from (entry for entry in singles if not self._is_another(entry))
        found_by_content = self._sniffed(rest)
        if not shards and not singles:
            yield from found_by_content
        elif others := sum(1 for _ in found_by_content):
            self.ignored["files of another export"] = others
        yield from memories

    def _sniffed(self, files: list[zipfiles.Entry]) -> Iterator[zipfiles.Entry]:
        """Yield those whose content is an export's; no name is known.

        Takeout names its files in the user's language, and a tool may write one a conversation.
        """
        # A whole Takeout holds thousands of others; in every language the product keeps its name.
        files.sort(key=lambda entry: _GEMINI.search(entry.name) is None)
        found = False
        for number, entry in enumerate(files):
            if number >= _SNIFFED_MEMBERS and not found:
                return
            if self._sniffs_well(entry):
                found = True
                yield entry

    def _is_another(self, entry: zipfiles.Entry) -> bool:
        """Whether a file among conversations is sound JSON and none: a damaged one is told."""
        if self._refusal(entry):
            return False
        stream = zipfiles.stream(self._opened(), entry, self._limits)
        head = stream.read(HEAD_BYTES)
        begins = head.removeprefix(b"\xef\xbb\xbf").lstrip()[:1]
        sound = not stream.problem and begins in {b"{", b"["}
        return sound and _CONVERSATION_MARK.search(head) is None

    def _sniffs_well(self, entry: zipfiles.Entry) -> bool:
        if self._refusal(entry):
            return False
        head = zipfiles.stream(self._opened(), entry, self._limits).read(HEAD_BYTES)
        return _CONVERSATION_MARK.search(head) is not None

    def _refusal(self, entry: zipfiles.Entry) -> str:
        """Why a member is not to be read, if so; said to people."""
        path = entry.name.replace("\\", "/")
        if ".." in path.split("/") or path.startswith("/") or re.match(r"[A-Za-z]:", path):
            return "has a path that leaves the archive; it is no export, refuse it"
        if stat.S_ISLNK(entry.mode):
            return "is a symbolic link, which no export holds; upload the original zip"
        if entry.encrypted:
            return "is encrypted; unpack it with its password and upload the JSON or a plain zip"
        if not entry.supported:
            return "is packed by a method not supported; pack it again as an ordinary zip"
        if entry.size > self._limits.ratio_from_bytes and entry.size > (
            self._limits.ratio * max(1, entry.packed)
        ):
            return f"would unpack to more than {self._limits.ratio} times its size: a zip bomb"
        return ""


def _gap(numbers: set[int]) -> bool:
    """Whether shards are missing between others, or before them all."""
    return bool(numbers) and (min(numbers) > 1 or max(numbers) - min(numbers) >= len(numbers))


def _is_litter(name: str) -> bool:
    parts = name.replace("\\", "/").split("/")
    return "__MACOSX" in parts or parts[-1].startswith("._")


def _inner_zip(files: list[zipfiles.Entry]) -> str:
    """Name the zip inside that most likely holds the conversations; "" where there is none."""
    zips = [entry.name for entry in files if entry.name.lower().endswith(".zip")]
    return next((name for name in zips if "conversation" in name.lower()), "".join(zips[:1]))


def _inventory(files: list[zipfiles.Entry]) -> str:
    """Name a few members, for a message."""
    names = [shown(entry.name) for entry in files[:3]]
    more = len(files) - len(names)
    return ", ".join(names) + (f" and {more} more" if more else "")


def shown(name: str) -> str:
    """Make a member's name fit for a one-line message."""
    printable = "".join(c if c.isprintable() else "?" for c in name)
    return printable if len(printable) <= 80 else f"…{printable[-79:]}"
