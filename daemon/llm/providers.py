"""Providers of model calls behind one small interface: a Request in, a Reply or an error out.

Owns which one the settings name, imported only when chosen. How each calls is its own module's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from daemon.errors import UsageError
from daemon.llm.pricing import Models

if TYPE_CHECKING:
    from decimal import Decimal

    from daemon.llm.request import Reply, Request
    from daemon.settings import Settings


class Provider(Protocol):
    """Something that answers model calls."""

    name: str

    async def call(self, request: Request) -> Reply:
        """Answer one request.

        Raises CallFailed, BadCall, UselessReply (answered in an unusable shape), or Systemic.
        """
        ...

    def most_it_costs(self, request: Request) -> Decimal:
        """Return the most that a call can cost in US dollars; 0 where no price is known."""
        ...

    async def aclose(self) -> None:
        """Let go of connections."""
        ...


def provider_from(settings: Settings) -> Provider:
    """Build the provider that the settings name.

    Raises UsageError when it cannot be used as it is: which variable is missing and what to do.
    """
    models = Models(settings.model_capabilities)
    if settings.llm_provider == "offline":
        from daemon.llm.offline import OfflineProvider  # noqa: PLC0415 - its rules are half a MB

        return OfflineProvider()
    _require_prices(settings, models)
    # Imported here: each costs memory and time, and two need libraries that may not be there.
    from daemon.llm.messages_api import MessagesProvider, Platform  # noqa: PLC0415

    platform: Platform
    match settings.llm_provider:
        case "anthropic":
            from daemon.llm.anthropic_api import AnthropicPlatform  # noqa: PLC0415

            platform = AnthropicPlatform(settings)
        case "bedrock":
            from daemon.llm.bedrock import BedrockPlatform  # noqa: PLC0415

            platform = BedrockPlatform(settings)
        case "vertex":
            from daemon.llm.vertex import VertexPlatform  # noqa: PLC0415

            platform = VertexPlatform(settings)
    return MessagesProvider(platform, models)


def _require_prices(settings: Settings, models: Models) -> None:
    """Refuse a ceiling that could not hold: nobody would count what an unpriced call costs."""
    if settings.max_cost_usd_per_job is None:
        return
    named = (settings.extraction_model, settings.memory_model, settings.sections_model)
    for name in named:
        model = models.named(name)
        if model.input_usd is None or model.output_usd is None:
            raise UsageError(
                f"MAX_COST_USD_PER_JOB: the price of {name} is not known; give it by "
                f'MODEL_CAPABILITIES={{"{name}": {{"input_usd": …, "output_usd": …}}}} (US dollars '
                "a million tokens), or set no ceiling"
            )
