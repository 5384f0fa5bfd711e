"""A call keeps its place under the limit until its receipt is durable (promise 3)."""

from __future__ import annotations

import asyncio
import time
import uuid

import asyncpg

from daemon.database import open_pool
from daemon.llm.caller import Caller, Scope
from daemon.llm.ledger import Ledger
from daemon.llm.limiter import CallLimiter
from daemon.llm.request import Request
from tests.support.anthropic_client import EXTRACT, MODEL
from tests.support.anthropic_server import AnthropicServer
from tests.support.callers import Nobody, provider_at

CEILING = 3


async def test_while_no_receipt_can_be_written_no_more_calls_are_unknown_than_may_be_in_flight(
    database_url: str,
) -> None:
    scope = Scope(uuid.UUID(int=2), uuid.UUID(int=1), Nobody())
    asked = [
        Request("extract", "v1", MODEL, "Read.", f'<message n="1">\n{n}\n</message>', EXTRACT,
                1_000, 10.0)
        for n in range(3 * CEILING)
    ]  # fmt: skip
    pool = await open_pool(database_url)
    blocker = await asyncpg.connect(database_url)
    with AnthropicServer() as server:
        limiter = CallLimiter(ceiling=CEILING, allowed=lambda _bytes: CEILING)
        provider = provider_at(server.url)
        caller = Caller(provider, Ledger(pool), limiter)
        held = blocker.transaction()
        await held.start()
        await blocker.execute("lock table fullpass.llm_calls in share mode")
        asking = asyncio.gather(*(caller.ask(scope, one, str) for one in asked))
        await server.until(completed=CEILING)
        deadline = time.monotonic() + 0.3
        while time.monotonic() < deadline:
            assert len(server.record.calls) == CEILING
            await asyncio.sleep(0.01)  # until the deadline
        await held.rollback()
        assert len(await asking) == 3 * CEILING
        assert limiter.in_flight == 0
        await provider.aclose()
    await blocker.close()
    await pool.close()
