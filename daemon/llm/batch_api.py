"""The Message Batches API as the rest sees it: make, find, look, cancel, read results as a stream.

Owns what the SDK raises here and means. Nothing is kept: which batch is whose is `batch_rows.py`,
what follows from a look is `batches.py`. Checked against anthropic 2.12 on 2026-11-22.
"""

from __future__ import annotations

import asyncio
import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

from daemon.errors import BadCall, CallError, CallFailed
from daemon.llm.messages_api import MessagesProvider
from daemon.llm.rate_limits import server_time
from daemon.llm.request import Reply
from daemon.llm.wire import holdable
from daemon.logs import get_logger

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Sequence
    from datetime import datetime
    from decimal import Decimal

    import anthropic

    from daemon.llm.providers import Provider
    from daemon.llm.request import Request, Usage

_log = get_logger()
ItemState = Literal["succeeded", "errored", "canceled", "expired"]

_TIMEOUT_SECONDS = 120.0
"""For making a batch (megabytes of body) and for each silence in a stream of results."""
_MOST_LISTED = 10_000
_LINES_A_REQUEST = 2
"""Servers may tell a result twice; a stream of many more lines than that need have no end."""
_OF_OURS = re.compile(r"[A-Za-z0-9_-]{1,64}")
"""What a custom id may be (vendor's documentation, 2026-11-22): any other was never sent."""
_DAY_SECONDS = 86_400.0


class NoBatches(CallError):
    """The server has no batches endpoint: read in real time."""


class PerhapsMade(CallFailed):
    """A batch may have been made though its answer never came: look before making another."""


@dataclass(frozen=True, slots=True)
class Remote:
    """A batch as the server describes it."""

    id: str
    ended: bool
    requests: int
    created_at: datetime
    life_seconds: float
    """From its making to the moment when what is not done by then expires."""


@dataclass(frozen=True, slots=True)
class Item:
    """One line of results; `reply` is there when the request succeeded, and so was paid."""

    custom_id: str
    state: ItemState
    reply: Reply | None = None
    error: str | None = None


