"""Fetching an export: from Storage as it really answers, through broken links, and refused paths."""

from __future__ import annotations

import shutil
import stat
from datetime import UTC
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from daemon.errors import BadExport, LeaseLost, Systemic, TryAgain, Wait
from daemon.export import source
from daemon.export.storage_answers import raise_for
from tests.support.storage_objects import service_key, signed_jwt
from tests.support.storage_server import StorageBehaviour, StorageServer

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

DATA = bytes(range(256)) * 2000  # 512,000 bytes
OWNER = "6f1c7c1e-0000-4000-8000-000000000001"
PLACE = f"uploads/{OWNER}/my export (1) ü.zip"


@pytest.fixture
def storage() -> Iterator[StorageServer]:
    with StorageServer() as server:
        server.put(PLACE, DATA)
        yield server


async def fetch(
    storage: StorageServer | None, into: Path, path: str = PLACE, **options: Any
) -> source.FetchedExport:
    given: dict[str, Any] = {
        "supabase_url": None if storage is None else storage.url,
        "service_key": None if storage is None else storage.key,
        "allow_local_files": False,
        "stall_seconds": 0.3,
        **options,
    }
    return await source.fetch(path, into=into, **given)


async def test_an_object_comes_whole_into_a_private_file(
    storage: StorageServer, tmp_path: Path
) -> None:
    told: list[tuple[int, int | None]] = []
    fetched = await fetch(storage, tmp_path, on_bytes=lambda *seen: told.append(seen))
    assert fetched.path.read_bytes() == DATA
    assert fetched.name == PLACE
    assert fetched.size == len(DATA)
    assert fetched.etag
    assert fetched.last_modified is not None
    assert fetched.last_modified.tzinfo is UTC
    assert stat.S_IMODE(fetched.path.stat().st_mode) == 0o600
    assert fetched.path.parent == tmp_path
    assert told[-1] == (len(DATA), len(DATA))
    assert [r.path.split("/")[:2] for r in storage.requests] == [["object", "authenticated"]]


async def test_a_legacy_key_is_sent_as_the_bearer_too(tmp_path: Path) -> None:
    key = service_key()
    with StorageServer(keys=(key,)) as storage:
        storage.put(PLACE, DATA)
        assert (await fetch(storage, tmp_path, service_key=key)).size == len(DATA)


async def test_a_signed_url_of_the_same_supabase_is_read(
    storage: StorageServer, tmp_path: Path
) -> None:
    plain = f"uploads/{OWNER}/a.zip"
    storage.put(plain, DATA)
    token = signed_jwt(expires_in_seconds=60, url=plain)
    url = f"{storage.url}/storage/v1/object/sign/{plain}?token={token}"
    fetched = await fetch(storage, tmp_path, url, service_key=None, owner=OWNER)
    assert (fetched.size, fetched.name) == (len(DATA), plain)
    (tmp_path / "export").unlink()
    with pytest.raises(BadExport, match="its signed URL is no longer valid") as raised:
        await fetch(storage, tmp_path, url.replace("token=", "token=x"), service_key=None)
    assert "token" not in str(raised.value)


@pytest.mark.parametrize("breaks", [1, 4])
async def test_a_broken_link_is_resumed_where_it_broke(
    storage: StorageServer, tmp_path: Path, breaks: int
) -> None:
    storage.script(*[StorageBehaviour(break_after_bytes=70_000)] * breaks)
    fetched = await fetch(storage, tmp_path)
    assert fetched.path.read_bytes() == DATA
    ranges = [r.range for r in storage.requests]
    assert ranges[0] == ""
    assert ranges[1:] == [f"bytes={70_000 * (i + 1)}-" for i in range(breaks)]


async def test_a_stall_is_a_broken_link(storage: StorageServer, tmp_path: Path) -> None:
    storage.script(StorageBehaviour(stall_after_bytes=100_000))
    assert (await fetch(storage, tmp_path)).path.read_bytes() == DATA


async def test_an_object_that_changed_meanwhile_is_read_from_the_start(
    storage: StorageServer, tmp_path: Path
) -> None:
    storage.script(
        StorageBehaviour(break_after_bytes=70_000),
        StorageBehaviour(changing_etag=True),
    )
    assert (await fetch(storage, tmp_path)).path.read_bytes() == DATA
    assert [r.range for r in storage.requests] == ["", "bytes=70000-", ""]


