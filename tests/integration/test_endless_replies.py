"""A server whose replies do not end: given up at a bound, told as what they are, paid or not."""

from __future__ import annotations

import asyncio
import gzip
import tracemalloc
import uuid
from contextlib import asynccontextmanager, nullcontext
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import msgspec
import pytest

from daemon.database import open_pool
from daemon.errors import BadCall, CallFailed, Systemic, UselessReply, Wait
from daemon.llm import batch_api, reply_size
from daemon.llm.batch_api import PerhapsMade, batch_api_of
from daemon.llm.caller import Caller, Scope
from daemon.llm.ledger import Ledger
from daemon.llm.limiter import CallLimiter
from daemon.llm.reply_size import MOST_BYTES
from daemon.llm.request import Request
from tests.support.callers import Nobody, provider_at

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from daemon.database import Pool
    from daemon.llm.providers import Provider

ENDED = {
    "id": "msgbatch_1", "type": "message_batch", "processing_status": "ended",
    "results_url": "/v1/messages/batches/msgbatch_1/results",
    "created_at": "2026-11-22T10:00:00Z", "expires_at": "2026-11-23T10:00:00Z",
    "request_counts": {
        "processing": 0, "succeeded": 0, "errored": 0, "canceled": 0, "expired": 1
    },
}  # fmt: skip
HEADERS = "content-type: application/json\r\nconnection: close\r\n"


class Endless:
    """A server that answers every request with a body that has no end, or nearly none."""

    def __init__(self) -> None:
        self.status = "200 OK"
        self.headers = HEADERS
        self.body = b" " * 65_536
        self.endless = True
        self.before = b""
        """Of the body, once."""
        self.pause_seconds = 0.0
        self.sent_bytes = 0
        self.visits = 0
        self.batch = b""
        """What is said of a batch, where only its results have no end."""

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
            length = head.partition("content-length:")[2].partition("\r\n")[0]
            await reader.readexactly(int(length or 0))
            self.visits += 1
            if self.batch and "/results " not in head:
                writer.write(f"HTTP/1.1 200 OK\r\n{HEADERS}\r\n".encode() + self.batch)
                return
            writer.write(f"HTTP/1.1 {self.status}\r\n{self.headers}\r\n".encode() + self.before)
            while self.endless or not self.sent_bytes:
                writer.write(self.body)
                self.sent_bytes += len(self.body)
                await writer.drain()
                if self.pause_seconds:
                    await asyncio.sleep(self.pause_seconds)  # a trickle
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()


@asynccontextmanager
async def endless() -> AsyncIterator[tuple[Endless, Provider]]:
    server = Endless()
    async with await asyncio.start_server(server.answer, "127.0.0.1", 0) as listening:
        port = listening.sockets[0].getsockname()[1]
        provider = provider_at(f"http://127.0.0.1:{port}")
        yield server, provider
        await provider.aclose()


@asynccontextmanager
async def caller_of_endless(database_url: str) -> AsyncIterator[tuple[Endless, Caller, Pool]]:
    """A caller with its ledger, one call at a time."""
    pool = await open_pool(database_url)
    try:
        async with endless() as (server, provider):
            limiter = CallLimiter(ceiling=1, allowed=lambda _: 1)
            yield server, Caller(provider, Ledger(pool), limiter), pool
    finally:
        await pool.close()


def request(text: str = "text") -> Request:
    return Request("extract", "v1", "claude-haiku-5-5", "system", text, {}, 100, 30.0)


async def test_a_reply_without_end_is_given_up_in_bounded_memory_and_leaves_its_receipt(
    database_url: str,
) -> None:
    async with caller_of_endless(database_url) as (server, caller, pool):
        scope = Scope(uuid.uuid4(), uuid.uuid4(), Nobody())
        tracemalloc.start()
        try:
            with pytest.raises(UselessReply, match="did not end within 4,194,304 bytes"):
                await caller.ask(scope, request(), lambda reply: reply.text)
            _, peak_bytes = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert server.visits == 3  # asked again, as after any reply of no use, and no oftener
        assert peak_bytes < 6 * MOST_BYTES
        assert server.sent_bytes < 3 * 4 * MOST_BYTES  # the rest filled the sockets' buffers
        rows = await pool.fetch("select usable, stop_reason from fullpass.llm_calls")
        assert [row["usable"] for row in rows] == [False] * 3
        assert all("did not end" in row["stop_reason"] for row in rows)


