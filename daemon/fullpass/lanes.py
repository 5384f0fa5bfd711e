"""The way each planned window is read: at once, or by batch.

    null ──choose──▶ now                  read by a call of its own, or from the ledger
              └────▶ batch ──▶ landed     its reply lies in the ledger, like any other
                        └────▶ now        no batch will answer it

A window is read at once when its reply is in the ledger, when the server cannot take it by batch,
or when too few came back to be worth another day. The head of a person's first pass, which a first
MEMORY is made from, is a tenth of its windows, 40 at most: of the newest four times as many, those
in which the person says most themselves. Decided once and stored, so that a resume agrees. Leaves
sending to `batch_send.py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from daemon.export.conversation import EVIDENCE_ROLES
from daemon.logs import get_logger

if TYPE_CHECKING:
    from daemon.fullpass.context import Pass

_log = get_logger()

MOST_HEAD = 40
_HEAD_CHOICES = 4
"""The head is chosen from so many times its number, the newest."""
_PAGE = 200

# A window that goes by batch and is in none that is out.
LOOSE = """
    from fullpass.windows w
    where w.user_id = $1 and w.source = $2 and w.state = 'planned' and w.lane = 'batch'
      and not exists (select from fullpass.batch_items i
                      where i.window_id = w.id and i.state = 'waiting')
"""


async def choose(work: Pass) -> None:
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
    head = min(MOST_HEAD, -(-count // 10)) if first else 0
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


async def sort(work: Pass) -> None:
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


async def all_now(work: Pass) -> None:
    """Read at once what was meant for a batch and is in none (all of it, without batches)."""
    async with work.lease.fenced() as connection:
        await connection.execute(
            f"""
            update fullpass.windows set lane = 'now' where id in (select w.id {LOOSE})
               or $3 and user_id = $1 and source = $2 and state = 'planned' and lane = 'batch'
            """,
            work.job.user_id, work.source, work.batches is None,
        )  # fmt: skip


async def read_now(work: Pass, window_id: int) -> None:
    """Read one window at once after all."""
    async with work.lease.fenced() as connection:
        await connection.execute(
            "update fullpass.windows set lane = 'now' where id = $1", window_id
        )


async def count_loose(work: Pass, *, unsent: bool = False) -> int:
    """Count the windows that go by batch and are in none; `unsent`: that never were."""
    count: int = await work.fetchval(
        f"select count(*) {LOOSE} and (w.sent = 0 or not $3)",
        work.job.user_id,
        work.source,
        unsent,
    )
    return count


async def loose_after(work: Pass, after: int) -> list[int]:
    """Return the ids of the next windows that go by batch and are in none."""
    rows = await work.fetch(
        f"select w.id {LOOSE} and w.id > $3 order by w.id limit $4",
        work.job.user_id, work.source, after, _PAGE,
    )  # fmt: skip
    return [row["id"] for row in rows]
