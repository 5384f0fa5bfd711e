"""Amazon Bedrock, by both of the SDK's clients; needs the extra `bedrock`.

Models whose id there ends in a version (`…-v1:0`) and inference profiles are called by InvokeModel,
which takes an older version of the API, pinned here; newer ones by Bedrock's own Messages endpoint.
Checked against the SDK's source (anthropic 2.12) and the vendor's pages, 2026-11-22.
"""

from __future__ import annotations

import importlib
import re
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from daemon.errors import CallFailed, Systemic, UsageError
from daemon.llm.messages_api import UNTRACED, Place, is_installed

if TYPE_CHECKING:
    from pydantic import SecretStr

    from daemon.llm.pricing import Model
    from daemon.settings import Settings

_INVOKE_VERSION = {"anthropic_version": "bedrock-2023-05-31"}
"""InvokeModel's models answer 400 to the version that the SDK sends by itself."""
_BY_INVOKE = re.compile(r"-v\d+(:\d+)?$|^arn:|^[a-z][a-z-]*\.anthropic\.")
_OF_BEDROCK = re.compile(r"^([a-z][a-z-]*\.)?anthropic\.")
_GEOGRAPHIES = {"us-gov": "us-gov", "us": "us", "ca": "us", "eu": "eu"}
"""Inference profiles that keep text within a geography, by the region's first part."""
_GEOGRAPHIC_FACTOR = Decimal("1.1")
"""What a profile bound to a geography costs, times the global one's list price."""


class BedrockPlatform:
    """Calls with AWS credentials: the settings', or what AWS's own chain finds."""

    name = "bedrock"
    batches = None
    key_hint = "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, and that they may invoke the model"
    place_hint = "that AWS_REGION has it and the account may use it"

    def __init__(self, settings: Settings) -> None:
        if settings.aws_region is None:
            raise UsageError("AWS_REGION: not set; LLM_PROVIDER=bedrock needs it, e.g. eu-west-1")
        if not is_installed("boto3"):
            raise UsageError(
                "LLM_PROVIDER: bedrock needs its extra: pip install 'fullpass[bedrock]'"
            )
        if settings.aws_access_key_id and settings.aws_bearer_token_bedrock:
            raise UsageError(
                "AWS_BEARER_TOKEN_BEDROCK: contradicts AWS_ACCESS_KEY_ID; keep only one"
            )
        self._region = settings.aws_region
        self._settings = settings
        self._clients: dict[str, Any] = {}
        self._refusals = importlib.import_module("botocore.exceptions")

    def place(self, name: str, model: Model) -> Place:
        """Choose the client, the id and the price of a model in this region."""
        model_id = self.model_id(name, model)
        if _BY_INVOKE.search(model_id):
            factor = Decimal(1) if model_id.startswith("global.") else _GEOGRAPHIC_FACTOR
            client = self._client(
                "AsyncAnthropicBedrock", self._settings.anthropic_bedrock_base_url
            )
            return Place(client, model_id, _INVOKE_VERSION, factor)
        client = self._client(
            "AsyncAnthropicBedrockMantle", self._settings.anthropic_bedrock_mantle_base_url
        )
        return Place(client, model_id)

    def model_id(self, name: str, model: Model) -> str:
        """Return a model's id here: one of Bedrock's as it was given, a known one's by region."""
        if name.startswith("arn:") or _OF_BEDROCK.match(name):
            return name
        given = model.bedrock or f"anthropic.{model.id}"
        if not _BY_INVOKE.search(given):
            return given
        first = "us-gov" if self._region.startswith("us-gov-") else self._region.partition("-")[0]
        return f"{_GEOGRAPHIES.get(first, 'global')}.{given}"

    def _client(self, kind: str, base_url: str | None) -> Any:
        if kind not in self._clients:
            import anthropic  # noqa: PLC0415 - 50 MB and a second: only where calls are made

            from daemon.llm.reply_size import bounded_client  # noqa: PLC0415 - the same

            settings = self._settings
            keys = {"api_key": _plain(settings.aws_bearer_token_bedrock)}
            if settings.aws_access_key_id:
                keys = {
                    "aws_access_key": settings.aws_access_key_id,
                    "aws_secret_key": _plain(settings.aws_secret_access_key),
                    "aws_session_token": _plain(settings.aws_session_token),
                }
            self._clients[kind] = getattr(anthropic, kind)(
                aws_region=self._region,
                base_url=base_url,
                max_retries=0,
                open_telemetry=UNTRACED,
                http_client=bounded_client(),
                **keys,
            )
        return self._clients[kind]

    def meaning(self, error: Exception) -> Exception | None:
        """Tell credentials that are missing or stale from a passing trouble of fetching them."""
        passing = (self._refusals.ConnectionError, self._refusals.HTTPClientError)
        if isinstance(error, passing):
            return CallFailed(f"AWS credentials could not be fetched ({type(error).__name__})")
        if isinstance(error, self._refusals.BotoCoreError) or (
            isinstance(error, RuntimeError) and "AWS credentials" in str(error)
        ):
            return Systemic(
                f"AWS credentials were not found ({type(error).__name__}); set {self.key_hint}",
                seconds=60.0,
            )
        return None

    async def aclose(self) -> None:
        """Close the clients' connections."""
        for client in self._clients.values():
            await client.close()


def _plain(secret: SecretStr | None) -> str | None:
    return None if secret is None else secret.get_secret_value()
