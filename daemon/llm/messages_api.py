"""Calls of the Messages API through the vendor's SDK, on whichever platform it runs.

Owns what the SDK raises and means. A platform (`anthropic_api.py`, `bedrock.py`, `vertex.py`) adds
only where a model is found there and what its credentials' troubles mean. Retries are not here: the
SDK's are off, and the caller (`caller.py`) owns them, so that they are visible and never outlive a
lease.
"""

from __future__ import annotations

import importlib.util
import json
import time
from dataclasses import dataclass
from decimal import Decimal
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from daemon.errors import BadCall, CallError, CallFailed, Systemic, UselessReply
from daemon.llm.budget import most_it_costs
from daemon.llm.rate_limits import Throttled, rate_limits_from, retry_after_seconds
from daemon.llm.wire import parameters, read_message, refused_feature
from daemon.logs import get_logger

if TYPE_CHECKING:
    from collections.abc import Mapping

    import anthropic

    from daemon.llm.pricing import Model, Models
    from daemon.llm.rate_limits import RateLimits
    from daemon.llm.request import Reply, Request
    from daemon.llm.wire import Feature

_log = get_logger()
_SYSTEMIC_PAUSE_SECONDS = 60.0
_MODEL_SETTINGS = "EXTRACTION_MODEL, MEMORY_MODEL, SECTIONS_MODEL"
_LONGEST_SAID = 200
_MOST_SAID = 5_000
"""Of an error's words, as far as they are looked at."""
_BLOCK_CHARACTERS = 12
"""So many characters of a server's words that stand in a request are the request's own words."""
_STATUSES = {
    "invalid_request_error": 400,
    "authentication_error": 401,
    "billing_error": 402,
    "permission_error": 403,
    "not_found_error": 404,
    "request_too_large": 413,
    "rate_limit_error": 429,
    "overloaded_error": 529,
}
"""The status that an error's kind stands for (vendor's documentation, 2026-11-22)."""
UNTRACED: Any = {"traces": False, "propagation": False}
"""The SDK's own tracing stays off, whatever the environment says: it can put whole prompts and
replies into spans (ANTHROPIC_OPEN_TELEMETRY_TRACES_CONTENT_MODE; promise 11)."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a platform answers for a model."""

    client: Any
    """An async client of the SDK; its type differs by platform."""
    model_id: str
    """The model's id there."""
    extra_body: Mapping[str, str] | None = None
    price_factor: Decimal = Decimal(1)
    """What the platform asks there on top of the vendor's list price."""


class Platform(Protocol):
    """One way to reach models."""

    name: str
    key_hint: str
    """What to check when it does not accept us."""
    place_hint: str
    """What to check, besides the model's name, when it does not know the model."""

    @property
    def batches(self) -> Any | None:
        """The SDK's Message Batches resource, or None where there is none."""
        ...

    def place(self, name: str, model: Model) -> Place:
        """Return where to call a model that was named so."""
        ...

    def meaning(self, error: Exception) -> Exception | None:
        """Say what an error of the platform's own credentials asks of the caller, if it is one."""
        ...

    async def aclose(self) -> None:
        """Let go of connections."""
        ...


def is_installed(module: str) -> bool:
    """Whether an extra's library is there, without loading it."""
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # not even its parent package
        return False


