"""Every setting of fullpass, once: its name, default, unit and rule.

Owns reading them from the environment and then from `.env` in the working directory, and checking
them at start. Promises that a bad value is reported as its VARIABLE and the rule it breaks, one
line each, and that no secret shows in an error or a repr (promise 11); how a URL is checked and
hidden is `urls.py`. Leaves to others what a setting needs to be of use: that a database answers,
that a key is accepted.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args
from urllib.parse import urlsplit

import platformdirs
from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from daemon.errors import UsageError
from daemon.urls import MAIL, POSTGRES, WEB, checked_url, hide_password, hide_path, secrets_in

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

LlmProvider = Literal["anthropic", "bedrock", "vertex", "offline"]
ExtractionMode = Literal["realtime", "batch"]
LogFormat = Literal["json", "console"]
LogLevel = Literal["DEBUG", "INFO", "WARNING", "ERROR"]

DEFAULT_MODEL = "claude-haiku-5-5"

_Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
_BeatSeconds = Annotated[float, Field(ge=0.1, allow_inf_nan=False)]
_Positive = Annotated[int, Field(ge=1)]

_BEATS_PER_LEASE = 3
_SIGNING = "whsec_"
_LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})
_TRUE = frozenset({"1", "true", "t", "yes", "y", "on"})


class Settings(BaseSettings):
    """What one process was told, validated and unchangeable. Make it with `load_settings`."""

    model_config = SettingsConfigDict(
        env_file=".env",
        env_file_encoding="utf-8",
        env_ignore_empty=True,
        extra="ignore",
        frozen=True,
        hide_input_in_errors=True,
        validate_default=False,
    )

    # Postgres and Storage
    database_url: str | None = None
    """Any libpq URL, direct or pooled. None: `run` and `demo` start an embedded server."""
    database_listen_url: str | None = None
    """A direct connection for LISTEN; None: `database_url`, unless that is a transaction pooler."""
    supabase_url: str | None = None
    supabase_service_key: SecretStr | None = None
    allow_local_files: bool = False
    """Whether `file://` storage paths may be read; `run` turns it on for its own job only."""
    require_owned_paths: bool = False
    """Whether the first folder inside the bucket must be the job's user id."""
    fullpass_home: Path = Field(
        default_factory=lambda: platformdirs.user_data_path("fullpass", appauthor=False)
    )
    """Where embedded Postgres keeps its data, so that an interrupted `run` resumes."""

    # The LLM
    llm_provider: LlmProvider = "anthropic"
    anthropic_api_key: SecretStr | None = None
    anthropic_base_url: str | None = None
    use_bedrock: bool = False
    aws_region: str | None = None
    aws_access_key_id: str | None = Field(default=None, repr=False)
    aws_secret_access_key: SecretStr | None = None
    """Without these two AWS's own chain of credentials is asked."""
    aws_session_token: SecretStr | None = None
    """Beside the two above, where they are temporary ones."""
    aws_bearer_token_bedrock: SecretStr | None = None
    """A Bedrock API key, instead of the two."""
    anthropic_bedrock_base_url: str | None = None
    anthropic_bedrock_mantle_base_url: str | None = None
    anthropic_vertex_project_id: str | None = None
    cloud_ml_region: str = "global"
    anthropic_vertex_base_url: str | None = None
    model_capabilities: Annotated[dict[str, dict[str, Any]], NoDecode] = Field(default_factory=dict)
    """What to know of models beside or instead of the built-in table (`llm/pricing.py`)."""
    extraction_model: str = DEFAULT_MODEL
    """Reads the chunks: nearly all of the cost."""
    memory_model: str = DEFAULT_MODEL
    """Judges alike facts, joins them and writes MEMORY."""
    sections_model: str = DEFAULT_MODEL
    extraction_mode: ExtractionMode = "realtime"
    batch_poll_seconds: _BeatSeconds = 30.0
    """First pause between two looks at a batch; grows with the batch's age to ten times that."""
    fact_extraction_concurrency: int = Field(default=3, ge=1, le=50)
    """Ceiling of parallel LLM calls; memory and rate limits may hold it lower."""
    llm_timeout_seconds: _Seconds = 60.0
    """Of one call; also what a job's patience without progress is counted in."""
    sections_timeout_seconds: _Seconds = 120.0
    """The same for the sections, whose replies are long."""
    max_cost_usd_per_job: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    """A job that might pass it stops before the call, with what is done kept."""

    # The pass
    chunk_tiers: Annotated[tuple[str, ...], NoDecode] = ("medium",)
    """Tiers to store, as names; comma-separated in the environment."""
    micro_chunk_characters: int = Field(default=200, ge=20)
    medium_chunk_tokens: int = Field(default=2000, ge=50)
    chunk_overlap_tokens: int = Field(default=200, ge=0)
    macro_chunk_characters: int = Field(default=5000, ge=200)
    extraction_window_tokens: int = Field(default=8000, ge=100)
    """Text that one extraction call reads."""
    min_extraction_coverage: float = Field(default=0.95, ge=0, le=1)
    """Share of chunks that must have been read; below it the pass fails: no MEMORY is written."""
    min_conversations: int = Field(default=0, ge=0)
    """Fewer than this: MEMORY from what there is, sections skipped."""
    memory_max_tokens: int = Field(default=5000, ge=100)
    """Budget of the MEMORY document."""

    # The daemon
    max_concurrent_jobs: _Positive = 2
    """Ceiling of jobs at once; memory may hold it lower."""
    memory_limit_mb: int | None = Field(default=None, ge=32)
    """One of the limits; the smallest of this, the cgroup's and the machine's counts."""
    max_jobs_per_user_per_day: int | None = Field(default=5, ge=1)
    """None: no limit (`run`; 0 in the environment)."""
    poll_interval_seconds: _BeatSeconds = 5.0
    """How often the queue is looked at when no notice comes."""
    heartbeat_seconds: _BeatSeconds = 10.0
    lease_seconds: _Seconds = 60.0
    """How long after the last beat its jobs are another worker's; at least three beats."""
    shutdown_grace_seconds: float = Field(default=25.0, ge=0, allow_inf_nan=False)
    """How long a drain waits for calls in flight; less than the platform's own grace."""
    rollout_percent: int = Field(default=100, ge=0, le=100)
    """Share of users, by a stable hash, whose jobs this worker takes."""
    max_wait_hours: float = Field(default=48.0, gt=0, allow_inf_nan=False)
    """A job that only waits (an outage, a spend limit) ends as failed after this."""
    pipeline_retention_days: _Positive = 30
    """Timelines and reply texts older than this are pruned; facts and sums of cost stay."""

    # What people see
    alert_webhook: str | None = None
    notify_webhook: str | None = None
    notify_webhook_secret: SecretStr | None = None
    smtp_url: str | None = None
    email_from: str | None = None
    email_templates: Path | None = None
    """A folder with completed.txt and completed.html instead of the bundled ones."""
    log_format: LogFormat | None = None
    """None: json when the log's stream is no terminal, else console."""
    log_level: LogLevel = "INFO"
    health_port: int | None = Field(default=None, ge=1, le=65535)
    otel_exporter_otlp_endpoint: str | None = None
    """A collector that takes OTLP over HTTP; spans go to its /v1/traces."""
    sentry_dsn: SecretStr | None = None
    dashboard_token: SecretStr | None = None
    """What a visitor of `fullpass dashboard` must show; asked for on any address but loopback."""

    @model_validator(mode="before")
    @classmethod
    def _tidy(cls, given: Mapping[str, Any]) -> dict[str, Any]:
        """Strip texts, drop those left empty, and let USE_BEDROCK choose the provider."""
        tidy = {name: v.strip() if isinstance(v, str) else v for name, v in given.items()}
        tidy = {name: v for name, v in tidy.items() if v != ""}
        if str(tidy.get("use_bedrock", "")).lower() in _TRUE:
            named = tidy.get("llm_provider", "bedrock")
            # A provider that is named besides and is neither the default nor bedrock contradicts
            # USE_BEDROCK; to guess which one is meant could send text to the wrong company.
            if named not in {"anthropic", "bedrock"} and named in get_args(LlmProvider):
                raise ValueError(f"USE_BEDROCK: contradicts LLM_PROVIDER={named}; keep only one")
            tidy["llm_provider"] = "bedrock"
        return tidy

    @field_validator("log_level", mode="before")
    @classmethod
    def _upper(cls, value: object) -> object:
        return value.upper() if isinstance(value, str) else value

    @field_validator("llm_provider", "extraction_mode", "log_format", mode="before")
    @classmethod
    def _lower(cls, value: object) -> object:
        return value.lower() if isinstance(value, str) else value

    @field_validator("chunk_tiers", mode="before")
    @classmethod
    def _tier_names(cls, value: object) -> object:
        if isinstance(value, str):
            value = tuple(name.strip() for name in value.split(",") if name.strip())
        if isinstance(value, (tuple, list)) and (not value or len(set(value)) < len(value)):
            raise ValueError("must be one or more different names, separated by commas")
        return value

    @field_validator("model_capabilities", mode="before")
    @classmethod
    def _by_model(cls, value: object) -> object:
        rule = 'must be JSON that maps models to capabilities: {"my-model": {"input_usd": 0.2}}'
        try:
            given = json.loads(value) if isinstance(value, str) else value
        except ValueError:
            raise ValueError(rule) from None
        if not isinstance(given, dict) or not all(isinstance(v, dict) for v in given.values()):
            raise ValueError(rule)
        return given

    @field_validator("max_jobs_per_user_per_day", mode="before")
    @classmethod
    def _zero_is_no_limit(cls, value: object) -> object:
        return None if value in {0, "0"} else value

    @field_validator("health_port", mode="before")
    @classmethod
    def _off_is_none(cls, value: object) -> object:
        return None if str(value).lower() in {"off", "0"} else value

    @field_validator("fullpass_home")
    @classmethod
    def _absolute(cls, value: Path) -> Path:
        return value.expanduser().absolute()

    @field_validator("database_url", "database_listen_url")
    @classmethod
    def _postgres_url(cls, value: str | None) -> str | None:
        return checked_url(value, POSTGRES, "postgresql://user:password@host:5432/database")

    @field_validator(
        "supabase_url",
        "anthropic_base_url",
        "anthropic_bedrock_base_url",
        "anthropic_bedrock_mantle_base_url",
        "anthropic_vertex_base_url",
        "alert_webhook",
        "notify_webhook",
        "otel_exporter_otlp_endpoint",
    )
    @classmethod
    def _web_url(cls, value: str | None) -> str | None:
        return checked_url(value, WEB, "https://host/path")

    @field_validator("notify_webhook_secret")
    @classmethod
    def _signing_secret(cls, value: SecretStr | None) -> SecretStr | None:
        secret = "" if value is None else value.get_secret_value()
        prefix, key = secret[: len(_SIGNING)], secret[len(_SIGNING) :].rstrip("=")
        known = prefix == _SIGNING and re.fullmatch(r"[A-Za-z0-9+/]{32,}", key)
        if value is not None and (not known or len(key) % 4 == 1):
            raise ValueError(f"must be {_SIGNING} and at least 24 bytes in base64")
        return value

    @field_validator("email_from")
    @classmethod
    def _sender(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"[^<>@\r\n]*<?[^<>@\s]+@[^<>@\s]+>?", value):
            raise ValueError("must look like Name <name@domain>, or an address alone")
        return value

    @field_validator("smtp_url")
    @classmethod
    def _mail_url(cls, value: str | None) -> str | None:
        return checked_url(value, MAIL, "smtp://user:password@host:587")

    @model_validator(mode="after")
    def _agree(self) -> Settings:
        """Check what settings ask of each other; every breach is a line of its own."""
        breaches: list[str] = []
        # The tolerance is for decimals that binary floats cannot hold: 3 * 0.1 > 0.3.
        if self.lease_seconds < _BEATS_PER_LEASE * self.heartbeat_seconds - 1e-9:
            breaches.append(
                f"LEASE_SECONDS: must be at least {_BEATS_PER_LEASE} × HEARTBEAT_SECONDS "
                f"({_BEATS_PER_LEASE} × {self.heartbeat_seconds:g})"
            )
        if (self.aws_access_key_id is None) != (self.aws_secret_access_key is None):
            breaches.append("AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY: need each other")
        if self.chunk_overlap_tokens * 2 > self.medium_chunk_tokens:
            breaches.append("CHUNK_OVERLAP_TOKENS: must be at most half of MEDIUM_CHUNK_TOKENS")
        for name in ("alert_webhook", "notify_webhook"):
            parts = urlsplit(getattr(self, name) or "")
            if parts.scheme == "http" and parts.hostname not in _LOOPBACK:
                breaches.append(f"{name.upper()}: must be https:// (http:// on this machine only)")
        if self.notify_webhook is not None and self.notify_webhook_secret is None:
            breaches.append("NOTIFY_WEBHOOK: needs NOTIFY_WEBHOOK_SECRET, which signs it")
        if self.smtp_url is not None and self.email_from is None:
            breaches.append("SMTP_URL: needs EMAIL_FROM, the address that mail comes from")
        if breaches:
            raise ValueError("\n".join(breaches))
        return self

    def secret_values(self) -> frozenset[str]:
        """Every string that must never be seen: what `daemon.logs.mask_secrets` is fed at start.

        Passwords inside URLs come as they stand there and percent-decoded; webhook addresses are
        secrets as a whole, since whoever knows one can post to it.
        """
        secrets: set[str] = {self.aws_access_key_id or ""}
        for name in type(self).model_fields:
            value = getattr(self, name)
            if isinstance(value, SecretStr):
                secrets.add(value.get_secret_value())
            elif isinstance(value, str) and "://" in value:
                secrets.update(secrets_in(value))
        for webhook in (self.alert_webhook, self.notify_webhook):
            if webhook is not None and hide_path(webhook) != webhook:
                secrets.update({webhook, webhook.partition("://")[2].partition("/")[2]})
        return frozenset(secrets - {""})

    def __repr_args__(self) -> Iterator[tuple[str | None, Any]]:
        for name, value in super().__repr_args__():
            if isinstance(value, str) and "://" in value:
                hidden = hide_path(value) if name and "webhook" in name else hide_password(value)
                yield name, hidden
            else:
                yield name, value


