"""Model calls by batch, at half price: sent once, looked at now and then, noted result by result.

    write down ──▶ make ──▶ note the server's id ──▶ look … look ──▶ ended: every result a receipt

A process may die between any two of these (promise 3). What was written down and has no id yet is
looked for among the account's recent batches before another is made: a batch of as many requests,
unknown to us, whose results carry our keys, is ours. Results become receipts like any other reply;
what they mean for the pass is found by reading them from the ledger (`fullpass/batch.py`).

Owns when to give up on a batch and who cleans up after jobs that ended. Leaves the wire to
`batch_api.py`, the rows to `batch_rows.py`, and which windows are sent to the pass.
"""

from __future__ import annotations

import asyncio
import random
from contextlib import aclosing
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING

from daemon.errors import BadCall, CallFailed, FullpassError, UselessReply
from daemon.llm.batch_api import NoBatches, PerhapsMade, batch_api_of
from daemon.llm.batch_rows import BatchRows
from daemon.logs import get_logger

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Sequence
    from uuid import UUID

    from daemon.database import Pool
    from daemon.llm.batch_api import BatchApi, Item, Remote
    from daemon.llm.batch_rows import Batch
    from daemon.llm.providers import Provider
    from daemon.llm.request import Reply, Request
    from daemon.settings import Settings

_log = get_logger()

_SKEW = timedelta(minutes=10)
"""How far apart two clocks may be when batches are listed, and what cannot be allowed for."""
_SETTLING_LOOKS = 2
"""Pauses between looks after which a batch that is not listed was never made."""
_STREAM_TRIES = 3
_LONGEST_PAUSE = 10
"""Looks are at most so many times the first pause apart."""
_ORPHANS_AT_ONCE = 5
_DAY_SECONDS = 86_400.0
_RESULTS_KEPT_SECONDS = 29 * _DAY_SECONDS
"""Results can be had for so long (vendor's documentation, 2026-11-22)."""
_KEEP_DAYS = 30