class MessagesProvider:
    """Answers requests by the Messages API of one platform."""

    def __init__(self, platform: Platform, models: Models) -> None:
        import anthropic  # noqa: PLC0415 - 50 MB and a second: only where calls are made

        self.name = platform.name
        self.sdk = anthropic
        self.platform = platform
        self.models = models
        self._refused: dict[str, frozenset[Feature]] = {}

    async def call(self, request: Request) -> Reply:
        """Make one call; see Provider.call."""
        model = self.models.named(request.model)
        while True:
            arguments = self.parameters(request)
            try:
                return await self._create(request, model, arguments)
            except self.sdk.APIStatusError as error:
                feature = None
                if error.status_code in {400, 422}:
                    feature = refused_feature(_all_said(error, request.text), arguments)
                if feature is None:
                    raise self.meaning(error, model.id, request.text) from error
                # Nothing was answered, so nothing was paid: ask the next way, from now on.
                self._refused[model.id] = self._refused.get(model.id, frozenset()) | {feature}
                _log.warning("llm.feature_refused", model=model.id, feature=feature,
                             said=_said(error, request.text))  # fmt: skip

    @property
    def batches(self) -> Any | None:
        """The SDK's Message Batches resource of this platform, or None."""
        return self.platform.batches

    def parameters(self, request: Request) -> dict[str, Any]:
        """Return the body of a call, alone or in a batch, as this server is known to take it."""
        model = self.models.named(request.model)
        refused = self._refused.get(model.id, frozenset())
        place = self.platform.place(request.model, model)
        return {"model": place.model_id, **parameters(request, model, refused)}

    def reply_of(
        self,
        message: Any,
        model: Model,
        *,
        limits: RateLimits | None = None,
        latency_ms: int = 0,
        factor: Decimal = Decimal(1),
        batch: bool = False,
    ) -> Reply:
        """Return what a Message of the SDK says and cost, alone or in a batch."""
        return read_message(
            message,
            model=model.id,
            price=partial(model.bill, batch=batch, factor=factor),
            limits=limits,
            latency_ms=latency_ms,
            batch=batch,
        )

    async def _create(self, request: Request, model: Model, arguments: Mapping[str, Any]) -> Reply:
        place = self.platform.place(request.model, model)
        started = time.monotonic()
        try:
            raw = await place.client.messages.with_raw_response.create(
                timeout=request.timeout_seconds,
                extra_body=place.extra_body,
                **arguments,
            )
            message = await _parsed(raw)
        except self.sdk.APIStatusError:
            raise
        except self.sdk.APIError as error:
            raise self.meaning(error, model.id) from error
        except CallError:
            raise
        except Exception as error:
            # The SDK passes on what a cloud's own credential libraries raise.
            meant = self.platform.meaning(error)
            if meant is None:
                raise
            raise meant from error
        if not isinstance(message, self.sdk.types.Message):
            # An HTML page with status 200 comes back as a plain string (FACTS section 2).
            raise UselessReply("the server answered with a page that is no message")
        if (refusal := self._refusal_in(message, raw.http_response)) is not None:
            raise refusal
        return self.reply_of(
            message,
            model,
            limits=rate_limits_from(raw.headers),
            latency_ms=round((time.monotonic() - started) * 1000),
            factor=place.price_factor,
        )

    def _refusal_in(self, message: Any, response: Any) -> anthropic.APIStatusError | None:
        """Return the error that some gateways hand on under status 200; nothing was paid for it."""
        said = getattr(message, "error", None)
        if not said or getattr(message, "content", None) or getattr(message, "usage", None):
            return None
        inner = said if isinstance(said, dict) else {"message": str(said)}
        error = self.sdk.APIStatusError("", response=response, body={"error": inner})
        error.status_code = _STATUSES.get(str(inner.get("type")), 500)
        return error

    def most_it_costs(self, request: Request) -> Decimal:
        """Return the most that a call can cost; see Provider.most_it_costs."""
        return most_it_costs(request, self.models.named(request.model))

    async def aclose(self) -> None:
        """Close the platform's connections."""
        await self.platform.aclose()

    def meaning(self, error: anthropic.APIError, model_id: str, asked: str = "") -> Exception:
        """Say what an error of the SDK asks of the caller, in none of the words that were asked."""
        if isinstance(error.__cause__, CallError):  # met while the body was read (reply_size.py)
            return error.__cause__
        if isinstance(error, self.sdk.APIResponseValidationError):
            return UselessReply("the server's reply has a shape the API does not have")
        if not isinstance(error, self.sdk.APIStatusError):
            return CallFailed(f"the LLM server could not be reached ({type(error).__name__})")
        status, said = error.status_code, _said(error, asked)
        where = f"LLM server answered {status}: {said}"

        def systemic(what: str) -> Systemic:
            trouble = Systemic(f"the {where}; check {what}", seconds=_SYSTEMIC_PAUSE_SECONDS)
            trouble.perhaps_of_input = status == 403  # a firewall may bar one text and no other
            return trouble

        if status == 401 or (status == 403 and "permission" not in said.lower()):
            return systemic(self.platform.key_hint)
        if status in {402, 403} or (
            status in {400, 429} and _speaks_of_money(error, status, asked)
        ):
            return systemic("the account's billing, limits and permissions")
        # What was moved, or takes no POST, is another place than a server of messages.
        elsewhere = status in {404, 405} or status < 400
        if elsewhere or (status == 400 and _speaks_of_no_model(error)):
            return systemic(
                f"the model name {model_id!r} ({_MODEL_SETTINGS}) and {self.platform.place_hint}"
            )
        if status in {408, 409, 425, 429} or status >= 500:
            seconds = retry_after_seconds(error.response.headers)
            if status in {429, 529}:
                limits = rate_limits_from(error.response.headers)
                return Throttled(where, retry_after_seconds=seconds, limits=limits)
            return CallFailed(where, retry_after_seconds=seconds)
        return BadCall(where)


