"""Where an export's bytes come from: a local file (Storage is the next commit's)."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from daemon.errors import BadExport

if TYPE_CHECKING:
    from collections.abc import Callable

FileType = Literal["json", "zip"]


@dataclass(frozen=True, slots=True)
class FetchedExport:
    """An export on this machine's disk."""

    path: Path
    name: str
    etag: str
    last_modified: datetime | None
    size: int


async def fetch(
    storage_path: str,
    *,
    into: Path,
    supabase_url: str | None,
    service_key: str | None,
    allow_local_files: bool,
    owner: str | None,
    check: Callable[[], None],
) -> FetchedExport:
    """Bring an export to this machine."""
    del into, supabase_url, service_key, owner
    check()
    if not storage_path.startswith("file://") or not allow_local_files:
        raise BadExport(f"{storage_path}: only local files can be read")
    path = Path(storage_path.removeprefix("file://"))
    try:
        found = path.stat()
    except OSError as error:
        raise BadExport(f"{path}: {error.strerror}; check the path") from error
    modified = datetime.fromtimestamp(found.st_mtime, UTC)
    return FetchedExport(
        path, path.name, f"{found.st_size}-{found.st_mtime_ns}", modified, found.st_size
    )
