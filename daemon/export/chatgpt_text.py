"""The text inside ChatGPT's contents: parts, wrapped instructions, memory lists, citation marks.

Owns strings only; which message they belong to and whether it is seen is chatgpt.py's affair.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from daemon.export.values import clean, list_of, mapping_of, time_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime

_CITATION = re.compile(r"【[^【】†\n]{0,200}+†[^【】\n]{0,400}+】")
_PRIVATE_SPAN = re.compile("\ue200[^\ue200\ue201]*\ue201")
_HIGH_PRIVATE = re.compile(b"\xef[\x80-\xa3]")
_PRIVATE_USE = re.compile("[\ue000-\uf8ff]+")

_FENCED = re.compile(r"```(.*)```", re.DOTALL)
_NOTE = re.compile(r"^(?:Very important: )?The user's (?:timezone|location) is .*$", re.MULTILINE)
_NUMBERED = re.compile(r"^\s*\d+\.\s+(?:\[(\d{4}-\d\d-\d\d)\]\.?\s*)?")


def parts_text(content: dict[str, Any]) -> str:
    """Join the parts of a message: what was typed or said, and a marker for the rest."""
    parts = content.get("parts")
    if isinstance(parts, str):
        return clean(parts)
    if not isinstance(parts, list):
        return clean(content.get("text"))
    if len(parts) == 1 and isinstance(parts[0], str):  # nearly every message
        text = clean(parts[0])
        return text if text.strip() else ""
    texts: list[str] = []
    spoken = any(isinstance(part, dict) and clean(part.get("text")).strip() for part in parts)
    for part in parts:
        if isinstance(part, str):
            texts.append(clean(part))
        elif isinstance(part, dict):
            kind = clean(part.get("content_type"))
            if text := clean(part.get("text")).strip():
                texts.append(text)
            elif "image" in kind:
                texts.append("[image]")
            elif "audio" in kind or "video" in kind:
                if not spoken:
                    texts.append("[audio]")
            else:
                texts.append("[attachment]")
    return "\n".join(text for text in texts if text.strip())


def any_text(content: dict[str, Any]) -> str:
    """Find whatever text a content of unknown type holds in the usual places."""
    text = parts_text(content)
    return text.strip() or joined(content, ("title", "text", "content", "result", "summary"))


def joined(content: dict[str, Any], keys: tuple[str, ...]) -> str:
    """Join the texts that these keys hold."""
    return "\n".join(text for key in keys if (text := clean(content.get(key)).strip()))


def quoted_text(content: dict[str, Any]) -> str:
    """Join what a page says, or the windows of other programs that the app looked into."""
    windows = [mapping_of(window) for window in list_of(content.get("context_parts"))]
    texts = [joined(content, ("title", "url", "text")), *(joined(w, ("text",)) for w in windows)]
    return "\n\n".join(text for text in texts if text)


def without_notes(text: str) -> str:
    """Take out what the app itself noted of date and place.

    Since 2025 it writes that where custom instructions stand. It is nobody's words, and as it
    changes by the day, each day's would count as new instructions.
    """
    return _NOTE.sub("", text).strip()


def unwrapped(text: str) -> str:
    """Take custom instructions out of the sentence and the fence the app writes around them."""
    fenced = _FENCED.search(text)
    return (fenced.group(1) if fenced is not None else text).strip()


def memories(text: str) -> Iterator[tuple[str, datetime | None]]:
    """Yield the entries of `model_set_context`: numbered and dated, or a line each.

    `1. [2024-12-10]. Prefers tea.` An entry may go on over several lines.
    """
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("# ")]
    numbered = any(_NUMBERED.match(line) for line in lines)
    entry: list[str] = []
    at: datetime | None = None
    for line in lines:
        start = _NUMBERED.match(line) if numbered else None
        if (start is not None or not numbered) and entry:
            yield "\n".join(entry), at
            entry, at = [], None
        if start is not None:
            at = time_of(start.group(1))
            line = line[start.end() :]  # noqa: PLW2901 - the entry begins after its number
        if stripped := line.strip():
            entry.append(stripped)
    if entry:
        yield "\n".join(entry), at


def strip_citations(text: str) -> str:
    """Remove the marks that only the app's own page can resolve."""
    if "†" in text:
        text = _CITATION.sub("", text)
    if not text.isascii() and _may_hold_private_use(text):
        text = _PRIVATE_SPAN.sub("", text)
        text = _PRIVATE_USE.sub("", text)
    return text


def _may_hold_private_use(text: str) -> bool:
    """Look for the first bytes that such characters have in UTF-8: far cheaper than a class."""
    encoded = text.encode("utf-8", "replace")
    return b"\xee" in encoded or (b"\xef" in encoded and _HIGH_PRIVATE.search(encoded) is not None)