def _inner(error: anthropic.APIStatusError) -> Mapping[str, Any]:
    """Return the part of an error's body that says what is wrong, in each platform's shape."""
    body = error.body
    if not isinstance(body, dict):
        return {}
    inner = body.get("error")
    return inner if isinstance(inner, dict) else body


def _said(error: anthropic.APIStatusError, asked: str) -> str:
    """Return the server's own short words, never the request's (promise 11)."""
    inner = _inner(error)
    message = inner.get("message", inner.get("Message"))
    if not message:
        return type(error).__name__
    kind = inner.get("type") or inner.get("status")
    said = f"{kind}: {message}" if kind else str(message)
    return _own_words(said[: 2 * _LONGEST_SAID], asked)[:_LONGEST_SAID]


def _all_said(error: anthropic.APIStatusError, asked: str) -> str:
    """Return the whole of an error's body but what it repeats: that decides nothing."""
    if not error.body:
        return ""
    said, echoed = (
        json.dumps(text, default=str, ensure_ascii=False) for text in (error.body, asked)
    )
    return _own_words(said, echoed)


def _own_words(said: str, asked: str) -> str:
    """Return a server's words with a mark in the place of those that it was asked.

    Looked for block by block: what was asked may be megabytes, and has any run of twice a block.
    """
    said = said[:_MOST_SAID]
    kept: list[str] = []
    at = done = 0
    while (end := at + _BLOCK_CHARACTERS) <= len(said):
        found = asked.find(said[at:end])
        if found < 0:
            at = end
            continue
        before, same = found, found + _BLOCK_CHARACTERS
        while at > done and before > 0 and said[at - 1] == asked[before - 1]:
            at, before = at - 1, before - 1
        while end < len(said) and same < len(asked) and said[end] == asked[same]:
            end, same = end + 1, same + 1
        kept += [said[done:at], "…"]
        at = done = end
    return "".join([*kept, said[done:]])


def _speaks_of_money(error: anthropic.APIStatusError, status: int, asked: str) -> bool:
    """Whether a 400 or 429 is about a spend limit: waiting a little does not lift it."""
    inner = _inner(error)
    details = inner.get("details")
    code = details.get("error_code") if isinstance(details, dict) else inner.get("error_code")
    text = f"{code or ''} {_own_words(str(inner.get('message', '')), asked)}".lower()
    words = ["spend", "billing", "credit balance"]
    if status == 400:  # a plain rate limit, a 429, may be called a usage limit too
        words.append("usage limit")
    return any(word in text for word in words)


def _speaks_of_no_model(error: anthropic.APIStatusError) -> bool:
    """Whether a 400 says that there is no such model, which is how Bedrock says it."""
    text = str(_inner(error).get("message", "")).lower()
    return "model identifier is invalid" in text or "on-demand throughput" in text


async def _parsed(raw: Any) -> object:
    try:
        message: object = await raw.parse()
    except (ValueError, RecursionError) as error:
        # Cut off, perhaps within a letter; damaged on its way; nested or numbered beyond reason.
        raise CallFailed("the server's reply broke off", perhaps_paid=True) from error
    return message
