"""Brings an export's bytes to this machine: from Supabase Storage, or a local file where allowed.

Owns the storage path and its rules, the keys' headers, and the download: spooled to one private
file, resumed after a broken link only while the object is still the same one (by etag; Storage
ignores If-Range), compared with its declared length. Storage's answers are read by
storage_answers.py, which says whether the job or the service is at fault. Leaves what the bytes
mean to the reader. The caller owns the directory and removes it.
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import stat
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from urllib.parse import quote, unquote, urlsplit

from daemon.errors import BadExport, Systemic, TryAgain, Wait
from daemon.export.storage_answers import raise_for
from daemon.lean import without

with without("rich", "pygments"):
    import httpx

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable
    from typing import BinaryIO

FileType = Literal["json", "zip"]

STALL_SECONDS = 30.0
"""A link that brings nothing for this long is broken: a truncated blob stalls, it does not end."""
TOTAL_SECONDS = 3600.0
MAX_BYTES = 20 * 2**30

_CONNECT_SECONDS = 10.0
_ATTEMPTS_WITHOUT_PROGRESS = 3
_FIRST_PAUSE_SECONDS = 0.1
_DISK_MARGIN_BYTES = 64 * 2**20
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9 _.!'()&$@=;:+,?*\-]{0,99}")
_LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})
_SIGNED = "/storage/v1/object/sign/"


@dataclass(frozen=True, slots=True)
class FetchedExport:
    """An export on this machine's disk. `name` is what people call it; never a temporary path."""

    path: Path
    name: str
    etag: str | None
    last_modified: datetime | None
    size: int


@dataclass(frozen=True, slots=True)
class _Object:
    """Where an object is and how to ask for it. `headers` hold the key: never log them."""

    url: str
    name: str
    headers: dict[str, str]


async def fetch(
    storage_path: str,
    *,
    into: Path,
    supabase_url: str | None,
    service_key: str | None,
    allow_local_files: bool,
    owner: str | None = None,
    check: Callable[[], None] = lambda: None,
    on_bytes: Callable[[int, int | None], None] = lambda _done, _total: None,
    max_bytes: int = MAX_BYTES,
    stall_seconds: float = STALL_SECONDS,
    total_seconds: float = TOTAL_SECONDS,
) -> FetchedExport:
    """Bring an export to this machine.

    `storage_path` is `bucket/path/in/bucket`, a signed URL of the same Supabase, or `file://…`.
    With `owner` the first folder inside the bucket must be that id. `check` is called between
    pieces and may raise to stop; `on_bytes` is told the bytes so far and in all.

    Raises BadExport (no such object, refused path), TryAgain (it breaks off), Wait and Systemic
    (no room on this disk, Storage unwell, key refused).
    """
    check()
    if storage_path.startswith("file:"):
        return _local(storage_path, allowed=allow_local_files)
    wanted = _object(storage_path, supabase_url, service_key, owner)
    target = into / "export"
    descriptor = os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        download = _Download(
            wanted, file, into, check, on_bytes, max_bytes=max_bytes, stall_seconds=stall_seconds
        )
        try:
            async with asyncio.timeout(total_seconds):
                await download.run()
        except TimeoutError:
            raise TryAgain(
                f"{wanted.name}: the download took more than {total_seconds:.0f} s "
                f"({download.done_bytes} bytes so far)"
            ) from None
    return FetchedExport(
        target, wanted.name, download.etag, download.last_modified, download.done_bytes
    )


# --- paths


def _local(storage_path: str, *, allowed: bool) -> FetchedExport:
    path = Path(unquote(urlsplit(storage_path).path))
    literal = Path(storage_path.removeprefix("file://"))
    if literal.is_absolute() and literal.is_file():
        path = literal  # a path that was not percent-encoded: `#`, `?` and `%` are part of its name
    if not allowed:
        raise BadExport(
            f"{storage_path}: local files are not read here; set ALLOW_LOCAL_FILES=true or upload "
            "the export to Storage"
        )
    if urlsplit(storage_path).netloc not in {"", "localhost"} or "\x00" in str(path):
        raise BadExport(f"{storage_path!r}: not a path on this machine; write file:///path/to/file")
    try:
        found = path.stat()
    except OSError as error:
        raise BadExport(f"{path}: {error.strerror or 'cannot be read'}; check the path") from None
    if not stat.S_ISREG(found.st_mode):
        raise BadExport(f"{path}: not a file; name the export's zip or JSON file itself")
    return FetchedExport(
        path=path,
        name=str(path),
        etag=f"{found.st_size}-{found.st_mtime_ns}",
        last_modified=datetime.fromtimestamp(found.st_mtime, UTC),
        size=found.st_size,
    )


