"""Extraction by batch: what is read at once, what is sent and waited for, and when to go on.

    planned ──▶ a few now, for a first MEMORY
        └─────▶ sent by batch ──▶ landed: read from the ledger like the reply of a call
                        └───────▶ came back unread: the next batch, or now

One attempt looks at what is out, reads what landed, sends what is to be sent and ends with
AwaitsBatch while anything is out; the next goes on from there. Leaves which window goes which way
to `lanes.py`, sending to `batch_send.py`, batches themselves to `llm/batches.py` and what a reply
means to `outcomes.py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from daemon.errors import AwaitsBatch, GiveUp, Wait
from daemon.fullpass import lanes
from daemon.fullpass.batch_send import FEW, Sending, send
from daemon.llm.batch_rows import BatchRows
from daemon.logs import get_logger

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from daemon.fullpass.context import Pass
    from daemon.llm.batch_rows import Batch
    from daemon.llm.batches import Batches

_log = get_logger()


async def read_all(work: Pass, read_now: Callable[[], Awaitable[None]]) -> bool:
    """Read all planned windows, at once or by batch; False while some of them are out.

    `read_now` reads every planned window that does not go by batch. Raises GiveUp where the job's
    money does not reach, Wait when batches cannot be made now, and what `read_now` raises.
    """
    batches = work.batches
    if batches is None:
        # Asked again here, so nobody waits for it: who can see it cancels it, and its money does
        # not hold this job up.
        rows = BatchRows(work.pool)
        for out in await rows.open_of(work.job.user_id, work.source):
            work.lease.check()
            _log.warning("batch.given_up", batch=out.batch_id, requests=out.requests)
            await rows.give_up(out)
        await lanes.all_now(work)
        await read_now()
        return True
    blocked = False
    while True:
        await _collect(work, batches)
        await lanes.sort(work)
        sending = Sending()
        if _wanted(work, batches):
            await lanes.choose(work)
            sending = await send(work, batches)
        if not _wanted(work, batches):
            await lanes.all_now(work)
        await read_now()
        if await batches.rows.open_of(work.job.user_id, work.source):
            return False
        if not await lanes.count_loose(work):
            return True
        if sending.trouble is not None:
            raise Wait(
                f"no batch can be made: {sending.trouble}", seconds=batches.pause_seconds(())
            )
        # What was set aside for the windows read just now was more than they cost: try once more.
        if sending.blocked and blocked:
            raise GiveUp(
                f"stopped at MAX_COST_USD_PER_JOB ({work.settings.max_cost_usd_per_job:g}): what "
                "is left would cost more; what is done is kept, raise the limit and retry to go on"
            )
        blocked = sending.blocked


def _wanted(work: Pass, batches: Batches) -> bool:
    """Whether windows are to go by batch, as far as setting, model and server have it."""
    takes = batches.api.takes(work.settings.extraction_model)
    return work.settings.extraction_mode == "batch" and takes and not batches.missing


async def still_out(work: Pass) -> None:
    """Look at the batches of a pass that waits for nothing else; raise AwaitsBatch if none ended.

    Saves the steps of a pass each time somebody looks.
    """
    batches = work.batches
    if batches is None:
        return
    out = await batches.rows.open_of(work.job.user_id, work.source)
    if not out:
        return
    no_money = batches.held.get(work.job.id) == _ids(out)
    if not no_money and await _more_to_do(work):
        return
    if not await _collect(work, batches):
        raise await awaited(work)


async def held(work: Pass) -> AwaitsBatch:
    """Note that nothing can go on before one of the batches that are out now ends its part."""
    if work.batches is not None:
        out = await work.batches.rows.open_of(work.job.user_id, work.source)
        work.batches.held[work.job.id] = _ids(out)
    return await awaited(work)


def _ids(out: Iterable[Batch]) -> frozenset[int]:
    return frozenset(batch.id for batch in out)


async def _more_to_do(work: Pass) -> bool:
    """Whether a pass some of which is out has windows to read or send, or a MEMORY to write."""
    if await work.fetchval(
        """
        select exists (
            select from fullpass.windows
            where user_id = $1 and source = $2 and state = 'planned'
              and lane is distinct from 'batch')
        """,
        work.job.user_id,
        work.source,
    ):
        return True
    return await lanes.count_loose(work) > FEW or await first_memory_is_due(work)


async def first_memory_is_due(work: Pass) -> bool:
    """Whether the person has no MEMORY of a model's yet, and something to write one from."""
    due: bool = await work.fetchval(
        """
        select not exists (select from fullpass.memories
                           where user_id = $1 and writer in ('llm', 'rendering'))
           and exists (select from fullpass.extracted_facts
                       where user_id = $1 and rejected is null)
        """,
        work.job.user_id,
    )
    return due


async def awaited(work: Pass) -> AwaitsBatch:
    """Return what the pass waits for, in words, and until when."""
    batches = work.batches
    assert batches is not None  # noqa: S101 - nothing is out without them
    out = await batches.rows.open_of(work.job.user_id, work.source)
    saved = await work.fetchval(
        "select memory_saved_at is not null from fullpass.passes where job_id = $1", work.job.id
    )
    count, parts = len(out), sum(b.requests for b in out)
    since = min((b.sent_at or b.created_at for b in out), default=work.job.started_at)
    return AwaitsBatch(
        f"{count} message batch{'es' if count != 1 else ''} with {parts} window"
        f"{'s' if parts != 1 else ''}, sent {since:%Y-%m-%d %H:%M:%S} UTC",
        seconds=batches.pause_seconds(out),
        stage="A first memory is ready; the rest is being read"
        if saved
        else "Your conversations are being read",
    )


async def _collect(work: Pass, batches: Batches) -> bool:
    """Look at every batch that is out for this person; True when one of them ended."""
    ended = False
    for batch in await batches.rows.open_of(work.job.user_id, work.source):
        work.lease.check()
        ended = await batches.look(batch, noted=work.lease.progressed) or ended
        work.lease.progressed()
    return ended
