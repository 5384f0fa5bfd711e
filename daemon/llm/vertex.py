"""Google Cloud's Vertex AI; needs the extra `vertex`.

Credentials are Google's application default ones: a key file named by
GOOGLE_APPLICATION_CREDENTIALS, or what the machine or `gcloud` provides. Checked against the SDK's
source (anthropic 2.12) and the vendor's pages, 2026-11-22.
"""

from __future__ import annotations

import importlib
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from daemon.errors import CallFailed, Systemic, UsageError
from daemon.llm.messages_api import UNTRACED, Place, is_installed

if TYPE_CHECKING:
    from daemon.llm.pricing import Model
    from daemon.settings import Settings

_REGIONAL_FACTOR = Decimal("1.1")
"""What a regional or multi-regional endpoint costs, times the global one's list price."""


class VertexPlatform:
    """Calls with Google's application default credentials."""

    name = "vertex"
    batches = None
    key_hint = "GOOGLE_APPLICATION_CREDENTIALS, and that the account may use Vertex AI"
    place_hint = "that CLOUD_ML_REGION has it and ANTHROPIC_VERTEX_PROJECT_ID may use it"

    def __init__(self, settings: Settings) -> None:
        if settings.anthropic_vertex_project_id is None:
            raise UsageError(
                "ANTHROPIC_VERTEX_PROJECT_ID: not set; LLM_PROVIDER=vertex needs the project's id"
            )
        if not is_installed("google.auth"):
            raise UsageError("LLM_PROVIDER: vertex needs its extra: pip install 'fullpass[vertex]'")
        import anthropic  # noqa: PLC0415 - 50 MB and a second: only where calls are made

        from daemon.llm.reply_size import bounded_client  # noqa: PLC0415 - the same

        self._region = settings.cloud_ml_region
        self._refusals = importlib.import_module("google.auth.exceptions")
        self._client: Any = anthropic.AsyncAnthropicVertex(
            region=self._region,
            project_id=settings.anthropic_vertex_project_id,
            base_url=settings.anthropic_vertex_base_url,
            max_retries=0,
            open_telemetry=UNTRACED,
            http_client=bounded_client(),
        )

    def place(self, name: str, model: Model) -> Place:
        """Return the model's id there, with its version of the API where it needs an older one."""
        version = model.vertex_version
        return Place(
            self._client,
            name if "@" in name else model.vertex or model.id,
            None if version is None else {"anthropic_version": version},
            Decimal(1) if self._region == "global" else _REGIONAL_FACTOR,
        )

    def meaning(self, error: Exception) -> Exception | None:
        """Tell credentials that are missing or refused from a passing trouble of fetching them."""
        if not isinstance(error, self._refusals.GoogleAuthError):
            return None
        if isinstance(error, self._refusals.TransportError) or error.retryable:
            return CallFailed(f"Google credentials could not be fetched ({type(error).__name__})")
        return Systemic(
            f"Google credentials were not accepted or not found ({type(error).__name__}); check "
            f"{self.key_hint}",
            seconds=60.0,
        )

    async def aclose(self) -> None:
        """Close the client's connections."""
        await self._client.close()
