"""A private Postgres for people who have none: `run`, `demo` and the tests start it and end it.

Owns one directory, which holds the cluster, its password and its log, so that an interrupted run
resumes. It promises that the server ends with the process that started it, even by SIGKILL
(`embedded_keeper`); that two processes never share a directory; that a directory or a server not
made here is never touched; and that it works as root, where Postgres itself refuses, without
opening any permission of the person's home. What is stored inside is others' business.

docs/decisions/0011 says why loopback TCP, why a lock that the server inherits, and how an
unprivileged server reaches data below a 0700 home.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Self

from daemon import embedded_keeper
from daemon.embedded_binaries import (
    Binaries,
    ServerUser,
    environment,
    identity,
    init_user,
    packaged_binaries,
    reachable,
    server_user,
    usable_binaries,
)
from daemon.errors import TryAgain, UsageError

if TYPE_CHECKING:
    from types import TracebackType

ROLE = "postgres"
"""Not `fullpass`: a role finds the schema of its own name before `public`."""

START_DEADLINE_SECONDS = 60.0
STOP_DEADLINE_SECONDS = 30.0
LOCK_DEADLINE_SECONDS = 40.0
ORPHAN_STOP_SECONDS = 10.0

_MARKER = "made-by-fullpass"
_MARKER_TEXT = "Embedded Postgres of fullpass. Delete the whole directory to start afresh.\n"
_SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    # Small: under a container's limit the server shares the worker's memory.
    "shared_buffers": "32MB",
    "max_parallel_workers_per_gather": "0",
    "max_worker_processes": "2",
    "max_logical_replication_workers": "0",
    "wal_level": "minimal",
    "max_wal_senders": "0",
    "max_wal_size": "256MB",
    "jit": "off",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "log_min_messages": "warning",
}
_NOT_DURABLE = {"fsync": "off", "full_page_writes": "off", "synchronous_commit": "off"}


class EmbeddedPostgres:
    """One server on one directory; `with` or `async with`, or `start` and `stop`.

    `data_dir` is made if missing (0700). `durable=False` trades crash safety for speed: tests only.
    `binaries` is a Postgres `bin` folder; by default that of the `embedded` extra.
    `start` raises UsageError when something must be put right first, TryAgain when the server does
    not come up; both name the directory. `url` is valid while it runs.
    """

    def __init__(
        self,
        data_dir: Path,
        *,
        durable: bool = True,
        binaries: Path | None = None,
        max_connections: int = 40,
    ) -> None:
        self._dir = data_dir.expanduser().absolute()
        self._durable = durable
        self._given_binaries = binaries
        self._max_connections = max_connections
        self._keeper: subprocess.Popen[bytes] | None = None
        self._lifeline = -1
        self._port = 0
        self._password = ""

    @property
    def url(self) -> str:
        """`postgresql://postgres:…@127.0.0.1:PORT/postgres`, password included."""
        if self._keeper is None:
            raise UsageError(f"{self._dir}: the embedded Postgres is not running: start it first")
        return f"postgresql://{ROLE}:{self._password}@127.0.0.1:{self._port}/postgres"

    @property
    def _cluster(self) -> Path:
        return self._dir / "cluster"

    def start(self) -> None:
        """Start the server, making its cluster the first time, and return when it accepts."""
        if self._keeper is not None:
            return
        self._claim_directory()
        lock_fd = self._take_lock()
        try:
            user = server_user(self._cluster)
            binaries = usable_binaries(self._given_binaries or packaged_binaries(), user)
            self._password = self._read_password()
            if not self._cluster.exists():
                self._init_cluster(binaries, user)
            self._refuse_other_version(binaries)
            self._launch(binaries, user, lock_fd)
        finally:
            # The server holds its own copy from now on; see _take_lock.
            os.close(lock_fd)

    def stop(self) -> None:
        """Fast shutdown: open transactions roll back, data is flushed. Fine to call twice."""
        keeper, self._keeper = self._keeper, None
        if keeper is None:
            return
        os.close(self._lifeline)
        try:
            keeper.wait(STOP_DEADLINE_SECONDS)
        except subprocess.TimeoutExpired:
            keeper.kill()
            keeper.wait()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    async def __aenter__(self) -> Self:
        await asyncio.to_thread(self.start)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await asyncio.to_thread(self.stop)

    def _claim_directory(self) -> None:
        """Make the directory, or make sure that it is ours."""
        try:
            self._dir.mkdir(mode=0o700, parents=True, exist_ok=True)
            entries = {entry.name for entry in self._dir.iterdir()}
            draft = f"{_MARKER}.new"
            if _MARKER not in entries:
                if entries - {draft}:
                    raise UsageError(
                        f"{self._dir}: not empty and not made by fullpass, left untouched: "
                        "set FULLPASS_HOME to another folder"
                    )
                (self._dir / draft).write_text(_MARKER_TEXT, encoding="utf-8")
                (self._dir / draft).rename(self._dir / _MARKER)
        except OSError as error:
            raise UsageError(
                f"{self._dir}: {error.strerror}: set FULLPASS_HOME to a folder of your own"
            ) from error

    def _take_lock(self) -> int:
        """Lock the directory and return the descriptor.

        Keeper and server inherit it, and the kernel frees it when the last of them is gone. So a
        free lock proves that no server of ours runs here, whatever a stale postmaster.pid, a
        recycled process id or an unreaped zombie may suggest.
        """
        fd = os.open(self._dir / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        deadline = time.monotonic() + LOCK_DEADLINE_SECONDS
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                holder = int(os.pread(fd, 20, 0) or b"0")
                if _is_alive(holder) or time.monotonic() > deadline:
                    os.close(fd)
                    raise UsageError(
                        f"{self._dir}: in use by process {holder}: wait for it to end, "
                        "or set FULLPASS_HOME to another folder"
                    ) from None
                # Its owner died; the server is shutting down (deadline above). One that does not,
                # because its keeper was killed where no death signal exists, is told to.
                if time.monotonic() > deadline - ORPHAN_STOP_SECONDS:
                    self._end_orphan()
                time.sleep(0.02)
        os.ftruncate(fd, 0)
        os.pwrite(fd, str(os.getpid()).encode(), 0)
        return fd

    def _read_password(self) -> str:
        """Return the role's password, made on first use; readable by its owner only."""
        path = self._dir / "password"
        if self._cluster.exists():
            return path.read_text(encoding="ascii").strip()
        password = secrets.token_urlsafe(24)
        path.unlink(missing_ok=True)
        path.touch(mode=0o600, exist_ok=False)
        path.write_text(password, encoding="ascii")
        return password

    def _init_cluster(self, binaries: Binaries, user: ServerUser | None) -> None:
        """Make the cluster beside its final name, so that a half-made one is never taken for it."""
        draft = self._dir / "cluster.new"
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(mode=0o700)
        maker = init_user(user)
        if maker is not None:
            os.chown(draft, maker.uid, maker.gid)
        # An unnamed file, given to the server's user: it could not open ours.
        with tempfile.TemporaryFile() as password_file:
            password_file.write(self._password.encode())
            password_file.flush()
            if maker is not None:
                os.fchown(password_file.fileno(), maker.uid, maker.gid)
            command = [
                str(binaries.folder / "initdb"),
                f"--pgdata={reachable(draft, user)}",
                f"--username={ROLE}",
                f"--pwfile=/dev/fd/{password_file.fileno()}",
                "--auth=scram-sha-256",
                "--encoding=UTF8",
                "--wal-segsize=4",
                "--no-instructions",
            ]
            if not self._durable:
                command += ["--no-sync"]
            # The same order and letters on every machine, whatever locales it has.
            if binaries.major >= 17:
                command += ["--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
            else:
                command += ["--locale=C.UTF-8"]
            result = subprocess.run(  # noqa: S603 - a fixed program and our own paths
                command,
                cwd=draft,
                env=environment(),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                pass_fds=[password_file.fileno()],
                check=False,
                **identity(maker),
            )
        if result.returncode:
            shutil.rmtree(draft, ignore_errors=True)
            raise TryAgain(f"{self._dir}: initdb failed: {_last_line(result.stderr)}")
        if user is not None:
            for path in (draft, *draft.rglob("*")):
                os.chown(path, user.uid, user.gid)
        draft.rename(self._cluster)

    def _refuse_other_version(self, binaries: Binaries) -> None:
        found = (self._cluster / "PG_VERSION").read_text(encoding="ascii").strip()
        if found != str(binaries.major):
            raise UsageError(
                f"{self._dir}: holds data of PostgreSQL {found}, the binaries are "
                f"{binaries.major}: install the version that made it, or delete the folder"
            )

    def _launch(self, binaries: Binaries, user: ServerUser | None, lock_fd: int) -> None:
        """Start keeper and server; again on another port if somebody took ours meanwhile."""
        self._forget_dead_server()
        for attempts_left in (2, 1, 0):
            self._port = _free_port()
            log = self._start_keeper(binaries, user, lock_fd)
            if self._wait_until_ready():
                return
            reason = _last_line(log.read_bytes())
            self.stop()
            if ("bind" not in reason and "listen" not in reason) or not attempts_left:
                raise TryAgain(f"{self._dir}: Postgres did not start: {reason}: see {log}")

    def _forget_dead_server(self) -> None:
        """Remove a postmaster.pid that outlived its server, unless a stranger runs our cluster.

        The lock proves that no server *of ours* is alive, yet Postgres would refuse to start if the
        old number now belongs to anything. Only somebody who started it by hand would be missed.
        """
        pid = self._server_pid()
        if _is_alive(pid) and _runs_postgres(pid):
            raise UsageError(
                f"{self._dir}: a Postgres started by hand (process {pid}) runs on it: stop it"
            )
        (self._cluster / "postmaster.pid").unlink(missing_ok=True)

    def _end_orphan(self) -> None:
        """Ask the server that still holds our lock to end; only a Postgres is ever signalled."""
        pid = self._server_pid()
        if _is_alive(pid) and _runs_postgres(pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGINT)

    def _server_pid(self) -> int:
        """Read the process id in postmaster.pid; 0 if there is none."""
        with contextlib.suppress(FileNotFoundError, ValueError, IndexError):
            text = (self._cluster / "postmaster.pid").read_text(encoding="utf-8")
            return int(text.splitlines()[0])
        return 0

    def _start_keeper(self, binaries: Binaries, user: ServerUser | None, lock_fd: int) -> Path:
        settings = {
            **_SETTINGS,
            "port": str(self._port),
            "max_connections": str(self._max_connections),
            **({} if self._durable else _NOT_DURABLE),
            **({"io_method": "sync"} if binaries.major >= 18 else {}),
        }
        command = [str(binaries.folder / "postgres"), "-D", reachable(self._cluster, user)]
        for name, value in settings.items():
            command += ["-c", f"{name}={value}"]
        hangs_up, self._lifeline = os.pipe()
        order = {
            "command": command,
            "cwd": str(self._cluster),
            "env": environment(),
            "identity": identity(user),
            "lock_fd": lock_fd,
            "lifeline_fd": hangs_up,
            "parent_pid": os.getpid(),
        }
        log = self._dir / "server.log"
        script = str(Path(embedded_keeper.__file__))
        try:
            with log.open("wb") as output:
                self._keeper = subprocess.Popen(  # noqa: S603 - our own script
                    [sys.executable, "-I", "-S", "-B", script, json.dumps(order)],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    pass_fds=[lock_fd, hangs_up],
                    # Ctrl-C is for the person's command, which still has work to put away.
                    start_new_session=True,
                )
        finally:
            os.close(hangs_up)
        return log

    def _wait_until_ready(self) -> bool:
        """Wait for the server's own word; False when it ended instead."""
        deadline = time.monotonic() + START_DEADLINE_SECONDS
        path = self._cluster / "postmaster.pid"
        while self._keeper is not None and self._keeper.poll() is None:
            with contextlib.suppress(FileNotFoundError):
                lines = path.read_text(encoding="utf-8").splitlines()
                # The file's eighth line is the postmaster's status; the fourth its port.
                if len(lines) > 7 and lines[7].strip() == "ready" and lines[3] == str(self._port):
                    return True
            if time.monotonic() > deadline:
                return False
            time.sleep(0.01)  # until the deadline above: the server offers no other signal
        return False


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _is_alive(pid: int) -> bool:
    """Tell, counting a zombie as dead: under a PID 1 that does not reap they keep their ids."""
    if pid <= 0:
        return False
    import psutil  # noqa: PLC0415 - 5 MB that an ordinary start never needs

    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _runs_postgres(pid: int) -> bool:
    import psutil  # noqa: PLC0415 - as above

    try:
        return "postgres" in psutil.Process(pid).name()
    except psutil.Error:
        return False


def _last_line(output: bytes) -> str:
    lines = [
        line
        for line in output.decode("utf-8", "replace").splitlines()
        if "hint:" not in line.lower()
    ]
    errors = [line for line in lines if "FATAL:" in line or "error:" in line]
    return (errors or lines or ["it said nothing"])[-1].strip()
