"""PgBouncer in transaction mode before a test's database: Debian's package, never as root."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit, urlunsplit

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

_CONFIG = """
[databases]
* = host={host} port={port}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {listen}
unix_socket_dir =
auth_type = plain
auth_file = {users}
pool_mode = {mode}
default_pool_size = {places}
max_client_conn = 400
ignore_startup_parameters = extra_float_digits
"""


@contextmanager
def transaction_pooler(url: str, *, places: int = 20, mode: str = "transaction") -> Iterator[str]:
    """Start a pooler before the server of `url`; give the same database's URL through it."""
    binary = shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin")
    if binary is None:
        missing = "missing component: pgbouncer (Debian's package of that name)"
        if os.environ.get("CI"):
            pytest.fail(missing)
        pytest.skip(missing)
    parts = urlsplit(url)
    with tempfile.TemporaryDirectory(prefix="fp-pgbouncer-") as folder:
        users, config = Path(folder) / "users", Path(folder) / "config"
        listen = _free_port()
        users.write_text(f'"{parts.username}" "{unquote(parts.password or "")}"\n')
        config.write_text(
            _CONFIG.format(
                host=parts.hostname,
                port=parts.port,
                listen=listen,
                users=users,
                places=places,
                mode=mode,
            )
        )
        uid: int | None = None
        if os.geteuid() == 0:
            nobody = pwd.getpwnam("nobody")
            uid = nobody.pw_uid
            for path in (Path(folder), users, config):
                os.chown(path, nobody.pw_uid, nobody.pw_gid)
        log = (Path(folder) / "log").open("wb")
        process = subprocess.Popen(
            [binary, str(config)],
            stdout=log,
            stderr=log,
            user=uid,
            extra_groups=None if uid is None else [],
        )
        try:
            _wait_for(listen, process)
            login = parts.netloc.rpartition("@")[0]
            yield urlunsplit(parts._replace(netloc=f"{login}@127.0.0.1:{listen}"))
        finally:
            process.terminate()
            process.wait(10)
            log.close()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 10
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            assert process.poll() is None, "pgbouncer ended"
            assert time.monotonic() < deadline
            time.sleep(0.02)  # polled until the deadline
        else:
            return
