"""Whether a worker's loops are alive, asked from another thread, and what they are doing.

Owns the echo that measures the event loop's lag, the pulse of the loop that claims, and the dump of
stacks when something hangs. Leaves what to do about it to the heartbeat (promise 6).
"""

from __future__ import annotations

import asyncio
import sys
import threading
import time
import traceback
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from daemon.queue.lease import clock

if TYPE_CHECKING:
    from types import FrameType

    from daemon.settings import Settings

_STEP_TIMEOUTS_WITHOUT_PROGRESS = 3
_READING_STEPS = frozenset({"download_conversations", "chunk_conversations", "save_chunks"})
_READING_TIMEOUT_SECONDS = 120.0
"""For a batch of chunks of the largest conversation over the slowest link, with room."""
_FRAMES = 12
_TASKS = 40


class LoopEcho:
    """Asks an event loop for an echo from another thread and times the answer.

    Unlike a timer inside the loop it shows a blocked loop while it is blocked: the lag grows for
    as long as no echo comes.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._asked_at: float | None = None
        self._worst_seconds = 0.0

    def ask(self) -> None:
        """Send for an echo unless one is still due."""
        if self._asked_at is None:
            self._asked_at = clock()
            with suppress(RuntimeError):  # the loop is closed: the worker is ending
                self.loop.call_soon_threadsafe(self._answer)

    def _answer(self) -> None:
        if self._asked_at is not None:
            self._worst_seconds = max(self._worst_seconds, clock() - self._asked_at)
            self._asked_at = None

    @property
    def silent_seconds(self) -> float:
        """How long the loop has owed an echo; 0 when it owes none."""
        asked_at = self._asked_at
        return 0.0 if asked_at is None else clock() - asked_at

    def take_lag_ms(self) -> float:
        """Return the worst lag since this was last asked, in milliseconds."""
        worst, self._worst_seconds = max(self._worst_seconds, self.silent_seconds), 0.0
        return round(worst * 1000, 1)


class Pulse:
    """The claiming loop's own word on when it will have gone round again.

    Its event loop may be well while it waits for something that never comes; then no job is claimed
    any more, and nothing else would show it. Counts a clock that stands still during suspend: a
    laptop that wakes has not been stuck.
    """

    def __init__(self, *, patience_seconds: float) -> None:
        """`patience_seconds` is what a round may take beyond the wait that it announced."""
        self._patience_seconds = patience_seconds
        self._next_at = time.monotonic()

    def expect(self, within_seconds: float) -> None:
        """Announce the next round within so many seconds."""
        self._next_at = time.monotonic() + within_seconds

    @property
    def late_seconds(self) -> float:
        """How long the next round is overdue; 0 when it is not."""
        return max(0.0, time.monotonic() - self._next_at)

    @property
    def stuck(self) -> bool:
        """Whether it is so late that it will not come."""
        return self.late_seconds > self._patience_seconds


def patience_seconds(step: str, settings: Settings) -> float:
    """Return how long a job may go without a receipt, a chunk batch or a step where it stands."""
    timeout_seconds = settings.llm_timeout_seconds
    if step in _READING_STEPS:
        timeout_seconds = max(timeout_seconds, _READING_TIMEOUT_SECONDS)
    elif step == "regenerate_sections":
        timeout_seconds = settings.sections_timeout_seconds
    return _STEP_TIMEOUTS_WITHOUT_PROGRESS * timeout_seconds


def stacks(loop: asyncio.AbstractEventLoop) -> list[str]:
    """Return where every thread and every task of the loop stands, innermost frame last.

    Names of files and functions only: no source line and no value can hold a secret or a word of
    anybody's conversation (promise 11).
    """
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    lines = [
        f"thread {names.get(ident, ident)}: {_path(traceback.walk_stack(frame), reverse=True)}"
        for ident, frame in sys._current_frames().items()  # noqa: SLF001 - the documented way
    ]
    tasks: set[asyncio.Task[object]] = set()
    for _ in range(10):
        # The loop may add a task while its tasks are being copied; then copy again.
        with suppress(RuntimeError):
            tasks = asyncio.all_tasks(loop)
            break
    lines.extend(
        f"task {task.get_name()}: {_path(_awaited(task))}"
        for task in sorted(tasks, key=asyncio.Task.get_name)[:_TASKS]
    )
    return lines


def _awaited(task: asyncio.Task[object]) -> list[tuple[FrameType, int]]:
    """Follow a suspended task inwards: its own stack shows the outermost coroutine only."""
    frames: list[tuple[FrameType, int]] = []
    inner: Any = task.get_coro()
    while inner is not None and len(frames) < _FRAMES:
        frame = getattr(inner, "cr_frame", None) or getattr(inner, "gi_frame", None)
        if frame is not None:
            frames.append((frame, frame.f_lineno or 0))
        inner = getattr(inner, "cr_await", None) or getattr(inner, "gi_yieldfrom", None)
    return frames


def _path(frames: object, *, reverse: bool = False) -> str:
    found: list[tuple[FrameType, int]] = list(frames)  # type: ignore[call-overload]
    if reverse:
        found = found[:_FRAMES][::-1]
    return " > ".join(
        f"{frame.f_code.co_filename.rpartition('/')[2]}:{line} {frame.f_code.co_name}"
        for frame, line in found
    )
