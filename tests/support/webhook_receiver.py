"""A receiver of webhooks on loopback: keeps what came, answers as told, then 200."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

from tests.support.loopback import LoopbackServer, Reply, Request

Answer: TypeAlias = Reply | Callable[[Request], Awaitable[Reply]]


async def hang(_request: Request) -> Reply:
    """Never answer."""
    await asyncio.sleep(3600)  # longer than any client waits: that is the fault
    return Reply(200)


class WebhookReceiver(LoopbackServer):
    """`answers` are used up in turn; `always` is what comes after them."""

    def __init__(self, *answers: Answer, always: Answer | None = None) -> None:
        super().__init__()
        self.received: list[Request] = []
        self.answers: deque[Answer] = deque(answers)
        self.always: Answer = Reply(200, b"ok") if always is None else always

    async def handle(self, request: Request) -> Reply:
        """Keep the request and give the next answer."""
        self.received.append(request)
        answer = self.answers.popleft() if self.answers else self.always
        return answer if isinstance(answer, Reply) else await answer(request)

    def bodies(self) -> list[Any]:
        """Return the JSON of each request."""
        return [request.json() for request in self.received]

    def texts(self) -> list[str]:
        """Return the text of each alert."""
        return [body["text"] for body in self.bodies()]

    async def until(self, count: int, *, seconds: float = 15.0) -> None:
        """Wait until so many requests have come."""
        deadline = time.monotonic() + seconds
        while len(self.received) < count:
            assert time.monotonic() < deadline, f"{len(self.received)} of {count} requests came"
            await asyncio.sleep(0.02)  # polled until the deadline
