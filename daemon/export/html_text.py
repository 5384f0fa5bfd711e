"""The text of an HTML fragment, in one linear pass that no markup can slow down.

The standard library's parser looks ahead for a tag's end from each `<`, which hostile markup turns
quadratic; here a tag is what one expression matches, and everything else is text.
"""

from __future__ import annotations

import html
import re

_TAG = re.compile(r"<(/?)([a-zA-Z][a-zA-Z0-9]{0,20})\b[^<>]*>|<[!?][^<>]*>")
_BLOCKS = frozenset(
    "address article blockquote div dl dd dt h1 h2 h3 h4 h5 h6 hr p pre section table tr ul ol".split()  # noqa: SIM905, E501
)
_SILENT = frozenset({"script", "style", "template", "title"})
_SPACES = re.compile(r"[ \t\r\n\f]+")
_BLANK_LINES = re.compile(r"\n{3,}")


def html_to_text(markup: str) -> str:
    """Render markup as plain text: a line per block, `- ` before list items, code as it stands."""
    pieces: list[str] = []
    at = 0
    silent = ""
    preformatted = False
    for tag in _TAG.finditer(markup):
        if not silent:
            pieces.append(_text(markup[at : tag.start()], preformatted=preformatted))
        at = tag.end()
        name = (tag.group(2) or "").lower()
        closing = bool(tag.group(1))
        if silent:
            if closing and name == silent:
                silent = ""
        elif name in _SILENT and not closing:
            silent = name
        elif name == "br":
            pieces.append("\n")
        elif name == "li":
            pieces.append("" if closing else "\n- ")
        elif name in {"td", "th"}:
            pieces.append(" " if closing else "")
        elif name in _BLOCKS:
            if name == "pre":
                preformatted = not closing
            pieces.append("\n\n" if name in {"p", "pre", "table"} else "\n")
    if not silent:
        pieces.append(_text(markup[at:], preformatted=preformatted))
    lines = (line.rstrip() for line in "".join(pieces).split("\n"))
    return _BLANK_LINES.sub("\n\n", "\n".join(lines)).strip()


def _text(raw: str, *, preformatted: bool) -> str:
    if not preformatted:
        raw = _SPACES.sub(" ", raw)
    return html.unescape(raw)
