"""The outbox as workers see it: messages taken, and what became of each.

Rows are written by the database in the transaction of what they tell of (sql/migrations/0020),
for channels that some worker keeps live. Taking one puts it off first, so that a crash while it is
sent sends it again later, under the same id. Leaves when to look to `telling.py`, and what a
message says to its channel.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Protocol

from daemon.database import database_errors

if TYPE_CHECKING:
    from collections.abc import Collection
    from datetime import datetime
    from uuid import UUID

    from daemon.database import Pool


@dataclass(frozen=True, slots=True)
class Message:
    """One thing to tell one channel. `data` holds figures and errors, no content."""

    id: UUID
    channel: str
    event: str
    job_id: UUID | None
    user_id: UUID | None
    at: datetime
    attempts: int
    """This one included."""
    taken_at: datetime
    """When this attempt began, by the database's clock (promise 5)."""
    put_off_seconds: float
    """Until it is due again, should this attempt fail or nobody say how it went."""
    data: dict[str, Any]


class Channel(Protocol):
    """A way to the outside."""

    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def events(self) -> tuple[str, ...]:
        """Events of a job's timeline that it tells of (`job_events_tell` knows which there are)."""
        ...

    @property
    def address(self) -> str:
        """Where it leads; a secret."""
        ...

    async def tell(self, message: Message) -> None:
        """Send it, within less than the half minute it is put off for; raises NotTold."""
        ...


class Outbox:
    """The table's statements, each one short transaction."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def keep_live(self, channel: Channel) -> bool:
        """Say that this worker has the channel; False while its address wants nothing more."""
        with database_errors():
            live: bool = await self._pool.fetchval(
                "select fullpass.keep_channel($1, $2, $3)",
                channel.name, list(channel.events), fingerprint(channel.address),
            )  # fmt: skip
        return live

    async def take(self, channels: Collection[str], *, limit: int) -> list[Message]:
        """Take at most so many due messages of each channel; each is put off already."""
        with database_errors():
            rows = await self._pool.fetch(
                "select *, clock_timestamp() as taken_at, "
                "extract(epoch from due_at - clock_timestamp())::float8 as put_off "
                "from fullpass.take_messages($1, $2)",
                list(channels),
                limit,
            )
        return [
            Message(
                id=row["id"], channel=row["channel"], event=row["event"], job_id=row["job_id"],
                user_id=row["user_id"], at=row["at"], attempts=row["attempts"],
                taken_at=row["taken_at"], put_off_seconds=row["put_off"],
                data=json.loads(row["data"]),
            )
            for row in rows
        ]  # fmt: skip

    async def told(self, message: Message) -> None:
        """Mark it as delivered."""
        with database_errors():
            await self._pool.execute("select fullpass.told($1)", message.id)

    async def not_told(self, message: Message, why: str, *, final: bool) -> bool:
        """Note why an attempt failed; True when it was the last: the job's timeline says so."""
        with database_errors():
            let_go: bool = await self._pool.fetchval(
                "select fullpass.not_told($1, $2, $3)", message.id, why, final
            )
        return let_go

    async def gone(self, channel: Channel) -> None:
        """Note that the channel's address wants nothing more, until it is another."""
        with database_errors():
            await self._pool.execute(
                "select fullpass.channel_gone($1, $2)", channel.name, fingerprint(channel.address)
            )

    async def alert(self, event: str, about: str, data: dict[str, Any]) -> None:
        """Write an alert of something that is no job's event."""
        with database_errors():
            await self._pool.execute(
                "select fullpass.tell_alert($1, $2, $3)", event, about, json.dumps(data)
            )

    async def note_told_stop(self, data: dict[str, Any], *, seconds_ago: float) -> None:
        """Note a stop that was told straight out while the database was away."""
        with database_errors():
            await self._pool.execute(
                "select fullpass.note_told_stop($1, $2)", json.dumps(data), seconds_ago
            )

    async def went_on(self, *, within_seconds: float) -> bool:
        """Whether any worker's job showed, so lately, that work goes on after a stop."""
        with database_errors():
            resumed: bool = await self._pool.fetchval(
                "select exists (select from fullpass.outbox where about = 'work' "
                "and event = 'resumed' and at > clock_timestamp() - make_interval(secs => $1))",
                within_seconds,
            )
        return resumed

    async def look_for_stuck(self) -> None:
        """Write an alert when jobs are stuck, at most one an hour among all workers."""
        with database_errors():
            await self._pool.execute("select fullpass.tell_stuck()")


def fingerprint(address: str) -> str:
    """Return what tells addresses apart and says nothing of them."""
    return sha256(address.encode()).hexdigest()[:16]