def _object(
    storage_path: str, supabase_url: str | None, service_key: str | None, owner: str | None
) -> _Object:
    """Turn a storage path into a request, refusing what is none."""
    if not supabase_url:
        raise Systemic(
            "SUPABASE_URL is not set, so nothing can be read from Storage; set it and restart",
            seconds=60.0,
        )
    base = supabase_url.rstrip("/")
    if "://" in storage_path:
        return _signed_object(storage_path, base, owner)
    bucket, path = _split(storage_path, owner)
    if not service_key:
        raise Systemic(
            "SUPABASE_SERVICE_KEY is not set, so nothing can be read from Storage; set it and "
            "restart",
            seconds=60.0,
        )
    headers = {"apikey": service_key}
    if service_key.startswith("eyJ"):
        # A legacy key is a JWT and must be the bearer too; a new one there is refused as no JWT.
        headers["Authorization"] = f"Bearer {service_key}"
    place = f"{quote(bucket, safe='')}/{quote(path, safe='/')}"
    return _Object(f"{base}/storage/v1/object/authenticated/{place}", f"{bucket}/{path}", headers)


def _signed_object(url: str, base: str, owner: str | None) -> _Object:
    parts, home = urlsplit(url), urlsplit(base)
    same = (parts.scheme, parts.netloc) == (home.scheme, home.netloc)
    if not same or not parts.path.startswith(f"{home.path}{_SIGNED}"):
        shown = f"{parts.scheme}://{parts.hostname or ''}"
        raise BadExport(
            f"{shown}: only signed URLs of the configured Supabase are read; store the export in "
            "a bucket and enqueue bucket/path"
        )
    inner = unquote(parts.path.removeprefix(f"{home.path}{_SIGNED}"))
    bucket, path = _split(inner, owner)
    return _Object(url, f"{bucket}/{path}", {})


def _split(storage_path: str, owner: str | None) -> tuple[str, str]:
    """Split `bucket/path/in/bucket`, refusing whatever could mean another place."""
    bucket, _, path = storage_path.partition("/")
    segments = path.split("/")
    shown = "".join(c if c.isprintable() else "?" for c in storage_path)[:200]
    if not path or any(part in {"", ".", ".."} for part in segments):
        raise BadExport(f"{shown}: not a storage path; it must be bucket/path/in/bucket")
    if not _BUCKET.fullmatch(bucket) or "\\" in path or not path.isprintable():
        raise BadExport(f"{shown}: not a storage path; it holds characters that no bucket allows")
    if owner is not None and (len(segments) < 2 or segments[0].lower() != owner.lower()):
        raise BadExport(
            f"{shown}: belongs to someone else; REQUIRE_OWNED_PATHS asks for "
            f"{bucket}/{owner}/… as the path"
        )
    return bucket, path


# --- the download


