"""Promises 6 and 7: whatever an export does to the process that reads it, the worker goes on."""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path
from typing import Any

import asyncpg
import msgspec
import psutil
import pytest

from daemon import __version__
from daemon.errors import BadExport, Draining, Wait
from daemon.export.streams import Limits
from daemon.fullpass.handover import FRAME, Answer, Batch, Finished, Order, Part, TierOrder
from daemon.fullpass.reader_process import ReaderDied, ReaderProcess
from daemon.fullpass.reading import Reading
from tests.support.export_samples import FIXTURES, chatgpt, dump, node, read, talk, zipped
from tests.support.exports import planted_export
from tests.support.worker_process import work_once

ROOT = Path(__file__).resolve().parents[2]
MIB = 2**20


def order(path: Path, name: str = "export.json", **changes: Any) -> Order:
    fields: dict[str, Any] = {
        "release": __version__, "parent_pid": os.getpid(), "path": str(path), "name": name,
        "file_type": None, "folder": str(path.parent), "last_modified": None,
        "tiers": (TierOrder("medium", 400, 40, "tokens"),), "limits": Limits(),
        "memory_bytes": 256 * MIB, **changes,
    }  # fmt: skip
    return Order(**fields)


async def parts_of(reader: ReaderProcess) -> list[Part]:
    async with reader:
        return [part async for batch in reader for part in batch.parts]


def never() -> None:
    """Nothing ends the work."""


async def told(name: str, folder: Path, **options: Any) -> str:
    """What a reading process that misbehaves ends as; how long it took does not matter."""
    hostile = ReaderProcess(
        order(folder / "x", name), check=never, module="tests.support.hostile_reader", **options
    )
    with pytest.raises(ReaderDied) as raised:
        await parts_of(hostile)
    assert not psutil.pid_exists(hostile.pid)
    return str(raised.value)


@pytest.mark.parametrize(
    ("deed", "says"),
    [
        ("segfault", "was killed, signal 11 (SIGSEGV), peak RSS "),
        ("garbage", "sent what is no answer"),
        ("too much", "sent more at once than it may"),
        ("half", "ended with code 0"),
        ("code", "ended with code 3"),
        ("growth", "took more memory than the 256 MB it may, peak RSS "),
    ],
)
async def test_a_reader_that_goes_wrong_is_an_error_with_its_evidence(
    tmp_path: Path, deed: str, says: str
) -> None:
    assert says in await told(deed, tmp_path)


@pytest.mark.parametrize("deed", ["silence", "endless"])
async def test_a_reader_that_hangs_is_ended(tmp_path: Path, deed: str) -> None:
    assert "made no progress for 1 s" in await told(deed, tmp_path, patience_seconds=1.0)


async def children() -> list[psutil.Process]:
    return psutil.Process().children()


async def test_a_reader_that_got_ready_and_is_not_needed_leaves_nothing(tmp_path: Path) -> None:
    before = await children()
    async with ReaderProcess(check=never) as reader:
        reader.warm_up()
    assert await children() == before
    async with ReaderProcess(check=never) as reader:
        reader.warm_up()
        while not (waiting := [c for c in await children() if c not in before]):
            await asyncio.sleep(0.01)  # polled until it is there; the test has a deadline
    assert not any(process.is_running() for process in waiting)


async def test_a_reader_that_was_ended_while_it_waited_is_started_anew(tmp_path: Path) -> None:
    before = await children()
    export = planted_export(conversations=3).write(tmp_path / "c.json")
    async with ReaderProcess(check=never) as reader:
        reader.warm_up()
        while not (waiting := [c for c in await children() if c not in before]):
            await asyncio.sleep(0.01)  # polled until it is there; the test has a deadline
        waiting[0].kill()
        while (await reader._begun()).returncode is None:
            await asyncio.sleep(0.01)  # polled until it is known; the test has a deadline
        await reader.begin(order(export))
        assert len([part async for batch in reader for part in batch.parts]) == 3