class BatchApi:
    """Speaks to one account's batches through the SDK's client of a provider."""

    def __init__(self, provider: MessagesProvider) -> None:
        self._provider = provider
        self._sdk = provider.sdk
        self._batches: Any = provider.batches
        self._result_type: Any = self._sdk.types.messages.MessageBatchIndividualResponse

    def takes(self, model: str) -> bool:
        """Whether a model can be asked by batch, as far as is known."""
        return self._provider.models.named(model).batch

    def model_id(self, model: str) -> str:
        """Return the vendor's own id of a model."""
        return self._provider.models.named(model).id

    def cost_usd(self, model: str, usage: Usage, *, batch: bool) -> Decimal | None:
        """Return what a call costs, alone or by batch; None when the price is not known."""
        bill = self._provider.models.named(model).bill(usage, batch=batch)
        return None if bill is None else bill.cost_usd

    def most_it_costs(self, request: Request) -> Decimal:
        """Return the most that a request can cost by batch; 0 when the price is not known."""
        factor = self._provider.models.named(request.model).batch_factor
        return self._provider.most_it_costs(request) * factor

    async def create(self, requests: Sequence[tuple[str, Request]]) -> Remote:
        """Make a batch of (custom id, request) pairs.

        Raises PerhapsMade when it may exist all the same; NoBatches, CallFailed, BadCall or
        Systemic when it surely does not.
        """
        try:
            made = await _answer(
                self._batches.create(
                    requests=[
                        {"custom_id": key, "params": self._provider.parameters(r)}
                        for key, r in requests
                    ],
                    timeout=_TIMEOUT_SECONDS,
                )
            )
        except self._sdk.APIError as error:
            meaning = self._meant(error, "\n".join(request.text for _, request in requests))
            # The server's own refusal is certain; silence, a broken reply or its inner trouble not.
            status = getattr(error, "status_code", 0)
            if status == 403 and not isinstance(getattr(error, "body", None), dict):
                # A firewall's page: one text of them all may be the reason; each alone tells.
                raise BadCall(str(meaning)) from error
            if status in range(400, 500) and status != 408:
                raise meaning from error
            raise PerhapsMade(str(meaning)) from error
        except (ValueError, TimeoutError) as error:
            raise PerhapsMade("the server's reply broke off") from error
        return self._remote(made) or self._nonsense()

    def _nonsense(self) -> Remote:
        raise PerhapsMade("the server answered with something that is no batch")

    async def retrieve(self, batch_id: str) -> Remote | None:
        """Look at a batch; None when this account has none of that id."""
        try:
            found = await _answer(self._batches.retrieve(batch_id, timeout=_TIMEOUT_SECONDS))
        except self._sdk.NotFoundError:
            return None
        except self._sdk.APIError as error:
            raise self._meant(error) from error
        except (ValueError, TimeoutError) as error:
            raise CallFailed("the server's reply broke off") from error
        remote = self._remote(found)
        if remote is None:
            raise CallFailed("the server answered with something that is no batch")
        return remote

    async def recent(self, since: datetime, *, now: datetime) -> AsyncGenerator[Remote, None]:
        """Yield the account's batches made since then, newest first.

        `now` is by the clock that `since` is told by: where the server tells its own, that is
        allowed for. Raises CallFailed where not all can be told: none may pass for never made.
        """
        listed = 0
        try:
            raw = await _answer(
                self._batches.with_raw_response.list(limit=100, timeout=_TIMEOUT_SECONDS)
            )
            page = await _answer(raw.parse())
            since += server_time(raw.headers, now) - now
            while True:
                for found in page.data:
                    listed += 1
                    remote = self._remote(found)
                    if remote is None:
                        raise CallFailed("the server's list of batches cannot be read")
                    if remote.created_at < since:
                        return
                    if listed > _MOST_LISTED:
                        raise CallFailed(f"the server lists more than {_MOST_LISTED:,} batches")
                    yield remote
                if not page.has_next_page():
                    return
                page = await _answer(page.get_next_page())
        except self._sdk.APIError as error:
            raise self._meant(error) from error
        except (ValueError, AttributeError, TypeError, OverflowError, TimeoutError) as error:
            raise CallFailed("the server's list of batches cannot be read") from error

    async def cancel(self, batch_id: str) -> None:
        """Ask a batch to end early; one that has ended, or is not there, needs no asking."""
        try:
            await _answer(self._batches.cancel(batch_id, timeout=_TIMEOUT_SECONDS))
        except (self._sdk.NotFoundError, self._sdk.BadRequestError, self._sdk.ConflictError):
            return
        except self._sdk.APIError as error:
            raise self._meant(error) from error
        except (ValueError, TimeoutError) as error:
            raise CallFailed("the server's reply broke off") from error

    async def results(
        self, batch_id: str, model_id: str, *, requests: int
    ) -> AsyncGenerator[Item, None]:
        """Yield an ended batch's results one by one, in whatever order they come.

        Holds one line at a time, and passes over one that cannot be read. Raises CallFailed where
        the stream breaks, is mostly unreadable, or goes on far beyond what so many requests can
        bring; what could be read has been yielded.
        """
        import httpx2  # noqa: PLC0415 - comes with the SDK, which is imported late

        lines: Any = None
        try:
            lines = await self._batches.results(batch_id, timeout=_TIMEOUT_SECONDS)
            count = spoilt = 0
            async for line in _lines(lines.http_response):
                count += 1
                if count > _LINES_A_REQUEST * requests:
                    raise CallFailed("they are more than were asked for")
                told = _result_in(line)
                if told is None:
                    if not line.endswith(b"\n"):
                        raise CallFailed("the last line is cut off")
                    spoilt += 1  # what follows it was paid all the same
                    continue
                item = self._item(self._result_type.construct(**told), model_id)
                if item is not None:
                    yield item
            if spoilt:
                _log.warning("batch.lines_unreadable", batch=batch_id, lines=spoilt, of=count)
            if 2 * spoilt > count:
                raise CallFailed("most lines cannot be read")
        except self._sdk.APIError as error:
            raise self._meant(error) from error
        except (
            self._sdk.AnthropicError, httpx2.HTTPError, CallError, ValueError, AttributeError,
            RecursionError,
        ) as error:  # fmt: skip
            # What breaks while a body streams in comes as it is, not as the SDK's own error.
            why = error if isinstance(error, CallError) else type(error).__name__
            raise CallFailed(f"the results broke off ({why})") from error
        finally:
            if lines is not None and hasattr(lines, "http_response"):
                await lines.http_response.aclose()

    def _meant(self, error: anthropic.APIError, asked: str = "") -> Exception:
        status = getattr(error, "status_code", 0)
        if status in {404, 405, 501}:
            return NoBatches("the LLM server has no message batches")
        meaning = self._provider.meaning(error, "", asked)
        # Nothing of one input is told of here: an answer in no known shape is trouble in passing.
        return meaning if not isinstance(meaning, CallError) or isinstance(
            meaning, CallFailed | BadCall
        ) else CallFailed(str(meaning))  # fmt: skip

    def _remote(self, found: object) -> Remote | None:
        if not isinstance(found, self._sdk.types.messages.MessageBatch):
            return None
        counts = found.request_counts
        life = (found.expires_at - found.created_at).total_seconds()
        return Remote(
            id=found.id,
            ended=found.processing_status == "ended",
            requests=counts.processing
            + counts.succeeded
            + counts.errored
            + counts.canceled
            + counts.expired,
            created_at=found.created_at,
            life_seconds=life if life > 0 else _DAY_SECONDS,
        )

    def _item(self, line: Any, model_id: str) -> Item | None:
        custom_id = getattr(line, "custom_id", None)
        result = getattr(line, "result", None)
        kind = getattr(result, "type", None)
        if not isinstance(custom_id, str) or not _OF_OURS.fullmatch(custom_id):
            return None
        if kind not in get_args(ItemState):
            return None
        if kind == "succeeded":
            message = getattr(result, "message", None)
            if not isinstance(message, self._sdk.types.Message):
                reply = Reply("", "unusable: no message", None, model_id)
            else:
                reply = self._provider.reply_of(
                    message, self._provider.models.named(model_id), batch=True
                )
            return Item(custom_id, "succeeded", reply)
        told = getattr(getattr(getattr(result, "error", None), "error", None), "type", None)
        return Item(
            custom_id, cast("ItemState", kind), error=None if told is None else holdable(told)
        )


async def _answer(call: Awaitable[Any]) -> Any:
    """Wait for an answer; the SDK's own time-outs are for each read, and one may trickle."""
    async with asyncio.timeout(_TIMEOUT_SECONDS):
        return await call


async def _lines(response: Any) -> AsyncGenerator[bytes, None]:
    """Yield a body's lines with their ends: the SDK's own reading ends at one that is no JSON."""
    held = bytearray()
    async for piece in response.aiter_bytes():
        *ends, rest = piece.split(b"\n")
        for end in ends:
            if line := (bytes(held) + end).strip():
                yield line + b"\n"
            held.clear()
        held += rest
    if held.strip():
        yield bytes(held)


def _result_in(line: bytes) -> dict[str, Any] | None:
    """Return what a line of results holds, or None where that is nothing that can be read."""
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, dict):
        return None
    return {"custom_id": found.get("custom_id"), "result": found.get("result")}


def batch_api_of(provider: Provider) -> BatchApi | None:
    """Return the batches of a provider, or None when it has none (Bedrock, Vertex, offline)."""
    if isinstance(provider, MessagesProvider) and provider.batches is not None:
        return BatchApi(provider)
    return None