class _Download:
    """One object into one file. Every request goes on where the last one broke off."""

    def __init__(
        self,
        wanted: _Object,
        file: BinaryIO,
        folder: Path,
        check: Callable[[], None],
        on_bytes: Callable[[int, int | None], None],
        *,
        max_bytes: int,
        stall_seconds: float,
    ) -> None:
        self._wanted = wanted
        self._file = file
        self._folder = folder
        self._check = check
        self._on_bytes = on_bytes
        self._max_bytes = max_bytes
        self._timeout = httpx.Timeout(
            stall_seconds, connect=_CONNECT_SECONDS, read=stall_seconds, pool=_CONNECT_SECONDS
        )
        self.done_bytes = 0
        self.total_bytes: int | None = None
        self.etag: str | None = None
        self.last_modified: datetime | None = None

    async def run(self) -> None:
        """Download all of it, or raise what its caller should do."""
        host = urlsplit(self._wanted.url).hostname
        idle = furthest = 0
        async with httpx.AsyncClient(
            verify=_tls(),
            timeout=self._timeout,
            trust_env=host not in _LOOPBACK,
            headers={**self._wanted.headers, "Accept-Encoding": "identity"},
        ) as client:
            while True:
                try:
                    if await self._request(client):
                        return
                    failure = "it broke off"
                except httpx.ConnectError as error:
                    failure = f"no connection ({error})"
                except httpx.TimeoutException:
                    failure = "it stalled"
                except httpx.TransportError as error:
                    failure = f"the link broke ({type(error).__name__})"
                self._check()
                # What is brought a second time, from the start, is no progress.
                idle = 0 if self.done_bytes > furthest else idle + 1
                furthest = max(furthest, self.done_bytes)
                if idle >= _ATTEMPTS_WITHOUT_PROGRESS:
                    self._give_up(failure)
                await asyncio.sleep(_FIRST_PAUSE_SECONDS * 2**idle)

    def _give_up(self, failure: str) -> None:
        """Storage that never answers is everybody's outage; one that breaks off is this job's."""
        host = urlsplit(self._wanted.url).netloc
        if self.total_bytes is None:
            raise Systemic(
                f"Storage at {host} cannot be reached: {failure}; check SUPABASE_URL", seconds=15.0
            )
        raise TryAgain(
            f"{self._wanted.name}: Storage gives {self.done_bytes} of {self.total_bytes} bytes, "
            f"then {failure}; upload the export again if this repeats"
        )

    async def _request(self, client: httpx.AsyncClient) -> bool:
        """Ask for what is missing; True once all of it is there."""
        headers = {"Range": f"bytes={self.done_bytes}-"} if self.done_bytes else {}
        async with client.stream("GET", self._wanted.url, headers=headers) as response:
            if response.status_code == 416 and self.done_bytes:
                self._start_over()
                return False
            if response.status_code not in {200, 206}:
                body = await _body(response)
                raise_for(
                    response.status_code,
                    body,
                    response.headers,
                    self._wanted.name,
                    signed=not self._wanted.headers,
                )
            self._begin(response)
            async for piece in response.aiter_raw():
                self._check()
                if self.done_bytes + len(piece) > self._max_bytes:
                    raise self._too_large(self.done_bytes + len(piece))
                try:
                    self._file.write(piece)
                except OSError as error:
                    raise Wait(
                        f"this machine's disk takes no more ({error.strerror})", seconds=60.0
                    ) from None
                self.done_bytes += len(piece)
                self._on_bytes(self.done_bytes, self.total_bytes)
        if self.total_bytes is None or self.done_bytes == self.total_bytes:
            self._file.flush()
            return True
        if self.done_bytes > self.total_bytes:
            self._start_over()
        return False

    def _begin(self, response: httpx.Response) -> None:
        """Compare what comes with what came before, and see that there is room for it."""
        etag = response.headers.get("etag")
        resumed = response.status_code == 206
        at, total = _declared_bytes(response)
        other_size = None not in {total, self.total_bytes} and total != self.total_bytes
        changed = etag != self.etag or etag is None or other_size
        if resumed and at != self.done_bytes:
            # Put where it was asked for, it would make a file of the right length and wrong bytes.
            self._start_over()
            raise httpx.ReadError("another stretch came than was asked for")
        if self.done_bytes and (not resumed or changed):
            # Another object now, or a server that starts from the front: nothing so far counts.
            self._start_over()
            if resumed:
                raise httpx.ReadError("the object changed during the download")
        self.etag = etag
        if total is not None or not resumed:  # one told before still holds
            self.total_bytes = total
        with suppress(ValueError, TypeError):
            modified = parsedate_to_datetime(response.headers["last-modified"])
            self.last_modified = modified.astimezone(UTC)
        if self.total_bytes is None:
            return
        if self.total_bytes > self._max_bytes:
            raise self._too_large(self.total_bytes)
        missing = self.total_bytes - self.done_bytes
        free = shutil.disk_usage(self._folder).free
        if missing + _DISK_MARGIN_BYTES > free:
            raise Wait(
                f"{self._wanted.name}: {missing / 2**20:.0f} MB to download but only "
                f"{free / 2**20:.0f} MB free on this machine's disk",
                seconds=60.0,
            )

    def _start_over(self) -> None:
        self._file.seek(0)
        self._file.truncate()
        self.done_bytes = 0

    def _too_large(self, size: int) -> BadExport:
        return BadExport(
            f"{self._wanted.name}: {size / 2**30:.1f} GB or more, above the limit of "
            f"{self._max_bytes / 2**30:.1f} GB; split the export"
        )


def _declared_bytes(response: httpx.Response) -> tuple[int | None, int | None]:
    """Read where in the object the answer begins and how long the whole is; None where not told."""
    at, total = "0", response.headers.get("content-length", "")
    if response.status_code == 206:
        stretch, _, total = response.headers.get("content-range", "").partition("/")
        at = stretch.removeprefix("bytes").strip().partition("-")[0]
    return tuple(int(n) if n.isdecimal() else None for n in (at, total))  # type: ignore[return-value]


async def _body(response: httpx.Response) -> bytes:
    """Read the start of an error's body."""
    body = b""
    async for piece in response.aiter_bytes():
        body += piece
        if len(body) > 65_536:
            break
    return body


@lru_cache(maxsize=1)
def _tls() -> ssl.SSLContext:
    """Load the certificates once a process: they cost 50 ms and a few megabytes each time."""
    return httpx.create_ssl_context()
