"""What a job cost and what was saved, summed from its receipts, and the words for it.

Receipts are never changed, so the sums survive every resume. A receipt that served a job in place
of a call counts once for it, however often the job asked.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from uuid import UUID

    from daemon.database import Connection


async def cost_of(connection: Connection, job_id: UUID) -> dict[str, Any]:
    """Sum the job's receipts, in all and by purpose."""
    rows = await connection.fetch(
        """
        select purpose, count(*) as calls, count(*) filter (where not usable) as useless_calls,
               coalesce(sum(input_tokens), 0) as input_tokens,
               coalesce(sum(output_tokens), 0) as output_tokens,
               coalesce(sum(cache_read_tokens), 0) as cache_read_tokens,
               coalesce(sum(cache_write_tokens), 0) as cache_write_tokens,
               coalesce(sum(cost_usd), 0) as cost_usd,
               count(*) filter (where cost_usd is null) as calls_of_unknown_price,
               count(*) filter (where batch) as batch_calls,
               coalesce(sum(saved_by_cache_usd), 0) as saved_by_cache_usd,
               coalesce(sum(saved_by_batch_usd), 0) as saved_by_batch_usd
        from fullpass.llm_calls where job_id = $1 group by 1 order by min(id)
        """,
        job_id,
    )
    served = await connection.fetchrow(
        """
        select count(*) as calls_served_by_ledger,
               coalesce(sum(c.cost_usd), 0) as saved_by_ledger_usd
        from fullpass.calls_served s join fullpass.llm_calls c on c.id = s.call_id
        where s.job_id = $1
        """,
        job_id,
    )
    names = (
        "calls", "useless_calls", "input_tokens", "output_tokens", "cache_read_tokens",
        "cache_write_tokens", "cost_usd", "calls_of_unknown_price", "batch_calls",
        "saved_by_cache_usd", "saved_by_batch_usd",
    )  # fmt: skip
    return {
        **{name: sum(row[name] for row in rows) for name in names},
        **dict(served or {}),
        "by_purpose": {row["purpose"]: {name: row[name] for name in names} for row in rows},
    }


def savings(cost: dict[str, Any]) -> str:
    """Say what caching, batches and the ledger saved; empty when nothing was."""
    parts = [
        f"${cost[key]:.4f} by {name}"
        for name, key in (("caching", "saved_by_cache_usd"), ("batches", "saved_by_batch_usd"))
        if cost[key] >= 0.00005
    ]
    served = cost["calls_served_by_ledger"]
    if served:
        calls = "call" if served == 1 else "calls"
        parts.append(f"${cost['saved_by_ledger_usd']:.4f} by {served:,} {calls} paid before")
    return f"saved {', '.join(parts)}" if parts else ""


def tokens(cost: dict[str, Any]) -> str:
    """Say how many tokens were read and written, those of the cache apart."""
    told = f"{cost['input_tokens']:,} tokens in, {cost['output_tokens']:,} out"
    cached = [
        f"{cost[key]:,} {what}"
        for what, key in (("from cache", "cache_read_tokens"), ("to cache", "cache_write_tokens"))
        if cost[key]
    ]
    return ", ".join([told, *cached])
