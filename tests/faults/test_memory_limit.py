"""Promise 7: exports of any size are read within a small limit of memory that really kills."""

from __future__ import annotations

import asyncio
import json
import os
import random
import sys
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest

from daemon.memory_gauge import MIB
from tests.support.exports import conversation
from tests.support.memory_limit import limited
from tests.support.worker_process import environment

if TYPE_CHECKING:
    from collections.abc import Iterator


def large_export(path: Path, *, megabytes: int, largest_megabytes: int) -> int:
    """Write an export of many conversations and one large one; return how many they are."""
    dice = random.Random(megabytes)
    words = ["".join(dice.choices("abcdefghijklmnop", k=dice.randint(2, 9))) for _ in range(2_000)]

    def turns(characters: int) -> Iterator[tuple[str, str]]:
        written = turn = 0
        while written < characters:
            text = " ".join(dice.choices(words, k=200))
            written += len(text)
            yield ("assistant" if turn % 2 else "user"), text
            turn += 1

    count = 0
    with path.open("w", encoding="utf-8") as file:
        file.write("[")
        json.dump(conversation(0, list(turns(largest_megabytes * 700_000))), file)
        while file.tell() < megabytes * 1_000_000:
            count += 1
            file.write(", ")
            file.write(json.dumps(conversation(count, list(turns(20_000)))))
        file.write("]")
    return count + 1


async def worked_within(url: str, paths: list[Path], limit_bytes: int) -> list[dict[str, Any]]:
    """Ingest these exports at once under a limit that kills; return the jobs' rows."""
    db = await asyncpg.connect(url, statement_cache_size=0)
    for path in paths:
        await db.execute(
            "insert into processing_jobs (user_id, storage_path) values ($1, $2)",
            uuid.uuid4(), f"file://{path}",
        )  # fmt: skip
    with limited(os.getpid(), limit_bytes) as group:
        # It is started inside; this process itself goes back out at once.
        worker = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "tests.support.ingest_worker",
            env=environment(
                url, None, llm_provider="offline", max_concurrent_jobs=2, lease_seconds=20,
                heartbeat_seconds=2,
            ),
            stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        (group.parent / "cgroup.procs").write_text(str(os.getpid()))
        _, said = await worker.communicate()
    rows = await db.fetch("select * from processing_jobs order by created_at")
    await db.close()
    assert worker.returncode == 0, said.decode()[-2000:]
    return [dict(row) for row in rows]


@pytest.mark.parametrize(
    ("megabytes", "largest", "limit_mb"),
    [
        (8, 4, 224),
        pytest.param(300, 60, 512, marks=[pytest.mark.long, pytest.mark.timeout(1800)]),
    ],
)
async def test_two_large_exports_at_once_finish_within_the_limit(
    database_url: str, tmp_path: Path, megabytes: int, largest: int, limit_mb: int
) -> None:
    path = tmp_path / "export.json"
    count = large_export(path, megabytes=megabytes, largest_megabytes=largest)
    rows = await worked_within(database_url, [path, path], limit_mb * MIB)
    assert [row["status"] for row in rows] == ["complete", "complete"]
    assert [row["conversation_count"] for row in rows] == [count, count]
    assert [row["attempts"] for row in rows] == [1, 1]


@pytest.mark.long
@pytest.mark.timeout(1800)
async def test_a_conversation_of_two_hundred_megabytes_fits_a_quarter_of_a_gigabyte(
    database_url: str, tmp_path: Path
) -> None:
    path = tmp_path / "export.json"
    count = large_export(path, megabytes=200, largest_megabytes=200)
    rows = await worked_within(database_url, [path], 256 * MIB)
    assert [(row["status"], row["conversation_count"]) for row in rows] == [("complete", count)]
