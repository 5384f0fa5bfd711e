"""Sending planned windows by batch: what goes into one, what it may cost, and what is noted first.

A batch holds no key that is asked at once, waits in another or is in the ledger (promise 3). Before
it is made the most it can cost is set aside against MAX_COST_USD_PER_JOB. Leaves making it and what
comes of it to `llm/batches.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import TYPE_CHECKING

from daemon.errors import BadCall, CallFailed
from daemon.fullpass import lanes, windows
from daemon.fullpass.outcomes import MAX_TOKENS, request_for
from daemon.llm.batch_api import NoBatches, PerhapsMade
from daemon.llm.batch_rows import Draft
from daemon.llm.request import Usage
from daemon.logs import get_logger

if TYPE_CHECKING:
    from daemon.database import Connection
    from daemon.fullpass.context import Pass
    from daemon.llm.batch_rows import Batch
    from daemon.llm.batches import Batches
    from daemon.llm.request import Request

_log = get_logger()

_MOST_BYTES = 8 * 1024 * 1024
"""Text of one batch: the API takes 256 MB, but its body is built in memory (promise 7)."""
_MOST_REQUESTS = 10_000
FEW = 8
"""So few windows that came back are read at once: not worth another day."""
_MOST_ROUNDS = 3
_INSTRUCTION_TOKENS = 2_000
"""Set aside for what stands around a window's text: no less than instructions and schema are."""


@dataclass(slots=True)
class Sending:
    """How far the sending came."""

    blocked: bool = False
    """The money does not reach for the rest."""
    trouble: str | None = None


@dataclass(slots=True)
class _Draft:
    """Requests gathered for one batch."""

    requests: dict[str, tuple[int, Request]] = field(default_factory=dict)
    """By content key: window and request."""
    size_bytes: int = 0
    cost_usd: Decimal = Decimal(0)

    @property
    def full(self) -> bool:
        return self.size_bytes >= _MOST_BYTES or len(self.requests) >= _MOST_REQUESTS


async def send(work: Pass, batches: Batches) -> Sending:
    """Send what is to go by batch; what is too little, or came back too often, is read at once."""
    sending = Sending()
    out = await batches.rows.open_of(work.job.user_id, work.source)
    async with work.lease.fenced() as connection:
        await connection.execute(
            f"update fullpass.windows set lane = 'now' where id in (select w.id {lanes.LOOSE} "
            "and w.sent >= $3)",
            work.job.user_id,
            work.source,
            _MOST_ROUNDS,
        )
    if not out and await _refused_for_a_day(work):
        _log.warning("batch.none", error="no batch could be made for a day", instead="realtime")
        await lanes.all_now(work)
        return sending
    if await lanes.count_loose(work) <= FEW and not await lanes.count_loose(work, unsent=True):
        # While others are out more may join these; the last ones are read at once.
        if not out:
            await lanes.all_now(work)
        return sending
    left = await _money_left(work, batches)
    draft = _Draft()
    asked = await _asked_now(work)
    after = 0
    while page := await lanes.loose_after(work, after):
        for window_id in page:
            after = window_id
            work.lease.check()
            window = await windows.load(work, window_id)
            request = replace(request_for(work, window), messages=())
            key = request.content_key(str(work.job.user_id))
            known = await work.caller.ledger.find(key, job_id=work.job.id)
            if window.missing or key in asked or known is not None:
                await lanes.read_now(work, window_id)
                continue
            if key in draft.requests or await batches.rows.waiting_elsewhere([key]):
                continue  # its twin's reply will serve it too
            cost = batches.api.most_it_costs(request)
            if left is not None and draft.cost_usd + cost > left:
                sending.blocked = True
                break
            draft.requests[key] = (window_id, request)
            draft.size_bytes += len(request.text.encode("utf-8", "replace")) + len(request.system)
            draft.cost_usd += cost
            if draft.full:
                if left is not None:
                    left -= draft.cost_usd
                await _send_one(work, batches, draft, sending)
                draft = _Draft()
            if sending.trouble is not None or batches.missing:
                return sending
        if sending.blocked:
            break
    if draft.requests:
        await _send_one(work, batches, draft, sending)
    return sending


