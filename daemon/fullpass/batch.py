"""Extraction by batch: which windows are sent, which are read at once, and what is waited for.

    planned ──▶ a few now, for a first MEMORY
        └─────▶ sent by batch ──▶ landed: read from the ledger like a reply of a call
                        └───────▶ came back unread: the next batch, or now

A window is read at once when its reply is in the ledger, when the server cannot take it by batch,
or when too few came back to be worth another day; a text is sent three times at most. The head of a
person's first pass, the windows a first MEMORY is made from, is this: of the newest tenth of the
windows (160 at most), the quarter in which the person says most themselves.

Owns these choices and the money set aside for what is out. Leaves batches to `llm/batches.py` and
what a reply means to `outcomes.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import TYPE_CHECKING

from daemon.errors import AwaitsBatch, BadCall, CallFailed, GiveUp, Wait
from daemon.export.conversation import EVIDENCE_ROLES
from daemon.fullpass import windows
from daemon.fullpass.outcomes import request_for
from daemon.fullpass.tokens import estimate_tokens
from daemon.llm.batch_api import NoBatches, PerhapsMade
from daemon.llm.batch_rows import Draft
from daemon.llm.batches import SHARE_OF_PRICE
from daemon.llm.pricing import cost_usd, model_named
from daemon.llm.request import Usage
from daemon.logs import get_logger

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from daemon.database import Connection
    from daemon.fullpass.context import Pass
    from daemon.llm.batch_rows import Batch
    from daemon.llm.batches import Batches
    from daemon.llm.request import Request

_log = get_logger()

_MOST_BYTES = 8 * 1024 * 1024
"""Text of one batch: the API takes 256 MB, but its body is built in memory (promise 7)."""
_MOST_REQUESTS = 10_000
_FEW = 8
"""So few windows that came back are read at once: not worth another day."""
_MOST_ROUNDS = 3
_MOST_HEAD = 40
_HEAD_CHOICES = 4
"""The head is chosen from so many times its number, the newest."""
_REPLY_TOKENS = 2_100
"""Output set aside for a window: 30 facts, its most, of 70 tokens."""
_PAGE = 200

# A window that goes by batch and is in none that is out.
_LOOSE = """
    from fullpass.windows w
    where w.user_id = $1 and w.source = $2 and w.state = 'planned' and w.lane = 'batch'
      and not exists (select from fullpass.batch_items i
                      where i.window_id = w.id and i.state = 'waiting')
