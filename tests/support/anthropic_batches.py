"""The Message Batches endpoints of the loopback Anthropic server.

A batch is worked on when somebody looks at it and its time has come: then every request is answered
and recorded as paid, whether or not its result is ever fetched. What goes wrong is decided by
`Behaviour` (batch_*) and, once, by the script: steps for the purposes `batch.create` (the creation
is refused), `batch.created` (it landed and its reply is lost), `batch.poll` and `batch.results`.
The same names can be held. Checked against the SDK's types (anthropic 2.12) on 2026-11-22.
"""

from __future__ import annotations

import re
import secrets
import time
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from random import Random
from typing import TYPE_CHECKING, Any

import msgspec

from tests.support.anthropic_replies import failure
from tests.support.anthropic_wire import Refused, check_messages_body, cut, invalid
from tests.support.loopback import Reply, Request, json_reply

if TYPE_CHECKING:
    from tests.support.anthropic_behaviour import Scripted
    from tests.support.anthropic_server import AnthropicServer

_CUSTOM_ID = re.compile(r"^[a-zA-Z0-9_-]{1,64}$")
STATES = ("processing", "succeeded", "errored", "canceled", "expired")


@dataclass(slots=True)
class Held:
    """One batch as the server keeps it."""

    id: str
    requests: dict[str, dict[str, Any]]
    made_at: float
    created_at: datetime
    expires_at: datetime
    cancelled_at: datetime | None = None
    ended_at: datetime | None = None
    results: dict[str, dict[str, Any]] = field(default_factory=dict)

    def counts(self) -> dict[str, int]:
        """Count the requests by state; until the batch ends they all count as processing."""
        counts = dict.fromkeys(STATES, 0)
        if self.ended_at is None:
            return {**counts, "processing": len(self.requests)}
        for custom_id in self.requests:
            counts[self.results[custom_id]["type"]] += 1
        return counts


