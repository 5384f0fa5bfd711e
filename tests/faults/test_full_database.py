"""A database whose disk is full (53100), on a real small file system: waited for, nothing lost."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import shutil
import subprocess
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import asyncpg
import pytest

from daemon.settings import load_settings
from daemon.worker import Worker
from tests.support import postgres
from tests.support.exports import planted_export
from tests.support.queue_checks import queue_at, until
from tests.support.worker_process import QUICK

if TYPE_CHECKING:
    from collections.abc import Iterator

_DISK_MB = 96
_LEFT_BYTES = 600_000
"""Less than the export takes, so that the disk is full in the midst of it."""


@contextmanager
def small_disk(server_url: str) -> Iterator[tuple[str, Path]]:
    """Give a migrated database on a file system of its own, and that file system's folder."""

    async def ask(*statements: str, database: str = "postgres") -> str:
        connection = await asyncpg.connect(
            postgres.url_of(server_url, database), statement_cache_size=0
        )
        try:
            return str([await connection.fetchval(statement) for statement in statements][-1])
        finally:
            await connection.close()

    name = f"fp_small_{secrets.token_hex(4)}"
    # Whoever is listening there must be a process of this machine, which can see the mount.
    postmaster = asyncio.run(ask("select split_part(pg_read_file('postmaster.pid'), E'\\n', 1)"))
    process = Path("/proc") / postmaster
    if not shutil.which("mount") or not process.exists():
        pytest.skip("missing right: to mount a small file system where the database server is")
    owner = process.stat()
    folder = Path(tempfile.mkdtemp(prefix="fp-disk-"))
    folder.chmod(0o711)
    disk = folder / "disk"
    disk.mkdir()
    options = f"size={_DISK_MB}m,uid={owner.st_uid},gid={owner.st_gid},mode=700"
    mounted = ["mount", "-t", "tmpfs", "-o", options, "none", str(disk)]
    if subprocess.run(mounted, check=False, capture_output=True).returncode:
        shutil.rmtree(folder)
        pytest.skip("missing right: to mount a small file system")
    try:
        # A migrated database of the run's own is copied there whole.
        template = postgres.create_database(server_url, migrated=True)
        asyncio.run(
            ask(
                f"create tablespace {name} location '{disk}'",
                f'create database {name} template "{template.rpartition("/")[2]}" tablespace {name}',
            )
        )
        postgres.drop_database(template)
        try:
            yield postgres.url_of(server_url, name), disk
        finally:
            postgres.drop_database(postgres.url_of(server_url, name))
            asyncio.run(ask(f"drop tablespace {name}"))
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)
        shutil.rmtree(folder)


@pytest.fixture
def small_disk_database(postgres_server: postgres.Server) -> Iterator[tuple[str, Path]]:
    with small_disk(postgres_server.url) as given:
        yield given


async def test_a_full_disk_of_the_database_is_waited_for_and_nothing_is_lost(
    small_disk_database: tuple[str, Path], tmp_path: Path
) -> None:
    url, disk = small_disk_database
    export = planted_export(conversations=300, facts_each=2, filler_words=200)
    path = export.write(tmp_path / "conversations.json")
    async with queue_at(url) as queue:
        job = await queue.db.fetchval(
            "insert into processing_jobs (user_id, storage_path) "
            "values (gen_random_uuid(), $1) returning id",
            f"file://{path}",
        )
        await queue.db.execute("checkpoint")
        ballast = disk / "ballast"
        room = os.statvfs(disk)
        taken = room.f_bavail * room.f_frsize - _LEFT_BYTES
        with ballast.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, taken)
        settings = load_settings(**QUICK, database_url=url, llm_provider="offline")
        worker = Worker(settings, url)
        working = asyncio.create_task(worker.run(once=True))

        async def waits_for_the_disk() -> bool:
            said = await queue.db.fetchval(
                "select waiting_for from fullpass.passes where job_id = $1", job
            )
            return "53100" in f"{worker.signs.vitals()['waiting_for']} {said}"

        await until(waits_for_the_disk, seconds=20)
        assert not working.done()
        row = await queue.row(job)
        assert row["status"] in {"pending", "processing"}
        ballast.unlink()
        tally = await asyncio.wait_for(working, 60)
        assert len(tally.completed) == 1
        done = await queue.row(job)
        events = await queue.events(job)
        facts = await queue.db.fetchval("select count(*) from fullpass.facts")
        chunks = await queue.db.fetchval("select count(*) from conversation_chunks")
    assert done["status"] == "complete"
    assert done["attempts"] == 1
    assert not {"retried", "failed", "quarantined"} & set(events)
    result = json.loads(done["result"])
    assert result["export"]["whole"] is True
    assert result["coverage"]["share"] == 1.0
    assert done["conversation_count"] == 300
    assert chunks == result["coverage"]["chunks"] >= 300
    assert facts == 450  # of the four kinds planted, three are such as are found by rule
