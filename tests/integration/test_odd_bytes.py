"""Bytes that no sound server sends: a receipt for what was paid, and no word that ends an attempt."""

from __future__ import annotations

import json
import uuid
import zlib
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import pytest

from daemon.database import open_pool
from daemon.errors import BadCall, FullpassError, Systemic, UselessReply, Wait
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
TEXT = "Tea, and what effort the doctor asked of me on Monday, \n in output_config; and what I spend on billing."


class Holder:
    """A holder in its rights."""

    def check(self) -> None:
        """Say nothing."""


class OneAnswer(LoopbackServer):
    """Answers every call with the same bytes; of anything else but calls it knows nothing."""

    def __init__(self, body: bytes, headers: Mapping[str, str], status: int) -> None:
        super().__init__()
        self.body, self.headers, self.status, self.calls = body, headers, status, 0

    async def handle(self, request: WireRequest) -> Reply:
        if request.method != "POST":
            return Reply(405)
        self.calls += 1
        return Reply(self.status, self.body, {"content-type": "application/json", **self.headers})


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
    calls, receipts, error = await asked(database_url, body, headers)
    if error is not None:
        raise error
    return calls, receipts


async def asked(
    database_url: str,
    body: bytes,
    headers: Mapping[str, str] = MappingProxyType({}),
    *,
    status: int = 200,
) -> tuple[int, list[dict[str, Any]], FullpassError | None]:
    """Ask once; return how many calls were made, the receipts, and how it ended."""
    raised: FullpassError | None = None
    pool = await open_pool(database_url)
    with OneAnswer(body, headers, status) as server:
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
            request = Request("extract", "v1", MODEL, "Read.", TEXT, {}, 100, 5.0)
            await caller.ask(scope, request, lambda reply: reply.text)
        except FullpassError as error:
            raised = error
        finally:
            rows = await pool.fetch("select * from fullpass.llm_calls")
            await provider.aclose()
            await pool.close()
        return server.calls, [dict(row) for row in rows], raised


@pytest.mark.parametrize(
    "body",
    [
        message().replace(b"{}", b"caf\xff"),
        message()[:40] + "é".encode()[:1],
        b"[" * 100_000,
        message().replace(b"40", b"4" * 5_000),
    ],
    ids=["damaged", "cut within a letter", "nested beyond reason", "a number without end"],
)
async def test_a_reply_that_cannot_be_decoded_is_asked_again_and_ends_no_attempt(
    database_url: str, body: bytes
) -> None:
    calls, receipts, error = await asked(database_url, body)
    assert isinstance(error, Wait)
    assert "broke off" in str(error)
    # It came to its end and may have been paid: a receipt of unknown cost for each, which serves
    # nobody. The first call, its repetition, and the probe that tells input from server.
    assert calls == len(receipts) == 3
    assert {(r["usable"], r["cost_usd"]) for r in receipts} == {(False, None)}
    assert len({r["call_key"] for r in receipts}) == 3


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


async def test_a_date_beyond_all_calendars_loses_no_receipt(database_url: str) -> None:
    prefix = "anthropic-ratelimit-requests"
    headers = {
        f"{prefix}-limit": "9", f"{prefix}-remaining": "1", f"{prefix}-reset": "2026-11-22",
        "date": "Mon, 1 Jan 99999999999999999999 00:00:00 GMT",
    }  # fmt: skip
    calls, receipts = await ask(database_url, message(), headers)
    assert (calls, len(receipts)) == (1, 1)


@pytest.mark.parametrize(
    ("encoding", "body"),
    [
        ("br", b"\x0b\x02\x80{}\x03"),
        ("gzip, zstd", b"{}"),
        ("gzip", b"never packed"),
        ("deflate", zlib.compress(message())[2:-4]),
    ],
    ids=["br", "twice packed", "not packed", "deflate without its head"],
)
async def test_a_paid_reply_that_cannot_be_unpacked_is_not_paid_for_without_end(
    database_url: str, encoding: str, body: bytes
) -> None:
    headers = {"content-encoding": encoding}
    calls, receipts, error = await asked(database_url, body, headers)
    assert isinstance(error, UselessReply)
    assert calls == 3  # as after any reply of no use
    assert [r["usable"] for r in receipts] == [False] * 3
    assert all(r["stop_reason"].startswith("unusable: the") for r in receipts)
    # An error was not paid: packed or not, it passes.
    calls, receipts, error = await asked(database_url, body, headers, status=503)
    assert isinstance(error, Wait)
    assert len(receipts) == 3


@pytest.mark.parametrize(
    "content",
    ["{}", [{"type": "tool_use", "id": "t", "name": "answer", "input": "{}"}]],
    ids=["words alone", "a tool's input as words"],
)
async def test_an_answer_in_words_where_blocks_belong_is_read(
    database_url: str, content: Any
) -> None:
    _, receipts = await ask(database_url, message(content=content), {})
    assert [(r["response"], r["usable"]) for r in receipts] == [("{}", True)]


@pytest.mark.parametrize(
    ("told", "raises", "says"),
    [
        ({"type": "overloaded_error", "message": "Overloaded"}, Wait, "529"),
        ({"type": "api_error", "message": "Oh"}, Wait, "api_error: Oh"),
        ("model is loading", Wait, "model is loading"),
        ({"type": "authentication_error", "message": "no"}, Systemic, "ANTHROPIC_API_KEY"),
        ({"type": "invalid_request_error", "message": "no"}, BadCall, "400"),
    ],
)
async def test_an_error_under_a_status_of_success_is_an_error_and_was_not_paid(
    database_url: str, told: Any, raises: type[Exception], says: str
) -> None:
    body = json.dumps({"type": "error", "error": told}).encode()
    _, receipts, error = await asked(database_url, body)
    assert type(error) is raises
    assert says in str(error)
    assert not receipts


async def test_an_address_that_leads_elsewhere_is_everybodys_trouble(database_url: str) -> None:
    # A POST that is sent on by 301 arrives as a GET, which a server of messages has none of.
    headers = {"location": "/elsewhere"}
    _, _, error = await asked(database_url, b"", headers, status=301)
    assert isinstance(error, Systemic)
    assert "405" in str(error)
    assert "ANTHROPIC_BASE_URL" in str(error)


@pytest.mark.parametrize("status", [400, 401, 500])
async def test_a_server_that_repeats_what_it_was_asked_brings_none_of_it_into_an_error(
    database_url: str, status: int
) -> None:
    said = f"cannot read '{TEXT}', says the server"
    body = json.dumps({"error": {"type": "some_error", "message": said}}).encode()
    calls, _, error = await asked(database_url, body, status=status)
    assert f"{status}: some_error: cannot read '…', says the server" in str(error)
    assert status != 400 or calls == 1  # nor is what the person wrote taken for a way refused
    assert isinstance(error, {400: BadCall, 401: Systemic, 500: Wait}[status])  # nor for a reason