class Batches:
    """Sends and collects the batches of one process's provider.

    `poll_seconds` is the first pause between two looks; `read` is what tells a usable reply: it
    raises UselessReply for others.
    """

    def __init__(
        self,
        api: BatchApi,
        rows: BatchRows,
        *,
        poll_seconds: float,
        read: Callable[[Reply], object],
    ) -> None:
        self.api = api
        self.rows = rows
        self._poll_seconds = poll_seconds
        self._read = read
        self.missing = False
        """Whether the server turned out to have no batches."""
        self.held: dict[UUID, frozenset[int]] = {}
        """By job, the batches that hold the money for all that is left to do meanwhile."""

    def pause_seconds(self, batches: Sequence[Batch]) -> float:
        """How long to wait until the next look: a tenth of the youngest's age, within bounds."""
        youngest = min((b.age_seconds for b in batches), default=0.0)
        first = self._poll_seconds
        return min(first * _LONGEST_PAUSE, max(first, youngest / 10))

    async def send(self, batch: Batch, requests: Sequence[tuple[str, Request]]) -> None:
        """Make a batch that was written down, and note its id.

        Raises PerhapsMade (look for it before the next), or, the row being closed again, NoBatches,
        CallFailed, BadCall or Systemic.
        """
        # Shielded: a task that is cancelled in here would forget what is being made.
        await asyncio.shield(asyncio.ensure_future(self._send(batch, requests)))

    async def _send(self, batch: Batch, requests: Sequence[tuple[str, Request]]) -> None:
        try:
            remote = await self.api.create(requests)
        except PerhapsMade:
            raise
        except Exception as error:
            # Refused: its requests must be free for the next batch before the caller hears of it.
            self.missing = self.missing or isinstance(error, NoBatches)
            await self.rows.close(batch, "never sent")
            raise
        if await self.rows.sent(batch, remote):
            _log.info("batch.sent", batch=remote.id, requests=len(requests))
            return
        _log.warning("batch.stray", batch=remote.id, requests=len(requests))
        await self._cancel(remote.id)

    async def look(self, batch: Batch, *, noted: Callable[[], None] | None = None) -> bool:
        """Look at a batch and note what came of it; True when nobody has to wait for it any more.

        `noted` is told of every result. Raises Systemic.
        """
        try:
            if batch.state == "creating":
                return await self._seek(batch, noted)
            return await self._look(batch, noted)
        except CallFailed as error:
            _log.warning("batch.unseen", batch=batch.batch_id, error=str(error))
        except (NoBatches, BadCall) as error:
            _log.warning("batch.unreachable", batch=batch.batch_id, error=str(error))
        return await self._given_up(batch)

    async def _look(self, batch: Batch, noted: Callable[[], None] | None) -> bool:
        assert batch.batch_id is not None  # noqa: S101 - a sent batch has its id
        remote = await self.api.retrieve(batch.batch_id)
        if remote is None:
            _log.warning("batch.unknown", batch=batch.batch_id)
        elif remote.ended:
            await self._collect(batch, noted)
            return True
        elif _hours_late(batch) >= 1 and not batch.cancel_asked:
            await self._cancel(batch.batch_id)
            return False
        return await self._given_up(batch)

    async def _given_up(self, batch: Batch) -> bool:
        """Give up on a batch that the server should have ended long ago."""
        if _hours_late(batch) < 2:
            return False
        _log.error("batch.given_up", batch=batch.batch_id, requests=batch.requests)
        await self.rows.give_up(batch)
        return True

    async def _seek(self, batch: Batch, noted: Callable[[], None] | None) -> bool:
        """Look for a batch that has no id yet; True when it was collected, or surely never made."""
        suspects = 0
        now = batch.created_at + timedelta(seconds=batch.age_seconds)
        async with aclosing(self.api.recent(batch.created_at - _SKEW, now=now)) as recent:
            async for remote in recent:
                if remote.requests != batch.requests or await self.rows.known(remote.id):
                    continue
                ours = await self._is_ours(batch, remote) if remote.ended else None
                if ours is None:
                    suspects += 1  # only results show whose it is
                elif ours:
                    await self.rows.sent(batch, remote)
                    _log.info("batch.found", batch=remote.id, requests=batch.requests)
                    await self._collect(replace(batch, batch_id=remote.id), noted)
                    return True
        if suspects or batch.age_seconds < self._poll_seconds * _SETTLING_LOOKS:
            _log.info("batch.sought", requests=batch.requests, suspects=suspects)
            return await self._given_up(batch)
        await self.rows.close(batch, "never sent")
        _log.info("batch.never_sent", requests=batch.requests)
        return True

    async def _is_ours(self, batch: Batch, remote: Remote) -> bool | None:
        """Whether an ended batch is this one; None where its results cannot be had now."""
        try:
            async with aclosing(self._results(batch, remote.id)) as results:
                async for item in results:
                    return await self.rows.holds(batch, item.custom_id)
        except CallFailed as error:
            _log.warning("batch.unseen", batch=remote.id, error=str(error))
            return None
        return False

    def _results(self, batch: Batch, batch_id: str) -> AsyncGenerator[Item, None]:
        return self.api.results(batch_id, batch.model, requests=batch.requests)

    async def _collect(self, batch: Batch, noted: Callable[[], None] | None) -> None:
        """Note every result of an ended batch. Raises CallFailed when they cannot be had."""
        assert batch.batch_id is not None  # noqa: S101 - a sent batch has its id
        for attempt in range(1, _STREAM_TRIES + 1):
            trouble: CallFailed | None = None
            try:
                async with aclosing(self._results(batch, batch.batch_id)) as results:
                    async for item in results:
                        await self._note(batch, item)
                        if noted is not None:
                            noted()
            except CallFailed as error:
                _log.warning("batch.broke_off", batch=batch.batch_id, error=str(error))
                trouble = error
            if not await self.rows.unanswered(batch):
                break  # all is noted, however the stream ended
            if trouble is not None and attempt == _STREAM_TRIES:
                raise trouble
            await asyncio.sleep(min(1.0, self._poll_seconds) * attempt)
        # Streams that ended well and still lack a result: the server has none.
        await self.rows.close(batch, "collected")
        _log.info("batch.collected", batch=batch.batch_id, requests=batch.requests)

    async def _note(self, batch: Batch, item: Item) -> None:
        usable = item.reply is not None
        if item.reply is not None:
            try:
                self._read(item.reply)
            except UselessReply:
                usable = False
        await self.rows.note(batch, item, usable=usable)

    async def _cancel(self, batch_id: str) -> None:
        await self.api.cancel(batch_id)
        await self.rows.cancel_asked(batch_id)
        _log.info("batch.cancel_asked", batch=batch_id)

    async def tend_orphans(self) -> int:
        """Cancel batches that no job waits for, and note what they cost; a few a call.

        Any worker may, at any time: it takes up what cancelled, failed and forgotten jobs left.
        """
        taken = await self.rows.take_orphans(
            limit=_ORPHANS_AT_ONCE, pause_seconds=self._poll_seconds, keep_days=_KEEP_DAYS
        )
        for batch in taken:
            try:
                await self._tend(batch)
            except (CallFailed, BadCall, NoBatches) as error:
                _log.warning("batch.unseen", batch=batch.batch_id, error=str(error))
        return len(taken)

    async def keep_tending(self) -> None:
        """Tend orphans every now and then, until cancelled."""
        while True:
            try:
                await self.tend_orphans()
            except FullpassError as error:
                _log.warning("batch.orphans_wait", error=str(error))
            await asyncio.sleep(self._poll_seconds * random.uniform(0.8, 1.2))

    async def _tend(self, batch: Batch) -> None:
        if batch.batch_id is None:
            await self._seek(batch, None)
            return
        remote = await self.api.retrieve(batch.batch_id)
        if remote is not None and remote.ended:
            await self._collect(batch, None)
        elif batch.age_seconds > _RESULTS_KEPT_SECONDS:
            await self.rows.close(batch, "not to be had any more")
        elif remote is not None and not batch.cancel_asked:
            await self._cancel(batch.batch_id)


def batches_of(
    provider: Provider, pool: Pool, settings: Settings, *, read: Callable[[Reply], object]
) -> Batches | None:
    """Return the batches of a provider; None, said where they are asked for, when it has none."""
    api = batch_api_of(provider)
    if api is None:
        if settings.extraction_mode == "batch":
            _log.warning("batch.none", provider=provider.name, instead="realtime")
        return None
    if settings.extraction_mode == "batch" and not api.takes(settings.extraction_model):
        _log.warning("batch.none", model=settings.extraction_model, instead="realtime")
    return Batches(api, BatchRows(pool), poll_seconds=settings.batch_poll_seconds, read=read)


def _hours_late(batch: Batch) -> float:
    """Hours since the batch should have ended, if it was given a day: a day of 24 such hours."""
    if batch.overdue_seconds is None or not batch.life_seconds:
        return (batch.age_seconds - _DAY_SECONDS) / 3_600  # made or not: a day is what it had
    return batch.overdue_seconds / (batch.life_seconds / 24)
