"""The loopback Storage server, driven by httpx, answers as FACTS says the real service does."""

from __future__ import annotations

import asyncio
import json
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from tests.support.server_process import ServerProcess
from tests.support.storage_objects import service_key, signed_jwt
from tests.support.storage_server import SECRET_KEY, StorageBehaviour, StorageServer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

DATA = bytes(range(256)) * 400  # 102,400 bytes
PLACE = "uploads/ann/export.zip"
READ = f"/storage/v1/object/authenticated/{PLACE}"
PLAIN = f"/storage/v1/object/{PLACE}"
INFO = f"/storage/v1/object/info/authenticated/{PLACE}"


@pytest.fixture
def server() -> Iterator[StorageServer]:
    with StorageServer() as running:
        running.put(PLACE, DATA)
        yield running


@asynccontextmanager
async def http(server: StorageServer, **headers: str) -> AsyncIterator[httpx.AsyncClient]:
    sent = headers or {"apikey": server.key, "accept-encoding": "identity"}
    async with httpx.AsyncClient(
        base_url=server.url, headers=sent, trust_env=False, timeout=5.0
    ) as client:
        yield client


async def get(server: StorageServer, path: str = READ, **headers: str) -> httpx.Response:
    async with http(server, **headers) as client:
        return await client.get(path)


def bearer(token: str) -> dict[str, str]:
    return {"authorization": f"Bearer {token}"}


def refusal(answer: httpx.Response) -> tuple[int, str, str, str | None]:
    body = answer.json()
    return answer.status_code, body["statusCode"], body["message"], body.get("code")


# Reading


async def test_a_download_carries_length_etag_and_date(server: StorageServer) -> None:
    for path in (READ, READ.removeprefix("/storage/v1"), PLAIN):
        answer = await get(server, path)
        assert (answer.status_code, answer.content) == (200, DATA)
        assert answer.headers["content-length"] == str(len(DATA))
        assert answer.headers["etag"].startswith('"')
        assert answer.headers["last-modified"].endswith("GMT")
    assert [served.complete for served in server.requests] == [True] * 3
    assert server.requests[0].sent_bytes == len(DATA)


async def test_head_and_info_tell_size_and_etag_without_bytes(server: StorageServer) -> None:
    async with http(server) as client:
        head = await client.head(READ)
        info = (await client.get(INFO)).json()
        short = (await client.get(INFO.replace("/authenticated", ""))).json()
    assert (head.status_code, head.content) == (200, b"")
    assert int(head.headers["content-length"]) == info["size"] == short["size"] == len(DATA)
    assert head.headers["etag"] == info["etag"]
    assert (info["bucket_id"], info["name"]) == ("uploads", "ann/export.zip")


async def test_ranges_resume_and_if_range_is_ignored(server: StorageServer) -> None:
    async with http(server) as client:
        rest = await client.get(READ, headers={"range": "bytes=100000-"})
        assert (rest.status_code, rest.content) == (206, DATA[100_000:])
        assert rest.headers["content-range"] == f"bytes 100000-{len(DATA) - 1}/{len(DATA)}"
        middle = await client.get(READ, headers={"range": "bytes=10-19", "if-range": '"other"'})
        assert (middle.status_code, middle.content) == (206, DATA[10:20])
        tail = await client.get(READ, headers={"range": "bytes=-5"})
        assert tail.content == DATA[-5:]
        beyond = await client.get(READ, headers={"range": f"bytes={len(DATA)}-"})
        assert beyond.status_code == 416
        assert beyond.headers["content-range"] == f"bytes */{len(DATA)}"
        assert beyond.json()["statusCode"] == "416"


async def test_files_of_a_folder_are_served_and_nothing_outside(tmp_path: Path) -> None:
    (tmp_path / "root/uploads").mkdir(parents=True)
    (tmp_path / "root/uploads/big export.zip").write_bytes(DATA * 10)
    (tmp_path / "secret.zip").write_bytes(b"secret")
    with StorageServer(root=tmp_path / "root") as server:
        whole = await get(server, "/object/authenticated/uploads/big%20export.zip")
        assert whole.content == DATA * 10
        outside = await get(server, "/object/authenticated/uploads/%2e%2e/%2e%2e/secret.zip")
        assert refusal(outside) == (400, "404", "Object not found", "NoSuchKey")