async def _refused_for_a_day(work: Pass) -> bool:
    """Whether a day has passed since the first of the last batches that could not be made."""
    refused: bool = await work.fetchval(
        """
        select coalesce(min(created_at) < clock_timestamp() - interval '1 day', false)
        from fullpass.batches b
        where b.job_id = $1 and b.outcome = 'never sent' and not exists (
            select from fullpass.batches s
            where s.job_id = b.job_id and s.id > b.id and s.sent_at is not null)
        """,
        work.job.id,
    )
    return refused


async def _send_one(work: Pass, batches: Batches, draft: _Draft, sending: Sending) -> None:
    """Write one batch down and make it."""
    requests = draft.requests
    _, sample = next(iter(requests.values()))
    priced = batches.api.cost_usd(sample.model, Usage(), batch=True) is not None
    async with work.lease.fenced() as connection:
        batch = await batches.rows.begin(
            connection,
            Draft(
                job_id=work.job.id,
                user_id=work.job.user_id,
                source=work.source,
                provider=work.caller.provider.name,
                model=batches.api.model_id(sample.model),
                purpose=sample.purpose,
                prompt_version=sample.prompt_version,
                estimated_usd=draft.cost_usd if priced else None,
            ),
            {key: window_id for key, (window_id, _) in requests.items()},
        )
        await _note_sent(work, connection, batch)
    work.lease.check()
    try:
        await batches.send(batch, [(key, request) for key, (_, request) in requests.items()])
    except NoBatches as error:
        _log.warning("batch.none", error=str(error), instead="realtime")
    except BadCall as error:
        _log.warning("batch.refused", error=str(error), instead="realtime")
        for window_id, _ in requests.values():
            await lanes.read_now(work, window_id)
    except PerhapsMade as error:
        _log.warning("batch.perhaps_made", error=str(error))
        sending.trouble = str(error)
    except CallFailed as error:
        _log.warning("batch.not_made", error=str(error))
        sending.trouble = str(error)
    work.lease.progressed()


async def _note_sent(work: Pass, connection: Connection, batch: Batch) -> None:
    await connection.execute(
        """
        select fullpass.note_event(
            j, 'batch', $2, jsonb_build_object('windows', $3::int))
        from public.processing_jobs j where j.id = $1
        """,
        work.job.id,
        work.step,
        batch.requests,
    )


async def _money_left(work: Pass, batches: Batches) -> Decimal | None:
    """Return what the job may still spend on batches; None without a limit.

    What is out, and what is to be read at once, is set aside at the most it can cost: thinking is
    paid as output, so a reply may be all that it is allowed to be. So may one that was paid and of
    which no server told what it cost.
    """
    most = work.settings.max_cost_usd_per_job
    if most is None:
        return None
    spent = await work.caller.ledger.spent(work.job.id)
    row = await work.fetchrow(
        """
        select count(*) filter (where now) as windows,
               coalesce(sum(token_count) filter (where now), 0) as tokens,
               coalesce(max(token_count), 0) as most_tokens
        from (select token_count, state = 'planned' and lane = 'now' as now
              from fullpass.windows where user_id = $1 and source = $2) as w
        """,
        work.job.user_id,
        work.source,
    )
    assert row is not None  # noqa: S101 - an aggregate always answers with one row

    def price(tokens: float) -> Decimal:
        usage = Usage(int(tokens * 1.15) + _INSTRUCTION_TOKENS, MAX_TOKENS)
        model = work.settings.extraction_model
        return batches.api.cost_usd(model, usage, batch=False) or Decimal(0)

    # Window by window: the sum's length would be taken for one long prompt's, which is dearer.
    head: Decimal = row["windows"] * price(row["tokens"] / max(1, row["windows"]))
    unknown: Decimal = spent.unpriced_calls * price(row["most_tokens"])
    return Decimal(str(most)) - spent.cost_usd - spent.set_aside_usd - head - unknown


async def _asked_now(work: Pass) -> set[str]:
    """Return the keys of what is about to be read at once: a batch must not ask it too."""
    keys: set[str] = set()
    for window_id in await windows.planned(work, after=0, limit=lanes.MOST_HEAD * 2):
        window = await windows.load(work, window_id)
        keys.add(request_for(work, window).content_key(str(work.job.user_id)))
    return keys
