"""The pace follows what the server says is left: checked against a bucket in made-up time."""

from __future__ import annotations

import heapq
import random
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from daemon.llm.pace import Pace, Sent
from daemon.llm.rate_limits import (
    Allowance,
    RateLimits,
    rate_limits_from,
    retry_after_seconds,
)
from daemon.llm.request import Usage

TOKENS = 2_000
CHARACTERS = 8_000


class Account:
    """A server's buckets of requests and input tokens, refilled all the time."""

    def __init__(self, *, requests: int, input_tokens: int, burst: float) -> None:
        self.limits = {"requests": requests, "input_tokens": input_tokens}
        self.full = {kind: max(1.0, limit * burst) for kind, limit in self.limits.items()}
        self.level = dict(self.full)
        self.at = 0.0

    def call(self, now: float) -> tuple[bool, RateLimits]:
        for kind, limit in self.limits.items():
            flowed = (now - self.at) * limit / 60
            self.level[kind] = min(self.full[kind], self.level[kind] + flowed)
        self.at = now
        cost = {"requests": 1.0, "input_tokens": float(TOKENS)}
        allowed = all(self.level[kind] >= cost[kind] for kind in cost)
        if allowed:
            for kind, amount in cost.items():
                self.level[kind] -= amount
        left = {
            kind: Allowance(limit, int(self.level[kind]), None)
            for kind, limit in self.limits.items()
        }
        return allowed, RateLimits(**left)


def drive(
    account: Account,
    paces: list[Pace],
    *,
    minutes: int,
    latency: float,
    at_once: int,
    told: bool = True,
) -> tuple[float, float]:
    """Keep each pace's calls going; return the share of the allowance used and of refusals, both
    after the first minute."""
    dice = random.Random(4)
    landing: list[tuple[float, int, int, Sent, bool, RateLimits]] = []
    flying = [0] * len(paces)
    served = refused = number = 0
    now = 0.0
    while now < minutes * 60:
        for which, pace in enumerate(paces):
            while flying[which] < at_once and pace.wait_seconds(CHARACTERS, now) <= 0:
                sent = pace.sent(CHARACTERS, now)
                allowed, limits = account.call(now)
                number += 1
                flying[which] += 1
                took = latency * dice.lognormvariate(0, 0.5) if allowed else 0.05
                heapq.heappush(landing, (now + took, number, which, sent, allowed, limits))
                if now >= 60:
                    served += allowed
                    refused += not allowed
        now += 0.05
        while landing and landing[0][0] <= now:
            _, _, which, sent, allowed, limits = heapq.heappop(landing)
            flying[which] -= 1
            if allowed:
                paces[which].landed(sent, Usage(TOKENS, 100), limits if told else None, now)
            else:
                paces[which].refused(sent, limits if told else None, now)
                if not told:
                    paces[which].pause(now + 1.0)
    may = min(account.limits["requests"], account.limits["input_tokens"] / TOKENS) * (minutes - 1)
    return served / may, refused / max(1, served + refused)


@pytest.mark.parametrize("latency", [0.5, 5.0, 20.0])
@pytest.mark.parametrize("burst", [1.0, 0.1])
@pytest.mark.parametrize(("requests", "input_tokens"), [(50, 1_000_000), (1_000, 200_000)])
def test_nearly_all_of_the_allowance_is_used_and_nearly_nothing_refused(
    requests: int, input_tokens: int, burst: float, latency: float
) -> None:
    account = Account(requests=requests, input_tokens=input_tokens, burst=burst)
    used, refused = drive(account, [Pace()], minutes=6, latency=latency, at_once=50)
    assert used >= 0.95
    assert refused <= 0.01


def test_two_that_know_their_share_draw_no_refusals_and_two_that_do_not_draw_many() -> None:
    shares = {}
    for share in (0.5, 1.0):
        paces = [Pace(), Pace()]
        for pace in paces:
            pace.share = share
        account = Account(requests=200, input_tokens=10_000_000, burst=1.0)
        shares[share] = drive(account, paces, minutes=6, latency=20.0, at_once=50)
    assert shares[0.5][0] >= 0.95
    assert shares[0.5][1] <= 0.01
    assert shares[1.0][1] > 0.02


