"""Extraction windows: which chunks go to the model together.

Planned once from the chunks that have no outcome yet, and stored; a window never changes after, so
new text never shifts old windows and their receipts stay good (promise 3). A window that proves too
much for one reply is split into two, down to the messages of a single chunk.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeVar

from daemon.errors import LeaseLost
from daemon.export.conversation import EVIDENCE_ROLES
from daemon.fullpass.chunks import CHUNKING_VERSION
from daemon.llm.request import NumberedMessage

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime
    from uuid import UUID

    from daemon.database import Connection
    from daemon.fullpass.context import Pass

WindowState = Literal["done", "split"]
Key = TypeVar("Key")
Part = tuple[tuple[str, ...], int | None, int | None]
"""A half of a window: its chunks, and the first and last ordinal of a part of one chunk."""
_SURE_RATIO = (0.7, 1.5)
"""What a model counts for each token estimated; outside, the server's account is not believed."""
PLANNED_AT_ONCE = 4_000
"""Chunks looked at in one transaction, so that each is short however large the export."""


@dataclass(frozen=True, slots=True)
class WindowMessage:
    """A message, or a piece of one, as a window shows it, and where it stands in the database."""

    shown: NumberedMessage
    content_hash: str
    chunk_id: UUID
    conversation_id: str
    message_id: str
    observed_at: datetime | None
    ordinal: int


@dataclass(frozen=True, slots=True)
class Window:
    """A planned window, loaded."""

    id: int
    content_hashes: tuple[str, ...]
    first: int | None
    """With `last`: the ordinals [first, last] of the messages shown of a window's only chunk."""
    last: int | None
    token_count: int
    messages: tuple[WindowMessage, ...]
    missing: bool
    """Whether a chunk of it is gone: it must not be read any more."""
    landed_as: str | None = None
    """The content key of the reply that a batch brought for it, whatever would be asked today."""

    def text(self) -> str:
        """Render the messages as the prompt shows them: labelled, fenced, data only.

        A day is told where it changes: of a label's tokens it takes a third. Where another
        conversation begins is told too, or a game would go on in what the person says next.
        """
        days = ["", *(_day(m.shown) for m in self.messages)]
        within = [m.conversation_id for m in (*self.messages[:1], *self.messages)]
        return "\n".join(
            shown(
                m.shown,
                day=day if n == 0 or day != days[n] else None,
                begins=m.conversation_id != within[n],
            )
            for n, (m, day) in enumerate(zip(self.messages, days[1:], strict=True))
        )


_FENCE = re.compile(r"<(?=\s{0,9}/?\s{0,9}message)", re.IGNORECASE)


def _day(message: NumberedMessage) -> str:
    return "" if message.at is None else f"{message.at:%Y-%m-%d}"


_WEEK = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")


def shown(message: NumberedMessage, *, day: str | None, begins: bool = False) -> str:
    """Render one message; `day` None where it is that of the message before, "" where unknown.

    The weekday is told with it: "last Friday" is reckoned from it, and models misreckon it.
    """
    date = "" if day is None else f' date="{day}"'
    if day and message.at is not None:
        date += f' day="{_WEEK[message.at.weekday()]}"'
    if begins:
        date += ' conversation="new"'
    # Text cannot close its own fence: the mark that would is broken by an invisible space.
    text = _FENCE.sub("<\u200b", message.text)
    return f'<message n="{message.number}" role="{message.role}"{date}>\n{text}\n</message>'


# Chunks of this person and source that the extractor still has to read: no outcome yet, or only an
# offline reader's where now a model reads, or a failure that an earlier job left.
_UNREAD = """
    from public.conversation_chunks c
    where c.user_id = $1 and c.source = $2 and c.chunk_tier::text = $3
      and c.chunking_version = $4
      and not exists (
          select from fullpass.chunk_outcomes o
          where o.user_id = c.user_id and o.content_hash = c.content_hash
            and (o.extractor = 'llm' or $5) and not (o.outcome = 'failed' and o.job_id <> $6))
"""


async def plan(work: Pass) -> int:
    """Plan windows for all unread chunks that no planned window holds; return how many wait.

    Chunks without a word of the person's own can hold no fact: they are accounted for as empty and
    sent to no model.
    """
    who = (
        work.job.user_id, work.source, work.medium, CHUNKING_VERSION, work.extractor == "offline",
        work.job.id,
    )  # fmt: skip
    async with work.lease.fenced() as connection:
        await _drop_stale(work, connection)
    # Each page takes what the pages before left over; the last one finds nothing.
    while await _account_for_wordless(work, who):
        pass
    room = await _room(work)
    while await _plan_page(work, who, room):
        pass
    return int(
        await work.fetchval(
            """
            select count(*) from fullpass.windows
            where user_id = $1 and source = $2 and state = 'planned'
            """,
            work.job.user_id,
            work.source,
        )
    )