async def test_a_reply_that_grows_without_end_as_it_is_unpacked_is_given_up() -> None:
    async with endless() as (server, provider):
        server.headers = f"{HEADERS}content-encoding: gzip\r\n"
        server.body = gzip.compress(b" " * (16 * MOST_BYTES), compresslevel=1)
        assert len(server.body) < MOST_BYTES / 4
        server.endless = False
        tracemalloc.start()
        try:
            with pytest.raises(UselessReply, match="did not end"):
                await provider.call(request())
            _, peak_bytes = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak_bytes < 6 * MOST_BYTES
        server.headers = f"{HEADERS}content-encoding: br\r\n"
        with pytest.raises(UselessReply, match="compressed as 'br'"):  # perhaps paid, once
            await provider.call(request())


async def test_what_follows_a_packed_reply_without_end_is_not_kept() -> None:
    async with endless() as (server, provider):
        server.headers = f"{HEADERS}content-encoding: gzip\r\n"
        server.before = gzip.compress(b" ")
        tracemalloc.start()
        try:
            with pytest.raises(UselessReply, match="did not end"):
                await asyncio.wait_for(provider.call(request()), 20)
            _, peak_bytes = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak_bytes < MOST_BYTES


async def test_an_error_in_place_of_results_is_no_longer_for_its_lines() -> None:
    async with endless() as (server, provider):
        api = batch_api_of(provider)
        assert api is not None
        server.batch = msgspec.json.encode(ENDED)
        server.status = "500 Internal Server Error"
        server.body = (b" " * 999 + b"\n") * 65
        with pytest.raises(CallFailed, match="the results broke off"):
            async with asyncio.timeout(20):
                async for _ in api.results("msgbatch_1", "claude-haiku-5-5", requests=1):
                    pass
        assert server.sent_bytes < 4 * MOST_BYTES


async def test_a_reply_that_breaks_off_under_way_leaves_a_receipt_and_is_asked_for_again(
    database_url: str,
) -> None:
    async with caller_of_endless(database_url) as (server, caller, pool):
        scope = Scope(uuid.uuid4(), uuid.uuid4(), Nobody())
        # More is announced than comes before the link is closed: it was answered all the same.
        server.headers = f"{HEADERS}content-length: 1000\r\n"
        server.body, server.endless = b'{"type": "message", "content": [', False
        with pytest.raises(Wait, match="of status 200, broke off"):
            await caller.ask(scope, replace(request(), tries=2), lambda reply: reply.text)
        assert server.visits == 2
        rows = await pool.fetch("select usable, stop_reason, cost_usd from fullpass.llm_calls")
        assert [(row["usable"], row["cost_usd"]) for row in rows] == [(False, None)] * 2
        assert all("broke off" in row["stop_reason"] for row in rows)
        spent = await caller.ledger.spent(scope.job_id)
        assert spent.unpriced_calls == 2
        server.status = "500 Internal Server Error"  # of which nothing is paid
        with pytest.raises(Wait, match="of status 500, broke off"):
            await caller.ask(scope, replace(request(), tries=1), lambda reply: reply.text)
        assert await pool.fetchval("select count(*) from fullpass.llm_calls") == 2


async def test_an_error_without_end_is_trouble_in_passing() -> None:
    async with endless() as (server, provider):
        server.status = "500 Internal Server Error"
        with pytest.raises(CallFailed, match="of status 500, did not end"):
            await provider.call(request())


async def test_results_of_a_batch_may_be_long_and_no_line_of_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # The SDK reads results 64 bytes at a time: megabytes take it many seconds.
    monkeypatch.setattr(reply_size, "MOST_BYTES", 200_000)
    async with endless() as (server, provider):
        api = batch_api_of(provider)
        assert api is not None
        server.batch = msgspec.json.encode(ENDED)
        with pytest.raises(CallFailed, match="the results broke off"):
            async for _ in api.results("msgbatch_1", "claude-haiku-5-5", requests=1):
                pass
        line = b'{"custom_id": "k", "result": {"type": "expired"}' + b" " * 100_000 + b"}\n"
        server.body = line * (6)
        server.endless, server.sent_bytes = False, 0
        items = [item async for item in api.results("msgbatch_1", "claude-haiku-5-5", requests=6)]
        assert len(items) == 6


