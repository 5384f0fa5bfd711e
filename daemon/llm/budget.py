"""MAX_COST_USD_PER_JOB: a job's money, with what its calls in flight may yet cost set aside.

Before a call its worst case is reserved: the longest prompt its text can be, and every token the
reply may hold. So a job ends at or below its ceiling however many calls are in flight; near it,
calls go one by one, until the next one might pass it. What a batch may yet cost is set aside too.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from contextlib import asynccontextmanager
from decimal import Decimal
from typing import TYPE_CHECKING

from daemon.errors import GiveUp, HeldByBatch
from daemon.llm.request import Usage

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from uuid import UUID

    from daemon.llm.ledger import Spent
    from daemon.llm.pricing import Model
    from daemon.llm.request import Request

_LEAST_BYTES_PER_TOKEN = 2
"""No text that people write is denser than this for the current tokenizers."""
_HELD_SECONDS = 60.0
_DEAREST_PLATFORM = Decimal("1.1")


def most_it_costs(request: Request, model: Model) -> Decimal:
    """Return the most that one call can cost at list price; 0 where that is not known."""
    written = len(request.system.encode()) + len(request.text.encode("utf-8", "replace"))
    usage = Usage(
        input_tokens=(written + len(str(request.schema))) // _LEAST_BYTES_PER_TOKEN,
        output_tokens=min(request.max_tokens, model.max_output_tokens),
    )
    bill = model.bill(usage, factor=_DEAREST_PLATFORM)
    return Decimal(0) if bill is None else bill.cost_usd


class Budget:
    """What the calls in flight of each job may yet cost."""

    def __init__(self) -> None:
        self._reserved: dict[UUID, list[Decimal]] = defaultdict(list)
        self._landed = asyncio.Condition()

    @asynccontextmanager
    async def reserve(
        self,
        job_id: UUID,
        most: Decimal,
        *,
        ceiling_usd: float,
        spent: Callable[[], Awaitable[Spent]],
    ) -> AsyncIterator[None]:
        """Hold a call's worst case aside while it is made and until its receipt is written.

        Waits while only calls in flight stand between this one and the ceiling. Raises HeldByBatch
        when a batch does, GiveUp when it might pass the ceiling even after all have landed.
        """
        ceiling = Decimal(str(ceiling_usd))
        async with self._landed:
            while True:
                paid = await spent()
                # Who was not told what a call cost counts it at its worst.
                known = paid.cost_usd + paid.unpriced_calls * most
                in_flight = self._reserved[job_id]
                if known + paid.set_aside_usd + sum(in_flight) + most <= ceiling:
                    break
                if not in_flight:
                    del self._reserved[job_id]
                    if paid.batches_out and known + most <= ceiling:
                        raise HeldByBatch(
                            f"of MAX_COST_USD_PER_JOB ({ceiling_usd:g}) {paid.set_aside_usd:.4f} "
                            "USD are set aside for a batch that is out",
                            seconds=_HELD_SECONDS,
                        )
                    raise GiveUp(
                        f"stopped at MAX_COST_USD_PER_JOB ({ceiling_usd:g}): "
                        f"{known + paid.set_aside_usd:.4f} USD are spent or set aside and the next "
                        f"call may cost {most:.4f}; what is done is kept, raise the limit and "
                        "retry to go on"
                    )
                await self._landed.wait()
            in_flight.append(most)
        try:
            yield
        finally:
            # Shielded: cancelled once more in here, it would be held aside for ever.
            await asyncio.shield(self._let_go(job_id, in_flight, most))

    async def _let_go(self, job_id: UUID, in_flight: list[Decimal], most: Decimal) -> None:
        async with self._landed:
            in_flight.remove(most)
            if not in_flight:
                self._reserved.pop(job_id, None)
            self._landed.notify_all()
