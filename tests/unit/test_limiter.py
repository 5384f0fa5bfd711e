"""One limit for all jobs: who goes next, what lowers it, and that no place is ever lost."""

from __future__ import annotations

import asyncio
import random
import time

import pytest

from daemon.errors import CallFailed, Draining, Wait
from daemon.llm.limiter import CallLimiter
from daemon.llm.rate_limits import Allowance, RateLimits, Throttled
from daemon.llm.request import Reply, Usage

MODEL = "claude-haiku-5-5"
ANSWER = Reply("{}", "end_turn", Usage(10, 1), MODEL)


def limiter(ceiling: int, memory: int = 1_000) -> CallLimiter:
    return CallLimiter(ceiling=ceiling, allowed=lambda _largest: memory)


def go_on() -> None:
    """Never a reason to stop."""


async def others_turn() -> None:
    """Let every other task that can go on do so once: what a call of no length would not."""
    await asyncio.sleep(0)  # one turn of the loop, no time


async def answered(limit: CallLimiter, calls: int = 1, *, at_once: int = 50) -> None:
    """Have calls answered, as many at once as may be."""
    places = asyncio.Semaphore(at_once)

    async def one() -> None:
        async with places, limit.slot("job", MODEL, 100, go_on) as place:
            await others_turn()
            place.landed(ANSWER)

    await asyncio.gather(*(one() for _ in range(calls)))


async def failed(limit: CallLimiter, error: CallFailed, *, at_once: int = 1) -> None:
    """Have calls fail together."""
    together = asyncio.Barrier(at_once)

    async def one() -> None:
        async with limit.slot("job", MODEL, 100, go_on) as place:
            await together.wait()
            place.failed(error)

    await asyncio.gather(*(one() for _ in range(at_once)))


async def test_a_small_job_does_not_wait_for_a_large_one() -> None:
    limit = limiter(2)
    order: list[str] = []

    async def call(job: str) -> None:
        async with limit.slot(job, MODEL, 100, go_on) as place:
            order.append(job)
            await others_turn()
            place.landed(ANSWER)

    large = [asyncio.create_task(call("large")) for _ in range(30)]
    await others_turn()  # all of them stand in line first
    small = [asyncio.create_task(call("small")) for _ in range(5)]
    await asyncio.gather(*large, *small)
    assert order.index("small") <= 4
    assert [job for job in order[2:14] if job == "small"] == ["small"] * 5


async def test_calls_of_one_job_go_in_the_order_they_came() -> None:
    limit = limiter(1)
    order: list[int] = []

    async def call(number: int) -> None:
        async with limit.slot("job", MODEL, 100, go_on) as place:
            order.append(number)
            place.landed(ANSWER)

    await asyncio.gather(*(call(n) for n in range(20)))
    assert order == list(range(20))


async def test_it_ramps_up_by_what_is_answered_and_never_beyond_the_ceiling() -> None:
    limit = limiter(50)
    assert limit.limit == 4
    assert limit.held_by == "rate"
    answers = 0
    reached = {}
    while limit.limit < 50:
        await answered(limit, 100)
        answers += 100
        reached[answers] = limit.limit
        assert answers < 400
    assert all(limit <= 4 + answers for answers, limit in reached.items())  # doubles a turn at most
    await answered(limit, 100)
    assert limit.limit == 50
    assert limit.held_by == "ceiling"


async def test_calls_that_are_not_made_do_not_raise_it() -> None:
    limit = limiter(50)
    await answered(limit, 200, at_once=2)
    assert limit.limit == 4


@pytest.mark.parametrize("told", [None, RateLimits(requests=Allowance(4_000, 3_900))])
async def test_overload_halves_it_once_a_burst_and_it_comes_back(told: RateLimits | None) -> None:
    limit = limiter(50)
    for _ in range(6):
        await answered(limit, 100)
    await failed(limit, Throttled("529", limits=told), at_once=40)
    assert limit.limit == 20
    assert limit.held_by == "rate"
    await answered(limit, 2_000)
    assert 30 <= limit.limit <= 50


async def test_a_refusal_that_a_used_up_allowance_explains_paces_and_does_not_halve() -> None:
    limit = limiter(50)
    for _ in range(6):
        await answered(limit, 100)
    used_up = RateLimits(requests=Allowance(600, 0))
    await failed(limit, Throttled("429", limits=used_up, retry_after_seconds=0.3), at_once=40)
    assert limit.limit == 50
    loop = asyncio.get_running_loop()
    started = loop.time()
    await answered(limit)
    assert loop.time() - started >= 0.3
    assert limit.held_by == "rate"


async def test_a_failure_of_the_network_says_nothing_about_the_rate() -> None:
    limit = limiter(4)
    await failed(limit, CallFailed("reset"), at_once=4)
    assert limit.limit == 4


async def test_memory_lowers_it_and_is_named() -> None:
    room = 2
    limit = CallLimiter(ceiling=4, allowed=lambda _largest: room)
    assert limit.limit == 2
    assert limit.vitals == {"llm_in_flight": 0, "llm_limit": 2, "llm_held_by": "memory"}
    together = 0
    most = 0

    async def call() -> None:
        nonlocal together, most
        async with limit.slot("job", MODEL, 100, go_on):
            together += 1
            most = max(most, together)
            await others_turn()
            together -= 1

    await asyncio.gather(*(call() for _ in range(20)))
    assert most == 2


async def test_a_wait_ends_when_its_job_must_stop() -> None:
    limit = limiter(1)
    draining = False

    def check() -> None:
        if draining:
            raise Draining

    async def wait() -> None:
        async with limit.slot("waits", MODEL, 100, check):
            pass

    async with limit.slot("holds", MODEL, 100, go_on):
        waiting = asyncio.create_task(wait())
        await others_turn()
        draining = True
        with pytest.raises(Draining):
            await asyncio.wait_for(waiting, timeout=2.0)
    await answered(limit)


async def test_an_account_closed_for_long_sends_jobs_back_instead_of_holding_them() -> None:
    limit = limiter(4)
    await failed(limit, Throttled("429", retry_after_seconds=3_600.0))
    with pytest.raises(Wait) as told:
        await answered(limit)
    assert 60 < told.value.seconds <= 900
    assert not isinstance(told.value, CallFailed)


async def test_no_word_of_a_server_stops_a_model_for_a_day() -> None:
    for seconds in (86_400.0, float("inf")):
        limit = limiter(4)
        await failed(limit, Throttled("429", retry_after_seconds=seconds))
        # Other jobs and, told of it, other workers wait as long; by then one call has tried again.
        assert limit.paces[MODEL].wait_seconds(100, time.monotonic()) <= 900


async def test_no_place_is_lost_whatever_ends_a_call() -> None:
    limit = limiter(3)
    dice = random.Random(11)

    async def call(number: int) -> None:
        async with limit.slot(number % 4, MODEL, 100, go_on) as place:
            await asyncio.sleep(dice.choice([0, 0, 0.001]))  # a call's length: some end together
            if dice.random() < 0.3:
                raise CallFailed("reset")
            place.landed(ANSWER)

    tasks = [asyncio.create_task(call(n)) for n in range(400)]
    for task in tasks:
        if dice.random() < 0.3:
            await others_turn()
            task.cancel()
    await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), timeout=20)
    assert limit.in_flight == 0
    assert not limit.busy
    await asyncio.wait_for(answered(limit, 3), timeout=2)