@pytest.mark.parametrize(
    "line", [b'{"custom_id": "k", "result": {"type": "expired"}}\n', b"{}\n"], ids=["sound", "odd"]
)
async def test_results_that_never_end_are_read_no_further_than_their_requests_go(
    line: bytes,
) -> None:
    async with endless() as (server, provider):
        api = batch_api_of(provider)
        assert api is not None
        server.batch = msgspec.json.encode(ENDED)
        server.body = line * 1_000
        items = []
        with pytest.raises(CallFailed, match="more than were asked for"):
            async with asyncio.timeout(20):
                async for item in api.results("msgbatch_1", "claude-haiku-5-5", requests=50):
                    items.append(item)  # noqa: PERF401 - what came before the end counts
        assert len(items) == (0 if line == b"{}\n" else 100)


async def test_word_of_a_batch_that_trickles_is_waited_for_no_longer_than_a_silence(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(batch_api, "_TIMEOUT_SECONDS", 0.3)
    async with endless() as (server, provider):
        api = batch_api_of(provider)
        assert api is not None
        server.body = b" " * 100  # far more often than a silence lasts, and far too little
        server.pause_seconds = 0.05
        for asked, raises in (
            (api.retrieve("msgbatch_1"), CallFailed),
            (api.cancel("msgbatch_1"), CallFailed),
            (api.create([("k", request())]), PerhapsMade),
        ):
            with pytest.raises(raises, match="broke off"):
                await asyncio.wait_for(asked, 10)


LISTED = {
    "data": [ENDED | {"id": "msgbatch_2"}, ENDED], "has_more": False,
    "first_id": "msgbatch_2", "last_id": "msgbatch_1",
}  # fmt: skip
MADE = datetime(2026, 11, 22, 10, tzinfo=UTC)


@pytest.mark.parametrize(
    ("date", "seen"),
    [
        ("", 0),
        # The server's clock is three hours behind, so what it made just now has such a time.
        ("Sun, 22 Nov 2026 10:00:05 GMT", 2),
        ("Sun, 22 Nov 2026 13:00:05 GMT", 0),
        ("no date", 0),
    ],
)
async def test_a_batch_is_found_however_wrong_the_servers_clock_is(date: str, seen: int) -> None:
    async with endless() as (server, provider):
        api = batch_api_of(provider)
        assert api is not None
        server.body, server.endless = msgspec.json.encode(LISTED), False
        server.headers = HEADERS + (f"date: {date}\r\n" if date else "")
        now = MADE + timedelta(hours=3, seconds=5)
        since = now - timedelta(minutes=10)
        assert len([found async for found in api.recent(since, now=now)]) == seen


@pytest.mark.parametrize(
    "listed",
    [
        LISTED | {"has_more": True},  # and ever the same page
        LISTED | {"data": ["what is this"]},
        LISTED | {"data": None},
        ["no list of batches"],
    ],
)
async def test_a_list_that_cannot_be_read_to_its_end_says_of_no_batch_that_it_was_never_made(
    listed: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_api, "_MOST_LISTED", 20)
    async with endless() as (server, provider):
        api = batch_api_of(provider)
        assert api is not None
        server.body, server.endless = msgspec.json.encode(listed), False
        with pytest.raises(CallFailed):
            async for _ in api.recent(MADE - timedelta(hours=1), now=MADE):
                pass


async def test_a_list_of_batches_that_trickles_is_waited_for_no_longer_than_a_silence(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(batch_api, "_TIMEOUT_SECONDS", 0.3)
    async with endless() as (server, provider):
        api = batch_api_of(provider)
        assert api is not None
        server.body, server.pause_seconds = b" " * 100, 0.05
        with pytest.raises(CallFailed, match="cannot be read"):
            async with asyncio.timeout(10):
                async for _ in api.recent(MADE, now=MADE):
                    pass


@pytest.mark.parametrize(
    ("spoilt", "said"), [(b'{"custom_id": "sp\n', ""), (b"<html>\n" * 9, "most lines")]
)
async def test_a_line_of_results_that_cannot_be_read_hides_none_that_follow_it(
    spoilt: bytes, said: str
) -> None:
    async with endless() as (server, provider):
        api = batch_api_of(provider)
        assert api is not None
        server.batch, server.endless = msgspec.json.encode(ENDED), False
        sound = [b'{"custom_id": "k%d", "result": {"type": "expired"}}\n' % n for n in range(4)]
        server.body = b"".join([sound[0], spoilt, b"\r\n", *sound[1:]]).rstrip()
        items = []
        with pytest.raises(CallFailed, match=said) if said else nullcontext():
            async for item in api.results("msgbatch_1", "claude-haiku-5-5", requests=9):
                items.append(item.custom_id)  # noqa: PERF401 - what came before the end counts
        assert items == ["k0", "k1", "k2", "k3"]


async def test_a_batch_that_a_firewall_bars_is_refused_and_stops_no_other_job() -> None:
    async with endless() as (server, provider):
        api = batch_api_of(provider)
        assert api is not None
        server.status, server.headers = "403 Forbidden", "content-type: text/html\r\n"
        server.body, server.endless = b"<html>barred</html>", False
        with pytest.raises(BadCall):
            await api.create([("k", request())])
        # The server's own word is about the account.
        server.headers, server.sent_bytes = HEADERS, 0
        server.body = b'{"error": {"type": "permission_error", "message": "no batches"}}'
        with pytest.raises(Systemic):
            await api.create([("k", request())])


async def test_a_useless_reply_after_its_person_was_erased_leaves_no_key(database_url: str) -> None:
    pool = await open_pool(database_url)
    person = uuid.uuid4()
    async with endless() as (server, _):
        forgotten = asyncio.Event()
        answer = server.answer

        async def answer_late(*link: asyncio.StreamReader | asyncio.StreamWriter) -> None:
            await forgotten.wait()
            await answer(*link)  # type: ignore[arg-type]

        async with await asyncio.start_server(answer_late, "127.0.0.1", 0) as late:
            slow = provider_at(f"http://127.0.0.1:{late.sockets[0].getsockname()[1]}")
            caller = Caller(slow, Ledger(pool), CallLimiter(ceiling=1, allowed=lambda _: 1))
            scope = Scope(uuid.uuid4(), person, Nobody())
            once = replace(request(), tries=1)
            asked = asyncio.create_task(caller.ask(scope, once, lambda reply: reply.text))
            deadline = asyncio.get_running_loop().time() + 5
            while not caller.limiter.vitals["llm_in_flight"]:
                assert asyncio.get_running_loop().time() < deadline
                await asyncio.sleep(0.01)  # until the deadline
            await pool.execute("insert into fullpass.erasures (user_id) values ($1)", person)
            # Longer than the second that a call is supposed to have begun earlier.
            deadline = asyncio.get_running_loop().time() + 1.3
            while asyncio.get_running_loop().time() < deadline:
                await asyncio.sleep(0.05)  # until the deadline
            forgotten.set()
            with pytest.raises(UselessReply):
                await asked
            await slow.aclose()
    rows = await pool.fetch("select call_key, latency_ms from fullpass.llm_calls")
    assert [row["call_key"] for row in rows] == [None]
    assert rows[0]["latency_ms"] >= 1_300
    await pool.close()


async def test_a_reply_that_comes_compressed_unasked_is_read() -> None:
    said = (
        b'{"id": "m", "type": "message", "role": "assistant", "model": "claude-haiku-5-5", '
        b'"content": [{"type": "text", "text": "hello"}], "stop_reason": "end_turn", '
        b'"stop_sequence": null, "usage": {"input_tokens": 3, "output_tokens": 1}}'
    )
    async with endless() as (server, provider):
        server.headers = f"{HEADERS}content-encoding: gzip\r\n"
        server.body, server.endless = gzip.compress(said), False
        assert (await provider.call(request())).text == "hello"