def test_a_server_that_refills_all_at_once_is_followed_by_its_reset() -> None:
    pace = Pace()
    sent = pace.sent(CHARACTERS, 0.0)
    pace.landed(sent, Usage(TOKENS, 100), RateLimits(requests=Allowance(50, 49, 60.0)), 0.1)
    sent = pace.sent(CHARACTERS, 1.0)
    pace.landed(sent, Usage(TOKENS, 100), RateLimits(requests=Allowance(50, 0, 10.0)), 1.1)
    assert pace.wait_seconds(CHARACTERS, 2.0) > 5.0
    assert pace.wait_seconds(CHARACTERS, 12.5) == 0.0


@pytest.mark.parametrize("latency", [0.5, 5.0])
@pytest.mark.parametrize(("requests", "share_refused"), [(60, 0.05), (300, 0.01)])
def test_a_server_that_tells_nothing_is_learned_from_its_refusals(
    requests: int, share_refused: float, latency: float
) -> None:
    account = Account(requests=requests, input_tokens=10_000_000, burst=1.0)
    used, refused = drive(account, [Pace()], minutes=15, latency=latency, at_once=30, told=False)
    assert used >= 0.95
    assert refused <= share_refused


def test_a_few_refusals_by_chance_do_not_starve_an_account() -> None:
    dice = random.Random(5)
    pace = Pace()
    answered = now = 0.0
    while now < 1_800:
        now += max(0.2, pace.wait_seconds(CHARACTERS, now))
        sent = pace.sent(CHARACTERS, now)
        if dice.random() < 0.005:
            pace.refused(sent, None, now)
        else:
            pace.landed(sent, Usage(TOKENS, 100), None, now)
            answered += now > 900
    assert answered / 900 >= 0.6 * 5  # of five a second that it would make


def test_without_a_refusal_nothing_is_paced() -> None:
    pace = Pace()
    for n in range(1_000):
        pace.landed(pace.sent(CHARACTERS, n / 1000), None, None, n / 1000)
    assert pace.wait_seconds(CHARACTERS, 1.0) == 0.0


def test_a_request_larger_than_the_bucket_is_sent_when_the_bucket_is_full() -> None:
    pace = Pace()
    sent = pace.sent(CHARACTERS, 0.0)
    limits = RateLimits(input_tokens=Allowance(1_000, 0, None))
    pace.landed(sent, Usage(TOKENS, 100), limits, 0.0)
    assert 50.0 <= pace.wait_seconds(CHARACTERS, 0.1) <= 60.0
    assert pace.wait_seconds(CHARACTERS, 240.0) == 0.0


def test_headers_are_read_by_the_servers_own_clock_and_nonsense_is_left_out() -> None:
    now = datetime(2026, 11, 22, 9, 0, tzinfo=UTC)
    prefix = "anthropic-ratelimit-"
    headers = {
        "date": format_datetime(now, usegmt=True),
        f"{prefix}requests-limit": "50",
        f"{prefix}requests-remaining": "7",
        f"{prefix}requests-reset": (now + timedelta(seconds=30)).isoformat().replace("+00:00", "Z"),
        f"{prefix}input-tokens-limit": "many",
        f"{prefix}input-tokens-remaining": "3",
        f"{prefix}output-tokens-limit": "800",
        f"{prefix}output-tokens-remaining": "700",
        f"{prefix}output-tokens-reset": "soon",
    }
    limits = rate_limits_from(headers)
    assert limits is not None
    assert limits.requests == Allowance(50, 7, 30.0)
    assert limits.input_tokens is None
    assert limits.output_tokens == Allowance(800, 700, None)
    assert rate_limits_from({"date": "x"}) is None


@pytest.mark.parametrize(
    ("told", "seconds"),
    [
        ("20", 20.0),
        ("0.5", 0.5),
        ("-3", 0.0),
        ("nan", 0.0),
        ("Sun, 22 Nov 2026 10:00:20 GMT", 20.0),
        ("Sun, 22 Nov 2026 09:00:00 GMT", 0.0),
        ("Sun, 22 Nov 99999999999999999999 10:00:00 GMT", None),
        ("soon", None),
        (None, None),
    ],
)
def test_when_to_come_back_is_read_as_seconds_or_as_a_date_by_the_servers_own_clock(
    told: str | None, seconds: float | None
) -> None:
    headers = {"date": "Sun, 22 Nov 2026 10:00:00 GMT"}
    assert retry_after_seconds(headers | ({"retry-after": told} if told else {})) == seconds
