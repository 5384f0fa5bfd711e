"""What the code can say: texts as they stand in its sources, with `…` where a value comes in.

Pages that quote a message are held against these, and these against the pages, so that neither
drifts from the other. Reads sources only: nothing is run.
"""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.support.cli import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_SQL_TEXT = re.compile(r"'((?:[^']|'')*)'(?:\s*\n\s*'((?:[^']|'')*)')*")


@dataclass(frozen=True, slots=True)
class Call:
    """A call in the sources: what is called and its arguments' texts; None for one without text."""

    name: str
    texts: tuple[str | None, ...]
    path: Path
    line: int


def modules(folder: str = "daemon") -> list[Path]:
    """Give the Python sources below a folder."""
    return sorted((ROOT / folder).rglob("*.py"))


def migrations() -> str:
    """Give all migrations as one text, without comments."""
    files = sorted((ROOT / "sql/migrations").glob("*.sql"))
    return re.sub(r"--[^\n]*", "", "\n".join(path.read_text(encoding="utf-8") for path in files))


def calls(*names: str, folder: str = "daemon") -> Iterator[Call]:
    """Yield the calls of functions, classes or methods of these names, wherever they stand."""
    for path in modules(folder):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            name = getattr(node.func, "attr", None) or getattr(node.func, "id", None)
            if name in names:
                texts = tuple(text_of(argument) for argument in node.args)
                yield Call(str(name), texts, path.relative_to(ROOT), node.lineno)


def text_of(node: ast.expr) -> str | None:
    """Give the text that an expression makes, `…` for what is filled in; None if it is no text."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(
            str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values
        )
    return None


def texts_of_sql() -> set[str]:
    """Give the literals of the migrations, `…` for each placeholder of `format`."""
    found = set()
    for literal in _SQL_TEXT.finditer(migrations()):
        joined = re.sub(r"'\s*\n\s*'", "", literal[0])[1:-1].replace("''", "'")
        found.add(re.sub(r"%[sLI]|%(?= )", "…", joined))
    return found


def says(template: str, text: str) -> bool:
    """Whether a text is one that the template can become."""
    pattern = ".*".join(re.escape(part) for part in template.split("…"))
    return re.fullmatch(pattern, text, re.DOTALL) is not None
