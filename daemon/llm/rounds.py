"""How receipts and lookups travel to the ledger: several in one statement, where they can.

Half of what a call costs the worker's processor is its way to the database and back, twice: to ask
whether it was ever paid, and to write what it brought. A receipt goes at once, and takes along
whatever lookup waits. A lookup that nothing hangs on yet, since another call already waits for its
place, may wait a moment for the next receipt (decision 0124). What the database did not take while
it was away goes with whatever goes next, so that no lookup of this process overtakes it. Owns who
goes with whom, and that one bad row harms no other; leaves what is written and asked to
`ledger.py`.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import msgspec

from daemon.database import ReadyStatement, database_errors
from daemon.errors import Systemic
from daemon.logs import get_logger

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from uuid import UUID

    from daemon.database import Pool

_log = get_logger()
_RECORD_SECONDS = 300.0
"""How long a receipt is held on to while the database is away: it cannot be had a second time."""
_PAUSE_SECONDS = 0.2
"""Between two tries while the database is away. Whatever was out of reach for longer than a lease
is given to the next worker as soon as it answers: a receipt that comes later is paid a second time.
"""
_PATIENCE_SECONDS = 0.2
"""How long a lookup that is in no hurry waits for a receipt to go with: far below what any call
takes, and longer than it is from one receipt to the next when five calls a second are answered."""
_AT_ONCE = 2
"""Statements under way: while both are, what comes waits and goes together."""
_MOST_CHARACTERS = 1_000_000
"""Of receipts in one statement: however long replies are, their copies stay few megabytes."""


@dataclass(eq=False, slots=True)
class _Receipt:
    row: dict[str, Any]
    written: Callable[[], None]
    """Told when it is."""
    done: asyncio.Future[None]
    since: float = field(default_factory=time.monotonic)

    def document(self, now: float) -> dict[str, Any]:
        """Return the row; how long ago the call began is reckoned when it is sent."""
        return {**self.row, "age_ms": self.row["age_ms"] + round((now - self.since) * 1000)}


@dataclass(eq=False, slots=True)
class _Lookup:
    key: str
    job_id: str
    done: asyncio.Future[dict[str, Any] | None]


class Rounds:
    """The way of all calls of one process to the ledger and back."""

    def __init__(self, pool: Pool) -> None:
        self._statement = ReadyStatement(pool, "select fullpass.tend_ledger($1, $2)")
        self._receipts: list[_Receipt] = []
        self._lookups: list[_Lookup] = []
        self._due = False
        """Whether something waits that must go as soon as it can."""
        self._alarm: asyncio.TimerHandle | None = None
        self._held = 0
        """Receipts that the database did not take when it was last asked."""
        self._under_way = 0
        self._tasks: set[asyncio.Task[None]] = set()

    async def write(
        self, row: dict[str, Any], written: Callable[[], None], settled: Callable[[], None]
    ) -> None:
        """Return when the receipt is durable. It goes on being written if the caller is cancelled.

        Tries through short database trouble; raises Systemic when that lasts. `settled` is told
        when it is durable or given up.
        """
        loop = asyncio.get_running_loop()
        receipt = _Receipt(row, written, loop.create_future())
        receipt.done.add_done_callback(lambda _done: settled())
        self._receipts.append(receipt)
        self._hurry(loop)
        # A task that is cancelled between reply and receipt would forget a payment (promise 2).
        await asyncio.shield(receipt.done)

    async def settle(self) -> None:
        """Return when every receipt so far is written or given up, also those nobody waits for."""
        while self._receipts or self._tasks:
            await asyncio.wait([*self._tasks, *(receipt.done for receipt in self._receipts)])

    async def look_up(self, key: str, job_id: UUID, *, patient: bool) -> dict[str, Any] | None:
        """Return what fullpass.tend_ledger tells of a key; `patient` may wait for company."""
        loop = asyncio.get_running_loop()
        lookup = _Lookup(key, str(job_id), loop.create_future())
        self._lookups.append(lookup)
        if not patient:
            self._hurry(loop)
        else:
            self._hurry_in(_PATIENCE_SECONDS, loop)
        return await lookup.done

    def _hurry_in(self, seconds: float, loop: asyncio.AbstractEventLoop) -> None:
        if self._alarm is None:
            self._alarm = loop.call_later(seconds, self._hurry, loop)

    def _hurry(self, loop: asyncio.AbstractEventLoop) -> None:
        """Go with all that wait, once those who come in this very turn of the loop are there."""
        if not self._due:
            self._due = True
            loop.call_soon(self._go)

    def _go(self) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None
        while (self._receipts or self._lookups) and self._under_way < _AT_ONCE:
            self._start(self._taken(), self._asked())
        self._due = bool(self._receipts or self._lookups)

    def _start(self, receipts: list[_Receipt], lookups: list[_Lookup]) -> None:
        self._under_way += 1
        task = asyncio.create_task(self._travel(receipts, lookups))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _taken(self) -> list[_Receipt]:
        """Take from the receipts as many as one statement may hold, at least one."""
        taken, characters = 0, 0
        for receipt in self._receipts:
            characters += len(receipt.row["response"])
            if taken and characters > _MOST_CHARACTERS:
                break
            taken += 1
        receipts, self._receipts = self._receipts[:taken], self._receipts[taken:]
        return receipts

    def _asked(self) -> list[_Lookup]:
        # Whoever was cancelled meanwhile no longer asks.
        lookups = [lookup for lookup in self._lookups if not lookup.done.done()]
        self._lookups = []
        return lookups

    async def _travel(self, receipts: list[_Receipt], lookups: list[_Lookup]) -> None:
        """Go there and back. Receipts wait for the next time while the database is away."""
        try:
            await self._once(receipts, lookups)
        except Systemic as error:
            # Who asks is told, and gives the job back; who has paid holds on.
            _fail(lookups, error)
            self._hold(receipts, error)
        except asyncio.CancelledError:
            for receipt in receipts:
                receipt.done.cancel()
            for lookup in lookups:
                lookup.done.cancel()
            raise
        except Exception as error:  # noqa: BLE001 - it belongs to the one it is about
            if len(receipts) + len(lookups) == 1:
                _fail([*receipts, *lookups], error)
            else:  # which of them it is about shows when each goes alone
                for receipt in receipts:
                    self._start([receipt], [])
                for lookup in lookups:
                    self._start([], [lookup])

    def _hold(self, receipts: list[_Receipt], error: Systemic) -> None:
        """Keep what was paid for the next try; what was kept for long is lost."""
        begun = time.monotonic() - _RECORD_SECONDS
        lost = [receipt for receipt in receipts if receipt.since < begun]
        for receipt in lost:
            _log.error("ledger.lost", purpose=receipt.row["purpose"], error=str(error))
        _fail(lost, error)
        self._receipts[:0] = [receipt for receipt in receipts if receipt.since >= begun]
        if self._receipts:
            if len(self._receipts) > self._held:
                _log.warning("ledger.retrying", receipts=len(self._receipts), error=str(error))
            self._hurry_in(_PAUSE_SECONDS, asyncio.get_running_loop())
        self._held = len(self._receipts)

    async def _once(self, receipts: list[_Receipt], lookups: list[_Lookup]) -> None:
        """Go there and back once."""
        now = time.monotonic()
        rows = _json([receipt.document(now) for receipt in receipts])
        keys = _json([{"key": lookup.key, "job_id": lookup.job_id} for lookup in lookups])
        try:
            with database_errors():
                told = await self._statement.fetchval(rows, keys)
        finally:
            self._under_way -= 1
            if self._due:
                self._go()
        self._held = 0
        for receipt in receipts:
            receipt.written()
            if not receipt.done.done():
                receipt.done.set_result(None)
        answers = msgspec.json.decode(told) if told else []
        found = {(answer["key"], answer["job_id"]): answer for answer in answers}
        for lookup in lookups:
            if not lookup.done.done():
                lookup.done.set_result(found.get((lookup.key, lookup.job_id)))


def _json(documents: list[dict[str, Any]]) -> str | None:
    return msgspec.json.encode(documents).decode() if documents else None


def _fail(ones: Sequence[_Receipt | _Lookup], error: Exception) -> None:
    for one in ones:
        if not one.done.done():
            one.done.set_exception(error)
