"""Writes docs/reference/commands.md from the commands themselves.

python -m tests.support.reference          write it
python -m tests.support.reference --check  exit 1 when it differs
"""

from __future__ import annotations

import inspect
import sys
from typing import TYPE_CHECKING

import click

from daemon.cli.commands import fullpass
from tests.support.cli import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

COMMANDS = ROOT / "docs/reference/commands.md"

_HEAD = """\
# Commands

Made from the commands' own help by `make reference`; do not edit. Exit codes and `--debug`:
[errors](errors.md). Settings: [settings](settings.md).
"""


def commands() -> str:
    """Give the page: each command's usage, text, options and examples."""
    parts = [_HEAD]
    for name, command in fullpass.commands.items():
        context = click.Context(command, info_name=f"fullpass {name}", terminal_width=100)
        parts.append(f"## `fullpass {name}`\n")
        parts.append(f"```text\n{command.get_usage(context).removeprefix('Usage: ')}\n```\n")
        parts.append(f"{inspect.cleandoc(command.help or '')}\n")
        records = (p.get_help_record(context) for p in command.params)
        options = [record for record in records if record is not None and record[1]]
        if options:
            rows = "\n".join(f"| `{left}` | {_cell(right)} |" for left, right in options)
            parts.append(f"| option | |\n|---|---|\n{rows}\n")
        parts.extend(_examples(command.epilog or ""))
    return "\n".join(parts)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _examples(epilog: str) -> Iterator[str]:
    """Yield the examples of a command's epilog as a block, and what is said after them."""
    block, _, rest = inspect.cleandoc(epilog.replace("\b", "")).strip().partition("\n\n")
    head, _, lines = block.partition("\n")
    if lines:
        yield f"{head}\n\n```text\n{inspect.cleandoc(lines)}\n```\n"
    if rest:
        yield f"{rest}\n"


def main(arguments: Sequence[str]) -> int:
    """Write the page, or compare it."""
    page = commands()
    if "--check" not in arguments:
        COMMANDS.write_text(page, encoding="utf-8")
        return 0
    return 0 if COMMANDS.read_text(encoding="utf-8") == page else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