def load_settings(**overrides: Any) -> Settings:
    """Read and check every setting: `overrides`, then the environment, then `.env`, then defaults.

    Raises UsageError with one line for each bad variable: its name and its rule, never its value.
    """
    unknown = sorted(overrides.keys() - Settings.model_fields.keys())
    if unknown:
        raise TypeError(f"no such setting: {', '.join(unknown)}")
    if "llm_provider" in overrides and "use_bedrock" not in overrides:
        # A provider chosen by the command outranks the environment's older spelling of bedrock.
        overrides["use_bedrock"] = overrides["llm_provider"] == "bedrock"
    try:
        return Settings(**overrides)
    except ValidationError as error:
        # `from None`: the original's traceback holds what was given, secrets included.
        lines = [line for found in error.errors() for line in _rule_lines(found)]
        raise UsageError("\n".join(dict.fromkeys(lines))) from None
    except (OSError, UnicodeError) as error:
        raise UsageError(f".env: cannot be read as UTF-8 text ({type(error).__name__})") from None


def _rule_lines(found: Any) -> list[str]:
    """Put one pydantic finding as `VARIABLE: rule`; findings across fields already name theirs."""
    cause = found.get("ctx", {}).get("error")
    rule = str(cause) if cause is not None else found["msg"]
    rule = rule.replace("Input should be ", "must be ").partition(", unable to parse")[0]
    rule = rule.replace("greater than or equal to", "at least")
    rule = rule.replace("less than or equal to", "at most")
    if not found["loc"]:
        return rule.splitlines()
    return [f"{str(found['loc'][0]).upper()}: {rule}"]