class Batches:
    """Every batch of the account, in the order they were made."""

    def __init__(self, server: AnthropicServer) -> None:
        self._server = server
        self.made: dict[str, Held] = {}
        self.held: set[str] = set()
        """At which of them some request was held back."""

    async def handle(self, request: Request, request_id: str) -> Reply:
        """Answer one request below /v1/messages/batches."""
        parts = request.path.rstrip("/").removeprefix("/v1/messages/batches").strip("/").split("/")
        match request.method, [part for part in parts if part]:
            case "POST", []:
                return await self._create(request, request_id)
            case "GET", []:
                return self._list(request)
            case "GET", [batch_id]:
                return await self._poll(batch_id, request_id)
            case "POST", [batch_id, "cancel"]:
                return self._cancel(batch_id)
            case "GET", [batch_id, "results"]:
                return await self._results(batch_id, request_id)
            case _:
                raise Refused(404, "not_found_error", f"{request.path}: not found")

    async def _create(self, request: Request, request_id: str) -> Reply:
        await self._pass("batch.create")
        refused = self._failed("batch.create", request_id)
        if refused is not None:
            return refused
        how = self._server.behaviour
        if len(request.body) > how.batch_most_bytes:
            raise Refused(413, "request_too_large", "Request exceeds the maximum size")
        requests = _checked(request, how.batch_most_requests)
        now = datetime.now(UTC)
        batch = Held(
            id=f"msgbatch_{secrets.token_hex(12)}",
            requests=requests,
            made_at=time.monotonic(),
            created_at=now,
            expires_at=now + timedelta(seconds=how.batch_expires_seconds),
        )
        self.made[batch.id] = batch
        self._server.changed()
        await self._pass("batch.created")
        return self._failed("batch.created", request_id) or self._described(batch)

    def _list(self, request: Request) -> Reply:
        newest = sorted(self.made.values(), key=lambda b: b.created_at, reverse=True)
        after = request.query.get("after_id")
        if after is not None:
            ids = [batch.id for batch in newest]
            newest = newest[ids.index(after) + 1 :] if after in ids else []
        limit = int(request.query.get("limit", "20"))
        page = newest[:limit]
        for batch in page:
            self._work(batch)
        return json_reply(
            {
                "data": [self._description(batch) for batch in page],
                "has_more": len(newest) > limit,
                "first_id": page[0].id if page else None,
                "last_id": page[-1].id if page else None,
            }
        )

    async def _poll(self, batch_id: str, request_id: str) -> Reply:
        batch = self._known(batch_id)
        await self._pass("batch.poll")
        self._work(batch)
        return self._failed("batch.poll", request_id) or self._described(batch)

    def _cancel(self, batch_id: str) -> Reply:
        batch = self._known(batch_id)
        if batch.ended_at is not None:
            raise invalid(f"Batch {batch_id} has already ended")
        batch.cancelled_at = batch.cancelled_at or datetime.now(UTC)
        self._server.changed()
        return self._described(batch)

    async def _results(self, batch_id: str, request_id: str) -> Reply:
        batch = self._known(batch_id)
        await self._pass("batch.results")
        self._work(batch)
        if batch.ended_at is None:
            raise invalid(f"Batch {batch_id} has no results yet")
        step = self._server.scripted("batch.results")
        failed = None if step is None else self._failure(step, request_id)
        if failed is not None and failed.status != 200:
            return failed
        order = [i for i in batch.requests if batch.results[i].get("told", True)]
        Random(batch.id).shuffle(order)
        lines = [
            msgspec.json.encode({"custom_id": i, "result": batch.results[i]}) + b"\n" for i in order
        ]
        body = b"".join(lines) + self._server.behaviour.batch_tail
        reply = Reply(200, body, {"content-type": "application/x-jsonl"})
        if step is None or failed is None:
            return reply
        # Whatever else a step says breaks the stream in the middle.
        middle = cut(body, self._server.behaviour.cut_share)
        if step.fault == "stall_mid_body":
            return replace(reply, stall_after_bytes=len(middle))
        if failed.reset:
            return replace(reply, close_after_bytes=len(middle))
        return replace(reply, body=middle)

    # Working on a batch

    def _work(self, batch: Held) -> None:
        """Let a batch come to its end if its time has come."""
        how = self._server.behaviour
        if batch.ended_at is not None or how.batch_never_ends:
            return
        expired = datetime.now(UTC) >= batch.expires_at
        done = time.monotonic() - batch.made_at >= how.batch_seconds
        if not (done or expired or batch.cancelled_at is not None):
            return
        ids = list(batch.requests)
        answered = len(ids)
        if batch.cancelled_at is not None:
            answered = int(len(ids) * how.batch_done_when_cancelled)
        elif not done:
            answered = 0
        for number, custom_id in enumerate(ids):
            if number < answered:
                batch.results[custom_id] = self._result(batch, custom_id)
            else:
                kind = "expired" if batch.cancelled_at is None else "canceled"
                batch.results[custom_id] = {"type": kind}
        batch.ended_at = datetime.now(UTC)
        self._server.changed()

    def _result(self, batch: Held, custom_id: str) -> dict[str, Any]:
        how = self._server.behaviour
        body = batch.requests[custom_id]
        dice = Random(f"{how.seed}/{custom_id}/{len(self.made)}")
        roll = dice.random()
        for fault, probability in (how.batch_items or {}).items():
            if roll < probability:
                if fault == "missing":
                    return {"type": "errored", "told": False}
                return _unanswered(fault)
            roll -= probability
        try:
            check_messages_body(body, how)
        except Refused as refusal:
            error = {"type": refusal.kind, "message": str(refusal)}
            return {"type": "errored", "error": {"type": "error", "error": error}}
        return {"type": "succeeded", "message": self._server.answer_in_batch(body, batch.id)}

    async def _pass(self, purpose: str) -> None:
        if self._server.holds(purpose):
            self.held.add(purpose)
        await self._server.passed(purpose)

    def _failed(self, purpose: str, request_id: str) -> Reply | None:
        step = self._server.scripted(purpose)
        return None if step is None else self._failure(step, request_id)

    def _failure(self, step: Scripted, request_id: str) -> Reply:
        reply = failure(step, self._server.behaviour, {"request-id": request_id})
        return Reply(200) if reply is None else replace(reply, status=reply.status or 200)

    def _known(self, batch_id: str) -> Held:
        if batch_id not in self.made:
            raise Refused(404, "not_found_error", f"batch {batch_id} not found")
        return self.made[batch_id]

    def _described(self, batch: Held) -> Reply:
        return json_reply(self._description(batch))

    def _description(self, batch: Held) -> dict[str, Any]:
        status = "in_progress" if batch.cancelled_at is None else "canceling"
        ended = batch.ended_at is not None
        return {
            "id": batch.id,
            "type": "message_batch",
            "processing_status": "ended" if ended else status,
            "request_counts": batch.counts(),
            "created_at": _told(batch.created_at),
            "expires_at": _told(batch.expires_at),
            "ended_at": _told(batch.ended_at),
            "cancel_initiated_at": _told(batch.cancelled_at),
            "archived_at": None,
            "results_url": f"{self._server.url}/v1/messages/batches/{batch.id}/results"
            if ended
            else None,
        }


def _checked(request: Request, most_requests: int) -> dict[str, dict[str, Any]]:
    """Give the requests by custom id, or raise what the API answers to a bad batch."""
    try:
        body = request.json()
    except msgspec.DecodeError as error:
        raise invalid(f"The request body is not valid JSON: {error}") from None
    requests = body.get("requests") if isinstance(body, dict) else None
    if not isinstance(requests, list) or not requests:
        raise invalid("requests: at least one request is required")
    if len(requests) > most_requests:
        raise invalid(f"requests: at most {most_requests} requests are allowed")
    found: dict[str, dict[str, Any]] = {}
    for number, one in enumerate(requests):
        custom_id = one.get("custom_id")
        if not isinstance(custom_id, str) or not _CUSTOM_ID.match(custom_id):
            raise invalid(
                f"requests.{number}.custom_id: String should match '^[a-zA-Z0-9_-]{{1,64}}$'"
            )
        if custom_id in found:
            raise invalid(f"requests.{number}.custom_id: custom_ids must be unique")
        if not isinstance(one.get("params"), dict):
            raise invalid(f"requests.{number}.params: Field required")
        found[custom_id] = one["params"]
    return found


def _unanswered(fault: str) -> dict[str, Any]:
    if fault in {"expired", "canceled"}:
        return {"type": fault}
    kind = "invalid_request_error" if fault == "invalid" else "api_error"
    error = {"type": kind, "message": "the request was not answered"}
    return {"type": "errored", "error": {"type": "error", "error": error}}


def _told(at: datetime | None) -> str | None:
    return None if at is None else at.isoformat().replace("+00:00", "Z")
