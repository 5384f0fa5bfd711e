"""Texts that leave this machine without naming a person, or calling for one."""

from __future__ import annotations

import re

_ADDRESS = re.compile(r"[^\s@<>()\"',;:/]{1,64}@[^\s@<>()\"',;:/]{1,255}")
_MENTION = re.compile(r"@(?=\w)")
_BRACKETS = str.maketrans("<>", "\u2039\u203a")


def without_addresses(text: str) -> str:
    """Return the text with each e-mail address as `…@…`: a path or an error may hold one."""
    return _ADDRESS.sub("…@…", text)


def calling_nobody(text: str) -> str:
    """Return the text without what a chat program takes for a mention or a link of its own.

    A path or a file's name stands in errors as its owner wrote it: `<!channel>` wakes everybody.
    """
    return _MENTION.sub("@\u200b", text).translate(_BRACKETS)