async def test_an_object_that_changes_and_breaks_off_every_time_is_given_up(
    storage: StorageServer, tmp_path: Path
) -> None:
    """What is brought again from the start is no progress: it would go on to the deadline."""
    storage.behaviour = StorageBehaviour(changing_etag=True, break_after_bytes=70_000)
    with pytest.raises(TryAgain, match="of 512000 bytes"):
        await fetch(storage, tmp_path, total_seconds=30.0)
    assert len(storage.requests) <= 6


async def test_a_server_that_ignores_ranges_is_read_from_the_start(
    storage: StorageServer, tmp_path: Path
) -> None:
    storage.script(StorageBehaviour(break_after_bytes=70_000), StorageBehaviour(ignore_range=True))
    assert (await fetch(storage, tmp_path)).path.read_bytes() == DATA


async def test_another_stretch_than_was_asked_for_is_not_put_in_its_place(
    storage: StorageServer, tmp_path: Path
) -> None:
    """The file would have the right length, and wrong bytes."""
    storage.script(StorageBehaviour(break_after_bytes=256_000), StorageBehaviour(range_from=1))
    assert (await fetch(storage, tmp_path)).path.read_bytes() == DATA
    assert [r.range for r in storage.requests] == ["", "bytes=256000-", ""]


async def test_a_blob_whose_tail_is_missing_counts_an_attempt(
    storage: StorageServer, tmp_path: Path
) -> None:
    storage.behave(missing_tail_bytes=1000)
    with pytest.raises(TryAgain, match=r"Storage gives 511000 of 512000 bytes, then it stalled"):
        await fetch(storage, tmp_path)


async def test_a_reset_before_any_answer_is_tried_again(
    storage: StorageServer, tmp_path: Path
) -> None:
    storage.script(StorageBehaviour(reset=True), StorageBehaviour(reset=True))
    assert (await fetch(storage, tmp_path)).size == len(DATA)


async def test_the_whole_download_has_a_deadline(storage: StorageServer, tmp_path: Path) -> None:
    storage.behave(bytes_per_second=20_000)
    with pytest.raises(TryAgain, match=r"took more than 0 s \(\d+ bytes so far\)"):
        await fetch(storage, tmp_path, total_seconds=0.4, stall_seconds=5)


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("uploads/none.zip", "uploads/none.zip: Storage has no such object"),
        ("nowhere/x.zip", "nowhere/x.zip: Storage has no bucket nowhere"),
    ],
)
@pytest.mark.parametrize("older", [False, True])
async def test_a_missing_object_is_the_jobs_fault(
    storage: StorageServer, tmp_path: Path, path: str, says: str, *, older: bool
) -> None:
    storage.behave(omit_code=older)
    with pytest.raises(BadExport, match=says):
        await fetch(storage, tmp_path, path)


async def test_an_object_whose_bytes_are_gone_is_told(
    storage: StorageServer, tmp_path: Path
) -> None:
    storage.behave(gone_bytes=True)
    with pytest.raises(BadExport, match="no such object"):
        await fetch(storage, tmp_path)


@pytest.mark.parametrize("key", ["sb_secret_wrong", "eyJhbGciOiJIUzI1NiJ9.e30.x"])
async def test_a_wrong_key_stops_the_worker_and_not_the_job(
    storage: StorageServer, tmp_path: Path, key: str
) -> None:
    with pytest.raises(Systemic, match="Storage refuses SUPABASE_SERVICE_KEY") as raised:
        await fetch(storage, tmp_path, service_key=key)
    assert key not in str(raised.value)


@pytest.mark.parametrize(
    ("status", "kind"),
    [(429, Wait), (503, Wait), (544, Wait), (540, Wait), (522, Wait), (500, TryAgain)],
)
async def test_an_unwell_service_is_waited_for(
    storage: StorageServer, tmp_path: Path, status: int, kind: type[Exception]
) -> None:
    storage.behave(error_status=status, retry_after_seconds=7)
    with pytest.raises(kind) as raised:
        await fetch(storage, tmp_path)
    assert not isinstance(raised.value, BadExport | Systemic)
    if isinstance(raised.value, Wait):
        assert raised.value.seconds == 7


async def test_no_storage_at_all_is_everybodys_outage(tmp_path: Path) -> None:
    with pytest.raises(Systemic, match=r"Storage at 127\.0\.0\.1:9 cannot be reached"):
        await fetch(None, tmp_path, supabase_url="http://127.0.0.1:9", service_key="sb_secret_x")
    (tmp_path / "export").unlink()
    with pytest.raises(Systemic, match="SUPABASE_URL is not set"):
        await fetch(None, tmp_path)
    with pytest.raises(Systemic, match="SUPABASE_SERVICE_KEY is not set"):
        await fetch(None, tmp_path, supabase_url="http://127.0.0.1:9")


