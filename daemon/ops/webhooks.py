"""Webhooks: one bounded POST, and the app's events signed by the Standard Webhooks scheme.

A receiver may hang, drip, redirect, answer with gigabytes or with nonsense: an attempt ends within
ten seconds, follows no redirect and reads no body. What is sent holds ids, states and error
messages, never a word of a conversation (promise 11). When to try again is the outbox's business.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
from functools import lru_cache
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import httpx

from daemon import __version__
from daemon.errors import AddressGone, NotTold
from daemon.logs import masked
from daemon.ops.discreet import without_addresses
from daemon.ops.plain import plain

if TYPE_CHECKING:
    import ssl

    from daemon.ops.outbox import Message

ATTEMPT_SECONDS = 10.0
_LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})
_SECRET_PREFIX = "whsec_"  # noqa: S105 - what secrets begin with
_TYPES = {
    "completed": "fullpass.completed",
    "failed": "fullpass.failed",
    "quarantined": "fullpass.failed",
    "cancelled": "fullpass.cancelled",
}
_STATUS = {"completed": "complete", "quarantined": "failed"}


async def post(
    url: str,
    body: bytes,
    *,
    headers: dict[str, str] | None = None,
    seconds: float = ATTEMPT_SECONDS,
) -> None:
    """POST a JSON body once. Raises NotTold for anything but a 2xx within `seconds`."""
    loopback = urlsplit(url).hostname in _LOOPBACK
    tls = _tls()  # not on the receiver's time
    try:
        async with (
            asyncio.timeout(seconds),
            httpx.AsyncClient(
                verify=tls, timeout=seconds, trust_env=not loopback, follow_redirects=False
            ) as client,
            client.stream("POST", url, content=body, headers=_HEADERS | (headers or {})) as reply,
        ):
            # The status says all: its body is not read, however long it is or slowly it comes.
            status = reply.status_code
    except TimeoutError:
        raise NotTold(f"no answer within {seconds:g} s") from None
    except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError) as error:
        said = masked(str(error).partition("\n")[0])[:200]
        raise NotTold(f"{type(error).__name__}: {said}".rstrip(": ")) from None
    if status == httpx.codes.GONE:
        raise AddressGone("it answers 410 Gone")
    if 300 <= status < 400:
        raise NotTold(f"it answers {status}, a redirect; redirects are not followed")
    if not 200 <= status < 300:
        raise NotTold(f"it answers {status}")


_HEADERS = {"content-type": "application/json", "user-agent": f"fullpass/{__version__}"}


def signature(secret: str, *, message_id: str, timestamp: int, body: bytes) -> str:
    """Return the value of webhook-signature (https://www.standardwebhooks.com, 2026-11-22)."""
    key = base64.b64decode(secret.removeprefix(_SECRET_PREFIX) + "==")
    signed = f"{message_id}.{timestamp}.".encode() + body
    return "v1," + base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()


class NotifyWebhook:
    """Tells the app what became of each job (NOTIFY_WEBHOOK)."""

    name = "notify"
    events = tuple(_TYPES)

    def __init__(self, url: str, secret: str) -> None:
        self.address = url
        self._secret = secret
        self.attempt_seconds = ATTEMPT_SECONDS

    async def tell(self, message: Message) -> None:
        """Send it signed; id and body are the same at every attempt, the timestamp is not."""
        body = json.dumps(payload(message), ensure_ascii=False).encode()
        # By the database's clock: with that of a machine an hour off, all would be refused as old.
        message_id, timestamp = f"msg_{message.id.hex}", int(message.taken_at.timestamp())
        signed = signature(self._secret, message_id=message_id, timestamp=timestamp, body=body)
        await post(
            self.address,
            body,
            headers={
                "webhook-id": message_id,
                "webhook-timestamp": str(timestamp),
                "webhook-signature": signed,
            },
            seconds=self.attempt_seconds,
        )


def payload(message: Message) -> dict[str, Any]:
    """Return what the app is told (docs/telling.md)."""
    error = message.data.get("error")
    told: dict[str, Any] = {
        "job_id": message.job_id,
        "user_id": message.user_id,
        "status": _STATUS.get(message.event, message.event),
        "conversations": message.data.get("conversations"),
        "messages": message.data.get("messages"),
    }
    if message.event in {"failed", "quarantined"}:
        told["error"] = without_addresses(masked(error or ""))
        told["quarantined"] = message.event == "quarantined"
    return {
        "type": _TYPES[message.event], "timestamp": plain(message.at), "data": plain(told),
    }  # fmt: skip


@lru_cache(maxsize=1)
def _tls() -> ssl.SSLContext:
    """Load the certificates once a process: they cost 50 ms and a few megabytes each time."""
    return httpx.create_ssl_context()
