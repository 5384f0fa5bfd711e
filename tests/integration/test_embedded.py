"""The embedded server: keeps its data, ends with its parent, touches nothing that is not its own."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pwd
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import asyncpg
import psutil
import pytest

from daemon import embedded_binaries
from daemon.embedded import EmbeddedPostgres
from daemon.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROOT = Path(__file__).resolve().parents[2]
AS_ROOT = os.geteuid() == 0

PARENT = """
import signal, sys, threading
from pathlib import Path
from daemon.embedded import EmbeddedPostgres
server = EmbeddedPostgres(Path(sys.argv[1]))
# Started by a thread that ends at once: a parent-death signal alone would take that for our end.
thread = threading.Thread(target=server.start)
thread.start(); thread.join()
print(server.url, flush=True)
signal.pause()
"""


@pytest.fixture
def home() -> Iterator[Path]:
    """A home that, as root's usually is, nobody else may enter."""
    with tempfile.TemporaryDirectory(prefix="fp-home-") as folder:
        yield Path(folder) / "postgres"


@contextlib.contextmanager
def parent_process(home: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(home)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        assert url.startswith("postgresql://")
        yield process, url
    finally:
        process.kill()
        process.communicate()


def run_sql(url: str, *statements: str) -> object:
    """Run the statements and return the last one's first value."""

    async def run() -> object:
        connection = await asyncpg.connect(url)
        try:
            for statement in statements[:-1]:
                await connection.execute(statement)
            return await connection.fetchval(statements[-1])
        finally:
            await connection.close()

    return asyncio.run(run())


def answers(url: str) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", urlsplit(url).port or 0)) == 0


def server_pid(home: Path) -> int:
    return int((home / "cluster" / "postmaster.pid").read_text().splitlines()[0])


def is_gone(pid: int) -> bool:
    """A zombie is gone too: PID 1 of a container may never reap it."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def until(condition: Callable[[], bool], *, seconds: float = 15) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "the condition never came true"
        time.sleep(0.02)  # polls processes that are no children of ours, up to the deadline


def copy_of_the_package(folder: Path) -> Path:
    """Copy the installed binaries into `folder` as an installer would lay them out."""
    packaged = embedded_binaries.packaged_binaries().parents[1]
    copy = folder / packaged.name
    shutil.copytree(packaged, copy, ignore=shutil.ignore_patterns("include", "*.a"))
    libraries = packaged.with_name(f"{packaged.name}.libs")
    if libraries.exists():
        shutil.copytree(libraries, folder / libraries.name)
    return copy


def test_data_survives_a_stop_and_the_second_start_is_quick(home: Path) -> None:
    started = time.monotonic()
    with EmbeddedPostgres(home) as server:
        cold_seconds = time.monotonic() - started
        url = server.url
        run_sql(url, "create table kept (n int)", "insert into kept values (7)", "select 1")
    assert not answers(url)
    started = time.monotonic()
    with EmbeddedPostgres(home) as server:
        warm_seconds = time.monotonic() - started
        assert run_sql(server.url, "select n from kept") == 7
        assert run_sql(server.url, "select current_setting('fsync')") == "on"
    # About 0.6 s and 0.1 s alone on a machine; others share this one.
    assert cold_seconds < 6
    assert warm_seconds < 3


def test_only_its_owner_can_enter_the_folder_and_only_the_password_opens_the_server(
    home: Path,
) -> None:
    with EmbeddedPostgres(home, durable=False) as server:
        assert stat.S_IMODE(home.stat().st_mode) == 0o700
        assert stat.S_IMODE((home / "password").stat().st_mode) == 0o600
        password = urlsplit(server.url).password
        assert password
        wrong = server.url.replace(password, "guess")
        with pytest.raises(asyncpg.InvalidPasswordError):
            run_sql(wrong, "select 1")
        assert run_sql(server.url, "select inet_server_addr()::text") == "127.0.0.1/32"
        command_line = " ".join(psutil.Process(server_pid(home)).cmdline())
        assert password not in command_line
        if AS_ROOT:
            assert psutil.Process(server_pid(home)).uids().real != 0


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_the_server_ends_with_its_parent_and_the_next_start_has_the_data(
    home: Path, how: signal.Signals
) -> None:
    with parent_process(home) as (process, url):
        run_sql(url, "create table kept (n int)", "insert into kept values (7)", "select 1")
        pid = server_pid(home)
        process.send_signal(how)
        process.wait()
        # At once, while the old server may still be on its way out.
        with EmbeddedPostgres(home) as server:
            assert is_gone(pid)
            assert run_sql(server.url, "select n from kept") == 7


@pytest.mark.skipif(sys.platform != "linux", reason="missing component: Linux's death signal")
def test_the_server_ends_when_only_its_keeper_is_killed(home: Path) -> None:
    with parent_process(home) as (process, _url):
        pid = server_pid(home)
        (keeper,) = psutil.Process(process.pid).children()
        keeper.kill()
        until(lambda: is_gone(pid))


def test_a_second_process_is_refused_with_the_number_of_the_first(home: Path) -> None:
    with parent_process(home) as (process, url):
        with pytest.raises(UsageError, match=f"in use by process {process.pid}"):
            EmbeddedPostgres(home).start()
        assert answers(url), "the first server suffered from the attempt"


def test_a_foreign_folder_is_refused_and_left_as_it_was(home: Path) -> None:
    home.mkdir()
    (home / "PG_VERSION").write_text("14\n")
    with pytest.raises(UsageError, match="not made by fullpass, left untouched"):
        EmbeddedPostgres(home).start()
    assert [entry.name for entry in home.iterdir()] == ["PG_VERSION"]


def test_a_stale_pid_file_whose_number_lives_on_elsewhere_is_no_obstacle(home: Path) -> None:
    with EmbeddedPostgres(home, durable=False):
        stale = (home / "cluster" / "postmaster.pid").read_text().splitlines()
    stale[0] = str(os.getpid())
    (home / "cluster" / "postmaster.pid").write_text("\n".join(stale) + "\n")
    with EmbeddedPostgres(home, durable=False) as server:
        assert run_sql(server.url, "select 1") == 1


def test_data_of_another_major_version_is_refused_and_kept(home: Path) -> None:
    with EmbeddedPostgres(home, durable=False):
        pass
    (home / "cluster" / "PG_VERSION").write_text("12\n")
    with pytest.raises(UsageError, match=r"holds data of PostgreSQL 12, the binaries are \d+"):
        EmbeddedPostgres(home).start()
    assert (home / "cluster" / "base").is_dir()


def test_a_first_start_that_was_interrupted_is_begun_again(home: Path) -> None:
    home.mkdir(mode=0o700)
    (home / "made-by-fullpass.new").write_text("half")
    with EmbeddedPostgres(home, durable=False):
        pass
    shutil.rmtree(home / "cluster")
    (home / "cluster.new").mkdir()
    (home / "cluster.new" / "PG_VERSION").write_text("18\n")
    with EmbeddedPostgres(home, durable=False) as server:
        assert run_sql(server.url, "select 1") == 1


def test_missing_binaries_are_said_with_both_ways_out(tmp_path: Path) -> None:
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from pathlib import Path\n"
        "from daemon.embedded import EmbeddedPostgres\n"
        "from daemon.errors import UsageError\n"
        "try: EmbeddedPostgres(Path(sys.argv[2])).start()\n"
        "except UsageError as error: print(error)\n"
    )
    # Without site-packages, as on a machine where the extra was not installed.
    said = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code, str(ROOT), str(tmp_path / "home")],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert "set DATABASE_URL" in said
    assert "pip install 'fullpass[embedded]'" in said


@pytest.mark.skipif(not AS_ROOT, reason="missing component: root, who alone changes the user")
def test_binaries_below_a_private_home_run_as_root_from_a_copy(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    private = copy_of_the_package(home.parent)
    with tempfile.TemporaryDirectory(prefix="fp-shared-") as shared:
        Path(shared).chmod(0o711)
        monkeypatch.setattr(embedded_binaries, "_SHARED_FOLDERS", (f"{shared}/cache",))
        for _ in range(2):
            with EmbeddedPostgres(
                home, durable=False, binaries=private / "pginstall/bin"
            ) as server:
                assert run_sql(server.url, "select 1") == 1
                running = psutil.Process(server_pid(home)).exe()
                assert running.startswith(f"{shared}/cache/postgres-")
        assert len(list(Path(shared, "cache").iterdir())) == 1


@pytest.mark.skipif(not AS_ROOT, reason="missing component: root, to become somebody else")
def test_it_runs_as_an_ordinary_user(home: Path) -> None:
    nobody = pwd.getpwnam("nobody")
    python = shutil.which("python3", path="/usr/local/bin:/usr/bin:/bin")
    enough = [python or "false", "-c", "import sys; sys.exit(sys.version_info < (3, 11))"]
    if python is None or subprocess.run(enough, check=False).returncode:
        pytest.skip("missing component: a Python 3.11 that every user may run")
    with tempfile.TemporaryDirectory(prefix="fp-nobody-") as folder:
        package = Path(folder) / "code" / "daemon"
        package.parent.mkdir()
        shutil.copytree(ROOT / "daemon", package)
        copy_of_the_package(package.parent)
        for path in (Path(folder), *Path(folder).rglob("*")):
            os.chown(path, nobody.pw_uid, nobody.pw_gid, follow_symlinks=False)
        process = subprocess.Popen(
            [python, "-c", PARENT, f"{folder}/home"],
            cwd=package.parent,
            env={"PATH": "/usr/bin:/bin"},
            user=nobody.pw_uid,
            group=nobody.pw_gid,
            extra_groups=[],
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            assert process.stdout is not None
            url = process.stdout.readline().strip()
            assert run_sql(url, "select 1") == 1
            pid = server_pid(Path(folder) / "home")
            assert psutil.Process(pid).uids().real == nobody.pw_uid
        finally:
            process.kill()
            process.communicate()
        until(lambda: is_gone(pid))
