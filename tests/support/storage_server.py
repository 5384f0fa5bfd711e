"""A loopback server that answers as Supabase Storage does, oddities included, and breaks on demand.

    with StorageServer(root=exports) as storage:
        storage.put("uploads/USER/export.zip", data)
        storage.script(StorageBehaviour(break_after_bytes=70_000))   # the next download only
        ...                                       # SUPABASE_URL=storage.url, key storage.key

    python -m tests.support.storage_server --port 0 --root exports --record requests.jsonl

Paths work with the gateway's `/storage/v1` prefix and without. Nearly every error is an HTTP 400
whose truth is in the body; on plain object paths a bad key answers "Bucket not found"; `If-Range`
is ignored. POST /control, GET /control and GET /control/record are for tests.
"""

from __future__ import annotations

import argparse
import asyncio
import re
import secrets
import time
from collections import deque
from dataclasses import asdict, dataclass, replace
from email.utils import format_datetime
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import msgspec

from tests.support.loopback import (
    LoopbackServer,
    Reply,
    Request,
    json_reply,
)
from tests.support.server_process import serve_until_signalled
from tests.support.storage_objects import Shelf, StoredObject, claims_of, signed_jwt

if TYPE_CHECKING:
    from collections.abc import Sequence

SECRET_KEY = "sb_secret_loopback"
_RANGE = re.compile(r"bytes=(\d*)-(\d*)$")


@dataclass(frozen=True, slots=True)
class StorageBehaviour:
    """How requests are answered; the default is in order. Bytes are of the body sent."""

    error_status: int | None = None
    """Answer objects with this: 429, 500, 503 or 544."""
    retry_after_seconds: float | None = None
    omit_code: bool = False
    """Errors without `code`, as older servers send them."""
    reset: bool = False
    break_after_bytes: int | None = None
    stall_after_bytes: int | None = None
    stall_seconds: float = 3_600.0
    missing_tail_bytes: int = 0
    """The blob is shorter than its Content-Length says: the rest never comes."""
    gone_bytes: bool = False
    """HEAD and info say 200; the bytes are not there."""
    changing_etag: bool = False
    """Every reply carries another etag, as if the object were replaced in between."""
    content_length_off_by: int = 0
    bytes_per_second: float | None = None
    latency_seconds: float = 0.0
    ignore_range: bool = False
    range_from: int | None = None
    """A stretch that is asked for begins here instead, is as long, and says so."""


@dataclass(frozen=True, slots=True)
class Served:
    """One request met, for the record."""

    seq: int
    method: str
    path: str
    range: str
    status: int
    sent_bytes: int
    """Body bytes the reply would hold when sent whole."""
    complete: bool
    at: float


