"""Bytes that no sound server sends: a receipt for what was paid, and no word that ends an attempt."""

from __future__ import annotations

import json
import uuid
from typing import TYPE_CHECKING, Any

import pytest

from daemon.database import open_pool
from daemon.errors import Wait
from daemon.llm.caller import Caller, Scope
from daemon.llm.ledger import Ledger
from daemon.llm.limiter import CallLimiter
from daemon.llm.patience import Patience
from daemon.llm.providers import provider_from
from daemon.llm.request import Request
from daemon.settings import load_settings
from tests.support.loopback import LoopbackServer, Reply
from tests.support.loopback import Request as WireRequest

if TYPE_CHECKING:
    from collections.abc import Mapping

MODEL = "claude-haiku-5-5"


class Holder:
    """A holder in its rights."""

    def check(self) -> None:
        """Say nothing."""


class OneAnswer(LoopbackServer):
    """Answers every call with the same bytes."""

    def __init__(self, body: bytes, headers: Mapping[str, str]) -> None:
        super().__init__()
        self.body, self.headers, self.calls = body, headers, 0

    async def handle(self, request: WireRequest) -> Reply:
        self.calls += 1
        return Reply(200, self.body, {"content-type": "application/json", **self.headers})


def message(**changed: Any) -> bytes:
    told = {
        "id": "msg_1", "type": "message", "role": "assistant", "model": MODEL,
        "content": [{"type": "text", "text": "{}"}], "stop_reason": "end_turn",
        "stop_sequence": None, "usage": {"input_tokens": 40, "output_tokens": 4},
    }  # fmt: skip
    return json.dumps({**told, **changed}).encode()


async def ask(
    database_url: str, body: bytes, headers: Mapping[str, str]
) -> tuple[int, list[dict[str, Any]]]:
    """Ask once; return how many calls were made and the receipts, or raise what the caller does."""
    pool = await open_pool(database_url)
    with OneAnswer(body, headers) as server:
        provider = provider_from(
            load_settings(
                database_url="", llm_provider="anthropic", anthropic_api_key="test-key",
                anthropic_base_url=server.url,
            )
        )  # fmt: skip
        caller = Caller(
            provider, Ledger(pool), CallLimiter(ceiling=1, allowed=lambda _: 1),
            patience=Patience(tries=2, scale=0.01),
        )  # fmt: skip
        scope = Scope(uuid.uuid4(), uuid.uuid4(), Holder())
        try:
            request = Request("extract", "v1", MODEL, "Read.", "Tea.", {}, 100, 5.0)
            await caller.ask(scope, request, lambda reply: reply.text)
        finally:
            rows = await pool.fetch("select * from fullpass.llm_calls")
            await provider.aclose()
            await pool.close()
        return server.calls, [dict(row) for row in rows]


@pytest.mark.parametrize(
    "body",
    [
        message().replace(b"{}", b"caf\xff"),
        message()[:40] + "é".encode()[:1],
        b"[" * 100_000,
    ],
    ids=["damaged", "cut within a letter", "nested beyond reason"],
)
async def test_a_reply_that_cannot_be_decoded_is_asked_again_and_ends_no_attempt(
    database_url: str, body: bytes
) -> None:
    with pytest.raises(Wait, match="broke off"):
        await ask(database_url, body, {})


@pytest.mark.parametrize(
    ("changed", "tokens", "stop_reason"),
    [
        ({"usage": {"input_tokens": 3 * 10**9, "output_tokens": 4}}, None, "end_turn"),
        ({"usage": {"input_tokens": float("inf"), "output_tokens": 4}}, None, "end_turn"),
        ({"stop_reason": "end\x00turn"}, 40, "endturn"),
        ({"stop_reason": "\ud800"}, 40, "?"),
    ],
    ids=["more tokens than there are", "endless tokens", "a NUL", "half a pair"],
)
async def test_a_paid_reply_leaves_its_receipt_whatever_stands_around_the_text(
    database_url: str, changed: dict[str, Any], tokens: int | None, stop_reason: str
) -> None:
    calls, receipts = await ask(database_url, message(**changed), {})
    assert calls == 1
    assert [(r["input_tokens"], r["stop_reason"], r["usable"]) for r in receipts] == [
        (tokens, stop_reason, True)
    ]
    # An account that is not believed has no price: it counts at its worst under a ceiling.
    assert (receipts[0]["cost_usd"] is None) == (tokens is None)


async def test_an_allowance_beyond_all_numbers_is_no_allowance(database_url: str) -> None:
    prefix = "anthropic-ratelimit-requests"
    headers = {f"{prefix}-limit": "9" * 400, f"{prefix}-remaining": "1"}
    calls, receipts = await ask(database_url, message(), headers)
    assert (calls, len(receipts)) == (1, 1)
