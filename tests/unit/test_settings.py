"""Settings: read in one order, checked at start, quiet about secrets."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import SecretStr, ValidationError

from daemon.errors import UsageError
from daemon.settings import Settings, load_settings
from daemon.urls import hide_password, hide_path

CONTRACT_DEFAULTS = {
    "database_url": None,
    "database_listen_url": None,
    "supabase_url": None,
    "supabase_service_key": None,
    "llm_provider": "anthropic",
    "anthropic_api_key": None,
    "anthropic_base_url": None,
    "use_bedrock": False,
    "aws_region": None,
    "aws_access_key_id": None,
    "aws_secret_access_key": None,
    "aws_session_token": None,
    "aws_bearer_token_bedrock": None,
    "anthropic_bedrock_base_url": None,
    "anthropic_bedrock_mantle_base_url": None,
    "anthropic_vertex_project_id": None,
    "cloud_ml_region": "global",
    "anthropic_vertex_base_url": None,
    "model_capabilities": {},
    "extraction_model": "claude-haiku-5-5",
    "memory_model": "claude-haiku-5-5",
    "sections_model": "claude-haiku-5-5",
    "extraction_mode": "realtime",
    "batch_poll_seconds": 30.0,
    "fact_extraction_concurrency": 3,
    "max_concurrent_jobs": 2,
    "memory_limit_mb": None,
    "max_jobs_per_user_per_day": 5,
    "memory_max_tokens": 5000,
    "llm_timeout_seconds": 60,
    "sections_timeout_seconds": 120,
    "max_cost_usd_per_job": None,
    "min_extraction_coverage": 0.95,
    "min_conversations": 0,
    "chunk_tiers": ("medium",),
    "micro_chunk_characters": 200,
    "medium_chunk_tokens": 2000,
    "chunk_overlap_tokens": 200,
    "macro_chunk_characters": 5000,
    "extraction_window_tokens": 8000,
    "poll_interval_seconds": 5,
    "heartbeat_seconds": 10,
    "lease_seconds": 60,
    "shutdown_grace_seconds": 25,
    "rollout_percent": 100,
    "alert_webhook": None,
    "notify_webhook": None,
    "notify_webhook_secret": None,
    "smtp_url": None,
    "email_from": None,
    "email_templates": None,
    "log_format": None,
    "log_level": "INFO",
    "health_port": None,
    "otel_exporter_otlp_endpoint": None,
    "sentry_dsn": None,
    "dashboard_token": None,
    "pipeline_retention_days": 30,
    "max_wait_hours": 48,
    "allow_local_files": False,
    "require_owned_paths": False,
}


@pytest.fixture(autouse=True)
def _bare_environment(monkeypatch, tmp_path) -> None:
    """Nothing of the machine that runs the tests: no variable of ours, no `.env`."""
    for name in Settings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)


def test_every_setting_has_the_default_the_documentation_promises() -> None:
    settings = load_settings()
    found = {name: getattr(settings, name) for name in Settings.model_fields}
    home = found.pop("fullpass_home")
    assert found == CONTRACT_DEFAULTS
    assert home.is_absolute()
    assert home.name == "fullpass"


def test_overrides_outrank_the_environment_which_outranks_dotenv(monkeypatch, tmp_path) -> None:
    (tmp_path / ".env").write_text(
        "MIN_CONVERSATIONS=1\nMAX_CONCURRENT_JOBS=1\nROLLOUT_PERCENT=1\n", encoding="utf-8"
    )
    monkeypatch.setenv("MIN_CONVERSATIONS", "2")
    monkeypatch.setenv("MAX_CONCURRENT_JOBS", "2")
    settings = load_settings(min_conversations=3)
    assert settings.min_conversations == 3
    assert settings.max_concurrent_jobs == 2
    assert settings.rollout_percent == 1


def test_an_empty_or_blank_variable_counts_as_unset(monkeypatch) -> None:
    for name in Settings.model_fields:
        monkeypatch.setenv(name.upper(), "" if len(name) % 2 else "  ")
    assert load_settings().model_dump(exclude={"fullpass_home"}) == CONTRACT_DEFAULTS


def test_unknown_variables_are_somebody_elses(monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("RENDER_INSTANCE_ID", "srv-1")
    (tmp_path / ".env").write_text("NEXT_PUBLIC_SOMETHING=1\n", encoding="utf-8")
    load_settings()


def test_a_misspelt_override_is_a_mistake_of_the_code() -> None:
    with pytest.raises(TypeError, match="lease_secs"):
        load_settings(lease_secs=1)


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        load_settings().lease_seconds = 1.0


@pytest.mark.parametrize(
    ("variable", "value", "rule"),
    [
        ("FACT_EXTRACTION_CONCURRENCY", "0", "at least 1"),
        ("FACT_EXTRACTION_CONCURRENCY", "51", "at most 50"),
        ("FACT_EXTRACTION_CONCURRENCY", "many", "valid integer"),
        ("POLL_INTERVAL_SECONDS", "0.09", r"at least 0\.1"),
        ("HEARTBEAT_SECONDS", "0.05", r"at least 0\.1"),
        ("LEASE_SECONDS", "29.9", "at least 3 × HEARTBEAT_SECONDS"),
        ("LEASE_SECONDS", "nan", "finite"),
        ("MIN_EXTRACTION_COVERAGE", "95", "at most 1"),
        ("ROLLOUT_PERCENT", "101", "at most 100"),
        ("LLM_PROVIDER", "openai", "'anthropic', 'bedrock', 'vertex' or 'offline'"),
        ("EXTRACTION_MODE", "later", "'realtime' or 'batch'"),
        ("LOG_LEVEL", "loud", "'DEBUG'"),
        ("USE_BEDROCK", "perhaps", "boolean"),
        ("CHUNK_TIERS", ",", "separated by commas"),
        ("CHUNK_TIERS", "micro,micro", "different names"),
        ("CHUNK_OVERLAP_TOKENS", "1001", "half of MEDIUM_CHUNK_TOKENS"),
        ("DATABASE_URL", "mysql://localhost/db", "must look like postgresql://"),
        ("DATABASE_URL", "localhost:5432", "must look like postgresql://"),
        ("SUPABASE_URL", "abc.supabase.co", "must look like https://"),
        ("SUPABASE_URL", "https://", "must look like https://"),
        ("SMTP_URL", "https://mail.example", "must look like smtp://"),
        ("SMTP_URL", "smtp://mail.example", "needs EMAIL_FROM"),
        ("EMAIL_FROM", "the app", "must look like Name <name@domain>"),
        ("ALERT_WEBHOOK", "http://hooks.example/x", "must be https://"),
        ("NOTIFY_WEBHOOK", "https://app.example/x", "needs NOTIFY_WEBHOOK_SECRET"),
        ("NOTIFY_WEBHOOK_SECRET", "whsec_short", "at least 24 bytes in base64"),
        ("NOTIFY_WEBHOOK_SECRET", "c2VjcmV0" * 4, "must be whsec_"),
        ("HEALTH_PORT", "65536", "at most 65535"),
        ("MEMORY_LIMIT_MB", "512MB", "valid integer"),
        ("MAX_COST_USD_PER_JOB", "-1", "at least 0"),
    ],
)
def test_a_bad_value_is_reported_as_its_variable_and_rule(monkeypatch, variable, value, rule):
    monkeypatch.setenv(variable, value)
    with pytest.raises(UsageError) as caught:
        load_settings()
    message = str(caught.value)
    assert re.fullmatch(rf"{variable}: .*{rule}.*", message), message


def test_every_bad_value_gets_a_line_of_its_own(monkeypatch) -> None:
    monkeypatch.setenv("ROLLOUT_PERCENT", "-1")
    monkeypatch.setenv("HEALTH_PORT", "http")
    with pytest.raises(UsageError) as caught:
        load_settings()
    assert sorted(line.partition(":")[0] for line in str(caught.value).splitlines()) == [
        "HEALTH_PORT",
        "ROLLOUT_PERCENT",
    ]


def test_the_shortest_heartbeat_and_lease_are_accepted(monkeypatch) -> None:
    # 3 * 0.1 is more than 0.3 in binary floating point.
    monkeypatch.setenv("HEARTBEAT_SECONDS", "0.1")
    monkeypatch.setenv("LEASE_SECONDS", "0.3")
    monkeypatch.setenv("POLL_INTERVAL_SECONDS", "0.1")
    settings = load_settings()
    assert (settings.heartbeat_seconds, settings.lease_seconds) == (0.1, 0.3)


def test_chunk_tiers_are_comma_separated_names(monkeypatch) -> None:
    monkeypatch.setenv("CHUNK_TIERS", " micro, medium ,macro,")
    assert load_settings().chunk_tiers == ("micro", "medium", "macro")


def test_no_limit_and_off_can_be_said(monkeypatch) -> None:
    monkeypatch.setenv("MAX_JOBS_PER_USER_PER_DAY", "0")
    monkeypatch.setenv("HEALTH_PORT", "off")
    settings = load_settings()
    assert settings.max_jobs_per_user_per_day is None
    assert settings.health_port is None


def test_names_of_choices_may_be_written_in_any_case(monkeypatch) -> None:
    monkeypatch.setenv("LOG_LEVEL", "debug")
    monkeypatch.setenv("LLM_PROVIDER", "Offline")
    assert load_settings().log_level == "DEBUG"
    assert load_settings().llm_provider == "offline"


@pytest.mark.parametrize("text", ["nope", "[1]", '{"a": 1}', '{"a": {"input_usd": 1}'])
def test_model_capabilities_that_are_no_json_of_models_are_told_by_rule(monkeypatch, text) -> None:
    monkeypatch.setenv("MODEL_CAPABILITIES", text)
    with pytest.raises(UsageError, match=r"^MODEL_CAPABILITIES: must be JSON that maps models"):
        load_settings()


def test_model_capabilities_are_read_from_the_environment(monkeypatch) -> None:
    monkeypatch.setenv("MODEL_CAPABILITIES", '{"my-model": {"input_usd": 0.2}}')
    assert load_settings().model_capabilities == {"my-model": {"input_usd": 0.2}}


def test_use_bedrock_chooses_the_provider(monkeypatch) -> None:
    monkeypatch.setenv("USE_BEDROCK", "true")
    assert load_settings().llm_provider == "bedrock"
    monkeypatch.setenv("LLM_PROVIDER", "vertex")
    with pytest.raises(UsageError, match=r"^USE_BEDROCK: .*LLM_PROVIDER=vertex"):
        load_settings()
    assert load_settings(llm_provider="offline").llm_provider == "offline"


def test_the_home_may_start_with_a_tilde(monkeypatch) -> None:
    monkeypatch.setenv("FULLPASS_HOME", "~/somewhere")
    assert load_settings().fullpass_home == Path.home() / "somewhere"


def test_a_dotenv_that_is_no_text_is_a_usage_error(tmp_path) -> None:
    (tmp_path / ".env").write_bytes(b"LOG_LEVEL=\xff\xfe\n")
    with pytest.raises(UsageError, match=r"^\.env: "):
        load_settings()


SECRETS = {
    "DATABASE_URL": "postgresql://worker:pg%2Fpass@db.example:6543/postgres",
    "DATABASE_LISTEN_URL": "postgresql://worker@db.example/postgres?password=listenpass",
    "SUPABASE_SERVICE_KEY": "sb_secret_storagekey",
    "ANTHROPIC_API_KEY": "sk-ant-llmkey",
    "AWS_ACCESS_KEY_ID": "AKIAEXAMPLEEXAMPLE00",
    "AWS_SECRET_ACCESS_KEY": "awssecretkey",
    "ALERT_WEBHOOK": "https://hooks.example/services/alerttoken",
    "NOTIFY_WEBHOOK": "https://app.example/hook?key=notifytoken",
    "NOTIFY_WEBHOOK_SECRET": "whsec_notifysecret" + "A" * 24,
    "EMAIL_FROM": "The app <app@example.org>",
    "SMTP_URL": "smtp://mailer:mail@pass@smtp.example:587",
}
WORDS = [
    "pg%2Fpass",
    "listenpass",
    "storagekey",
    "llmkey",
    "AKIAEXAMPLEEXAMPLE00",
    "awssecretkey",
    "alerttoken",
    "notifytoken",
    "notifysecret",
    "mail@pass",
]


def test_no_secret_shows_in_a_repr(monkeypatch) -> None:
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    settings = load_settings()
    for shown in (repr(settings), str(settings), f"{settings!r}"):
        assert not [word for word in WORDS if word in shown]
        assert "postgresql://worker:***@db.example:6543/postgres" in shown


def test_no_bad_value_is_echoed(monkeypatch) -> None:
    for name in Settings.model_fields:
        monkeypatch.setenv(name.upper(), "hunter2\n")
    with pytest.raises(UsageError) as caught:
        load_settings()
    assert "hunter2" not in str(caught.value)
    # The validation error holds what was given: no traceback may lead to it.
    assert caught.value.__suppress_context__
    assert caught.value.__cause__ is None


def test_every_secret_is_handed_to_the_log_for_masking(monkeypatch) -> None:
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    secrets = load_settings().secret_values()
    assert all(any(word in secret for secret in secrets) for word in WORDS), secrets
    assert {"pg%2Fpass", "pg/pass", "mail@pass"} <= secrets
    assert load_settings(anthropic_api_key=SecretStr("other")).secret_values() >= {"other"}
    assert "" not in secrets


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgres://u:p@h:1/d", "postgres://u:***@h:1/d"),
        ("postgres://u:p/w@d@h/d", "postgres://u:***@h/d"),
        ("postgres://u@h/d", "postgres://u@h/d"),
        ("postgres://h/d?sslmode=require", "postgres://h/d?sslmode=require"),
        ("postgres:///d?host=/tmp&password=p&x=1", "postgres:///d?host=/tmp&password=***&x=1"),
    ],
)
def test_a_url_is_shown_without_its_password(url, shown) -> None:
    assert hide_password(url) == shown


def test_a_webhook_is_shown_as_its_host() -> None:
    assert (
        hide_path("https://u:p@hooks.example/services/T0/B0/x?y=z") == "https://hooks.example/***"
    )
    assert hide_path("https://hooks.example/") == "https://hooks.example/"


def test_importing_the_settings_is_quick_and_reads_no_environment() -> None:
    code = (
        "import os, sys, time, pydantic_settings\n"
        "os.environ['ROLLOUT_PERCENT'] = 'broken'\n"
        "start = time.process_time()\n"
        "import daemon.settings\n"
        "print(time.process_time() - start)\n"
    )
    fastest = min(
        float(subprocess.check_output([sys.executable, "-c", code], text=True)) for _ in range(3)
    )
    assert fastest < 0.15
