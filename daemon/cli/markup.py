"""What others wrote, as text of a page: escaped, its direction its own, no longer than is read.

Everything that comes from an export, a model or the database passes through here on its way into
HTML (decision 0063). Leaves to the page's own policy what a browser may run and load: nothing.
"""

from __future__ import annotations

import re
from html import escape

# Invisible characters that reorder or hide text around them.
_TURNS = re.compile("[\u200e\u200f\u202a-\u202e\u2066-\u2069\ufeff]")


def said(text: object, *, most: int | None = None) -> str:
    """Return text of anybody's as text of the page; at most so many characters of it."""
    return f'<bdi lang="">{plain_text(text, most=most)}</bdi>'


def plain_text(text: object, *, most: int | None = None) -> str:
    """Return it without the element around it: for attributes, and where it cannot turn."""
    words = _TURNS.sub("", str(text))
    if most is not None and len(words) > most:
        words = words[: most - 1] + "…"
    return escape(words)