class Order(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What POST /control takes."""

    behaviour: dict[str, Any] = {}
    script: list[dict[str, Any]] = []
    clear: bool = False


class StorageServer(LoopbackServer):
    """The server; a context manager. `key` opens it, `requests` is the record."""

    def __init__(
        self,
        *,
        port: int = 0,
        root: Path | None = None,
        keys: Sequence[str] = (SECRET_KEY,),
        behaviour: StorageBehaviour | None = None,
        max_upload_bytes: int = 5_000_000_000,
        record_path: Path | None = None,
    ) -> None:
        super().__init__(port=port)
        self.key = keys[0]
        self.behaviour = behaviour or StorageBehaviour()
        self._served: dict[int, Served] = {}
        self.shelf = Shelf(root)
        self._keys = frozenset(keys)
        self._max_upload_bytes = max_upload_bytes
        self._script: deque[StorageBehaviour] = deque()
        self._seq = 0
        self._file: IO[bytes] | None = None if record_path is None else record_path.open("ab")

    def close(self) -> None:
        """Stop serving and close the record."""
        super().close()
        if self._file is not None:
            self._file.close()
            self._file = None

    @property
    def requests(self) -> list[Served]:
        """Every request so far, in the order their fate was known."""
        return list(self._served.values())

    def put(self, path: str, content: bytes) -> StoredObject:
        """Store bytes at `bucket/path/in/bucket`."""
        return self.shelf.put(path, content)

    def behave(self, **changes: object) -> None:
        """Change switches by name for every request from now on."""
        self.behaviour = _changed(self.behaviour, changes)

    def script(self, *steps: StorageBehaviour) -> None:
        """Decide the next downloads (GET of an object), one step each."""
        self._script.extend(steps)

    # Routes

    async def handle(self, request: Request) -> Reply:
        """Answer one request."""
        if request.path.startswith("/control"):
            return self._control(request)
        path = request.path.removeprefix("/storage/v1").lstrip("/")
        download = request.method == "GET" and not path.startswith("object/info/")
        how = self._script.popleft() if download and self._script else self.behaviour
        self._seq += 1
        served = Served(
            seq=self._seq,
            method=request.method,
            path=path,
            range=request.headers.get("range", ""),
            status=0,
            sent_bytes=0,
            complete=False,
            at=time.time(),
        )
        try:
            await asyncio.sleep(how.latency_seconds)  # a store's, before its first byte
            reply = _broken(self._route(request, path, how), how)
        except BaseException:
            self._note(served)
            raise
        served = replace(served, status=reply.status, sent_bytes=len(reply.body))
        return replace(reply, on_sent=lambda sent: self._note(replace(served, complete=sent)))

    def _note(self, served: Served) -> None:
        """Record a request; one told sent may be told broken after all, and is then replaced."""
        self._served[served.seq] = served
        if self._file is not None:
            self._file.write(msgspec.json.encode(served) + b"\n")
            self._file.flush()
        self.changed()

    def _control(self, request: Request) -> Reply:
        if request.path == "/control/record":
            return json_reply({"requests": self.requests})
        try:
            if request.method == "POST":
                order = msgspec.json.decode(request.body, type=Order)
                self.behave(**order.behaviour)
                if order.clear:
                    self._served.clear()
                    self._script.clear()
                self.script(*(_changed(StorageBehaviour(), step) for step in order.script))
        except ValueError as error:  # msgspec's errors are ValueErrors too
            return json_reply({"error": str(error)}, status=400)
        return json_reply({"behaviour": asdict(self.behaviour), "scripted": len(self._script)})

    def _route(self, request: Request, path: str, how: StorageBehaviour) -> Reply:
        kind, _, rest = path.partition("/")
        if kind != "object" or not rest:
            return _error(404, "not_found", f"Route {request.method}:/{path} not found", how=how)
        if how.error_status is not None:
            return _unwell(how)
        access, _, named = rest.partition("/")
        if access == "sign" and request.method == "GET":
            return self._signed(request, named, how)
        plain = access not in {"authenticated", "info", "sign"}
        refusal = self._refusal(request)
        if refusal:
            if plain:  # the policies hide the bucket from whoever may not see it
                return _error(404, "Bucket not found", "Bucket not found", "NoSuchBucket", how=how)
            return _error(403, "Unauthorized", refusal, "AccessDenied", how=how)
        if request.method == "POST":
            if access == "sign":
                return self._sign(request, named, how)
            return self._upload(request, rest, how)
        if access == "info":
            return self._info(named.removeprefix("authenticated/"), how)
        return self._object(request, rest if plain else named, how)

    def _refusal(self, request: Request) -> str:
        """Why the caller may not, in the service's words; empty when it may."""
        bearer = request.headers.get("authorization", "")
        if bearer:
            token = bearer.removeprefix("Bearer ")
            try:
                claims = claims_of(token)
            except ValueError as error:  # an sb_secret key is no JWT, and is refused here as such
                return str(error)
            return "" if claims.get("role") == "service_role" else "new row violates policy"
        return "" if request.headers.get("apikey") in self._keys else "Invalid Compact JWS"

    # Objects

    def _find(self, path: str, how: StorageBehaviour) -> StoredObject | Reply:
        stored = self.shelf.get(path)
        if stored is not None:
            salt = secrets.token_hex(4) if how.changing_etag else ""
            return replace(stored, etag=f'{stored.etag[:-1]}{salt}"')
        if not self.shelf.has_bucket(path.partition("/")[0]):
            return _error(404, "Bucket not found", "Bucket not found", "NoSuchBucket", how=how)
        return _error(404, "not_found", "Object not found", "NoSuchKey", how=how)

    def _object(self, request: Request, path: str, how: StorageBehaviour) -> Reply:
        stored = self._find(path, how)
        if isinstance(stored, Reply):
            return stored
        if how.gone_bytes and request.method != "HEAD":
            return _error(404, "not_found", "Object not found", "NoSuchKey", how=how)
        headers = {
            "content-type": stored.content_type,
            "etag": stored.etag,
            "last-modified": format_datetime(stored.modified, usegmt=True),
            "accept-ranges": "bytes",
            "cache-control": "no-cache",
        }
        asked = None if how.ignore_range else _RANGE.match(request.headers.get("range", ""))
        if asked is None or asked[0] == "bytes=-":
            return Reply(200, stored.part(0, stored.size), headers)
        start, stop = _bounds(asked[1], asked[2], stored.size)
        if start >= stop:
            unsatisfied = {"content-range": f"bytes */{stored.size}"}
            message = "The requested range is not satisfiable"
            refusal = _error(416, "InvalidRange", message, "InvalidRange", how=how)
            return replace(refusal, headers={**refusal.headers, **unsatisfied})
        if how.range_from is not None:
            start, stop = how.range_from, how.range_from + stop - start
        headers["content-range"] = f"bytes {start}-{stop - 1}/{stored.size}"
        return Reply(206, stored.part(start, stop), headers)

    def _info(self, path: str, how: StorageBehaviour) -> Reply:
        stored = self._find(path, how)
        if isinstance(stored, Reply):
            return stored
        bucket, _, name = path.partition("/")
        modified = stored.modified.isoformat(timespec="milliseconds").replace("+00:00", "Z")
        facts = {
            "name": name,
            "bucket_id": bucket,
            "size": stored.size,
            "content_type": stored.content_type,
            "cache_control": "no-cache",
            "etag": stored.etag,
            "last_modified": modified,
            "created_at": modified,
            "metadata": {},
        }
        return json_reply(facts)

    def _upload(self, request: Request, path: str, how: StorageBehaviour) -> Reply:
        if len(request.body) > self._max_upload_bytes:
            message = "The object exceeded the maximum allowed size"
            return _error(413, "Payload too large", message, "EntityTooLarge", how=how)
        replacing = request.headers.get("x-upsert", "false").lower() == "true"
        if self.shelf.get(path) is not None and not replacing:
            message = "The resource already exists"
            return _error(409, "Duplicate", message, "ResourceAlreadyExists", how=how)
        kind = request.headers.get("content-type", "application/octet-stream")
        self.shelf.put(path, request.body, kind)
        return json_reply({"Key": path, "Id": secrets.token_hex(16)})

    def _sign(self, request: Request, path: str, how: StorageBehaviour) -> Reply:
        stored = self._find(path, how)
        if isinstance(stored, Reply):
            return stored
        try:
            seconds = float(request.json()["expiresIn"])
        except (msgspec.DecodeError, KeyError, TypeError, ValueError):
            message = "body must have required property 'expiresIn'"
            return _error(400, "Error", message, "InvalidRequest", how=how)
        token = signed_jwt(expires_in_seconds=seconds, url=path)
        return json_reply({"signedURL": f"/object/sign/{path}?token={token}"})

    def _signed(self, request: Request, path: str, how: StorageBehaviour) -> Reply:
        try:
            claims = claims_of(request.query.get("token", ""))
        except ValueError as error:
            return _error(400, "InvalidJWT", str(error), "InvalidJWT", how=how)
        if claims.get("url") != path:
            message = "The url does not match the signature"
            return _error(400, "InvalidSignature", message, "InvalidSignature", how=how)
        return self._object(request, path, how)


def _changed(now: StorageBehaviour, changes: dict[str, Any]) -> StorageBehaviour:
    values = asdict(now)
    unknown = sorted(set(changes) - set(values))
    if unknown:
        raise ValueError(f"no such behaviour: {', '.join(unknown)}; known: {', '.join(values)}")
    return msgspec.convert({**values, **changes}, StorageBehaviour)


def _bounds(first: str, last: str, size: int) -> tuple[int, int]:
    """Turn a range into start and stop (exclusive); stop ≤ start means unsatisfiable."""
    if not first:  # the last so many bytes
        return max(0, size - int(last)), size
    return int(first), min(size, int(last) + 1) if last else size


def _error(
    status: int, error: str, message: str, code: str = "", *, how: StorageBehaviour
) -> Reply:
    """Give an error as the service does: HTTP 400 but for those that come as themselves."""
    body = {"statusCode": str(status), "error": error, "message": message}
    if code and not how.omit_code:
        body["code"] = code
    as_itself = status >= 500 or status in {416, 429}
    return json_reply(body, status=status if as_itself else 400)


def _unwell(how: StorageBehaviour) -> Reply:
    status = how.error_status or 500
    told = {
        429: ("Too many requests", "Too many requests", "SlowDown"),
        544: ("DatabaseTimeout", "The connection to the database timed out", "DatabaseTimeout"),
    }
    error, message, code = told.get(status, ("Internal", "Internal Server Error", "InternalError"))
    reply = _error(status, error, message, code, how=how)
    if how.retry_after_seconds is None:
        return reply
    return replace(reply, headers={**reply.headers, "retry-after": f"{how.retry_after_seconds:g}"})


def _broken(reply: Reply, how: StorageBehaviour) -> Reply:
    """Let the wire treat a download as asked."""
    if how.reset:
        return replace(reply, reset=True)
    if "etag" not in reply.headers:  # not the bytes of an object
        return reply
    size = len(reply.body)
    stall = how.stall_after_bytes
    if how.missing_tail_bytes:
        stall = max(0, size - how.missing_tail_bytes)
    declared = size + how.content_length_off_by if how.content_length_off_by else None
    return replace(
        reply,
        close_after_bytes=how.break_after_bytes,
        stall_after_bytes=stall,
        stall_seconds=how.stall_seconds,
        bytes_per_second=how.bytes_per_second,
        declared_length=declared,
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Serve as a process of its own."""
    parser = argparse.ArgumentParser(prog="storage_server", description=__doc__)
    parser.add_argument("--port", type=int, default=0, help="0 picks a free one")
    parser.add_argument("--root", type=Path, help="folder of buckets")
    parser.add_argument("--key", action="append", help=f"accept this key (default {SECRET_KEY})")
    parser.add_argument("--record", type=Path, help="append every request to this JSON-lines file")
    parser.add_argument("--behaviour", default="{}", help="JSON object of switches")
    parser.add_argument("--with-parent", action="store_true", help="end when the parent does")
    options = parser.parse_args(arguments)
    server = StorageServer(
        port=options.port,
        root=options.root,
        keys=options.key or (SECRET_KEY,),
        behaviour=_changed(StorageBehaviour(), msgspec.json.decode(options.behaviour)),
        record_path=options.record,
    )
    serve_until_signalled(server, with_parent=options.with_parent)


if __name__ == "__main__":
    main()
