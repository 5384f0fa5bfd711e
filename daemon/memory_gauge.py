"""How much memory there is to work with, and how much of it is in use, at this moment.

What export, queue and llm read to stay small (promise 7). The limit in force is the smallest of the
cgroup limits from this process's own group up to the root, MEMORY_LIMIT_MB and the machine; what
counts as used is measured against that same limit. A container is why this exists: there, psutil
and /proc/meminfo describe the host. Reading takes well under a millisecond under a cgroup limit and
a few under a setting; it keeps nothing and decides nothing beyond `allowed_calls`.

Sources (read 2026-11-22): the kernel's admin-guide/cgroup-v2.rst and cgroup-v1/memory.rst.
"""

from __future__ import annotations

import os
import resource
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Iterator

GaugeSource = Literal["cgroup v2", "cgroup v1", "setting", "machine"]

MIB = 1024 * 1024
RESERVE_BYTES = 64 * MIB
"""Kept free for what no call accounts for: a parse batch, a page of rows, the allocator."""
LEAST_PER_CALL_BYTES = 4 * MIB
COPIES_PER_EXCHANGE = 4
"""Request text, its JSON, the reply and its parsed form may all be alive at once."""


@dataclass(frozen=True, slots=True)
class Gauge:
    """The limit in force, what is used of it, and where the limit comes from.

    The working set leaves out file pages that the kernel drops when it needs room: without that, a
    large download looks like memory in use.
    """

    limit_bytes: int
    working_set_bytes: int
    source: GaugeSource

    @property
    def available_bytes(self) -> int:
        """Room below the limit, never negative."""
        return max(0, self.limit_bytes - self.working_set_bytes)


def read_gauge(
    *,
    memory_limit_mb: int | None = None,
    cgroup_root: Path = Path("/sys/fs/cgroup"),
    proc_root: Path = Path("/proc"),
) -> Gauge:
    """Read the gauge now; `memory_limit_mb` is MEMORY_LIMIT_MB (MiB). Never raises on odd hosts."""
    machine = _machine(proc_root)
    limit_bytes, source, group = machine.limit_bytes, machine.source, None
    for found in _limited_groups(cgroup_root, proc_root):
        if found.limit_bytes < limit_bytes:
            limit_bytes, source, group = found.limit_bytes, found.source, found
    if memory_limit_mb is not None and memory_limit_mb * MIB < limit_bytes:
        return Gauge(memory_limit_mb * MIB, _process_tree_bytes(proc_root), "setting")
    if group is None:
        return machine
    return Gauge(limit_bytes, group.working_set_bytes(), source)


