"""Text of others on a terminal: paths, errors and quotes may hold anything, and a terminal obeys.

Whatever moves the cursor, rings, names the window, writes the clipboard or turns the direction of
reading stands there as a mark, and wide characters take the two cells that they take.
"""

from __future__ import annotations

import textwrap
import unicodedata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

_MARK = "\N{REPLACEMENT CHARACTER}"
_TURNING = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
_ENDS_OF_LINES = "\t\n\r"


def printable(value: Any) -> Any:
    """Return an account, or one text, with nothing in it that a terminal would obey."""
    if isinstance(value, dict):
        return {name: printable(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [printable(inner) for inner in value]
    if not isinstance(value, str) or value.isprintable():
        return value
    return "".join(
        " " if char in _ENDS_OF_LINES else _MARK if _is_obeyed(char) else char for char in value
    )


def printable_lines(text: str) -> str:
    """Return a text of several lines with nothing in it that a terminal would obey."""
    return "\n".join(printable(line) for line in text.split("\n"))


def _is_obeyed(char: str) -> bool:
    return char in _TURNING or unicodedata.category(char) in {"Cc", "Cs"}


def folded(console: Console, text: str, room: int) -> list[str]:
    """Return the text in lines of at most so many cells."""
    from rich.cells import cell_len
    from rich.text import Text

    lines = textwrap.wrap(text, room, break_on_hyphens=False) or [""]
    if all(cell_len(line) <= room for line in lines):
        return lines
    return [line.plain for line in Text(text).wrap(console, room)]
