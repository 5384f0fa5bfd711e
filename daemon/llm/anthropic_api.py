"""The vendor's own platform, and any server that speaks its API (ANTHROPIC_BASE_URL)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from daemon.errors import UsageError
from daemon.llm.messages_api import UNTRACED, Place

if TYPE_CHECKING:
    from daemon.llm.pricing import Model
    from daemon.settings import Settings


class AnthropicPlatform:
    """Calls with an API key."""

    name = "anthropic"
    key_hint = "ANTHROPIC_API_KEY"
    place_hint = "ANTHROPIC_BASE_URL"

    def __init__(self, settings: Settings) -> None:
        import anthropic  # noqa: PLC0415 - 50 MB and a second: only where calls are made

        from daemon.llm.reply_size import bounded_client  # noqa: PLC0415 - the same

        if settings.anthropic_api_key is None:
            raise UsageError(
                "ANTHROPIC_API_KEY: not set; set it, or choose LLM_PROVIDER=offline for facts by "
                "rule without a model"
            )
        self._client = anthropic.AsyncAnthropic(
            api_key=settings.anthropic_api_key.get_secret_value(),
            base_url=settings.anthropic_base_url,
            max_retries=0,
            open_telemetry=UNTRACED,
            http_client=bounded_client(),
        )

    @property
    def batches(self) -> Any:
        """The SDK's Message Batches resource."""
        return self._client.messages.batches

    def place(self, name: str, model: Model) -> Place:  # noqa: ARG002
        """Every model is called by the vendor's own id."""
        return Place(self._client, model.id)

    def meaning(self, error: Exception) -> None:  # noqa: ARG002
        """Nothing but the SDK raises here."""
        return

    async def aclose(self) -> None:
        """Close the client's connections."""
        await self._client.close()
