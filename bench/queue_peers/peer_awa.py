"""awa: leased and fenced, a Rust core; LISTEN."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from awa import AsyncClient
from harness import CONCURRENCY, main

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass
class NoOp:
    """A job's arguments: there must be a class of them."""

    n: int


class Awa:
    """Its worker with its defaults."""

    # Claims without their closing receipt: its own view of jobs takes seconds, which are not what
    # is measured. Everything has been claimed when this is asked.
    unfinished = (
        "select (select count(*) from awa.lease_claims) - (select count(*) "
        "from awa.lease_claim_closures) + (select coalesce(sum(claimed_count), 0) "
        "from awa.lease_claim_batches) - (select coalesce(sum(closed_count), 0) "
        "from awa.lease_claim_closure_batches)"
    )

    poll_seconds = 0.0

    async def install(self, url: str) -> None:
        client = AsyncClient(url)
        await client.migrate()
        await client.close()

    async def start(self, url: str, ran: Callable[[], None]) -> None:
        self.client = AsyncClient(url)

        @self.client.task(NoOp, queue="default")
        async def no_op(_job: Any) -> None:
            ran()

        await self.client.start([("default", CONCURRENCY)])

    async def enqueue(self, count: int) -> None:
        if count == 1:
            await self.client.insert(NoOp(0), queue="default")
        else:
            await self.client.enqueue_many_copy([NoOp(n) for n in range(count)], queue="default")

    async def stop(self) -> None:
        await self.client.shutdown()


if __name__ == "__main__":
    main(Awa())
