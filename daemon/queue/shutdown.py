"""SIGTERM and SIGINT: the first asks for a drain, the second exits at once.

Owns the handlers and the event that tells the worker. Leaves to the worker what draining means.
"""

from __future__ import annotations

import asyncio
import os
import signal
from typing import TYPE_CHECKING, Any

from daemon.logs import get_logger
from daemon.queue.lease import clock

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from types import FrameType

_log = get_logger()
_LATE_SECONDS = 2.0
_CANCEL_SECONDS = 0.5


class Shutdown:
    """Listens for signals from `listen()` to `close()`; `asked` is set when the worker must drain.

    Plain handlers rather than the loop's: they run, and the second one exits, even while the loop
    is blocked. `at_once`, if set, is called in the handler itself, with the clock's reading.
    """

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.at_once: Callable[[float], None] | None = None
        self._told = False
        self._asked_at = 0.0
        self._before: dict[signal.Signals, Any] = {}
        self._loop: asyncio.AbstractEventLoop | None = None

    def listen(self) -> None:
        """Take over both signals; in a thread that may not, whoever runs us there ends us."""
        self._loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            try:
                self._before[number] = signal.signal(number, self._received)
            except ValueError:
                return

    def close(self) -> None:
        """Put back what was there before."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()

    async def see_off(self, tasks: set[asyncio.Task[None]], grace_seconds: float) -> None:
        """Let tasks end within what is left of the grace, then cancel those that have not."""
        used_seconds = clock() - self._asked_at if self._told else 0.0
        _, late = await asyncio.wait(tasks, timeout=max(0.0, grace_seconds - used_seconds))
        for task in late:
            task.cancel()
        if late:
            await asyncio.wait(late, timeout=_LATE_SECONDS)

    async def cut_short(self, work: Coroutine[Any, Any, None]) -> None:
        """Do `work`, which ends by itself when asked to, unless something holds it up then.

        A claim that the database never answers must not use up the grace. One that it does answer
        is waited for, so that what was claimed in that moment is released at once.
        """
        working = asyncio.create_task(work)
        asked = asyncio.create_task(self.asked.wait())
        try:
            await asyncio.wait({working, asked}, return_when=asyncio.FIRST_COMPLETED)
            await asyncio.wait({working}, timeout=_LATE_SECONDS)
        finally:
            asked.cancel()
            working.cancel()
        # A link that hangs can hold up even a cancellation; it ends when the pool does.
        await asyncio.wait({working}, timeout=_CANCEL_SECONDS)
        if working.done() and not working.cancelled():
            working.result()

    def _received(self, number: int, _frame: FrameType | None) -> None:
        if self._told or self._loop is None:
            # Safe: what is written is written under the fence, what was paid is in the ledger.
            os._exit(1)
        self._told = True
        self._asked_at = clock()
        if self.at_once is not None:
            self.at_once(clock())
        # Nothing else here: a handler that interrupts a log line must not log.
        self._loop.call_soon_threadsafe(self._ask, signal.Signals(number).name)

    def _ask(self, name: str) -> None:
        _log.info("worker.draining", signal=name)
        self.asked.set()
