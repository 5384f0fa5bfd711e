"""Screens and the text of others: paths, errors and quotes may hold anything."""

from __future__ import annotations

import io
import sys
from typing import TYPE_CHECKING

import pytest
from rich.cells import cell_len

from daemon.cli import entry
from daemon.cli.run import _print_memory
from daemon.cli.terminal import printable
from daemon.errors import TryAgain
from tests.integration.test_ops_views import screen_of
from tests.support.telling import a_job

if TYPE_CHECKING:
    from tests.support.telling import Db

CLIPBOARD = "\x1b]52;c;c3dvcmRmaXNo\x07"
STRANGE = f"错误发生在处理对话的时候{CLIPBOARD}" * 12 + "\x1b[31mred\x1b[0m \x9b2J\u202eback"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


async def test_what_others_wrote_commands_no_terminal_and_fits_80_columns(
    db: Db, database_url: str
) -> None:
    job = await a_job(db, f"路径{CLIPBOARD}" * 30)
    await db.execute(
        "select fullpass.end_job(j, 'failed', 'failed', $2) from processing_jobs j where id = $1",
        job,
        STRANGE,
    )
    for one in (None, job):
        shown = await screen_of(database_url, width=80, colour=False, job=one)
        assert "错误发生" in shown
        assert not set(shown) & set("\x1b\x07\x9b\u202e")
        assert [line for line in shown.splitlines() if cell_len(line) > 80] == []


def test_a_memory_commands_no_terminal_and_shows_where_its_links_lead(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "200")
    _print_memory(f"# Memory\n\n- Likes 茶{CLIPBOARD} and [tea](https://elsewhere.example)\n")
    shown = terminal.getvalue()
    assert "Likes 茶" in shown
    assert "https://elsewhere.example" in shown
    assert not set(shown) & set("\x07\x9b")
    assert "\x1b]" not in shown


def test_an_error_commands_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    for error in (TryAgain(f"a{CLIPBOARD}b\nand more"), ValueError(f"c{CLIPBOARD}")):
        assert entry._told(error, debug=True) == 1
    said = capsys.readouterr().err
    assert "and more" in said
    assert not set(said) & set("\x1b\x07")


@pytest.mark.parametrize("text", ["naïve 😀👨‍👩‍👧 日本語 עברית", "", "a\u00a0b"])
def test_what_people_write_stays_as_it_is(text: str) -> None:
    assert printable({"a": [text]}) == {"a": [text]}