async def test_a_reader_knows_no_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ANTHROPIC_API_KEY", "DATABASE_URL", "SUPABASE_SERVICE_KEY"):
        monkeypatch.setenv(name, "hush")
    asked = ReaderProcess(
        order(tmp_path, "environment"), check=never, module="tests.support.hostile_reader"
    )
    with pytest.raises(BadExport) as raised:
        await parts_of(asked)
    names = {name for name in str(raised.value).split(",") if not name.startswith("PYTHON")}
    assert names <= {"PATH", "LANG", "LC_ALL", "LC_CTYPE", "TMPDIR", "LD_LIBRARY_PATH"}


async def test_a_reader_ends_at_once_when_the_work_does(tmp_path: Path) -> None:
    asked = 0

    def check() -> None:
        nonlocal asked
        asked += 1
        if asked > 2:
            raise Draining

    reader = ReaderProcess(
        order(tmp_path, "silence"), check=check, module="tests.support.hostile_reader"
    )
    started = time.monotonic()
    with pytest.raises(Draining):
        await parts_of(reader)
    assert time.monotonic() - started < 20
    assert not psutil.pid_exists(reader.pid)


async def test_a_reader_of_another_release_is_not_believed(tmp_path: Path) -> None:
    with pytest.raises(Wait, match="restart the worker"):
        await parts_of(ReaderProcess(order(tmp_path, release="0.0.0"), check=never))


