"""The database restarts, drops links, freezes: no effect lost, none doubled, no worker exits."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import time
from typing import TYPE_CHECKING

import asyncpg
import pytest
from structlog.testing import capture_logs

from daemon import migrations
from daemon.database import (
    connect,
    database_errors,
    is_transaction_pooler,
    open_pool,
    pools_transactions,
)
from daemon.embedded import EmbeddedPostgres
from daemon.errors import Systemic, UsageError
from daemon.queue.wakeup import Wakeup
from tests.support.pgbouncer import transaction_pooler
from tests.support.postgres import create_database, url_of
from tests.support.queue_checks import Queue, queue_at, until
from tests.support.queue_worker import queue_worker
from tests.support.replicated import Replicated
from tests.support.tcp_proxy import TcpProxy

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path


@pytest.fixture
async def queue(database_url: str) -> AsyncIterator[Queue]:
    async with queue_at(database_url) as opened:
        yield opened


async def exactly_once(queue: Queue, jobs: int, steps: int) -> None:
    assert await queue.doubled() == 0
    assert await queue.db.fetchval("select count(*) from effects") == jobs * steps
    rows = await queue.db.fetch("select status, attempts from processing_jobs")
    assert {tuple(row) for row in rows} == {("complete", 1)}


async def test_backends_terminated_at_every_moment_lose_and_double_nothing(queue: Queue) -> None:
    await queue.add("steps=5,ms=40", count=24)
    dice = random.Random(7)
    with (
        queue_worker(queue.url, lease_seconds=3) as one,
        queue_worker(queue.url, lease_seconds=3) as two,
    ):
        await queue.until("select count(*) = 2 from fullpass.workers")
        for _ in range(40):
            await queue.db.execute(
                "select pg_terminate_backend(pid) from pg_stat_activity "
                "where application_name = 'fullpass' and datname = current_database() "
                "and random() < 0.5"
            )
            await asyncio.sleep(dice.random() * 0.12)  # random moments; the deadline is below
        await queue.all_done(seconds=30)
        assert one.poll() is None
        assert two.poll() is None
    await exactly_once(queue, 24, 5)


@pytest.mark.long
async def test_links_reset_and_frozen_in_turn_lose_and_double_nothing(
    queue: Queue, tmp_path: Path
) -> None:
    await queue.add("steps=5,ms=40", count=16)
    dice = random.Random(11)
    with TcpProxy(queue.url) as proxy, queue_worker(proxy.url, log=tmp_path / "log") as worker:
        await queue.until("select count(*) = 1 from fullpass.workers")
        for _ in range(8):
            proxy.freeze()
            await asyncio.sleep(dice.random() * 0.4)  # random moments; the deadline is below
            if dice.random() < 0.6:
                proxy.reset()
            proxy.thaw()
            await asyncio.sleep(dice.random() * 0.3)  # random moments; the deadline is below
        await queue.all_done(seconds=40)
        assert worker.poll() is None
    await exactly_once(queue, 16, 5)


async def test_a_worker_behind_a_frozen_link_starts_nothing_once_its_lease_may_be_another_s(
    queue: Queue, tmp_path: Path
) -> None:
    (job,) = await queue.add("steps=60,ms=50")
    calls, log = tmp_path / "calls", tmp_path / "log"
    with TcpProxy(queue.url) as proxy, queue_worker(proxy.url, calls=calls, log=log) as cut_off:
        await queue.until("select exists (select from effects where step >= 2)")
        proxy.freeze()
        expires = await queue.db.fetchval(
            "select extract(epoch from lease_expires_at)::float8 from processing_jobs"
        )
        with queue_worker(queue.url, lease_seconds=5):
            await queue.until("select count(distinct worker) = 2 from effects")
            other_epoch = (await queue.row(job))["lease_epoch"]
            proxy.thaw()
            await queue.until(
                "select count(*) >= 1 from fullpass.job_events where event = 'excused'"
            )
            await queue.all_done()
        assert cut_off.poll() is None
    mine = [line.split() for line in calls.read_text().splitlines()]
    assert max(float(at) for at, *_ in mine) < expires
    assert await queue.doubled() == 0
    assert {e["epoch"] for e in await queue.effects(job) if e["step"] > len(mine)} == {other_epoch}
    assert (await queue.row(job))["crashes"] == 0


async def test_a_drain_behind_a_frozen_link_ends_when_the_grace_does(
    queue: Queue, tmp_path: Path
) -> None:
    await queue.add("steps=600,ms=20", count=2)
    with (
        TcpProxy(queue.url) as proxy,
        queue_worker(
            proxy.url,
            log=tmp_path / "log",
            lease_seconds=60,
            heartbeat_seconds=10,
            poll_interval_seconds=0.1,
            shutdown_grace_seconds=1,
        ) as worker,
    ):
        await queue.until("select exists (select from effects)")
        proxy.freeze()
        await asyncio.sleep(0.5)  # a claim and every step hang by now; the deadline is below
        worker.terminate()
        assert await asyncio.to_thread(worker.wait, 20) == 0


async def test_a_server_restarted_in_the_midst_is_waited_for_and_said_to_be(tmp_path: Path) -> None:
    folder = tmp_path / "postgres"
    folder.mkdir()
    for path in (folder, *folder.parents[:3]):
        path.chmod(0o711)
    server = EmbeddedPostgres(folder, durable=False, max_connections=60)
    log = tmp_path / "log"
    with contextlib.ExitStack() as cleanup:
        server.start()
        cleanup.callback(server.stop)
        url = await asyncio.to_thread(create_database, server.url, migrated=True)
        name = url.rpartition("/")[2]
        proxy = cleanup.enter_context(TcpProxy(url))
        async with queue_at(url) as queue:
            await queue.add("steps=6,ms=60", count=8)
        worker = cleanup.enter_context(queue_worker(proxy.url, log=log, lease_seconds=4))
        for _ in range(2):
            async with queue_at(url) as queue:
                seen = await queue.db.fetchval("select count(*) from effects")
                await queue.until("select count(*) > $1 from effects", seen)
            await asyncio.to_thread(server.stop)
            await asyncio.sleep(0.5)  # down for a while; deadlines are in the waits around it
            await asyncio.to_thread(server.start)
            url = url_of(server.url, name)
            proxy.retarget(url)
        async with queue_at(url) as queue:
            await queue.all_done(seconds=30)
            await exactly_once(queue, 8, 6)
        assert worker.poll() is None
    assert "the database cannot be reached" in log.read_text()


@pytest.mark.long
async def test_a_failover_to_a_standby_is_waited_for_and_loses_nothing_that_was_acknowledged(
    tmp_path: Path,
) -> None:
    log = tmp_path / "log"
    with Replicated(tmp_path) as pair, TcpProxy(pair.primary_url) as proxy:
        await migrations.apply(pair.primary_url)
        async with queue_at(pair.primary_url) as queue:
            await queue.add("steps=6,ms=60", count=8)
            with queue_worker(proxy.url, log=log, lease_seconds=4) as worker:
                await queue.until("select count(*) >= 8 from effects")
                acknowledged = await queue.db.fetchval("select count(*) from effects")
                await asyncio.to_thread(pair.kill_primary)
                # First the standby that takes no writes yet: trouble of the server's, not a job's.
                proxy.retarget(pair.standby_url)

                async def said() -> bool:
                    return "read-only" in log.read_text()

                await until(said, seconds=20)
                await asyncio.to_thread(pair.promote)
                async with queue_at(pair.standby_url) as promoted:
                    seen = await promoted.db.fetchval("select count(*) from effects")
                    assert seen >= acknowledged
                    await promoted.all_done(seconds=30)
                    assert worker.poll() is None
                    await exactly_once(promoted, 8, 6)


async def test_too_many_connections_are_waited_out(queue: Queue, tmp_path: Path) -> None:
    name = await queue.db.fetchval("select current_database()")
    await queue.add("steps=2,ms=10", count=3)
    await queue.db.execute(f'alter database "{name}" connection limit 0')
    role = await queue.db.fetchval("select current_setting('is_superuser')")
    if role == "on":
        # A superuser passes that limit: come as somebody else.
        await queue.db.execute(
            "do $$ begin create role fp_plain login password 'plain'; "
            "exception when duplicate_object then null; end $$"
        )
        await queue.db.execute(
            "grant fullpass_worker to fp_plain; grant all on schema public to fp_plain; "
            "grant all on public.effects to fp_plain"
        )
    plain = queue.url.replace(queue.url.split("://")[1].split("@")[0], "fp_plain:plain")
    log = tmp_path / "log"
    with queue_worker(plain, log=log) as worker:

        async def said() -> bool:
            return log.exists() and "53300" in log.read_text()

        await until(said, seconds=10)
        await queue.db.execute(f'alter database "{name}" connection limit -1')
        await queue.all_done(seconds=20)
        assert worker.poll() is None
    await exactly_once(queue, 3, 2)


async def test_a_pool_that_is_used_up_is_trouble_and_no_wait_for_ever(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("daemon.database._ACQUIRE_TIMEOUT_SECONDS", 0.2)
    pool = await open_pool(database_url, size=1)
    async with pool.acquire():
        with pytest.raises(TimeoutError):
            await pool.fetchval("select 1")
    assert await pool.fetchval("select 1") == 1
    await pool.close()


async def test_a_refused_login_is_the_settings_fault_at_start_only(database_url: str) -> None:
    for starting, expected in ((True, UsageError), (False, Systemic)):
        with pytest.raises(expected), database_errors(starting=starting):
            raise asyncpg.InvalidPasswordError("no")


# Notices


async def test_notices_cut_the_wait_short_and_a_dead_listener_is_replaced(
    database_url: str,
) -> None:
    pool = await open_pool(database_url, size=2)
    with TcpProxy(database_url) as proxy:
        wakeup = Wakeup(proxy.url, poll_seconds=60, pool=pool, echo_seconds=0.3)
        try:
            await wakeup.wait(seconds=5)  # woken once by the new listener itself
            assert wakeup.listening
            for trouble in (lambda: None, proxy.reset, proxy.freeze):
                trouble()
                if trouble == proxy.freeze:
                    # Frozen without a word: only the missing echo tells.
                    async def deaf() -> bool:
                        return not wakeup.listening

                    await until(deaf, seconds=10)
                    proxy.thaw()

                async def listens() -> bool:
                    return wakeup.listening

                await until(listens, seconds=10)
                await wakeup.wait(seconds=0.5)
                waiting = asyncio.ensure_future(wakeup.wait())
                started = time.monotonic()
                while not waiting.done():
                    assert time.monotonic() - started < 5
                    await pool.execute("select pg_notify('fullpass_jobs', '')")
                    await asyncio.wait([waiting], timeout=0.2)
        finally:
            await wakeup.close()
            await pool.close()


async def test_a_database_that_is_away_is_no_defect_of_the_listener(database_url: str) -> None:
    """Its look for a pooler took a connection of the pool's, whose refusal was told as a defect."""
    with capture_logs() as said, TcpProxy(database_url) as proxy:
        pool = await open_pool(proxy.url, size=2)
        wakeup = Wakeup(proxy.url, poll_seconds=60, pool=pool, shares_url=True, echo_seconds=0.1)

        async def listens() -> bool:
            return wakeup.listening

        async def failed_twice() -> bool:
            events = [line["event"] for line in said]
            return sum(events.count(event) for event in ("listen.failed", "listen.broken")) > 1

        try:
            await wakeup.wait(seconds=0.1)
            await until(listens, seconds=10)
            proxy.lose()
            await until(failed_twice, seconds=10)
            proxy.find()
            await until(listens, seconds=10)
        finally:
            await wakeup.close()
            await pool.close()
    assert [line for line in said if line["log_level"] == "error"] == []