# Refusing


async def test_errors_are_400_with_the_truth_in_the_body(server: StorageServer) -> None:
    missing = await get(server, READ + ".gone")
    assert refusal(missing) == (400, "404", "Object not found", "NoSuchKey")
    assert missing.json()["error"] == "not_found"
    nowhere = await get(server, "/storage/v1/object/authenticated/attic/x.zip")
    assert refusal(nowhere) == (400, "404", "Bucket not found", "NoSuchBucket")
    server.behave(omit_code=True)
    assert refusal(await get(server, READ + ".gone"))[3] is None


async def test_keys_secret_in_apikey_and_jwt_as_bearer(server: StorageServer) -> None:
    assert (await get(server, **bearer(service_key()))).status_code == 200
    forged = service_key()[:-4] + "AAAA"
    expired = service_key(expires_in_seconds=-1)
    stranger = signed_jwt(role="anon")
    for token, message in (
        (forged, "signature verification failed"),
        (expired, '"exp" claim timestamp check failed'),
        (SECRET_KEY, "Invalid Compact JWS"),
        (stranger, "new row violates policy"),
    ):
        refused = await get(server, **bearer(token))
        assert refusal(refused) == (400, "403", message, "AccessDenied")
        hidden = await get(server, PLAIN, **bearer(token))
        assert refusal(hidden) == (400, "404", "Bucket not found", "NoSuchBucket")
    assert refusal(await get(server, apikey="sb_secret_wrong"))[1] == "403"


# Writing and signing


async def test_uploads_are_refused_twice_unless_upserted() -> None:
    with StorageServer(max_upload_bytes=1_000) as server:
        server.put("uploads/x", b"x")
        async with http(server) as client:
            path = "/storage/v1/object/uploads/new.json"
            stored = await client.post(path, content=b"[1]")
            assert stored.json()["Key"] == "uploads/new.json"
            assert refusal(await client.post(path, content=b"[2]"))[:2] == (400, "409")
            await client.post(path, content=b"[3]", headers={"x-upsert": "true"})
            assert (await client.get(path)).content == b"[3]"
            large = await client.post(path + "2", content=b"x" * 1_001)
            assert refusal(large) == (
                400,
                "413",
                "The object exceeded the maximum allowed size",
                "EntityTooLarge",
            )


async def test_signed_urls_are_relative_and_expire(server: StorageServer) -> None:
    async with http(server) as client:
        path = f"/storage/v1/object/sign/{PLACE}"
        signed = (await client.post(path, json={"expiresIn": 60})).json()["signedURL"]
        stale = (await client.post(path, json={"expiresIn": -1})).json()["signedURL"]
        assert refusal(await client.post(path, json={}))[1] == "400"
    assert signed.startswith("/object/sign/")
    async with httpx.AsyncClient(base_url=f"{server.url}/storage/v1", trust_env=False) as anyone:
        assert (await anyone.get(signed)).content == DATA
        assert refusal(await anyone.get(stale))[3] == "InvalidJWT"
        other = signed.replace("export.zip", "other.zip")
        assert refusal(await anyone.get(other))[3] == "InvalidSignature"


# Breaking


@pytest.mark.parametrize(
    ("status", "code"), [(500, "InternalError"), (544, "DatabaseTimeout"), (429, "SlowDown")]
)
async def test_the_services_own_troubles_come_as_themselves(
    server: StorageServer, status: int, code: str
) -> None:
    server.script(StorageBehaviour(error_status=status, retry_after_seconds=2))
    unwell = await get(server)
    assert refusal(unwell)[:2] == (status, str(status))
    assert unwell.json()["code"] == code
    assert unwell.headers["retry-after"] == "2"
    assert (await get(server)).content == DATA


