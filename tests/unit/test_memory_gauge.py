"""Promise 7: concurrency follows the memory really available, not what the host seems to have."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import subprocess
import sys
from pathlib import Path

import pytest

from daemon.memory_gauge import MIB, Gauge, allowed_calls, read_gauge

V1_UNLIMITED = 0x7FFFFFFFFFFFF000
ROOT = Path(__file__).resolve().parents[2]


class Host:
    """A host's /sys/fs/cgroup and /proc as real files in a folder."""

    def __init__(self, folder: Path, *, cgroup_lines: str, total_mb: int = 16_000) -> None:
        self.cgroup_root, self.proc_root = folder / "cgroup", folder / "proc"
        self.cgroup_root.mkdir()
        self.write(self.proc_root / "self" / "cgroup", cgroup_lines)
        available_kb = (total_mb - 6_000) * 1024
        self.write(
            self.proc_root / "meminfo",
            f"MemTotal: {total_mb * 1024} kB\nMemFree: 1 kB\nMemAvailable: {available_kb} kB\n",
        )

    @staticmethod
    def write(path: Path, text: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def v2(self, path: str, limit: int | str, used_mb: int = 0, inactive_mb: int = 0) -> None:
        group = self.cgroup_root / path
        self.write(group / "memory.max", f"{limit}\n")
        self.write(group / "memory.current", f"{used_mb * MIB}\n")
        self.write(
            group / "memory.stat", f"anon 1\nactive_file 5\ninactive_file {inactive_mb * MIB}\n"
        )

    def v1(self, path: str, limit: int, used_mb: int = 0, inactive_mb: int = 0) -> None:
        group = self.cgroup_root / "memory" / path
        self.write(group / "memory.limit_in_bytes", f"{limit}\n")
        self.write(group / "memory.usage_in_bytes", f"{used_mb * MIB}\n")
        stat = f"cache 7\ninactive_file 3\ntotal_inactive_file {inactive_mb * MIB}\n"
        self.write(group / "memory.stat", stat)

    def process(
        self, pid: str, *, pss_mb: int | None, rss_pages: int = 0, children: str = ""
    ) -> None:
        process = self.proc_root / pid
        self.write(process / "statm", f"9999 {rss_pages} 1 1 0 1 0\n")
        self.write(process / "task" / "1" / "children", children)
        if pss_mb is not None:
            rollup = f"0-1 ---p [rollup]\nRss: 999999 kB\nPss: {pss_mb * 1024} kB\nPss_Anon: 1 kB\n"
            self.write(process / "smaps_rollup", rollup)

    def read(self, memory_limit_mb: int | None = None) -> Gauge:
        return read_gauge(
            memory_limit_mb=memory_limit_mb,
            cgroup_root=self.cgroup_root,
            proc_root=self.proc_root,
        )


def test_v2_limit_of_the_own_group_counts_and_droppable_file_pages_do_not(tmp_path: Path) -> None:
    host = Host(tmp_path, cgroup_lines="0::/app.slice/worker\n")
    host.v2("app.slice/worker", 512 * MIB, used_mb=400, inactive_mb=250)
    host.v2("app.slice", "max", used_mb=900)
    assert host.read() == Gauge(512 * MIB, 150 * MIB, "cgroup v2")
    assert host.read().available_bytes == 362 * MIB


def test_v2_a_smaller_limit_further_up_counts_with_its_own_usage(tmp_path: Path) -> None:
    host = Host(tmp_path, cgroup_lines="0::/pod/container\n")
    host.v2("pod/container", 1024 * MIB, used_mb=50)
    host.v2("pod", 600 * MIB, used_mb=300, inactive_mb=10)
    assert host.read() == Gauge(600 * MIB, 290 * MIB, "cgroup v2")


def test_v2_inside_a_container_its_own_group_is_the_root_of_the_mount(tmp_path: Path) -> None:
    for line in ("0::/\n", "0::/docker/4f2a\n", "0::/../../kubepods/x\n"):
        folder = tmp_path / secrets.token_hex(4)
        folder.mkdir()
        host = Host(folder, cgroup_lines=line)
        host.v2(".", 512 * MIB, used_mb=100)
        assert host.read() == Gauge(512 * MIB, 100 * MIB, "cgroup v2")


def test_v1_limit_counts_on_a_hybrid_host_whose_v2_tree_has_no_memory_files(
    tmp_path: Path,
) -> None:
    lines = "5:devices:/\n4:cpu,memory:/docker/ab\n1:name=systemd:/x\n0::/\n"
    host = Host(tmp_path, cgroup_lines=lines)
    (host.cgroup_root / "unified").mkdir()
    host.v1("docker/ab", 256 * MIB, used_mb=200, inactive_mb=80)
    host.v1(".", V1_UNLIMITED, used_mb=9_000)
    assert host.read() == Gauge(256 * MIB, 120 * MIB, "cgroup v1")


def test_without_any_limit_the_machine_counts(tmp_path: Path) -> None:
    host = Host(tmp_path, cgroup_lines="4:memory:/\n0::/\n")
    host.v1(".", V1_UNLIMITED, used_mb=9_000)
    assert host.read() == Gauge(16_000 * MIB, 6_000 * MIB, "machine")


def test_a_setting_below_every_limit_counts_against_the_whole_process_tree(tmp_path: Path) -> None:
    host = Host(tmp_path, cgroup_lines="0::/\n")
    host.v2(".", 512 * MIB, used_mb=500)
    host.process("self", pss_mb=90, children="11 12 ")
    host.process("11", pss_mb=30, children="13")
    host.process("12", pss_mb=None, rss_pages=MIB // os.sysconf("SC_PAGE_SIZE") * 7)
    host.process("13", pss_mb=5)
    assert host.read(memory_limit_mb=256) == Gauge(256 * MIB, 132 * MIB, "setting")


def test_a_process_alone_counts_its_resident_set(tmp_path: Path) -> None:
    host = Host(tmp_path, cgroup_lines="0::/\n")
    host.process("self", pss_mb=90, rss_pages=MIB // os.sysconf("SC_PAGE_SIZE") * 94)
    assert host.read(memory_limit_mb=256) == Gauge(256 * MIB, 94 * MIB, "setting")


def test_a_setting_above_the_cgroup_limit_is_not_believed(tmp_path: Path) -> None:
    host = Host(tmp_path, cgroup_lines="0::/\n")
    host.v2(".", 512 * MIB, used_mb=100)
    assert host.read(memory_limit_mb=4_096).source == "cgroup v2"


def test_garbled_and_missing_files_are_no_reason_to_fail(tmp_path: Path) -> None:
    host = Host(tmp_path, cgroup_lines="nonsense\n0::/a/b\n:::\n")
    host.v2("a", "9e9x")
    host.v2("a/b", 300 * MIB, used_mb=20)
    (host.cgroup_root / "a" / "b" / "memory.stat").unlink()
    assert host.read() == Gauge(300 * MIB, 20 * MIB, "cgroup v2")


@pytest.mark.parametrize(
    ("used_mb", "largest_bytes", "expected"),
    [
        (100, 0, 10),  # (512 - 100 - 64) / 4 = 87, held by the ceiling
        (420, 0, 7),  # 28 MB of room, 4 MB a call
        (420, 2 * MIB, 3),  # 8 MB a call
        (448, 0, 1),  # no room: one call still goes on, or nothing would ever end
        (600, 0, 1),  # over the limit
    ],
)
def test_calls_follow_the_room_that_is_left(
    used_mb: int, largest_bytes: int, expected: int
) -> None:
    gauge = Gauge(512 * MIB, used_mb * MIB, "cgroup v2")
    assert allowed_calls(gauge, ceiling=10, largest_exchange_bytes=largest_bytes) == expected


def test_the_ceiling_is_never_passed_and_never_below_one() -> None:
    gauge = Gauge(64_000 * MIB, 0, "machine")
    assert allowed_calls(gauge, ceiling=50) == 50
    assert allowed_calls(Gauge(MIB, MIB, "setting"), ceiling=50) == 1


IN_GROUP = """
import json, os, sys
open(sys.argv[1] + "/cgroup.procs", "w").write(str(os.getpid()))
from daemon.memory_gauge import read_gauge
def show():
    gauge = read_gauge()
    print(json.dumps([gauge.limit_bytes, gauge.working_set_bytes, gauge.source]), flush=True)
show()
data = b"x" * (1 << 20)
with open(sys.argv[2], "wb") as file:
    for _ in range(96): file.write(data)
    file.flush(); os.fsync(file.fileno())
show()
held = bytearray(os.urandom(1 << 20) * 64)
show()
"""


def test_a_real_limit_is_seen_and_a_large_download_does_not_look_like_memory(
    tmp_path: Path,
) -> None:
    group = Path("/sys/fs/cgroup/memory") / f"fp_test_{secrets.token_hex(4)}"
    try:
        group.mkdir()
        (group / "memory.limit_in_bytes").write_text(str(256 * MIB))
    except OSError as error:
        with contextlib.suppress(OSError):
            group.rmdir()
        pytest.skip(f"missing component: a writable v1 memory cgroup ({error.strerror})")
    try:
        shown = subprocess.run(
            [sys.executable, "-c", IN_GROUP, str(group), str(tmp_path / "download")],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.splitlines()
    finally:
        group.rmdir()
    start, downloaded, allocated = (json.loads(line) for line in shown)
    assert start[0] == 256 * MIB
    assert start[2] == "cgroup v1"
    assert downloaded[1] - start[1] < 32 * MIB, "96 MB of file pages counted as memory in use"
    assert allocated[1] - downloaded[1] > 56 * MIB
