"""What a test needs to call a model as the pass does: the real SDK, nobody's lease."""

from __future__ import annotations

from typing import TYPE_CHECKING

from daemon.llm.providers import provider_from
from daemon.settings import load_settings

if TYPE_CHECKING:
    from daemon.llm.providers import Provider


class Nobody:
    """A holder in its rights."""

    def check(self) -> None:
        """Say nothing."""


def provider_at(url: str) -> Provider:
    """Return the provider that speaks to the server at `url`."""
    return provider_from(
        load_settings(
            database_url="", llm_provider="anthropic", anthropic_api_key="test-key",
            anthropic_base_url=url,
        )
    )  # fmt: skip