async def received(server: StorageServer, **headers: str) -> tuple[bytes, Exception | None]:
    """Read until the end or the break, as a resuming downloader does."""
    got = bytearray()
    async with http(server) as client:
        client.timeout = httpx.Timeout(0.3)
        try:
            async with client.stream("GET", READ, headers=headers) as answer:
                async for piece in answer.aiter_raw():
                    got += piece
        except httpx.TransportError as error:
            return bytes(got), error
    return bytes(got), None


async def test_a_link_breaks_after_so_many_bytes_and_the_rest_can_be_had(
    server: StorageServer,
) -> None:
    server.script(StorageBehaviour(break_after_bytes=70_000), StorageBehaviour(reset=True))
    first, error = await received(server)
    assert (len(first), type(error)) == (70_000, httpx.RemoteProtocolError)
    nothing, error = await received(server)
    assert (nothing, type(error)) == (b"", httpx.ReadError)
    rest, error = await received(server, range="bytes=70000-")
    assert (first + rest, error) == (DATA, None)
    assert [served.complete for served in server.requests] == [False, False, True]


async def test_a_truncated_blob_stalls_rather_than_ends(server: StorageServer) -> None:
    server.script(StorageBehaviour(missing_tail_bytes=1_000), StorageBehaviour(stall_after_bytes=0))
    got, error = await received(server)
    assert (len(got), type(error)) == (len(DATA) - 1_000, httpx.ReadTimeout)
    got, error = await received(server)
    assert (len(got), type(error)) == (0, httpx.ReadTimeout)


async def test_an_object_may_change_between_two_ranges(server: StorageServer) -> None:
    server.behave(changing_etag=True)
    async with http(server) as client:
        etags = {
            (await client.get(READ, headers={"range": f"bytes={n}-{n}"})).headers["etag"]
            for n in range(3)
        }
    assert len(etags) == 3


async def test_gone_bytes_still_have_a_head(server: StorageServer) -> None:
    server.behave(gone_bytes=True)
    async with http(server) as client:
        assert (await client.head(READ)).status_code == 200
        assert (await client.get(INFO)).status_code == 200
        assert refusal(await client.get(READ))[1] == "404"


async def test_a_wrong_content_length_is_as_wrong_as_asked(server: StorageServer) -> None:
    server.script(
        StorageBehaviour(content_length_off_by=10), StorageBehaviour(content_length_off_by=-10)
    )
    long, error = await received(server)
    assert (long, type(error)) == (DATA, httpx.RemoteProtocolError)
    short, error = await received(server)
    # The client stops at the length it was told; what follows may be seen as a broken protocol.
    assert short == DATA[:-10] or isinstance(error, httpx.RemoteProtocolError)


async def test_a_slow_link_trickles(server: StorageServer) -> None:
    server.script(StorageBehaviour(bytes_per_second=400_000))
    began = time.monotonic()
    got, error = await received(server)
    assert (got, error) == (DATA, None)
    assert 0.2 < time.monotonic() - began < 2.0


async def test_a_process_serves_a_folder_and_is_steered(tmp_path: Path) -> None:
    (tmp_path / "uploads").mkdir()
    (tmp_path / "uploads/a.json").write_bytes(b"[]")
    record = tmp_path / "requests.jsonl"
    arguments = ("--root", str(tmp_path), "--key", "sb_secret_x", "--record", str(record))

    def steer() -> list[Any]:
        with ServerProcess("tests.support.storage_server", *arguments) as server:
            url = f"{server.url}/storage/v1/object/authenticated/uploads/a.json"
            server.control(script=[{"error_status": 500}])
            with pytest.raises(RuntimeError, match="no such behaviour"):
                server.control(behaviour={"nonsense": 1})
            with httpx.Client(headers={"apikey": "sb_secret_x"}, trust_env=False) as client:
                statuses = [client.get(url).status_code for _ in range(2)]
            assert len(server.record()["requests"]) == 2
            return statuses

    assert await asyncio.to_thread(steer) == [500, 200]
    lines = [json.loads(line) for line in record.read_text().splitlines()]
    assert [line["status"] for line in lines] == [500, 200]
