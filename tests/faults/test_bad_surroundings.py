"""A database, a disk and a clock that are not as they should be: said, waited for, survived."""

from __future__ import annotations

import asyncio
import json
import os
import resource
import shutil
import subprocess
import sysconfig
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.cli import Cli, ask
from tests.support.exports import conversation
from tests.support.queue_checks import Queue, queue_at, until
from tests.support.queue_worker import queue_worker
from tests.support.worker_process import worker_process

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator


@pytest.fixture
async def queue(database_url: str) -> AsyncIterator[Queue]:
    async with queue_at(database_url) as opened:
        yield opened


async def says(log: Path, words: str, *, seconds: float = 15.0) -> None:
    async def said() -> bool:
        return words in log.read_text()

    await until(said, seconds=seconds, what=f"the log says {words!r}")


async def test_a_read_only_database_is_waited_for_and_nothing_is_used_up(
    queue: Queue, tmp_path: Path
) -> None:
    """What a provider does to a database that is over its size, and a failover for a while."""
    name = await queue.db.fetchval("select current_database()")
    others = "from pg_stat_activity where datname = $1 and pid <> pg_backend_pid()"
    log = tmp_path / "log"
    (job,) = await queue.add("steps=30,ms=50")
    with queue_worker(queue.url, log=log) as worker:
        await queue.until("select exists (select from effects)")
        await queue.db.execute(f'alter database "{name}" set default_transaction_read_only = on')
        await queue.db.execute(f"select pg_terminate_backend(pid) {others}", name)
        await says(log, "read-only")
        await says(log, "worker.waiting")
        assert worker.poll() is None
        await queue.db.execute(f'alter database "{name}" reset default_transaction_read_only')
        await queue.db.execute(f"select pg_terminate_backend(pid) {others}", name)
        await queue.all_done()
        assert worker.poll() is None
    assert await queue.doubled() == 0
    row = await queue.row(job)
    assert (row["attempts"], row["crashes"]) == (1, 0)


async def test_a_worker_started_on_a_read_only_database_waits_and_migrate_says_why(
    queue: Queue, tmp_path: Path
) -> None:
    name = await queue.db.fetchval("select current_database()")
    log = tmp_path / "log"
    await queue.add("steps=1")
    await queue.db.execute(f'alter database "{name}" set default_transaction_read_only = on')
    with queue_worker(queue.url, log=log) as worker:
        await says(log, "worker.waiting")
        assert worker.poll() is None
        await queue.db.execute("delete from fullpass.schema_migrations where version = 33")
        migrated = Cli(tmp_path, DATABASE_URL=queue.url).run("migrate")
        assert migrated.returncode == 1
        assert "read-only" in migrated.stderr
        assert "Traceback" not in migrated.stderr
        await queue.db.execute(f'alter database "{name}" reset default_transaction_read_only')
        await queue.db.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity "
            "where datname = $1 and pid <> pg_backend_pid()",
            name,
        )
        await queue.all_done()


NEWER = """
insert into fullpass.schema_migrations (version, name, sha256) values (9001, 'next', 'x');
create function fullpass.too_old() returns void language plpgsql as
$$ begin raise 'release 0.1.0 cannot serve this schema' using errcode = 'FP003'; end $$;
"""


