"""Says what a file that is no chat export looks like, so that its owner knows what went wrong.

Owns the signatures of things people upload by mistake. Judges by the first bytes only; a text that
may be JSON or a Takeout page passes, and the readers decide.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

HEAD_BYTES = 64 * 1024

_UPLOAD_ZIP = "upload the zip that the chat app sent, or its conversations.json"


@dataclass(frozen=True, slots=True)
class Likeness:
    """What a file seems to be, for people, and what to do."""

    what: str
    remedy: str = _UPLOAD_ZIP


_MAGIC: list[tuple[bytes, Likeness]] = [
    (b"%PDF", Likeness("a PDF document")),
    (b"\x89PNG", Likeness("a PNG image")),
    (b"\xff\xd8\xff", Likeness("a JPEG image")),
    (b"GIF8", Likeness("a GIF image")),
    (b"RIFF", Likeness("an image, sound or video file")),
    (b"7z\xbc\xaf'\x1c", Likeness("a 7z archive", "pack the export as a zip and upload that")),
    (b"Rar!", Likeness("a RAR archive", "pack the export as a zip and upload that")),
    (b"BZh", Likeness("a bzip2 file", "unpack it and upload the JSON or a zip")),
    (b"\xfd7zXZ", Likeness("an xz file", "unpack it and upload the JSON or a zip")),
    (b"\x28\xb5\x2f\xfd", Likeness("a zstd file", "unpack it and upload the JSON or a zip")),
    (b"SQLite format 3", Likeness("an SQLite database")),
    (b"\xd0\xcf\x11\xe0", Likeness("an old Office document")),
]


_UTF16 = re.compile(rb"\xff\xfe|\xfe\xff|[\[{<]\x00[^\x00]\x00|\x00[\[{<]\x00[^\x00]")


def looks_like(head: bytes) -> Likeness | None:
    """Name what the first bytes of a file show, or None where they may begin an export."""
    for magic, likeness in _MAGIC:
        if head.startswith(magic):
            return likeness
    if head[257:262] == b"ustar":
        return Likeness("a tar archive", "pack the export as a zip and upload that")
    body = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if _UTF16.match(head) is not None:
        return Likeness("UTF-16 text", "save it as UTF-8 and upload that")
    if not body:
        return Likeness("a file of white space only", "upload the export again")
    if not body.strip(b"\x00"):
        return Likeness("a file of zero bytes only", "upload the export again")
    if body[:1] in {b"[", b"{"}:
        return None
    if body[:1] == b"<":
        return _markup(body)
    if b"\x00" in body[:4096]:
        return Likeness("a binary file of unknown kind")
    return Likeness("a text file without JSON")


def _markup(body: bytes) -> Likeness | None:
    lower = body[:HEAD_BYTES].lower()
    if b"outer-cell" in lower or b"my activity" in lower:
        return None
    if b"jsondata" in lower and b"mapping" in lower:
        return Likeness("ChatGPT's chat.html", "upload the zip it came in, or conversations.json")
    if lower.startswith(b"<?xml") and b"<html" not in lower:
        return Likeness("an XML document")
    return Likeness("an HTML page")
