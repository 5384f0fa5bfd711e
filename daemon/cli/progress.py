"""How a running pass looks: a live bar on a terminal, a plain line every few seconds elsewhere.

Everything shown is read back from the database over a connection of its own, so it is what another
process would see too. All of it goes to stderr.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from daemon.database import connect, database_errors
from daemon.errors import FullpassError
from daemon.ops.status import Progress, Read, progress_of, read_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from uuid import UUID

    from rich.console import ConsoleOptions, RenderResult

_LOOK_SECONDS = 0.25
_PLAIN_LINE_SECONDS = 3.0
_COUNT_SHARE = 0.1
"""Counting may take this share of the time, no more: on a big job it is done less often."""


@dataclass(slots=True)
class Shown:
    """What is on the screen now; also what rich renders."""

    started: float
    progress: Progress | None = None
    read: Read | None = None
    note: str | None = None
    """Said instead of the step while there is something else to say."""

    @property
    def step(self) -> str:
        """What goes on, in words."""
        if self.note:
            return self.note
        if self.progress is None or self.progress.stage is None:
            return "Done" if self.percent == 100 else "Starting"
        return self.progress.stage[:1].upper() + self.progress.stage[1:]

    @property
    def percent(self) -> int:
        """Percent of the pass."""
        return 0 if self.progress is None else self.progress.percent

    def counts(self) -> str:
        """Chunks read, facts and cost, as far as they are known."""
        parts = []
        if self.read is not None and self.read.chunks:
            parts.append(f"{self.read.read:,} of {self.read.chunks:,} chunks")
            parts.append(f"{self.read.facts:,} facts")
        if self.progress is not None and self.progress.calls:
            parts.append(f"${self.progress.cost_usd:.4f}")
        return " · ".join(parts)

    def elapsed(self) -> str:
        """Return m:ss, or h:mm:ss."""
        minutes, seconds = divmod(int(time.monotonic() - self.started), 60)
        hours, minutes = divmod(minutes, 60)
        return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"

    def line(self) -> str:
        """Everything on one plain line."""
        counts = self.counts()
        return f"{self.percent:>3}%  {self.step}{' · ' if counts else ''}{counts}  {self.elapsed()}"


class Display(Protocol):
    """Where the progress is shown."""

    def show(self, shown: Shown) -> None:
        """Show this now."""
        ...


class _Bar:
    """Two live lines: what goes on, and how far it is."""

    def __init__(self, shown: Shown) -> None:
        self._shown = shown
        self._spinner = Spinner("dots")

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        shown = self._shown
        top = Table.grid(padding=(0, 1), expand=True)
        top.add_column(width=1)
        top.add_column(ratio=1, no_wrap=True)
        top.add_column(justify="right", no_wrap=True)
        top.add_row(self._spinner, Text(shown.step), Text(shown.counts(), style="cyan"))
        bottom = Table.grid(padding=(0, 1), expand=True)
        bottom.add_column(ratio=1)
        bottom.add_column(justify="right", no_wrap=True)
        bottom.add_row(
            ProgressBar(total=100, completed=shown.percent),
            Text(f"{shown.percent:>3}%  {shown.elapsed()}"),
        )
        yield from console.render(Group(top, bottom), options)


class _LiveDisplay:
    def __init__(self, live: Live) -> None:
        self._live = live

    def show(self, _shown: Shown) -> None:
        self._live.refresh()


class _PlainDisplay:
    """A line when the step changes, and every few seconds besides."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._last_step = ""
        self._last_at = 0.0

    def show(self, shown: Shown) -> None:
        now = time.monotonic()
        if shown.step == self._last_step and now - self._last_at < _PLAIN_LINE_SECONDS:
            return
        self._last_step, self._last_at = shown.step, now
        self._console.print(shown.line(), highlight=False, markup=False, soft_wrap=True)


@asynccontextmanager
async def progress_shown(url: str, job_id: UUID, shown: Shown) -> AsyncIterator[None]:
    """Show the job's progress while this is open; trouble with it never disturbs the pass."""
    console = Console(stderr=True)
    if console.is_terminal:
        with Live(_Bar(shown), console=console, transient=True, refresh_per_second=8) as live:
            async with _looking(url, job_id, shown, _LiveDisplay(live)):
                yield
    else:
        async with _looking(url, job_id, shown, _PlainDisplay(console)):
            yield


@asynccontextmanager
async def _looking(url: str, job_id: UUID, shown: Shown, display: Display) -> AsyncIterator[None]:
    watch = asyncio.create_task(_look(url, job_id, shown, display))
    try:
        yield
    finally:
        watch.cancel()
        with suppress(asyncio.CancelledError):
            await watch


async def _look(url: str, job_id: UUID, shown: Shown, display: Display) -> None:
    """Read and show, a few times a second, for ever; connects again after trouble."""
    while True:
        try:
            connection = await connect(url, command_timeout_seconds=10.0)
            try:
                next_count = 0.0
                while True:
                    with database_errors():
                        shown.progress = await progress_of(connection, job_id)
                        began = time.monotonic()
                        if began >= next_count:
                            shown.read = await read_of(connection, job_id)
                            took = time.monotonic() - began
                            next_count = began + max(1.0, took / _COUNT_SHARE)
                    display.show(shown)
                    await asyncio.sleep(_LOOK_SECONDS)
            finally:
                connection.terminate()
        except FullpassError:
            await asyncio.sleep(1.0)  # the pass itself says what is wrong with the database
