"""Texts that leave this machine without naming a person."""

from __future__ import annotations

import re

_ADDRESS = re.compile(r"[^\s@<>()\"',;:/]{1,64}@[^\s@<>()\"',;:/]{1,255}")


def without_addresses(text: str) -> str:
    """Return the text with each e-mail address as `…@…`: a path or an error may hold one."""
    return _ADDRESS.sub("…@…", text)
