"""A real memory limit on a process: a cgroup where one can be made."""

from __future__ import annotations

import os
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

_V1 = Path("/sys/fs/cgroup/memory")
_V2 = Path("/sys/fs/cgroup")


@contextmanager
def limited(pid: int, limit_bytes: int) -> Iterator[Path]:
    """Put a process, and what it starts, under a limit that kills at `limit_bytes`."""
    group = _made(limit_bytes)
    if group is None:
        pytest.skip("missing component: no cgroup for memory can be made here")
    try:
        (group / "cgroup.procs").write_text(str(pid))
        yield group
    finally:
        # Whatever is left goes back to the root group, so that the group can be removed.
        for left in (group / "cgroup.procs").read_text().split():
            (group.parent / "cgroup.procs").write_text(left)
        group.rmdir()


def _made(limit_bytes: int) -> Path | None:
    for root, name in ((_V1, "memory.limit_in_bytes"), (_V2, "memory.max")):
        group = root / f"fullpass-test-{os.getpid()}-{os.urandom(3).hex()}"
        try:
            group.mkdir()
        except OSError:
            continue
        try:
            (group / name).write_text(str(limit_bytes))
        except OSError:
            group.rmdir()
            continue
        return group
    return None