def allowed_calls(gauge: Gauge, *, ceiling: int, largest_exchange_bytes: int = 0) -> int:
    """How many LLM calls may be in flight: 1 to `ceiling`, by the room that is left.

    `largest_exchange_bytes` is the largest request and reply together seen so far.
    """
    room = gauge.limit_bytes - gauge.working_set_bytes - RESERVE_BYTES
    per_call = max(LEAST_PER_CALL_BYTES, COPIES_PER_EXCHANGE * largest_exchange_bytes)
    return max(1, min(room // per_call, ceiling))


@dataclass(frozen=True, slots=True)
class _Group:
    """A control group that sets a limit."""

    folder: Path
    source: Literal["cgroup v2", "cgroup v1"]
    limit_bytes: int

    def working_set_bytes(self) -> int:
        """Usage of the group and all below it, less its inactive file pages."""
        v2 = self.source == "cgroup v2"
        usage = _number(self.folder / ("memory.current" if v2 else "memory.usage_in_bytes")) or 0
        inactive = _field(
            self.folder / "memory.stat", "inactive_file" if v2 else "total_inactive_file"
        )
        return max(0, usage - (inactive or 0))


def _limited_groups(cgroup_root: Path, proc_root: Path) -> Iterator[_Group]:
    """Yield every group above this process that has a limit, of both cgroup versions.

    Hybrid hosts mount both; the memory controller belongs to one of them, and the other simply has
    no such files.
    """
    for line in _text(proc_root / "self" / "cgroup").splitlines():
        _hierarchy, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if not controllers:
            for root in (cgroup_root, cgroup_root / "unified"):
                yield from _limits(root, path, "cgroup v2", "memory.max")
        elif "memory" in controllers.split(","):
            yield from _limits(cgroup_root / "memory", path, "cgroup v1", "memory.limit_in_bytes")


def _limits(
    root: Path, path: str, source: Literal["cgroup v2", "cgroup v1"], file_name: str
) -> Iterator[_Group]:
    """Walk from the process's own group up to `root`.

    In a container without a cgroup namespace `path` is the host's and does not exist below `root`,
    which is then the container's own group: missing levels are skipped, the root never is. A path
    with `..` lies outside the namespace, so only the root can be read.
    """
    names = [] if ".." in path.split("/") else [name for name in path.split("/") if name]
    for depth in range(len(names), -1, -1):
        folder = root.joinpath(*names[:depth])
        limit = _number(folder / file_name)  # None for "max" too
        if limit is not None:
            yield _Group(folder, source, limit)


def _machine(proc_root: Path) -> Gauge:
    """Measure the whole machine; where there is no /proc, through psutil."""
    total = _field(proc_root / "meminfo", "MemTotal:")
    available = _field(proc_root / "meminfo", "MemAvailable:")
    if total is not None and available is not None:
        return Gauge(total * 1024, (total - available) * 1024, "machine")
    import psutil  # noqa: PLC0415 - not needed on Linux

    memory = psutil.virtual_memory()
    return Gauge(memory.total, memory.total - memory.available, "machine")


def _process_tree_bytes(proc_root: Path) -> int:
    """Memory of this process and all below it: the parser's child, an embedded Postgres.

    The proportional share where the kernel gives it, so that pages which many Postgres processes
    share are counted once; otherwise the resident set. So too of a process that has none below it:
    it shares little, and the kernel takes milliseconds to add up the shares, every half second.
    """
    if sys.platform != "linux":
        return _process_tree_bytes_by_psutil()
    tree = [proc_root / "self"]
    for process in tree:  # which grows meanwhile
        for task in _entries(process / "task"):
            tree += [proc_root / pid for pid in _text(task / "children").split()]
    if len(tree) == 1:
        return _resident_bytes(tree[0])
    shares = ((process, _field(process / "smaps_rollup", "Pss:")) for process in tree)
    return sum(_resident_bytes(p) if pss is None else pss * 1024 for p, pss in shares)


def _resident_bytes(process: Path) -> int:
    resident_pages = (_text(process / "statm").split() or ["0", "0"])[1]
    return int(resident_pages) * os.sysconf("SC_PAGE_SIZE")


def _process_tree_bytes_by_psutil() -> int:
    import psutil  # noqa: PLC0415 - not needed on Linux

    own = psutil.Process()
    total = 0
    for process in (own, *own.children(recursive=True)):
        try:
            total += process.memory_info().rss
        except psutil.Error:  # it ended meanwhile
            continue
    return total


def _entries(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError:  # the process ended meanwhile
        return []


def _text(path: Path) -> str:
    """Contents of a kernel file; empty where it is missing, closed to us or just vanished."""
    try:
        return path.read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""


def _number(path: Path) -> int | None:
    text = _text(path).strip()
    return int(text) if text.isdecimal() else None


def _field(path: Path, name: str) -> int | None:
    """Return the number after `name` in a file of lines `name number …`."""
    for line in _text(path).splitlines():
        words = line.split()
        if len(words) > 1 and words[0] == name and words[1].isdecimal():
            return int(words[1])
    return None


def peak_rss_bytes() -> int:
    """Return this process's highest resident size so far; the unit differs between systems."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def peak_rss_bytes_of(pid: int, *, proc_root: Path = Path("/proc")) -> int:
    """Return another process's highest resident size so far; 0 when it is gone.

    Where there is no /proc it is the present size, through psutil.
    """
    known = _field(proc_root / str(pid) / "status", "VmHWM:")
    if known is not None or proc_root.is_dir():
        return (known or 0) * 1024
    import psutil  # noqa: PLC0415 - not needed on Linux

    try:
        return int(psutil.Process(pid).memory_info().rss)
    except psutil.Error:
        return 0