ORPHAN = """
import asyncio, sys
from pathlib import Path
from tests.integration.test_reader_process import ReaderProcess, never, order, parts_of
async def main():
    reader = ReaderProcess(order(Path(sys.argv[1]), "endless"), check=never, module="tests.support.hostile_reader")
    async with reader:
        print(reader.pid, flush=True)
        await asyncio.Event().wait()  # until it is killed
asyncio.run(main())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere it ends at its next write")
def test_a_reader_dies_with_its_worker(tmp_path: Path) -> None:
    worker = subprocess.Popen(
        [sys.executable, "-c", ORPHAN, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert worker.stdout is not None
    with worker.stdout:
        reader = psutil.Process(int(worker.stdout.readline()))
        deadline = time.monotonic() + 20
        while reader.cpu_times().user < 0.3:  # at work, so its tie to the worker is made
            assert time.monotonic() < deadline
            time.sleep(0.02)  # a polled deadline
        worker.send_signal(signal.SIGKILL)
        worker.wait()
    deadline = time.monotonic() + 10
    while reader.is_running() and reader.status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
        time.sleep(0.02)  # a polled deadline


# --- what comes through the pipe


async def test_what_comes_through_the_pipe_is_what_the_reader_reads(tmp_path: Path) -> None:
    for file in (FIXTURES / "chatgpt/librechat-chatgpt-export.json", FIXTURES / "claude/bot-knows-claude_export.json"):  # fmt: skip
        found, report = read(tmp_path, file.read_bytes(), name=file.name)
        reader = ReaderProcess(order(file, file.name), check=never)
        parts = await parts_of(reader)
        assert [p.conversation_id for p in parts] == [c.id for c in found]
        assert [p.message_count for p in parts] == [len(c.messages) for c in found]
        assert reader.report == report
        assert all(p.chunk_count == len(p.rows) for p in parts)


async def test_the_loop_stays_quick_while_a_reader_sends(tmp_path: Path) -> None:
    path = planted_export(conversations=100, filler_words=400).write(tmp_path / "c.json")
    best = 1.0
    for _ in range(3):  # a busy machine is no fault of the pipe's
        lags: list[float] = []

        async def feel(lags: list[float]) -> None:
            while True:
                before = time.perf_counter()
                await asyncio.sleep(0.002)  # what is measured: how late the loop wakes it
                lags.append(time.perf_counter() - before - 0.002)

        feeling = asyncio.create_task(feel(lags))
        assert len(await parts_of(ReaderProcess(order(path), check=never))) == 100
        feeling.cancel()
        best = min(best, sorted(lags)[int(len(lags) * 0.99)])
    assert best <= 0.05


@pytest.mark.skipif(sys.platform != "linux", reason="no limit of memory to be had here")
async def test_a_message_beyond_the_memory_there_is_costs_its_conversation(tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    path.write_bytes(dump([talk("a"), talk("big", "w " * 20_000_000), talk("b")]))
    reader = ReaderProcess(order(path, memory_bytes=96 * MIB), check=never)
    parts = await parts_of(reader)
    assert [p.conversation_id for p in parts] == ["a", "b"]
    assert reader.report is not None
    assert reader.report.damages == ["export.json, item 2: needs more memory than there is"]
    assert 0 < reader.peak_rss_bytes < 160 * MIB


@pytest.mark.skipif(sys.platform != "linux", reason="no limit of memory to be had here")
async def test_a_redaction_beyond_the_memory_there_is_costs_its_conversation(
    tmp_path: Path,
) -> None:
    """Each place of a secret is noted before the text is written anew: here they outweigh it."""
    secrets = "s://u:x7q@h " * 300_000
    words = "a pleasant, " * 300_000  # as long, and without a secret: it fits
    assert len(secrets) == len(words)
    path = tmp_path / "c.json"
    path.write_bytes(dump([talk("a"), talk("secrets", secrets), talk("words", words), talk("b")]))
    reader = ReaderProcess(order(path, memory_bytes=64 * MIB), check=never)
    parts = await parts_of(reader)
    assert [p.conversation_id for p in parts if p.last] == ["a", "words", "b"]
    assert reader.report is not None
    assert reader.report.damages == ["export.json, item 2: needs more memory than there is"]
    assert reader.report.conversations == 3


@pytest.mark.skipif(sys.platform != "linux", reason="no limit of memory to be had here")
async def test_a_conversation_that_cannot_be_cut_in_the_memory_there_is_costs_only_itself(
    tmp_path: Path,
) -> None:
    """Also where a part of it was sent already: its last part then says that it is none."""
    path = tmp_path / "c.json"
    path.write_bytes(dump([talk("a"), talk("big", "wind " * 300_000), talk("b")]))
    medium, tiny = TierOrder("medium", 4000, 0, "tokens"), TierOrder("micro", 8, 0, "characters")
    reader = ReaderProcess(order(path, memory_bytes=48 * MIB, tiers=(medium, tiny)), check=never)
    parts = await parts_of(reader)
    assert [p.conversation_id for p in parts if p.chunk_count and p.last] == ["a", "b"]
    sliced = [p for p in parts if p.conversation_id == "big"]
    assert [(p.first, p.last, p.chunk_count > 0) for p in sliced] == [(True, False, True), (False, True, False)]  # fmt: skip
    assert reader.report is not None
    assert reader.report.damages == ["export.json, item 2: needs more memory than there is"]
    assert (reader.report.conversations, reader.report.messages) == (2, 4)


def answers(content: bytes, folder: Path, **changes: Any) -> list[Answer]:
    """What a reading process would send, without the process: for many damages."""
    path = folder / "export"
    path.write_bytes(content)
    out = io.BytesIO()
    reading = Reading(order(path, **changes), out)
    try:
        reading.send(reading.run())
    except BadExport:
        return []
    frames, at = [], 0
    sent = out.getvalue()
    while at < len(sent):
        (size,) = FRAME.unpack_from(sent, at)
        at += FRAME.size + size
        frames.append(msgspec.msgpack.decode(sent[at - size : at], type=Answer))
    return frames


def ids(frames: list[Answer]) -> list[str]:
    return [p.conversation_id for f in frames if isinstance(f, Batch) for p in f.parts if p.last]


def test_an_export_cut_at_every_kilobyte_gives_what_came_before(tmp_path: Path) -> None:
    content = (FIXTURES / "chatgpt/librechat-chatgpt-export.json").read_bytes()
    whole = ids(answers(content, tmp_path))
    for cut in range(512, len(content) - 8, 4096):
        found = answers(content[:cut], tmp_path)
        assert ids(found) == whole[: len(ids(found))]
        if found:
            assert isinstance(found[-1], Finished)
            assert not found[-1].report.whole


def test_ten_thousand_shards(tmp_path: Path) -> None:
    shards = {f"conversations-{i:05}.json": dump([talk(f"c{i}", "hello")]) for i in range(10_000)}
    frames = answers(zipped(shards, stored=True), tmp_path)
    assert ids(frames) == [f"c{i}" for i in range(10_000)]
    assert isinstance(frames[-1], Finished)
    assert frames[-1].report.whole
    assert len(frames) < 100


def test_a_conversation_of_many_nodes_comes_in_slices(tmp_path: Path) -> None:
    nodes = [node(f"n{i}", "user", f"text {i}") for i in range(20_000)]
    content = dump([chatgpt("long", *nodes), talk("b")])
    frames = answers(content, tmp_path)
    slices = [p for f in frames if isinstance(f, Batch) for p in f.parts if p.conversation_id == "long"]  # fmt: skip
    assert len(slices) > 1
    assert [p.first for p in slices] == [True] + [False] * (len(slices) - 1)
    assert [p.last for p in slices] == [False] * (len(slices) - 1) + [True]
    rows = [row for p in slices for row in p.rows]
    assert [row.index for row in rows] == list(range(slices[-1].chunk_count))
    assert {row.total for row in rows} == {len(rows)}
    assert ids(frames) == ["long", "b"]


@pytest.mark.parametrize(
    "content",
    [
        dump([talk("a")]).replace(b'"title"', b'"x": ' + b'{"x":' * 5000 + b"1" + b"}" * 5000 + b', "title"'),
        b"[" * 5000 + dump(talk("a")) + b"]" * 5000,
        dump([talk("a", "\x00 nul", "lone \ud83d")]),
        dump([talk("a", "x" * 2_000_000)]),
        dump([talk("a", title="t" * 2_000_000)]),
    ],
    ids=["deep", "brackets", "nul", "long message", "long title"],
)  # fmt: skip
@pytest.mark.parametrize("held", [1, 8 * MIB])
def test_odd_exports_are_sent_or_refused(tmp_path: Path, content: bytes, held: int) -> None:
    frames = answers(content, tmp_path, limits=Limits(held_bytes=held))
    assert ids(frames) in (["a"], [])


# --- at the job


async def kill_readers(over: asyncio.Event) -> int:
    """Kill each reading process of this one until it is over; how many it were."""
    killed = 0
    children = Path(f"/proc/self/task/{os.getpid()}/children")
    while not over.is_set():
        for pid in children.read_text().split():
            with contextlib.suppress(OSError):
                if b"daemon.fullpass.reading" in Path(f"/proc/{pid}/cmdline").read_bytes():
                    os.kill(int(pid), signal.SIGKILL)
                    killed += 1
        await asyncio.sleep(0.005)  # a polled deadline: the caller's
    return killed


@pytest.mark.skipif(sys.platform != "linux", reason="finds the reader in /proc")
@pytest.mark.parametrize("died_before", [False, True])
async def test_a_killed_reader_is_its_jobs_error_and_nobody_elses(
    database_url: str, tmp_path: Path, *, died_before: bool
) -> None:
    path = planted_export(conversations=40).write(tmp_path / "c.json")
    db = await asyncpg.connect(database_url, statement_cache_size=0)
    job = await db.fetchval(
        "insert into processing_jobs (user_id, storage_path, max_attempts) values ($1, $2, $3) "
        "returning id",
        uuid.uuid4(), f"file://{path}", 5 if died_before else 1,
    )  # fmt: skip
    if died_before:
        await db.execute(
            "insert into fullpass.job_events (job_id, event, attempt) values ($1, 'reader.died', 0)",
            job,
        )
    over = asyncio.Event()
    killing = asyncio.create_task(kill_readers(over))
    await work_once(database_url, None)
    over.set()
    assert await killing >= 1
    row = await db.fetchrow("select status, error_message from processing_jobs where id = $1", job)
    assert row["status"] == "failed"
    said = "chunk_conversations: c.json: the reader of this export was killed, signal 9"
    assert said in row["error_message"].replace(str(tmp_path) + "/", "")
    assert "peak RSS" in row["error_message"]
    assert ("twice in a row" in row["error_message"]) is died_before
    # The worker is none the worse for it.
    again = await db.fetchval(
        "insert into processing_jobs (user_id, storage_path) values ($1, $2) returning id",
        uuid.uuid4(), f"file://{path}",
    )  # fmt: skip
    await work_once(database_url, None)
    assert (
        await db.fetchval("select status from processing_jobs where id = $1", again) == "complete"
    )
    await db.close()