@pytest.mark.parametrize(
    "how", [pytest.param("it says so", marks=pytest.mark.long), "a function is gone"]
)
async def test_a_schema_too_new_is_waited_out_by_a_worker_that_runs_and_by_one_that_starts(
    queue: Queue, tmp_path: Path, how: str
) -> None:
    """A crash loop would look like a broken deploy; the old release only has nothing to do."""
    definition = await queue.db.fetchval(
        "select pg_get_functiondef(oid) from pg_proc "
        "where pronamespace = 'fullpass'::regnamespace and proname = 'sweep'"
    )
    log = tmp_path / "log"
    with queue_worker(queue.url, log=log, heartbeat_seconds=0.1) as running:
        await queue.add("steps=1")
        await queue.all_done()
        if how == "it says so":
            # By way of sweep, which every claim calls first: as the next release would do it.
            await queue.db.execute(f"do $do$ begin {NEWER} end $do$")
            head = definition.partition("AS $")[0]
            await queue.db.execute("alter function fullpass.sweep rename to swept")
            await queue.db.execute(
                head.replace("LANGUAGE plpgsql", "LANGUAGE plpgsql")
                + "AS $f$ begin perform fullpass.too_old(); end $f$"
            )
        else:
            await queue.db.execute(
                "alter function fullpass.claim rename to claim_2;"
                "alter function fullpass.beat rename to beat_2"
            )
        # A claim that was on its way when the function went still finds it, by its number.
        await says(log, "if it is newer")
        (job,) = await queue.add("steps=1")
        with queue_worker(queue.url, log=tmp_path / "started") as started:
            await says(tmp_path / "started", "if it is newer")
            begun = log.read_text().count("worker.started")
            beats = 12
            await asyncio.sleep(beats * 0.1)  # until the deadline that five broken beats would be
            assert (started.poll(), running.poll(), begun) == (None, None, 1)
            assert "beat.broken" not in log.read_text()
            assert (await queue.row(job))["status"] == "pending"
            if how == "it says so":
                await queue.db.execute("drop function fullpass.sweep")
                await queue.db.execute("alter function fullpass.swept rename to sweep")
            else:
                await queue.db.execute(
                    "alter function fullpass.claim_2 rename to claim;"
                    "alter function fullpass.beat_2 rename to beat"
                )
            await queue.all_done()
            assert (await queue.row(job))["attempts"] == 1


async def test_a_schema_that_is_older_says_to_migrate_and_serves_nothing(
    queue: Queue, tmp_path: Path
) -> None:
    (job,) = await queue.add("steps=1")
    await queue.db.execute("delete from fullpass.schema_migrations where version = 33")
    done = Cli(tmp_path, DATABASE_URL=queue.url, LLM_PROVIDER="offline").run("worker")
    assert done.returncode == 1
    assert "0033_jobs_by_end is not applied" in done.stderr
    assert "run `fullpass migrate`" in done.stderr
    assert (await queue.row(job))["status"] == "pending"


