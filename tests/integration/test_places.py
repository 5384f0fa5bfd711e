"""A call keeps its place under the limit until its receipt is durable (promise 3)."""

from __future__ import annotations

import asyncio
import time
import uuid

import asyncpg
import pytest

from daemon.database import open_pool
from daemon.llm.caller import Answer, Caller, Scope
from daemon.llm.ledger import Ledger
from daemon.llm.limiter import CallLimiter
from daemon.llm.request import Reply, Request
from tests.support.anthropic_client import EXTRACT, MODEL
from tests.support.anthropic_server import AnthropicServer
from tests.support.callers import Nobody, provider_at

CEILING = 3


@pytest.mark.parametrize("cancelled", [False, True])
async def test_while_no_receipt_can_be_written_no_more_calls_are_unknown_than_may_be_in_flight(
    database_url: str, *, cancelled: bool
) -> None:
    scope = Scope(uuid.UUID(int=2), uuid.UUID(int=1), Nobody())
    pool = await open_pool(database_url)
    blocker = await asyncpg.connect(database_url)
    with AnthropicServer() as server:
        limiter = CallLimiter(ceiling=CEILING, allowed=lambda _bytes: CEILING)
        provider = provider_at(server.url)
        caller = Caller(provider, Ledger(pool), limiter)

        answers: list[Reply] = []

        def ask(*numbers: int) -> list[asyncio.Task[Answer[None]]]:
            return [
                asyncio.create_task(caller.ask(scope, request(number), answers.append))
                for number in numbers
            ]

        held = blocker.transaction()
        await held.start()
        await blocker.execute("lock table fullpass.llm_calls in share mode")
        first = ask(*range(CEILING))
        deadline = time.monotonic() + 10
        while len(answers) < CEILING:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.01)  # the deadline above ends it
        if cancelled:  # as when a lease is lost; the next job's calls come at once
            for one in first:
                one.cancel()
            await asyncio.wait(first)
        more = ask(*range(CEILING, 2 * CEILING))
        deadline = time.monotonic() + 0.3
        while time.monotonic() < deadline:
            assert len(server.record.calls) == CEILING
            await asyncio.sleep(0.01)  # until the deadline
        await held.rollback()
        await asyncio.gather(*more, *(() if cancelled else first))
        assert limiter.in_flight == 0
        assert await pool.fetchval("select count(*) from fullpass.llm_calls") == 2 * CEILING
        await provider.aclose()
    await blocker.close()
    await pool.close()


def request(number: int) -> Request:
    text = f'<message n="1">\n{number}\n</message>'
    return Request("extract", "v1", MODEL, "Read.", text, EXTRACT, 1_000, 10.0)
