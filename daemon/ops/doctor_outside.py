"""Checks of what lies outside the database: Storage, the model's server, the words of mails.

One harmless read each: of an object that does not exist, by the very code that downloads exports,
and of the description of each model. Nothing is paid for. What cannot be found out is unknown.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from daemon.errors import BadExport, FullpassError, Systemic, UsageError
from daemon.export import source
from daemon.llm.pricing import Models
from daemon.llm.providers import provider_from
from daemon.logs import masked
from daemon.ops.finding import Finding, mend, note, ok, unknown
from daemon.ops.telling import templates_of

if TYPE_CHECKING:
    from daemon.llm.pricing import Model
    from daemon.settings import Settings

_PROBE = "fullpass-doctor/there-is-no-such-export.json"
_TIMEOUT_SECONDS = 10.0


async def check_storage(settings: Settings) -> Finding:
    """Ask Storage for an object that does not exist: that it says so shows that all else works."""
    if settings.supabase_url is None and settings.supabase_service_key is None:
        if settings.allow_local_files:
            return ok("storage", "not set; ALLOW_LOCAL_FILES lets file:// paths be read")
        return mend(
            "storage", "SUPABASE_URL and SUPABASE_SERVICE_KEY are not set",
            "set both, or ALLOW_LOCAL_FILES=true for exports on this machine",
        )  # fmt: skip
    key = settings.supabase_service_key
    try:
        with tempfile.TemporaryDirectory(prefix="fullpass-doctor-") as folder:
            await source.fetch(
                _PROBE,
                into=Path(folder),
                supabase_url=settings.supabase_url,
                service_key=key.get_secret_value() if key else None,
                allow_local_files=False,
                max_bytes=1024,
                stall_seconds=_TIMEOUT_SECONDS,
                total_seconds=_TIMEOUT_SECONDS,
            )
    except BadExport:
        return ok("storage", "it answers, and accepts the key")
    except Systemic as error:
        told, _, remedy = masked(str(error)).partition("; ")
        return mend("storage", told, remedy or "correct SUPABASE_URL and SUPABASE_SERVICE_KEY")
    except FullpassError as error:
        told = masked(str(error)).removeprefix(f"{_PROBE}: ")
        return mend("storage", told, "check SUPABASE_URL, and that Storage is up")
    return ok("storage", "it answers, and accepts the key")


async def check_model(settings: Settings) -> list[Finding]:
    """Ask for the description of each model that the settings name."""
    if settings.llm_provider == "offline":
        return [ok("model", "offline: facts by rule, no model is used")]
    key = settings.anthropic_api_key
    if settings.llm_provider == "anthropic" and key is None:
        return [mend("model", "ANTHROPIC_API_KEY is not set",
                     "set it, or LLM_PROVIDER=offline for facts without a model")]  # fmt: skip
    try:
        await provider_from(settings).aclose()
    except UsageError as error:
        return [mend("model", "with these settings no worker starts", masked(str(error)))]
    if settings.llm_provider != "anthropic" or key is None:
        return [unknown("model", f"{settings.llm_provider} is not asked before the first call")]
    import anthropic  # noqa: PLC0415 - 50 MB and a second: only where a server is asked

    names = dict.fromkeys(
        (settings.extraction_model, settings.memory_model, settings.sections_model)
    )
    async with anthropic.AsyncAnthropic(
        api_key=key.get_secret_value(),
        base_url=settings.anthropic_base_url,
        max_retries=0,
        timeout=_TIMEOUT_SECONDS,
    ) as client:
        models = Models(settings.model_capabilities)
        return [await _one_model(anthropic, client, models.named(name)) for name in names]


def check_mail(settings: Settings) -> list[Finding]:
    """Read the words of the mails, where mail is set up; nobody is written to."""
    if settings.smtp_url is None:
        return []
    try:
        templates_of(settings)
    except UsageError as error:
        return [mend("mail", "with these settings no worker starts", masked(str(error)))]
    return [ok("mail", "its words can be read; the mail server is not asked")]


async def _one_model(sdk: Any, client: Any, model: Model) -> Finding:
    check = f"model {model.id}"
    try:
        described = await client.models.retrieve(model.id)
    except sdk.APIStatusError as error:
        return _refused(check, model.id, error)
    except sdk.APIConnectionError:
        return mend(check, "the LLM server cannot be reached",
                    "check ANTHROPIC_BASE_URL and the network")  # fmt: skip
    except (sdk.APIError, ValueError):
        return unknown(check, "the server describes its models in a way that is not known")
    if getattr(described, "id", None) is None:
        return unknown(check, "the server describes its models in a way that is not known")
    told = "it exists" + (", structured output" if model.structured_output else "")
    lifecycle = getattr(described, "lifecycle", None)
    if lifecycle in {"retired", "deprecated"}:
        remedy = "set EXTRACTION_MODEL, MEMORY_MODEL and SECTIONS_MODEL to a current model"
        return (mend if lifecycle == "retired" else note)(check, f"it is {lifecycle}", remedy)
    if model.input_usd is None:
        return note(check, f"{told}; its price is not known", "costs are shown as unknown")
    return ok(check, told)


def _refused(check: str, model_id: str, error: Any) -> Finding:
    status: int = error.status_code
    body = error.body if isinstance(error.body, dict) else {}
    inner = body.get("error")
    said = str(inner.get("message", "")) if isinstance(inner, dict) else ""
    if status in {401, 403}:
        return mend(check, f"the LLM server refuses the key ({status})", "check ANTHROPIC_API_KEY")
    # Only a server that speaks of this very model knows that it lacks it; a bare 404 is one that
    # describes no models.
    if status == 404 and isinstance(inner, dict) and model_id in said:
        return mend(
            check, "the LLM server does not have it",
            "correct EXTRACTION_MODEL, MEMORY_MODEL or SECTIONS_MODEL",
        )  # fmt: skip
    return unknown(check, f"the server does not describe its models ({status})")