async def _account_for_wordless(work: Pass, who: tuple[object, ...]) -> bool:
    """Put down a page of chunks that hold none of the person's words; False when none is left."""
    async with work.lease.fenced() as connection:
        done = await connection.execute(
            f"""
            insert into fullpass.chunk_outcomes (
                user_id, content_hash, job_id, chunk_id, source, extractor, outcome, detail)
            select c.user_id, c.content_hash, $6, c.id, c.source, $7, 'empty',
                   'no words of the person''s own'
            {_UNREAD}
              and not exists (select from fullpass.chunk_messages m
                              where m.chunk_id = c.id and m.role = any ($8))
            limit {PLANNED_AT_ONCE}
            on conflict (user_id, content_hash) do update set
                job_id = excluded.job_id, chunk_id = excluded.chunk_id, outcome = 'empty',
                extractor = excluded.extractor, detail = excluded.detail
            """,
            *who, work.extractor, list(EVIDENCE_ROLES),
        )  # fmt: skip
    return not done.endswith(" 0")


async def _room(work: Pass) -> int:
    """Return how many estimated tokens a window may hold, corrected by what replies reported."""
    if work.caller.offline:
        # Reading by rule costs no call: each chunk alone, so that no conversation's context (a
        # role-play, say) reaches into another's.
        return 0
    ratio: float = await work.fetchval(
        "select fullpass.token_ratio($1, $2)", work.job.user_id, work.settings.extraction_model
    )
    low, high = _SURE_RATIO
    return int(work.settings.extraction_window_tokens / min(high, max(low, ratio)))


async def _plan_page(work: Pass, who: tuple[object, ...], room: int) -> bool:
    """Plan windows for a page of unread chunks; False when none is left."""
    async with work.lease.fenced() as connection:
        rows = await connection.fetch(
            f"""
            select c.content_hash, c.token_count
            {_UNREAD}
              and c.content_hash <> all (
                  select unnest(w.content_hashes) from fullpass.windows w
                  where w.user_id = $1 and w.source = $2 and w.state = 'planned')
            order by c.created_at, c.conversation_id, c.chunk_index
            limit {PLANNED_AT_ONCE}
            """,
            *who,
        )
        packs = packed([(r["content_hash"], r["token_count"]) for r in rows], room)
        await connection.executemany(
            """
            insert into fullpass.windows (user_id, source, content_hashes, token_count)
            values ($1, $2, $3, $4)
            """,
            [(work.job.user_id, work.source, hashes, tokens) for hashes, tokens in packs],
        )
    return bool(rows)


async def _drop_stale(work: Pass, connection: Connection) -> None:
    """Drop planned windows of which a chunk is gone or was read since; the rest is replanned."""
    await connection.execute(
        """
        update fullpass.windows w set state = 'dropped'
        where w.user_id = $1 and w.source = $2 and w.state = 'planned' and exists (
            select from unnest(w.content_hashes) as h (content_hash)
            where not exists (
                select from public.conversation_chunks c
                where c.user_id = $1 and c.source = $2 and c.content_hash = h.content_hash))
        """,
        work.job.user_id, work.source,
    )  # fmt: skip


def packed(chunks: Sequence[tuple[Key, int]], room: int) -> list[tuple[list[Key], int]]:
    """Pack chunks, in order, into windows of at most `room` tokens (one chunk may exceed it)."""
    packs: list[tuple[list[Key], int]] = []
    hashes: list[Key] = []
    size = 0
    for content_hash, tokens in chunks:
        if hashes and size + tokens > room:
            packs.append((hashes, size))
            hashes, size = [], 0
        hashes.append(content_hash)
        size += tokens
    if hashes:
        packs.append((hashes, size))
    return packs


async def planned(work: Pass, *, after: int, limit: int) -> list[int]:
    """Return the ids of the next planned windows that do not go by batch, in order."""
    rows = await work.fetch(
        """
        select id from fullpass.windows
        where user_id = $1 and source = $2 and state = 'planned' and id > $3
          and lane is distinct from 'batch'
        order by id limit $4
        """,
        work.job.user_id, work.source, after, limit,
    )  # fmt: skip
    return [row["id"] for row in rows]


