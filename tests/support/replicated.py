"""A primary and its synchronous standby, for failovers: what one acknowledged, the other has.

with Replicated(folder) as pair:
    worker = start(proxy to pair.primary_url)
    pair.kill_primary()    # at once, as a machine that dies
    pair.promote()         # pair.standby_url takes writes from here on

Servers of their own, since the embedded one is made for a single machine: no replication there.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from typing import TYPE_CHECKING, Self

from daemon.embedded_binaries import (
    environment,
    identity,
    init_user,
    packaged_binaries,
    server_user,
    usable_binaries,
)

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

_SETTINGS = (
    "listen_addresses=127.0.0.1", "unix_socket_directories=", "wal_level=replica",
    "max_wal_senders=4", "hot_standby=on", "shared_buffers=16MB", "max_connections=40",
    "fsync=off", "full_page_writes=off",
)  # fmt: skip
_READY_SECONDS = 30.0


class Replicated:
    """Two servers under `folder`; a context manager. Both end with it."""

    def __init__(self, folder: Path) -> None:
        for path in (folder, *folder.parents[:3]):
            path.chmod(0o711)  # the servers run as another user where the tests run as root
        cluster = folder / "clusters"
        cluster.mkdir(mode=0o755)
        self._user = init_user(server_user(cluster / "none"))
        self._bin = usable_binaries(packaged_binaries(), self._user).folder
        if self._user is not None:
            os.chown(cluster, self._user.uid, self._user.gid)
        self._folders = (cluster / "primary", cluster / "standby")
        self._ports = (_free_port(), _free_port())
        self._servers: list[subprocess.Popen[bytes]] = []

    @property
    def primary_url(self) -> str:
        return f"postgresql://postgres@127.0.0.1:{self._ports[0]}/postgres"

    @property
    def standby_url(self) -> str:
        return f"postgresql://postgres@127.0.0.1:{self._ports[1]}/postgres"

    def __enter__(self) -> Self:
        primary, standby = map(str, self._folders)
        self._run("initdb", "-D", primary, "-U", "postgres", "--auth=trust", "--no-sync", "-E",
                  "UTF8", "--locale=C")  # fmt: skip
        self._start(0)
        self._run("pg_basebackup", "-D", standby, "-d", self.primary_url, "-R", "--no-sync",
                  "-c", "fast")  # fmt: skip
        self._start(1)
        self._run("psql", "-qX", self.primary_url, "-c",
                  "alter system set synchronous_standby_names = '*'", "-c",
                  "select pg_reload_conf()")  # fmt: skip
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for server in self._servers:
            if server.poll() is None:
                server.send_signal(signal.SIGQUIT)
            server.wait(10)

    def kill_primary(self) -> None:
        """Crash the first server: its clients see their links end."""
        self._servers[0].send_signal(signal.SIGQUIT)
        self._servers[0].wait(10)

    def promote(self) -> None:
        """Make the standby take writes."""
        self._run("psql", "-qX", self.standby_url, "-c", "select pg_promote()")

    def _start(self, which: int) -> None:
        command = [str(self._bin / "postgres"), "-D", str(self._folders[which])]
        for setting in (*_SETTINGS, f"port={self._ports[which]}"):
            command += ["-c", setting]
        server = subprocess.Popen(
            command, env=environment(), cwd="/", stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **identity(self._user),
        )  # fmt: skip
        self._servers.append(server)
        deadline = time.monotonic() + _READY_SECONDS
        url = (self.primary_url, self.standby_url)[which]
        while self._call("psql", "-qX", url, "-c", "select 1").returncode:
            assert time.monotonic() < deadline, f"server {which} does not start"
            time.sleep(0.05)  # until the deadline above

    def _run(self, *command: str) -> None:
        done = self._call(*command)
        assert done.returncode == 0, done.stderr.decode()

    def _call(self, program: str, *arguments: str) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            [self._bin / program, *arguments], env=environment(), cwd="/",
            stdin=subprocess.DEVNULL, capture_output=True, check=False, **identity(self._user),
        )  # fmt: skip


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
