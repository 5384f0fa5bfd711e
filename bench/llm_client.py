"""One client of a model server, as a process of its own: ours, or the bare SDK as a control.

    python bench/llm_client.py '{"kind": "ours", "base_url": …, "database_url": …, "calls": 600}'

For each line on its standard input it makes one round of calls and prints one JSON line: wall and
CPU seconds of the calls alone, peak RSS, and every attempt with its start, duration and status, so
that what follows from them is reckoned in one place (bench_llm.py). It ends with its input.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import resource
import sys
import time
import uuid
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from daemon.database import open_pool
from daemon.errors import CallError
from daemon.fullpass.extract import AHEAD
from daemon.fullpass.facts import EXTRACT_SCHEMA, read_items
from daemon.fullpass.prompts import prompt
from daemon.llm.caller import Caller, Scope
from daemon.llm.ledger import Ledger
from daemon.llm.limiter import CallLimiter
from daemon.llm.providers import provider_from
from daemon.llm.rate_limits import Throttled
from daemon.llm.request import Reply, Request
from daemon.llm.sharing import Sharing
from daemon.logs import configure_logs
from daemon.memory_gauge import allowed_calls, read_gauge
from daemon.settings import load_settings

if TYPE_CHECKING:
    from decimal import Decimal

WARM_UP_CALLS = 5
INSTRUCTIONS = "Report the facts about the person that the messages state."
"""Too short to be cached: the loopback server counts cached tokens against the allowance too."""


@dataclass(frozen=True)
class Task:
    """What one client does."""

    kind: str
    """ours, or fixed: the bare SDK at a fixed concurrency, which waits as a 429 tells it."""
    base_url: str
    database_url: str = ""
    api_key: str = "test-key"
    model: str = "claude-haiku-5-5"
    concurrency: int = 10
    calls: int = 0
    seconds: float = 0.0
    """A round ends after so many calls, or starts no call after so many seconds."""
    characters: int = 2_000
    minute_seconds: float = 60.0
    account: str = ""
    """Shared with other workers under this name."""
    memory_limit_mb: int = 512
    seed: int = 0


@dataclass
class Account:
    """What came of it. An attempt is (start, seconds, status, input tokens, output tokens)."""

    wall_seconds: float = 0.0
    cpu_seconds: float = 0.0
    peak_rss_mb: float = 0.0
    started_at: float = 0.0
    failed: int = 0
    attempts: list[tuple[float, float, int, int, int]] = field(default_factory=list)


class Watched:
    """The provider itself, with a note of every attempt."""

    name = "anthropic"

    def __init__(self, task: Task, account: Account) -> None:
        self._account = account
        self._provider = provider_from(
            load_settings(
                database_url=task.database_url, llm_provider="anthropic",
                anthropic_api_key=task.api_key, anthropic_base_url=task.base_url,
            )
        )  # fmt: skip

    async def call(self, request: Request) -> Reply:
        """Make one call and note how it went."""
        started = time.time()
        status, usage = 0, None
        try:
            reply = await self._provider.call(request)
            status, usage = 200, reply.usage
        except Throttled:
            status = 429
            raise
        else:
            return reply
        finally:
            self._account.attempts.append(
                (started, time.time() - started, status, usage.input_tokens if usage else 0, usage.output_tokens if usage else 0)
            )  # fmt: skip

    def most_it_costs(self, request: Request) -> Decimal:
        """Return the most that a call can cost."""
        return self._provider.most_it_costs(request)

    async def aclose(self) -> None:
        """Let go of connections."""
        await self._provider.aclose()


class Nobody:
    """A holder that is always in its rights."""

    def check(self) -> None:
        """Say nothing."""


def request(task: Task, dice: random.Random) -> Request:
    """Make an extraction no other call resembles, with a fact to find."""
    words = ("rain", "window", "paper", "walk", "later", "north", "quiet", "stairs")
    text = " ".join(dice.choice(words) for _ in range(task.characters // 6))
    number = dice.randrange(10**9)
    return Request(
        purpose="extract",
        prompt_version=prompt("extract").version,
        model=task.model,
        system=INSTRUCTIONS,
        text=f'<message n="1" role="user" date="2024-03-05">\nI prefer tea from tin {number}. {text}\n</message>',
        schema=EXTRACT_SCHEMA,
        max_tokens=8_192,
        timeout_seconds=60.0,
    )


async def ours(task: Task, account: Account) -> None:
    """Call through the whole path: ledger, limit, provider, receipt."""
    pool = await open_pool(task.database_url)
    provider = Watched(task, account)

    def allowed(largest: int) -> int:
        gauge = read_gauge(memory_limit_mb=task.memory_limit_mb)
        return allowed_calls(gauge, ceiling=task.concurrency, largest_exchange_bytes=largest)

    limiter = CallLimiter(
        ceiling=task.concurrency, allowed=allowed, minute_seconds=task.minute_seconds
    )
    caller = Caller(provider, Ledger(pool), limiter)
    sharing = None
    if task.account:
        sharing = Sharing(
            pool, limiter, worker_id=f"bench-{os.getpid()}", account=task.account, minute_seconds=task.minute_seconds
        )  # fmt: skip
    scopes = [Scope(uuid.uuid4(), uuid.uuid4(), Nobody()) for _ in range(2)]

    async def call(n: int, dice: random.Random) -> None:
        try:
            await caller.ask(
                scopes[n % 2], request(task, dice), lambda r: read_items(r.text, "facts")
            )
        except CallError:
            account.failed += 1

    await drive(task, account, call)
    if sharing is not None:
        await sharing.close()
    await provider.aclose()
    await pool.close()


async def fixed(task: Task, account: Account) -> None:
    """Call the SDK and nothing else."""
    import anthropic  # noqa: PLC0415

    client = anthropic.AsyncAnthropic(api_key=task.api_key, base_url=task.base_url, max_retries=0)

    async def call(n: int, dice: random.Random) -> None:
        ask = request(task, dice)
        while True:
            started = time.time()
            status, spoken = 0, (0, 0)
            try:
                message = await client.messages.create(
                    model=ask.model,
                    max_tokens=ask.max_tokens,
                    system=ask.system,
                    messages=[{"role": "user", "content": ask.text}],
                    timeout=ask.timeout_seconds,
                    output_config={"format": {"type": "json_schema", "schema": ask.schema}, "effort": "low"},
                )  # fmt: skip
                status, spoken = 200, (message.usage.input_tokens, message.usage.output_tokens)
            except anthropic.RateLimitError as error:
                status = 429
                await asyncio.sleep(float(error.response.headers.get("retry-after", "1")))
            else:
                return
            finally:
                account.attempts.append((started, time.time() - started, status, *spoken))

    await drive(task, account, call)
    await client.close()


async def drive(task: Task, account: Account, call: Any) -> None:
    """Make a round of calls whenever asked, after a few that open the connections."""
    dice = random.Random(f"{task.seed}/{os.getpid()}")
    for n in range(WARM_UP_CALLS):
        await call(n, dice)
    print("ready", flush=True)
    while await asyncio.to_thread(sys.stdin.readline):
        account.attempts.clear()
        await a_round(task, account, call, dice)
        print(json.dumps(asdict(account)), flush=True)


async def a_round(task: Task, account: Account, call: Any, dice: random.Random) -> None:
    """Keep calls going until the round is over, by as many callers as extraction has for them."""
    account.started_at = time.time()
    cpu, wall = time.process_time(), time.perf_counter()
    made = 0

    async def one() -> None:
        nonlocal made
        while made < task.calls or (task.seconds and time.perf_counter() - wall < task.seconds):
            made += 1
            await call(made, dice)

    callers = task.concurrency + (AHEAD if task.kind == "ours" else 0)
    await asyncio.gather(*(one() for _ in range(callers)))
    account.wall_seconds = time.perf_counter() - wall
    account.cpu_seconds = time.process_time() - cpu
    account.peak_rss_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    task = Task(**json.loads(sys.argv[1]))
    account = Account()
    configure_logs(log_format="json", level=os.environ.get("LOG_LEVEL", "CRITICAL"))
    asyncio.run((ours if task.kind == "ours" else fixed)(task, account))


if __name__ == "__main__":
    main()