async def load(work: Pass, window_id: int) -> Window:
    """Load one window with the messages it shows, numbered from 1 in reading order."""
    row = await work.fetchrow(
        """
        select content_hashes, token_count, first_ordinal, last_ordinal,
               case when lane = 'landed' then (
                   select i.call_key from fullpass.batch_items i
                   where i.window_id = w.id and i.state = 'succeeded'
                   order by i.batch desc limit 1) end as landed_as
        from fullpass.windows w where id = $1
        """,
        window_id,
    )
    if row is None:  # its person was erased meanwhile
        raise LeaseLost(f"window {window_id} is gone")
    found = await work.fetch(
        """
        select c.content_hash, c.id, c.conversation_id, c.content, c.created_at, k.dated,
               m.ordinal, m.message_id, m.role, m.at, m.start, m.stop
        from unnest($3::text[]) with ordinality as h (content_hash, place)
        join public.conversation_chunks c
            on c.user_id = $1 and c.source = $2 and c.content_hash = h.content_hash
            and c.chunk_tier::text = $4
        join fullpass.chunk_messages m on m.chunk_id = c.id
        left join fullpass.conversations k
            on k.user_id = c.user_id and k.source = c.source
            and k.conversation_id = c.conversation_id
        where ($5::int is null or m.ordinal between $5 and $6)
        order by h.place, m.ordinal
        """,
        work.job.user_id, work.source, row["content_hashes"], work.medium,
        row["first_ordinal"], row["last_ordinal"],
    )  # fmt: skip
    messages = []
    for number, f in enumerate(found, start=1):
        at = f["at"] or (f["created_at"] if f["dated"] else None)
        text = f["content"][f["start"] : f["stop"]]
        messages.append(
            WindowMessage(
                shown=NumberedMessage(number, f["role"], at, text),
                content_hash=f["content_hash"],
                chunk_id=f["id"],
                conversation_id=f["conversation_id"],
                message_id=f["message_id"],
                observed_at=at,
                ordinal=f["ordinal"],
            )
        )
    hashes = tuple(row["content_hashes"])
    return Window(
        id=window_id,
        content_hashes=hashes,
        first=row["first_ordinal"],
        last=row["last_ordinal"],
        token_count=row["token_count"],
        messages=tuple(messages),
        missing={m.content_hash for m in messages} != set(hashes),
        landed_as=row["landed_as"],
    )


def halves(window: Window) -> list[Part]:
    """Return the two windows that a window splits into, or none when it is a single message."""
    hashes = window.content_hashes
    if len(hashes) > 1:
        middle = len(hashes) // 2
        return [(hashes[:middle], None, None), (hashes[middle:], None, None)]
    ordinals = [m.ordinal for m in window.messages]
    if len(ordinals) < 2:
        return []
    middle = ordinals[(len(ordinals) - 1) // 2]
    return [(hashes, ordinals[0], middle), (hashes, middle + 1, ordinals[-1])]


async def close(
    work: Pass,
    connection: Connection,
    window: Window,
    state: WindowState,
    tokens: tuple[int, int] | None = None,
) -> list[int] | None:
    """Mark a window as done, or replace it by its halves; return the halves' ids.

    `tokens`: what its request was estimated at, and what was billed for it, where that is known.

    Returns None when it is not planned any more: its effects were written before (a commit whose
    answer got lost), and must not be written again.
    """
    marked = await connection.fetchval(
        """
        update fullpass.windows
        set state = $2, model = $3, estimated_tokens = $4, billed_tokens = $5
        where id = $1 and state = 'planned' returning id
        """,
        window.id, state, work.settings.extraction_model, *(tokens or (None, None)),
    )  # fmt: skip
    if marked is None:
        return None
    if state == "done":
        return []
    rows = await connection.fetch(
        """
        insert into fullpass.windows (
            user_id, source, content_hashes, token_count, parent_id, first_ordinal, last_ordinal,
            lane, sent)
        select $1, $2, array(select jsonb_array_elements_text(h.hashes)), $4, $5, h.first, h.last,
               -- Halves of what came by batch go by batch again, if there are enough of them.
               case p.lane when 'landed' then 'batch' else p.lane end, p.sent
        from jsonb_to_recordset($3) as h (hashes jsonb, first int, last int)
        join fullpass.windows p on p.id = $5
        returning id
        """,
        work.job.user_id, work.source, _as_json(halves(window)), window.token_count // 2,
        window.id,
    )  # fmt: skip
    return [row["id"] for row in rows]


def _as_json(parts: list[Part]) -> str:
    return json.dumps([{"hashes": h, "first": a, "last": b} for h, a, b in parts])
