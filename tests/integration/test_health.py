"""Probes, metrics, and workers that are past remedy: told truthfully, and ended (promise 6)."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import subprocess
import sys
import time
from http.client import HTTPConnection
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest
from prometheus_client.parser import text_string_to_metric_families

from daemon.database import open_pool
from daemon.fullpass.context import STEPS
from daemon.ops.health_server import CONNECTIONS, EXCHANGE_SECONDS, HEAD_BYTES
from daemon.queue.wakeup import Wakeup
from tests.support.cli import ask
from tests.support.exports import planted_export
from tests.support.queue_checks import Queue, queue_at, until
from tests.support.queue_worker import queue_worker
from tests.support.tcp_proxy import TcpProxy
from tests.support.worker_process import environment, worker_process

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.support.anthropic_server import AnthropicServer


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def get(port: int, path: str, *, method: str = "GET") -> tuple[int, str]:
    """Ask once; (0, "") when nobody answers."""
    connection = HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request(method, path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    except OSError:
        return 0, ""
    finally:
        connection.close()


async def answers(port: int, path: str, status: int, *, seconds: float = 20.0) -> str:
    """Ask until the status is this one; return the body."""
    body = ""

    async def asked() -> bool:
        nonlocal body
        found, body = await asyncio.to_thread(get, port, path)
        return found == status

    await until(asked, seconds=seconds, what=f"{path} {status}; last: {body}")
    return body


def samples(page: str) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """Every sample of a page by its name and labels, read by the reference parser."""
    return {
        (s.name, tuple(sorted(s.labels.items()))): s.value
        for family in text_string_to_metric_families(page)
        for s in family.samples
    }


@pytest.fixture
async def queue(database_url: str) -> AsyncIterator[Queue]:
    async with queue_at(database_url) as opened:
        yield opened


async def test_a_worker_answers_probes_and_counts_what_it_did_without_saying_whose(
    queue: Queue, tmp_path: Path, anthropic_server: AnthropicServer
) -> None:
    export = planted_export(conversations=4)
    anthropic_server.truth.add(export.truth)
    person, port = uuid4(), free_port()
    path = f"file://{export.write(tmp_path / 'private-name.json')}"
    with worker_process(
        queue.url, anthropic_server.url, health_port=port, log_format="json"
    ) as worker:
        assert json.loads(await answers(port, "/healthz", 200))["ok"]
        ready = json.loads(await answers(port, "/readyz", 200))
        assert ready["signs"].keys() == {"loop", "claiming", "heartbeat", "beat", "wakeup"}

        async def heard() -> bool:
            return "notices" in (await asyncio.to_thread(get, port, "/readyz"))[1]

        await until(heard, seconds=5)
        (job,) = ask(
            queue.url,
            "insert into processing_jobs (user_id, storage_path) values ($1, $2) returning id",
            person,
            path,
        )
        await queue.all_done()
        status, page = await asyncio.to_thread(get, port, "/metrics")
        assert status == 200
        found = samples(page)
        of = lambda name, **labels: found[(name, tuple(sorted(labels.items())))]  # noqa: E731
        assert of("fullpass_jobs_claimed_total") == 1
        assert of("fullpass_jobs_ended_total", outcome="complete") == 1
        assert of("fullpass_jobs_ended_total", outcome="failed") == 0
        for step in STEPS:
            assert of("fullpass_step_seconds_count", step=step) == 1
        spent = await queue.db.fetchrow(
            "select count(*) as calls, sum(input_tokens) as tokens, sum(cost_usd)::float8 as usd "
            "from fullpass.llm_calls"
        )
        assert spent is not None
        calls = sum(v for (name, _), v in found.items() if name == "fullpass_llm_calls_total")
        assert calls == spent["calls"] > 0
        assert of("fullpass_llm_tokens_total", kind="input") == spent["tokens"]
        assert of("fullpass_llm_cost_usd_total") == pytest.approx(spent["usd"])
        assert of("fullpass_worker_healthy") == of("fullpass_worker_ready") == 1
        assert of("process_resident_memory_bytes") > 30e6
        assert of("fullpass_queue_due_jobs") == 0
        # Nobody's id, path or words; and no more series however many jobs there were.
        for secret in (str(person), str(job["id"]), "private-name", str(tmp_path), "test-key"):
            assert secret not in page
        for planted in export.truth:
            assert planted.statement not in page
        assert len(found) < 250
        assert all(name.startswith(("fullpass_", "process_")) for name, _ in found)
        worker.terminate()
        assert await asyncio.to_thread(worker.wait, 10) == 0


async def test_the_port_says_no_more_than_it_is_asked_and_takes_nothing(queue: Queue) -> None:
    port = free_port()
    with queue_worker(queue.url, health_port=port):
        await answers(port, "/healthz", 200)
        assert get(port, "/")[0] == get(port, "/metrics/../etc")[0] == 404
        assert get(port, "/healthz", method="POST")[0] == 405
        assert get(port, "/healthz?verbose=1")[0] == 200
        assert get(port, "/healthz", method="HEAD") == (200, "")
        for nonsense, status in (
            (b"\x16\x03\x01\x02\x00\x01\xfc\r\n\r\n", b"400"),
            (b"GET /healthz\r\n\r\n", b"400"),
            (b"GET /" + b"a" * HEAD_BYTES * 2 + b" HTTP/1.1\r\n\r\n", b"431"),
            (b"GET /healthz HTTP/1.1\r\nX: " + b"a" * HEAD_BYTES * 2 + b"\r\n\r\n", b"431"),
            (b"GET /healthz HTTP/1.1\r\n" + b"X: a\r\n" * HEAD_BYTES, b"431"),
        ):
            with socket.create_connection(("127.0.0.1", port), timeout=5) as visitor:
                visitor.sendall(nonsense)
                assert visitor.recv(64).startswith(b"HTTP/1.1 " + status), nonsense[:20]
        with socket.create_connection(("127.0.0.1", port), timeout=5) as visitor:
            taken = visitor.send(b"GET /healthz HTTP/1.1\r\n")
            with contextlib.suppress(OSError):
                while taken < 100_000_000:
                    taken += visitor.send(b"X: a\r\n" * 10_000)
            assert taken < 100_000_000, "a request that never ends is read on and on"
        with contextlib.suppress(OSError), socket.socket(socket.AF_INET6) as six:
            six.connect(("::1", port))  # where the machine has it, as a platform's probe may
            six.sendall(b"GET /healthz HTTP/1.1\r\n\r\n")
            assert six.recv(64).startswith(b"HTTP/1.1 200")


async def test_visitors_that_sit_or_trickle_keep_neither_probes_nor_work_waiting(
    queue: Queue,
) -> None:
    port = free_port()
    with queue_worker(queue.url, health_port=port), contextlib.ExitStack() as visitors:
        await answers(port, "/readyz", 200)
        began = time.monotonic()
        sitting = [
            visitors.enter_context(socket.create_connection(("127.0.0.1", port), timeout=10))
            for _ in range(3 * CONNECTIONS)
        ]
        for visitor in sitting:
            with contextlib.suppress(OSError):
                visitor.sendall(b"GET /healthz HTTP/1.1\r\nX-Slow: ")
        asked = time.monotonic()
        assert get(port, "/readyz")[0] == 200
        assert time.monotonic() - asked < 2
        (job,) = await queue.add("steps=2")
        await queue.until("select status = 'complete' from processing_jobs where id = $1", job)
        trickling = sitting[-1]

        async def dropped() -> bool:
            try:
                trickling.sendall(b"a")
                trickling.setblocking(False)
                return trickling.recv(1) == b""
            except BlockingIOError:
                return False
            except OSError:
                return True

        await until(dropped, seconds=EXCHANGE_SECONDS + 5, every=0.1)
        assert time.monotonic() - began < EXCHANGE_SECONDS + 5
        lag_ms = await queue.db.fetchval("select max(loop_lag_ms) from fullpass.workers")
        assert lag_ms < 2000
        assert get(port, "/healthz")[0] == 200


async def test_a_blocked_loop_is_told_while_it_is_blocked(queue: Queue) -> None:
    port = free_port()
    with queue_worker(queue.url, health_port=port):
        await answers(port, "/readyz", 200)
        await queue.add("steps=2,block=1:3")
        said = json.loads(await answers(port, "/healthz", 503, seconds=8))
        assert not said["signs"]["loop"]["ok"]
        assert "silent for" in said["signs"]["loop"]["says"]
        status, page = await asyncio.to_thread(get, port, "/metrics")
        found = samples(page)
        assert (status, found["fullpass_worker_healthy", ()]) == (200, 0)
        assert found["fullpass_loop_silent_seconds", ()] > 0.5
        assert found["fullpass_jobs_running", ()] == 1
        await queue.all_done()
        await answers(port, "/healthz", 200)


async def test_a_worker_whose_database_is_away_lives_and_is_not_ready(queue: Queue) -> None:
    port = free_port()
    with TcpProxy(queue.url) as proxy:
        proxy.freeze()
        with worker_process(proxy.url, None, llm_provider="offline", health_port=port) as worker:
            said = json.loads(await answers(port, "/readyz", 503))
            assert "waits for the database" in said["signs"]["worker"]["says"]
            assert get(port, "/healthz")[0] == 200
            status, page = await asyncio.to_thread(get, port, "/metrics")
            assert status == 200
            assert samples(page)["fullpass_worker_ready", ()] == 0
            proxy.reset()
            proxy.thaw()
            await answers(port, "/readyz", 200, seconds=30)
            proxy.freeze()
            said = json.loads(await answers(port, "/readyz", 503))
            assert not said["signs"]["beat"]["ok"]
            assert get(port, "/healthz")[0] == 200
            status, page = await asyncio.to_thread(get, port, "/metrics")
            assert status == 200
            proxy.reset()
            proxy.thaw()
            await answers(port, "/readyz", 200, seconds=30)
            assert worker.poll() is None


async def test_figures_are_given_to_all_who_ask_while_the_database_gives_none(
    queue: Queue,
) -> None:
    port = free_port()
    with (
        TcpProxy(queue.url) as proxy,
        worker_process(proxy.url, None, llm_provider="offline", health_port=port),
    ):
        await answers(port, "/readyz", 200)
        proxy.freeze()
        asked = [asyncio.to_thread(get, port, "/metrics") for _ in range(3)]
        assert [status for status, _ in await asyncio.gather(*asked)] == [200, 200, 200]
        proxy.reset()
        proxy.thaw()


async def test_a_worker_that_waits_for_its_database_at_the_start_heeds_sigterm() -> None:
    """As the first process of a container: there only a signal that has a handler is heard."""
    nowhere = "postgresql://nobody@127.0.0.1:1/none"
    with worker_process(nowhere, None, llm_provider="offline") as worker:
        assert worker.stderr is not None
        while b"worker.waiting" not in await asyncio.to_thread(worker.stderr.readline):
            assert worker.poll() is None
        worker.terminate()
        assert await asyncio.to_thread(worker.wait, 10) == 0


async def test_a_port_in_use_is_a_setting_to_mend_before_anything_is_claimed(
    queue: Queue,
) -> None:
    (job,) = await queue.add("steps=1")
    with socket.create_server(("", 0)) as taken:
        port = taken.getsockname()[1]
        with worker_process(queue.url, None, llm_provider="offline", health_port=port) as worker:
            assert await asyncio.to_thread(worker.wait, 20) == 2
            assert worker.stderr is not None
            said = worker.stderr.read().decode()
    assert f"error: HEALTH_PORT: port {port} cannot be listened on" in said
    assert "Traceback" not in said
    assert (await queue.row(job))["status"] == "pending"


@pytest.mark.parametrize(
    ("organ", "said"),
    [
        ("claiming", "claims_late_seconds"),
        ("beats", "beat.broken"),
        ("heartbeat", "heartbeat's thread has stopped"),
    ],
)
async def test_a_worker_past_remedy_ends_by_itself(queue: Queue, organ: str, said: str) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.support.sick_worker", organ,
        env=environment(
            queue.url, None, llm_provider="offline", heartbeat_seconds=0.2, lease_seconds=0.9
        ),
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        async with asyncio.timeout(20):
            _, log = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
    assert process.returncode == 1
    assert said in log.decode()
    assert b"worker.started" in log


async def test_a_listener_that_breaks_in_no_known_way_is_begun_again(queue: Queue) -> None:
    """A refusal is no trouble of the link: the task that listened used to end for good."""
    name = await queue.db.fetchval("select current_database()")
    await queue.db.execute(
        "create function public.pg_notify(text, text) returns void language plpgsql "
        "as $$ begin perform nextval('refusals'); raise 'refused'; end $$; "
        "create sequence public.refusals; "
        f'alter database "{name}" set search_path = public, pg_catalog'
    )
    pool = await open_pool(queue.url, size=2)
    wakeup = Wakeup(queue.url, poll_seconds=60, pool=pool, echo_seconds=0.1)
    try:
        await wakeup.wait(seconds=0.1)
        await queue.until("select is_called and last_value > 1 from refusals", seconds=10)
        assert not wakeup.echoing
        await queue.db.execute("drop function public.pg_notify")

        async def echoing() -> bool:
            return wakeup.echoing

        await until(echoing, seconds=15)
    finally:
        await wakeup.close()
        await pool.close()
