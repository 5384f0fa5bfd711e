"""The objects a loopback Storage server holds, and the keys that open them.

Objects come from a folder (`ROOT/bucket/path`) or from registered bytes; large files are never
loaded. Keys are opaque `sb_secret_…` strings or JWTs signed here with HS256, so that expiry and
forgery are told apart as the real service does.
"""

from __future__ import annotations

import base64
import hmac
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import md5, sha256
from typing import TYPE_CHECKING, Any

import msgspec

from tests.support.loopback import FileSlice

if TYPE_CHECKING:
    from pathlib import Path

JWT_SECRET = b"a-secret-for-loopback-tests-only"


@dataclass(frozen=True, slots=True)
class StoredObject:
    """One object as its bytes stand now."""

    content: bytes | Path
    size: int
    etag: str
    modified: datetime
    content_type: str = "application/octet-stream"

    def part(self, start: int, stop: int) -> bytes | FileSlice:
        """Give bytes `start` (inclusive) to `stop` (exclusive)."""
        if isinstance(self.content, bytes):
            return self.content[start:stop]
        return FileSlice(self.content, start, stop)


class Shelf:
    """Objects by `bucket/path/in/bucket`; registered bytes hide a file of the same path."""

    def __init__(self, root: Path | None = None) -> None:
        self._root = None if root is None else root.resolve()
        self._objects: dict[str, StoredObject] = {}
        self._buckets: set[str] = set()

    def put(self, path: str, content: bytes, content_type: str = "application/zip") -> StoredObject:
        """Store bytes; the etag follows the content."""
        stored = StoredObject(
            content=content,
            size=len(content),
            etag=f'"{md5(content, usedforsecurity=False).hexdigest()}"',
            modified=datetime.now(UTC),
            content_type=content_type,
        )
        self._objects[path] = stored
        self._buckets.add(path.partition("/")[0])
        return stored

    def remove(self, path: str) -> None:
        """Forget registered bytes; their bucket stays."""
        self._objects.pop(path, None)

    def has_bucket(self, bucket: str) -> bool:
        """Whether a bucket of this name exists."""
        named = bool(bucket) and bucket not in {".", ".."}
        of_root = named and self._root is not None and (self._root / bucket).is_dir()
        return bucket in self._buckets or of_root

    def get(self, path: str) -> StoredObject | None:
        """Find an object; a path that leaves the folder finds nothing."""
        stored = self._objects.get(path)
        if stored is not None or self._root is None:
            return stored
        file = (self._root / path).resolve()
        if not file.is_relative_to(self._root) or not file.is_file():
            return None
        status = file.stat()
        return StoredObject(
            content=file,
            size=status.st_size,
            etag=f'"{status.st_size:x}-{status.st_mtime_ns:x}"',
            modified=datetime.fromtimestamp(status.st_mtime, UTC),
        )


def _encoded(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _signature(signed: str) -> str:
    return _encoded(hmac.new(JWT_SECRET, signed.encode(), sha256).digest())


def signed_jwt(*, expires_in_seconds: float = 3_600.0, **claims: Any) -> str:
    """Sign claims as the project would; negative seconds give a token that has expired."""
    header = _encoded(b'{"alg":"HS256","typ":"JWT"}')
    body = {**claims, "exp": int(time.time() + expires_in_seconds)}
    signed = f"{header}.{_encoded(msgspec.json.encode(body))}"
    return f"{signed}.{_signature(signed)}"


def service_key(*, expires_in_seconds: float = 3_600.0) -> str:
    """Give a legacy service key: a JWT with the role that may read everything."""
    return signed_jwt(expires_in_seconds=expires_in_seconds, role="service_role", iss="supabase")


def claims_of(token: str) -> dict[str, Any]:
    """Give a token's claims; raises ValueError with the words the real service uses."""
    signed, _, signature = token.rpartition(".")
    header, _, payload = signed.partition(".")
    if not (header and payload and signature):
        raise ValueError("Invalid Compact JWS")
    if not hmac.compare_digest(signature, _signature(signed)):
        raise ValueError("signature verification failed")
    claims = msgspec.json.decode(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    if claims["exp"] <= time.time():
        raise ValueError('"exp" claim timestamp check failed')
    return dict(claims)
