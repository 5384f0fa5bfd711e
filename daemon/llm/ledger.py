"""The ledger: one receipt for every paid reply, found again by content (promises 2 and 3)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from daemon.database import database_errors
from daemon.instruments import LLM_CALL_SECONDS, LLM_CALLS, LLM_COST_USD, LLM_TOKENS
from daemon.llm.request import Reply, Request, Usage
from daemon.llm.rounds import Rounds

if TYPE_CHECKING:
    from collections.abc import Callable
    from decimal import Decimal
    from uuid import UUID

    from daemon.database import Pool


@dataclass(frozen=True, slots=True)
class Receipt:
    """What the ledger knows of a call: a usable reply, or that this job paid for a useless one."""

    reply: Reply | None
    """None: paid before in this job, to no use; asking the same again would pay twice."""


@dataclass(frozen=True, slots=True)
class Spent:
    """Totals of a job's receipts."""

    calls: int
    input_tokens: int
    output_tokens: int
    cache_read_tokens: int
    cache_write_tokens: int
    cost_usd: Decimal
    unpriced_calls: int
    """Calls whose price is not known; `cost_usd` leaves them out."""
    batch_calls: int
    saved_by_cache_usd: Decimal
    saved_by_batch_usd: Decimal
    served_calls: int
    """Receipts that other jobs paid, or this one before an interruption, and that served it again;
    each counts once, however often it was asked for."""
    saved_by_ledger_usd: Decimal
    set_aside_usd: Decimal
    """The most that batches may yet cost whose bill is not known."""
    batches_out: int
    """How many of those somebody waits for; the others were given up."""


class Ledger:
    """Looks receipts up and writes them; rows are never changed but by erasure and pruning."""

    def __init__(self, pool: Pool, *, landed: Callable[[UUID], None] = lambda _job: None) -> None:
        """`landed` is told of each receipt's job: a receipt is progress."""
        self._pool = pool
        self._landed = landed
        self._rounds = Rounds(pool)

    async def settle(self) -> None:
        """Return when no receipt is on its way any more: before the pool is closed."""
        await self._rounds.settle()

    async def find(self, key: str, *, job_id: UUID, patient: bool = False) -> Receipt | None:
        """Return the receipt of a call with this content key, if it was ever paid.

        `patient`: nothing hangs on the answer in the next instant, so it may come with others'.
        """
        row = await self._rounds.look_up(key, job_id, patient=patient)
        if row is None:
            return None
        if not row["usable"]:
            return Receipt(reply=None)
        return Receipt(
            reply=Reply(
                text=row["response"],
                stop_reason=row["stop_reason"] or "unknown",
                usage=Usage(
                    row["input_tokens"] or 0,
                    row["output_tokens"] or 0,
                    row["cache_read_tokens"] or 0,
                    row["cache_write_tokens"] or 0,
                ),
                model=row["model"],
                request_id=row["request_id"] or "",
                from_ledger=True,
                batch=row["batch"],
            )
        )

    async def record(
        self,
        request: Request,
        reply: Reply,
        *,
        key: str,
        user_id: UUID,
        job_id: UUID,
        provider: str,
        usable: bool,
        settled: Callable[[], None] = lambda: None,
    ) -> None:
        """Write one receipt. Not fenced: what was paid stays known, whoever holds the job now.

        Tries through short database trouble; raises Systemic when that lasts. Goes on when its
        caller is cancelled; `settled` is told once it is durable or lost.
        """
        row: dict[str, Any] = {
            # The answer to an insert may be lost with the link: sent again, it is the same receipt.
            "receipt": str(uuid4()),
            "call_key": key,
            "user_id": user_id,
            "job_id": job_id,
            "purpose": request.purpose,
            "provider": provider,
            "model": reply.model,
            "prompt_version": request.prompt_version,
            "stop_reason": reply.stop_reason,
            "usable": usable,
            # Postgres holds no NUL, and no reply that means anything does.
            "response": reply.text.replace("\x00", "").encode("utf-8", "replace").decode(),
            "request_id": reply.request_id,
            "latency_ms": reply.latency_ms,
            "age_ms": reply.latency_ms + 1000,
            "batch": reply.batch,
        }
        if (usage := reply.usage) is not None:
            row |= {
                "input_tokens": usage.input_tokens,
                "output_tokens": usage.output_tokens,
                "cache_read_tokens": usage.cache_read_tokens,
                "cache_write_tokens": usage.cache_write_tokens,
            }
        if (bill := reply.bill) is not None:
            row |= {
                "cost_usd": bill.cost_usd,
                "saved_by_cache_usd": bill.saved_by_cache_usd,
                "saved_by_batch_usd": bill.saved_by_batch_usd,
            }

        def written() -> None:
            _count(request, reply, usable=usable)
            self._landed(job_id)

        await self._rounds.write(row, written, settled)

    async def spent(self, job_id: UUID) -> Spent:
        """Sum the job's receipts."""
        return await self._sum("job_id", job_id)

    async def spent_on(self, user_id: UUID) -> Spent:
        """Sum a person's receipts, of all their jobs, pruned and erased ones too."""
        return await self._sum("user_id", user_id)

    async def _sum(self, column: str, value: UUID) -> Spent:
        with database_errors():
            row = await self._pool.fetchrow(
                f"""
                select count(*) as calls,
                       coalesce(sum(input_tokens), 0) as input_tokens,
                       coalesce(sum(output_tokens), 0) as output_tokens,
                       coalesce(sum(cache_read_tokens), 0) as cache_read_tokens,
                       coalesce(sum(cache_write_tokens), 0) as cache_write_tokens,
                       coalesce(sum(cost_usd), 0) as cost_usd,
                       count(*) filter (where cost_usd is null) as unpriced_calls,
                       count(*) filter (where batch) as batch_calls,
                       coalesce(sum(saved_by_cache_usd), 0) as saved_by_cache_usd,
                       coalesce(sum(saved_by_batch_usd), 0) as saved_by_batch_usd,
                       (select count(*) from fullpass.calls_served where {column} = $1)
                           as served_calls,
                       (select coalesce(sum(c.cost_usd), 0) from fullpass.calls_served s
                        join fullpass.llm_calls c on c.id = s.call_id where s.{column} = $1)
                           as saved_by_ledger_usd,
                       (select coalesce(sum(estimated_usd), 0) from fullpass.batches
                        where {column} = $1 and state <> 'done') as set_aside_usd,
                       (select count(*) from fullpass.batches
                        where {column} = $1 and state <> 'done' and given_up_at is null)
                           as batches_out
                from fullpass.llm_calls where {column} = $1
                """,
                value,
            )
        # An aggregate always answers with one row.
        return Spent(**dict(row or {}))


def _count(request: Request, reply: Reply, *, usable: bool) -> None:
    LLM_CALLS.inc(request.purpose, "yes" if usable else "no")
    if not reply.batch:
        LLM_CALL_SECONDS.observe(request.purpose, reply.latency_ms / 1000)
    if (usage := reply.usage) is not None:
        LLM_TOKENS.inc("input", by=usage.input_tokens)
        LLM_TOKENS.inc("output", by=usage.output_tokens)
        LLM_TOKENS.inc("cache_read", by=usage.cache_read_tokens)
        LLM_TOKENS.inc("cache_write", by=usage.cache_write_tokens)
    if reply.bill is not None and reply.bill.cost_usd is not None:
        LLM_COST_USD.inc(by=float(reply.bill.cost_usd))