@contextmanager
def full_tmpfs(folder: Path) -> Iterator[Callable[[], None]]:
    """A file system of a megabyte at `folder`; calling what is given makes room on it."""
    mounted = ["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(folder)]
    if (
        not shutil.which("mount")
        or subprocess.run(mounted, check=False, capture_output=True).returncode
    ):
        pytest.skip("missing right: to mount a small file system")
    try:
        yield (
            lambda: (
                subprocess.run(["mount", "-o", "remount,size=64m", str(folder)], check=True)
                and None
            )
        )
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.parametrize(
    "how", [pytest.param("full disk", marks=pytest.mark.long), "file size limit"]
)
async def test_a_full_disk_makes_a_job_wait_and_costs_it_nothing(
    queue: Queue, tmp_path: Path, how: str
) -> None:
    """A conversation too large to be held waits on disk: with none left it is not "damaged"."""
    turns = [
        ("assistant" if n else "user", f"Turn {n}. " + "wind and rain " * 700) for n in range(600)
    ]
    export = tmp_path / "export.json"
    export.write_text(json.dumps([conversation(0, turns)]), encoding="utf-8")
    spool = tmp_path / "spool"
    spool.mkdir()
    with (
        full_tmpfs(spool) if how == "full disk" else _no_file_system() as make_room,
        worker_process(
            queue.url, None, llm_provider="offline", tmpdir=spool, memory_limit_mb=100
        ) as worker,
    ):
        if how == "file size limit":
            limit = 1 << 20
            resource.prlimit(worker.pid, resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        (row,) = ask(
            queue.url,
            "insert into processing_jobs (user_id, storage_path) "
            "values (gen_random_uuid(), $1) returning id",
            f"file://{export}",
        )
        job = row["id"]
        await queue.until(
            "select status = 'pending' and started_at is not null from processing_jobs "
            "where id = $1",
            job,
            seconds=30,
        )
        waits = await queue.db.fetchval(
            "select waiting_for from fullpass.passes where job_id = $1", job
        )
        assert "this machine's disk" in waits, waits
        assert (await queue.row(job))["attempts"] == 0
        if how == "file size limit":
            unlimited = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
            resource.prlimit(worker.pid, resource.RLIMIT_FSIZE, unlimited)
        else:
            make_room()
        await queue.db.execute("update processing_jobs set run_at = now() where id = $1", job)
        await queue.all_done(seconds=60)
    done = await queue.row(job)
    assert json.loads(done["result"])["export"]["whole"] is True
    assert done["message_count"] == len(turns)


@contextmanager
def _no_file_system() -> Iterator[Callable[[], None]]:
    yield lambda: None


WRONG_CLOCK = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <sys/time.h>
#include <time.h>
static long off(void) { const char *s = getenv("CLOCK_OFF_SECONDS"); return s ? atol(s) : 0; }
int clock_gettime(clockid_t id, struct timespec *t) {
    int (*real)(clockid_t, struct timespec *) = dlsym(RTLD_NEXT, "clock_gettime");
    int r = real(id, t);
    if (r == 0 && (id == CLOCK_REALTIME || id == CLOCK_REALTIME_COARSE)) t->tv_sec += off();
    return r;
}
time_t time(time_t *out) {
    struct timespec t; clock_gettime(CLOCK_REALTIME, &t);
    if (out) *out = t.tv_sec;
    return t.tv_sec;
}
int gettimeofday(struct timeval *v, void *z) {
    struct timespec t; clock_gettime(CLOCK_REALTIME, &t);
    v->tv_sec = t.tv_sec; v->tv_usec = t.tv_nsec / 1000; return 0;
}
"""


@pytest.fixture(scope="module")
def wrong_clock(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("cc") or shutil.which(
        (sysconfig.get_config_var("CC") or "cc").split()[0]
    )
    if compiler is None or os.uname().sysname != "Linux":
        pytest.skip("missing component: a C compiler, for a library that shifts a process's clock")
    folder = tmp_path_factory.mktemp("clock")
    (folder / "clock.c").write_text(WRONG_CLOCK)
    built = folder / "clock.so"
    subprocess.run(
        [compiler, "-shared", "-fPIC", "-o", str(built), str(folder / "clock.c"), "-ldl"],
        check=True,
    )
    return built


@pytest.mark.parametrize("hours", [pytest.param(-1, marks=pytest.mark.long), 1])
async def test_a_worker_whose_clock_is_an_hour_off_keeps_its_leases_and_takes_nobody_elses(
    queue: Queue, tmp_path: Path, wrong_clock: Path, hours: int
) -> None:
    off = {"ld_preload": wrong_clock, "clock_off_seconds": hours * 3600}
    log, fine = tmp_path / "log", tmp_path / "fine"
    later = (
        "insert into processing_jobs (user_id, storage_path, run_at) "
        "values (gen_random_uuid(), 'jobs/steps=1', now() + interval '30 minutes') returning id"
    )
    ((soon,),) = ask(queue.url, later)
    jobs = await queue.add("steps=12,ms=100", count=4)
    with (
        queue_worker(queue.url, log=log, max_concurrent_jobs=2, **off),
        queue_worker(queue.url, log=fine, max_concurrent_jobs=2),
    ):
        await queue.until(
            "select count(*) = 4 from processing_jobs where id = any ($1) and status = 'complete'",
            jobs,
        )
        stamp = json.loads(log.read_text().splitlines()[0])["timestamp"]
        began = time.strftime("%Y-%m-%dT%H", time.gmtime(time.time() + hours * 3600 - 60))
        assert (
            stamp[:13] >= began
            if hours > 0
            else stamp[:13] <= time.strftime("%Y-%m-%dT%H", time.gmtime())
        )
        assert (await queue.row(soon))["status"] == "pending"  # due by the database's clock only
    assert await queue.doubled() == 0
    workers = set()
    for job in jobs:
        assert await queue.events(job) == ["claimed", "completed"]
        workers |= {e["worker"] for e in await queue.effects(job)}
    assert len(workers) == 2
    spread = await queue.db.fetchval(
        "select max(abs(extract(epoch from clock_timestamp() - last_beat_at))) < 60 "
        "from fullpass.workers"
    )
    assert spread
    said = Cli(
        tmp_path,
        DATABASE_URL=queue.url,
        LLM_PROVIDER="offline",
        **{k.upper(): v for k, v in off.items()},
    ).run("doctor")
    (line,) = [line for line in said.stdout.splitlines() if "clock" in line.lower()][:1]
    assert "60" in line or "3,600" in line or "hour" in line, line