async def test_a_transaction_pooler_is_recognised_and_nobody_listens_through_it(
    database_url: str,
) -> None:
    assert is_transaction_pooler("postgresql://u:p@db.example:6543/postgres")
    assert not await pools_transactions(database_url)
    for places in (1, 5):
        with transaction_pooler(database_url, places=places) as pooled:
            assert await pools_transactions(pooled)
    with transaction_pooler(database_url) as pooled:
        pool = await open_pool(pooled, size=2)
        wakeup = Wakeup(pooled, poll_seconds=0.1, pool=pool)
        await wakeup.wait(seconds=1.0)
        assert not wakeup.listening
        await wakeup.close()
        await pool.close()


# Through a transaction pooler


async def test_through_a_transaction_pooler_workers_kills_and_drains_are_the_same(
    queue: Queue, tmp_path: Path
) -> None:
    with transaction_pooler(queue.url) as pooled:
        with queue_worker(pooled) as killed, queue_worker(pooled) as drained:
            await queue.until("select count(*) = 2 from fullpass.workers")
            await queue.add("steps=4,ms=40", count=20)
            (suspect,) = await queue.add("steps=30,ms=50")
            await queue.until("select count(*) > 12 from effects")
            killed.kill()
            drained.terminate()
            assert await asyncio.to_thread(drained.wait, 10) == 0
        with queue_worker(pooled), queue_worker(pooled):
            await queue.all_done(seconds=40)
        leaked = await queue.db.fetch(
            "select pid from pg_stat_activity where datname = current_database() "
            "and query ilike 'listen%'"
        )
        assert not leaked
    assert await queue.doubled() == 0
    assert await queue.db.fetchval("select count(*) from effects") == 20 * 4 + 30
    assert (await queue.row(suspect))["attempts"] == 1


async def test_connections_are_kept_alive_and_given_up_by_the_kernel(database_url: str) -> None:
    connection = await connect(database_url)
    link = connection._transport.get_extra_info("socket")  # type: ignore[attr-defined]
    assert link.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
    assert link.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 15_000
    connection.terminate()
