"""Providers of model calls behind one small interface: a Request in, a Reply or an error out.

Owns what a vendor's client raises and means. Retries are not here: the SDK's are off, and the
caller (`caller.py`) owns them, so that they are visible and never outlive a lease.
"""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any, Protocol

from daemon.errors import BadCall, CallFailed, Systemic, UsageError, UselessReply
from daemon.llm.offline import OfflineProvider
from daemon.llm.pricing import model_named
from daemon.llm.request import Reply, Request, Usage

if TYPE_CHECKING:
    import anthropic

    from daemon.settings import Settings

_SYSTEMIC_PAUSE_SECONDS = 60.0


class Provider(Protocol):
    """Something that answers model calls."""

    name: str

    async def call(self, request: Request) -> Reply:
        """Answer one request.

        Raises CallFailed, BadCall, UselessReply (answered in an unusable shape), or Systemic.
        """
        ...

    async def aclose(self) -> None:
        """Let go of connections."""
        ...


class AnthropicProvider:
    """The Messages API, or any server that speaks it (ANTHROPIC_BASE_URL)."""

    name = "anthropic"

    def __init__(self, *, api_key: str, base_url: str | None) -> None:
        import anthropic  # noqa: PLC0415 - 50 MB and a second: only where calls are made

        self.sdk = anthropic
        self.client = anthropic.AsyncAnthropic(api_key=api_key, base_url=base_url, max_retries=0)

    async def call(self, request: Request) -> Reply:
        """Make one call; see Provider.call."""
        started = time.monotonic()
        try:
            message: object = await self.client.messages.create(
                **parameters(request), timeout=request.timeout_seconds
            )
        except self.sdk.APIError as error:
            raise self.meaning(error, model_named(request.model).id) from error
        except json.JSONDecodeError as error:
            raise CallFailed("the server's reply broke off") from error
        if not isinstance(message, self.sdk.types.Message):
            # An HTML page with status 200 comes back as a plain string (FACTS section 2).
            raise UselessReply("the server answered with something that is no message")
        return reply_of(
            message,
            model_named(request.model).id,
            latency_ms=round((time.monotonic() - started) * 1000),
        )

    async def aclose(self) -> None:
        """Close the client's connections."""
        await self.client.close()

    def meaning(self, error: anthropic.APIError, model_id: str) -> Exception:
        """Say what an error of the SDK asks of the caller."""
        if isinstance(error, self.sdk.APIResponseValidationError):
            return UselessReply("the server's reply has a shape the API does not have")
        if not isinstance(error, self.sdk.APIStatusError):
            return CallFailed(f"the LLM server could not be reached ({type(error).__name__})")
        status, said = error.status_code, _said(error)
        where = f"LLM server answered {status}: {said}"
        if status == 401 or (status == 403 and "permission" not in said):
            return Systemic(
                f"the {where}; check ANTHROPIC_API_KEY", seconds=_SYSTEMIC_PAUSE_SECONDS
            )
        if status in {402, 403} or (status == 400 and _speaks_of_money(error, said)):
            return Systemic(
                f"the {where}; check the account's billing, limits and permissions",
                seconds=_SYSTEMIC_PAUSE_SECONDS,
            )
        if status == 404:
            return Systemic(
                f"the {where}; check the model name {model_id!r} (EXTRACTION_MODEL, MEMORY_MODEL, "
                "SECTIONS_MODEL) and ANTHROPIC_BASE_URL",
                seconds=_SYSTEMIC_PAUSE_SECONDS,
            )
        if status in {408, 409, 425, 429} or status >= 500:
            return CallFailed(where, retry_after_seconds=_retry_after(error))
        return BadCall(where)


def parameters(request: Request) -> dict[str, Any]:
    """Return the body of a call: the same whether it is sent alone or in a batch."""
    model = model_named(request.model)
    body: dict[str, Any] = {
        "model": model.id,
        "max_tokens": min(request.max_tokens, model.max_output_tokens),
        "system": request.system,
        "messages": [{"role": "user", "content": request.text}],
    }
    if model.structured_output:
        body["output_config"] = {"format": {"type": "json_schema", "schema": request.schema}}
        if model.effort:
            body["output_config"]["effort"] = "low"
    return body


def reply_of(message: Any, model_id: str, *, latency_ms: int = 0) -> Reply:
    """Return what a message of the SDK says, whether it came alone or in a batch."""
    usage = message.usage
    return Reply(
        # Text is not always the first block: thinking may come before it.
        text="".join(b.text for b in message.content or [] if b.type == "text"),
        stop_reason=message.stop_reason or "unknown",
        usage=None
        if usage is None
        else Usage(
            input_tokens=usage.input_tokens or 0,
            output_tokens=usage.output_tokens or 0,
            cache_read_tokens=usage.cache_read_input_tokens or 0,
            cache_write_tokens=usage.cache_creation_input_tokens or 0,
        ),
        model=model_id,
        request_id=getattr(message, "_request_id", None) or "",
        latency_ms=latency_ms,
    )


def _said(error: anthropic.APIStatusError) -> str:
    """Return the server's own short words, never the request's."""
    body = error.body
    inner = body.get("error") if isinstance(body, dict) else None
    if isinstance(inner, dict):
        return f"{inner.get('type', 'error')}: {inner.get('message', '')}"[:200]
    return type(error).__name__


def _speaks_of_money(error: anthropic.APIStatusError, said: str) -> bool:
    """Whether a 400 is about a spend limit, which the API reports so (FACTS section 2)."""
    body = error.body
    inner = body.get("error") if isinstance(body, dict) else None
    details = inner if isinstance(inner, dict) else {}
    code = str(details.get("error_code") or details.get("code") or "")
    text = f"{code} {said}".lower()
    return any(word in text for word in ("spend", "billing", "credit balance", "usage limit"))


def _retry_after(error: anthropic.APIStatusError) -> float | None:
    try:
        return max(0.0, float(error.response.headers.get("retry-after", "")))
    except ValueError:
        return None


def provider_from(settings: Settings) -> Provider:
    """Build the provider that the settings name.

    Raises UsageError when it cannot be used as it is: which variable is missing and what to do.
    """
    if settings.llm_provider == "offline":
        return OfflineProvider()
    if settings.llm_provider == "anthropic":
        if settings.anthropic_api_key is None:
            raise UsageError(
                "ANTHROPIC_API_KEY: not set; set it, or choose LLM_PROVIDER=offline for facts by "
                "rule without a model"
            )
        return AnthropicProvider(
            api_key=settings.anthropic_api_key.get_secret_value(),
            base_url=settings.anthropic_base_url,
        )
    raise UsageError(
        f"LLM_PROVIDER: {settings.llm_provider} is not part of this release; use anthropic (any "
        "Messages-compatible server by ANTHROPIC_BASE_URL) or offline"
    )
