"""Screens and the text of others: paths, errors and quotes may hold anything."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from rich.cells import cell_len

from daemon.cli.terminal import printable
from tests.integration.test_ops_views import screen_of
from tests.support.telling import a_job

if TYPE_CHECKING:
    from tests.support.telling import Db

CLIPBOARD = "\x1b]52;c;c3dvcmRmaXNo\x07"
STRANGE = f"错误发生在处理对话的时候{CLIPBOARD}" * 12 + "\x1b[31mred\x1b[0m \x9b2J\u202eback"


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


@pytest.mark.parametrize("text", ["naïve 😀👨‍👩‍👧 日本語 עברית", "", "a\u00a0b"])
def test_what_people_write_stays_as_it_is(text: str) -> None:
    assert printable({"a": [text]}) == {"a": [text]}