@pytest.mark.parametrize(
    "path",
    [
        "", "uploads", "uploads/", "/uploads/x", "uploads//x", "uploads/../other/x", "../x/y",
        "uploads/./x", "uploads/a\\b", "uploads/a\nb", "up\x00loads/x", "-b/x",
        "https://evil.example/storage/v1/object/sign/uploads/x?token=t", "ftp://host/x",
    ],
)  # fmt: skip
async def test_what_is_no_storage_path_is_refused_before_any_request(
    storage: StorageServer, tmp_path: Path, path: str
) -> None:
    with pytest.raises(BadExport) as raised:
        await fetch(storage, tmp_path, path)
    assert "\n" not in str(raised.value)
    assert storage.requests == []


async def test_other_peoples_folders_are_refused_where_paths_are_owned(
    storage: StorageServer, tmp_path: Path
) -> None:
    assert (await fetch(storage, tmp_path, owner=OWNER.upper())).size == len(DATA)
    for path in ("uploads/someone/x.zip", f"uploads/{OWNER}", "uploads/x.zip"):
        with pytest.raises(BadExport, match="REQUIRE_OWNED_PATHS"):
            await fetch(storage, tmp_path, path, owner=OWNER)


async def test_size_and_disk_are_checked_first(
    storage: StorageServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(BadExport, match="above the limit"):
        await fetch(storage, tmp_path, max_bytes=1000)
    (tmp_path / "export").unlink()
    full = shutil._ntuple_diskusage(100, 90, 10)  # type: ignore[attr-defined]
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: full)
    with pytest.raises(Wait, match="MB free on this machine's disk"):
        await fetch(storage, tmp_path)


async def test_a_lost_lease_ends_the_download(storage: StorageServer, tmp_path: Path) -> None:
    calls = 0

    def check() -> None:
        nonlocal calls
        calls += 1
        if calls > 3:
            raise LeaseLost("the lease is gone")

    with pytest.raises(LeaseLost):
        await fetch(storage, tmp_path, check=check)


async def test_local_files_need_permission(tmp_path: Path) -> None:
    path = tmp_path / "my export ü.json"
    path.write_bytes(DATA)
    with pytest.raises(BadExport, match="set ALLOW_LOCAL_FILES=true"):
        await fetch(None, tmp_path, path.as_uri())
    fetched = await fetch(None, tmp_path, path.as_uri(), allow_local_files=True)
    assert (fetched.path, fetched.name, fetched.size) == (path, str(path), len(DATA))
    assert fetched.last_modified is not None
    again = await fetch(None, tmp_path, f"file://{path}", allow_local_files=True)
    assert again == fetched


async def test_local_paths_that_are_no_files_are_told(tmp_path: Path) -> None:
    for url, says in (
        ((tmp_path / "none").as_uri(), "No such file"),
        (tmp_path.as_uri(), "not a file"),
        (f"file://otherhost{tmp_path}", "not a path on this machine"),
        ("file:///a%00b", "not a path on this machine"),
    ):
        with pytest.raises(BadExport, match=says):
            await fetch(None, tmp_path, url, allow_local_files=True)


@pytest.mark.parametrize(
    ("status", "body", "kind", "says"),
    [
        (400, b'{"statusCode":"403","error":"Unauthorized","message":"signature verification failed"}', Systemic, "SUPABASE_SERVICE_KEY"),
        (400, b'{"statusCode":"403","error":"Unauthorized","message":"\\"exp\\" claim timestamp check failed"}', Systemic, "SUPABASE_SERVICE_KEY"),
        (400, b'{"statusCode":"403","message":"Invalid Compact JWS"}', Systemic, "SUPABASE_SERVICE_KEY"),
        (401, b'{"message":"Invalid API key"}', Systemic, "SUPABASE_SERVICE_KEY"),
        (404, b"<html>nginx</html>", Systemic, "leads to no Storage service"),
        (404, b'{"statusCode":"404","error":"Not Found","message":"Route GET:/x not found"}', Systemic, "leads to no Storage route"),
        (302, b"", Systemic, "redirect"),
        (400, b'{"statusCode":"413","error":"Payload too large","message":"m"}', BadExport, "too large"),
        (418, b"[" * 100_000, TryAgain, "answers 418"),
    ],
)  # fmt: skip
def test_answers_mean_what_the_body_says(
    status: int, body: bytes, kind: type[Exception], says: str
) -> None:
    with pytest.raises(kind, match=says):
        raise_for(status, body, httpx.Headers(), "uploads/x.zip", signed=False)
