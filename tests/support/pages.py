"""Blocks of a page of documentation: found, and held against what really happens.

A page shows commands in ```console blocks (after `$ `, their output below, a line `…` for output
left out), statements in ```sql, snippets in ```python and ```js, settings in ```ini. What is shown
must happen: `tests.support.stage` runs a page from top to bottom. Only ids, times and seconds may
differ from the page.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parents[2]
RUN = ("console", "sql", "python", "js")
TOLD = ("ini", "json", "yaml", "text", "markdown", "bash", "sh")
"""Kinds of blocks that are not run here; `ini` sets what follows, a shell's may need what a test of the
page's own brings."""

_FENCE = re.compile(r"^```([^\n]*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_VARIABLE = (
    (re.compile(r"f:[0-9a-f]{8}"), "f:ID"),
    (re.compile(r"\bin \d+\.\d s\b"), "in N s"),
    (re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"), "UUID"),
)


@dataclass(frozen=True, slots=True)
class Shown:
    """One command, statement, snippet or file of settings, and the output shown below it."""

    kind: str
    text: str
    output: tuple[str, ...]
    line: int


def shown_in(page: str) -> Iterator[Shown]:
    """Yield what a page shows, top to bottom; a block of commands or statements one by one."""
    for found in _FENCE.finditer(page):
        kind, body = found[1].strip(), found[2]
        line = page.count("\n", 0, found.start()) + 2
        if kind == "console":
            for part in re.split(r"^\$ ", body, flags=re.MULTILINE)[1:]:
                command, output = _command_and_output(part)
                yield Shown(kind, command, output, line)
        elif kind == "sql":
            for statement in re.split(r";\n", body):
                if statement.strip():
                    yield Shown(kind, statement.strip().rstrip(";"), (), line)
        else:
            yield Shown(kind, body, (), line)


def _command_and_output(part: str) -> tuple[str, tuple[str, ...]]:
    """Part a command, which may go on after a backslash, from its output."""
    lines = part.rstrip("\n").split("\n")
    last = next(n for n, line in enumerate(lines) if not line.endswith("\\"))
    return "\n".join(lines[: last + 1]), tuple(lines[last + 1 :])


def settings_in(shown: Shown) -> dict[str, str]:
    """Give the variables that a block of settings, or an `export`, sets."""
    lines = shown.text.removeprefix("export ").splitlines()
    if shown.kind == "console":
        lines = shown.text.removeprefix("export ").replace("\\\n", " ").split()
    pairs = (line.split("=", 1) for line in lines if line.strip() and not line.startswith("#"))
    return {name.strip(): value.partition(" #")[0].strip() for name, value in pairs}


def missing_line(shown: Shown, said: str) -> str | None:
    """Return the first line that the page shows and that was not said, in the page's order."""
    real = [same(line) for line in said.splitlines()]
    at = 0
    for line in (same(line) for line in shown.output if line not in {"…", ""}):
        if line not in real[at:]:
            return line
        at = real.index(line, at) + 1
    return None


def same(line: str) -> str:
    """Give the line without what differs from run to run."""
    for pattern, name in _VARIABLE:
        line = pattern.sub(name, line)
    return line.rstrip()
