"""What bench_ingest.py measures with: a worker's whole process tree, and the controls.

Memory is the sum of resident sizes over the tree, shared pages counted in each process that maps
them: the strict reading. The proportional share, which counts them once, is shown beside it.
"""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from daemon.export.chatgpt import ChatGPTReader
from daemon.export.conversation import ReadReport
from daemon.export.reader import ExportReader
from daemon.export.scanner import ObjectScanner
from daemon.export.values import DecodeError
from daemon.fullpass.chunks import chunk, conversation_hash, tiers_for
from daemon.settings import load_settings

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from daemon.export.scanner import Span

HERE = Path(__file__).resolve().parent
MB = 1_000_000
_LARGEST_OBJECT = 1 << 28
_CGROUPS = (
    (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes", "memory.max_usage_in_bytes"),
    (Path("/sys/fs/cgroup"), "memory.max", "memory.peak"),
)


# --- controls and parts, each over a plain JSON file in this process


def textbook_scanner(path: Path) -> int:
    """Count top-level objects as a textbook does: byte by byte, with a flag for strings."""
    depth = count = 0
    in_string = escaped = False
    with path.open("rb") as file:
        while block := file.read(1 << 18):
            for byte in block:
                if in_string:
                    if escaped:
                        escaped = False
                    elif byte == 0x5C:
                        escaped = True
                    elif byte == 0x22:
                        in_string = False
                elif byte == 0x22:
                    in_string = True
                elif byte == 0x7B:
                    depth += 1
                elif byte == 0x7D:
                    depth -= 1
                    count += not depth
    return count


_MARK = re.compile(rb'"(?:[^"\\]++|\\.)*+"|[{}]', re.DOTALL)


def quick_scanner(path: Path) -> int:
    """Count top-level objects by one expression that leaps over strings, block by block."""
    depth = count = 0
    rest = b""
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            data = rest + block
            end = 0
            for mark in _MARK.finditer(data):
                end = mark.end()
                if data[mark.start()] == 0x7B:
                    depth += 1
                elif data[mark.start()] == 0x7D:
                    depth -= 1
                    count += not depth
            rest = data[end:]
    return count


def own_scanner(path: Path) -> int:
    """Find the top-level objects with the scanner of the product, and do nothing with them."""
    count = 0
    with path.open("rb") as file:
        scanner = ObjectScanner(file.read, object_bytes=_LARGEST_OBJECT)
        while scanner.next_span() is not None:
            count += 1
    return count


def parse(path: Path) -> int:
    """Scan, decode and linearise a ChatGPT export; redact nothing."""
    count = 0
    reader = ChatGPTReader(ReadReport())
    with path.open("rb") as file:
        scanner = ObjectScanner(file.read, object_bytes=_LARGEST_OBJECT)
        while (span := scanner.next_span()) is not None:
            found = None if span.problem else _linearised(reader, scanner, span)
            if found is None and span.guessed:
                span = scanner.measure(span)
                found = None if span.problem else _linearised(reader, scanner, span)
            if found is not None:
                count += found
                scanner.learn(span)
            elif not span.problem:
                scanner.reject(span)
    return count


def _linearised(reader: ChatGPTReader, scanner: ObjectScanner, span: Span) -> int | None:
    view = scanner.view(span)
    try:
        return sum(1 for _ in reader.read_object(view, "", strict=span.guessed))
    except DecodeError:
        return None
    finally:
        view.release()


def read(path: Path) -> int:
    """Read an export as a pass does, redaction included."""
    return sum(1 for _ in ExportReader(path))


def read_and_cut(path: Path) -> int:
    """Read an export, cut it into chunks and hash these: all that a pass does before its rows."""
    tiers = tiers_for(load_settings(), {"medium": "medium"})
    count = 0
    for conversation in ExportReader(path):
        conversation_hash(conversation, tiers)
        count += sum(len(chunk(conversation, tier)) for tier in tiers)
    return count


def texts_of(path: Path) -> list[list[str]]:
    """Give the texts of an export's conversations."""
    return [[m.text for m in conversation.messages] for conversation in ExportReader(path)]


# --- a worker's process tree


@dataclass(frozen=True, slots=True)
class Processor:
    """Seconds of a processor that were used so far."""

    reader: float
    worker: float
    postgres: float

    def since(self, before: Processor) -> Processor:
        """Return what was used since then."""
        return Processor(
            self.reader - before.reader,
            self.worker - before.worker,
            self.postgres - before.postgres,
        )


def processor_used(worker_pid: int, postgres_pids: Iterable[int]) -> Processor:
    """Ask what a worker, the readers of it that ended, and a server's processes have used."""
    own = psutil.Process(worker_pid).cpu_times()
    postgres = 0.0
    for pid in postgres_pids:
        with contextlib.suppress(psutil.Error):
            times = psutil.Process(pid).cpu_times()
            postgres += times.user + times.system
    return Processor(own.children_user + own.children_system, own.user + own.system, postgres)


@dataclass(frozen=True, slots=True)
class Peak:
    """The most that a tree held at once, in MB."""

    rss_mb: float
    pss_mb: float
    processes: int


class Watch:
    """Samples a process tree from a thread until closed."""

    def __init__(self, pid: int, *, every_seconds: float = 0.03) -> None:
        self._root = psutil.Process(pid)
        self._every_seconds = every_seconds
        self._rss = self._pss = self._processes = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop sampling."""
        self._ended.set()
        self._thread.join()

    def reset(self) -> None:
        """Forget the peak so far."""
        self._rss = self._pss = self._processes = 0

    @property
    def peak(self) -> Peak:
        """The peak since the last reset."""
        return Peak(self._rss / MB, self._pss / MB, self._processes)

    def now_mb(self) -> float:
        """Give the resident sum at this moment."""
        return _tree(self._root, set(psutil.pids()))[0] / MB

    def _run(self) -> None:
        ticks = 0
        known: set[int] = set()
        while not self._ended.wait(self._every_seconds):
            # Counted from its second look on: between its start and its exec a child shares its
            # parent's memory and would count it twice.
            rss, processes, known = _tree(self._root, known)
            self._rss, self._processes = max(self._rss, rss), max(self._processes, processes)
            ticks += 1
            if ticks % 5 == 0:  # reading it walks the page tables: not at every look
                self._pss = max(self._pss, _proportional(self._root))


def _members(root: psutil.Process) -> list[psutil.Process]:
    try:
        return [root, *root.children(recursive=True)]
    except psutil.Error:
        return []


def _tree(root: psutil.Process, known: set[int]) -> tuple[int, int, set[int]]:
    """Sum what the known processes of a tree hold; return also their number and who is there."""
    total = count = 0
    members = _members(root)
    for process in members:
        with contextlib.suppress(psutil.Error):
            if process.pid in known:
                total += process.memory_info().rss
                count += 1
    return total, count, {process.pid for process in members}


def _proportional(root: psutil.Process) -> int:
    total = 0
    for process in _members(root):
        with contextlib.suppress(OSError, ValueError):
            rollup = Path(f"/proc/{process.pid}/smaps_rollup").read_text(encoding="ascii")
            total += int(rollup.partition("\nPss:")[2].split()[0]) * 1024
    return total


@contextlib.contextmanager
def worker(settings: Mapping[str, object], *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """Start bench/ingest_worker.py; it is dead when this closes."""
    environment = {**os.environ, **{name: str(value) for name, value in settings.items()}}
    process = subprocess.Popen(
        [sys.executable, str(HERE / "ingest_worker.py"), *arguments], env=environment
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()


@contextlib.contextmanager
def memory_limit(pid: int, limit_bytes: int) -> Iterator[Path | None]:
    """Put a process under a real limit; gives None where no group can be made here."""
    for root, limit, most in _CGROUPS:
        group = root / f"fullpass-bench-{os.getpid()}"
        try:
            group.mkdir()
        except OSError:
            continue
        try:
            (group / limit).write_text(str(limit_bytes))
            (group / "cgroup.procs").write_text(str(pid))
        except OSError:
            group.rmdir()
            continue
        try:
            yield group / most
        finally:
            _emptied(group)
        return
    yield None


def _emptied(group: Path) -> None:
    for left in (group / "cgroup.procs").read_text().split():
        with contextlib.suppress(OSError):
            (group.parent / "cgroup.procs").write_text(left)
    for _ in range(100):  # a group that was busy a moment ago
        with contextlib.suppress(OSError):
            group.rmdir()
            return
        time.sleep(0.05)