"""


async def read_all(work: Pass, read_now: Callable[[], Awaitable[None]]) -> bool:
    """Read all planned windows, at once or by batch; False while some of them are out.

    `read_now` reads every planned window that does not go by batch. Raises GiveUp where the job's
    money does not reach, Wait when batches cannot be made now, and what `read_now` raises.
    """
    batches = work.batches
    if batches is None:
        await _all_now(work)
        await read_now()
        return True
    blocked = False
    while True:
        await _collect(work, batches)
        await _sort(work)
        sending = _Sending()
        if work.settings.extraction_mode == "batch" and not batches.missing:
            await _choose(work)
            sending = await _send(work, batches)
        if work.settings.extraction_mode != "batch" or batches.missing:
            await _all_now(work)
        await read_now()
        if await batches.rows.open_of(work.job.user_id):
            return False
        if not await _count_loose(work):
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


async def still_out(work: Pass) -> None:
    """Look at the batches of a pass that waits for nothing else; raise AwaitsBatch if none ended.

    Saves the steps of a pass each time somebody looks.
    """
    batches = work.batches
    if batches is None:
        return
    out = await batches.rows.open_of(work.job.user_id)
    if not out or await work.fetchval(
        """
        select exists (
            select from fullpass.windows
            where user_id = $1 and source = $2 and state = 'planned'
              and lane is distinct from 'batch')
        """,
        work.job.user_id,
        work.source,
    ):
        return
    if await _count_loose(work) > _FEW or await first_memory_is_due(work):
        return
    if not await _collect(work, batches):
        raise await awaited(work)


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
    out = await batches.rows.open_of(work.job.user_id)
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
    for batch in await batches.rows.open_of(work.job.user_id):
        work.lease.check()
        ended = await batches.look(batch, noted=work.lease.progressed) or ended
        work.lease.progressed()
    return ended


async def _all_now(work: Pass) -> None:
    """Read at once what was meant for a batch and is in none (all of it, without batches)."""
    async with work.lease.fenced() as connection:
        await connection.execute(
            f"""
            update fullpass.windows set lane = 'now' where id in (select w.id {_LOOSE})
               or $3 and user_id = $1 and source = $2 and state = 'planned' and lane = 'batch'
            """,
            work.job.user_id, work.source, work.batches is None,
        )  # fmt: skip


async def _sort(work: Pass) -> None:
    """Have read at once what landed, and what no batch will answer: refused, or given up."""
    async with work.lease.fenced() as connection:
        await connection.execute(
            """
            update fullpass.windows w
            set lane = case i.state when 'succeeded' then 'landed' else 'now' end
            from fullpass.batch_items i
            where w.user_id = $1 and w.source = $2 and w.state = 'planned' and w.lane = 'batch'
              and i.window_id = w.id
              and (i.state in ('succeeded', 'stray')
                   or i.state = 'errored' and i.detail = 'invalid_request_error')
            """,
            work.job.user_id,
            work.source,
        )


async def _choose(work: Pass) -> None:
    """Decide how each newly planned window is read; decided once, so that a resume agrees."""
    who = (work.job.user_id, work.source)
    undecided = """
        from fullpass.windows
        where user_id = $1 and source = $2 and state = 'planned' and lane is null
    """
    count: int = await work.fetchval(f"select count(*) {undecided}", *who)
    if not count:
        return
    first = not await work.fetchval(
        "select exists (select from fullpass.memories "
        "where user_id = $1 and writer in ('llm', 'rendering'))",
        work.job.user_id,
    )
    head = min(_MOST_HEAD, -(-count // 10)) if first else 0
    chosen = await work.fetch(
        f"""
        select w.id
        from (select id, content_hashes {undecided} order by id desc limit $3) as w
        cross join lateral (
            select coalesce(sum(m.stop - m.start), 0) as own_characters
            from unnest(w.content_hashes) as h (content_hash)
            join public.conversation_chunks c
                on c.user_id = $1 and c.source = $2 and c.content_hash = h.content_hash
                and c.chunk_tier::text = $4
            join fullpass.chunk_messages m on m.chunk_id = c.id and m.role = any ($5)
        ) as said
        order by said.own_characters desc, w.id desc limit $6
        """,
        *who, head * _HEAD_CHOICES, work.medium, list(EVIDENCE_ROLES), head,
    )  # fmt: skip
    async with work.lease.fenced() as connection:
        await connection.execute(
            """
            update fullpass.windows
            set lane = case when id = any ($3) then 'now' else 'batch' end
            where user_id = $1 and source = $2 and state = 'planned' and lane is null
            """,
            *who,
            [row["id"] for row in chosen],
        )
    _log.info("batch.chosen", windows=count, now=len(chosen))


@dataclass(slots=True)
class _Sending:
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


async def _send(work: Pass, batches: Batches) -> _Sending:
    """Send what is to go by batch; what is too little, or came back too often, is read at once."""
    sending = _Sending()
    out = await batches.rows.open_of(work.job.user_id)
    async with work.lease.fenced() as connection:
        await connection.execute(
            f"update fullpass.windows set lane = 'now' where id in (select w.id {_LOOSE} "
            "and w.sent >= $3)",
            work.job.user_id,
            work.source,
            _MOST_ROUNDS,
        )
    if await _count_loose(work) <= _FEW and not await _count_loose(work, unsent=True):
        # While others are out more may join these; the last ones are read at once.
        if not out:
            await _all_now(work)
        return sending
    left = await _money_left(work, out)
    draft = _Draft()
    asked = await _asked_now(work)
    after = 0
    while page := await _loose_after(work, after):
        for window_id in page:
            after = window_id
            work.lease.check()
            window = await windows.load(work, window_id)
            request = replace(request_for(work, window), messages=())
            key = request.content_key(str(work.job.user_id))
            known = await work.caller.ledger.find(key, job_id=work.job.id)
            if window.missing or key in asked or known is not None:
                await _read_now(work, window_id)
                continue
            if key in draft.requests or await batches.rows.waiting_elsewhere([key]):
                continue  # its twin's reply will serve it too
            cost = _estimated_usd(request)
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


async def _send_one(work: Pass, batches: Batches, draft: _Draft, sending: _Sending) -> None:
    """Write one batch down and make it."""
    requests = draft.requests
    _, sample = next(iter(requests.values()))
    model = model_named(sample.model).id
    priced = cost_usd(model, Usage()) is not None
    async with work.lease.fenced() as connection:
        batch = await batches.rows.begin(
            connection,
            Draft(
                job_id=work.job.id,
                user_id=work.job.user_id,
                source=work.source,
                provider=work.caller.provider.name,
                model=model,
                purpose=sample.purpose,
                prompt_version=sample.prompt_version,
                estimated_usd=draft.cost_usd if priced else None,
            ),
            {key: window_id for key, (window_id, _) in requests.items()},
        )
        await connection.execute(
            "update fullpass.windows set sent = sent + 1 where id = any ($1)",
            [window_id for window_id, _ in requests.values()],
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
            await _read_now(work, window_id)
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


async def _money_left(work: Pass, out: list[Batch]) -> Decimal | None:
    """Return what the job may still spend on batches; None without a limit.

    What is out, and what is to be read at once, is set aside at its estimated cost.
    """
    most = work.settings.max_cost_usd_per_job
    if most is None:
        return None
    spent = (await work.caller.ledger.spent(work.job.id)).cost_usd
    row = await work.fetchrow(
        """
        select count(*) as windows, coalesce(sum(token_count), 0) as tokens
        from fullpass.windows
        where user_id = $1 and source = $2 and state = 'planned' and lane = 'now'
        """,
        work.job.user_id,
        work.source,
    )
    head = Decimal(0)
    if row is not None and row["windows"]:
        usage = Usage(int(row["tokens"] * 1.15), _REPLY_TOKENS * row["windows"])
        head = cost_usd(model_named(work.settings.extraction_model).id, usage) or Decimal(0)
    set_aside = sum((b.estimated_usd or Decimal(0) for b in out), Decimal(0))
    return Decimal(str(most)) - spent - set_aside - head


def _estimated_usd(request: Request) -> Decimal:
    """Estimate what one request costs by batch, rather too high; 0 when the price is not known."""
    prompt = estimate_tokens(request.system) + estimate_tokens(request.text)
    cost = cost_usd(model_named(request.model).id, Usage(int(prompt * 1.15), _REPLY_TOKENS))
    return Decimal(0) if cost is None else cost * SHARE_OF_PRICE


async def _asked_now(work: Pass) -> set[str]:
    """Return the keys of what is about to be read at once: a batch must not ask it too."""
    keys: set[str] = set()
    for window_id in await windows.planned(work, after=0, limit=_MOST_HEAD * 2):
        window = await windows.load(work, window_id)
        keys.add(request_for(work, window).content_key(str(work.job.user_id)))
    return keys


async def _read_now(work: Pass, window_id: int) -> None:
    async with work.lease.fenced() as connection:
        await connection.execute(
            "update fullpass.windows set lane = 'now' where id = $1", window_id
        )


async def _count_loose(work: Pass, *, unsent: bool = False) -> int:
    count: int = await work.fetchval(
        f"select count(*) {_LOOSE} and (w.sent = 0 or not $3)",
        work.job.user_id,
        work.source,
        unsent,
    )
    return count


async def _loose_after(work: Pass, after: int) -> list[int]:
    rows = await work.fetch(
        f"select w.id {_LOOSE} and w.id > $3 order by w.id limit $4",
        work.job.user_id, work.source, after, _PAGE,
    )  # fmt: skip
    return [row["id"] for row in rows]
