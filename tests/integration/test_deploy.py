"""What docs/deploy.md and render.yaml say of a deploy, against the code and under a real limit."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from daemon.memory_gauge import MIB, Gauge, allowed_calls
from daemon.queue.intake import ROOM_FOR_A_JOB_BYTES
from daemon.settings import Settings
from tests.support.cli import EXAMPLE, ROOT, Cli, ask
from tests.support.memory_limit import limited
from tests.support.stage import EXPORT, PERSON, truth_of_the_example
from tests.support.supabase import login_in

if TYPE_CHECKING:
    from tests.support.anthropic_server import AnthropicServer
    from tests.support.storage_server import StorageServer

BLUEPRINT = (ROOT / "render.yaml").read_text(encoding="utf-8")
PAGE = (ROOT / "docs/deploy.md").read_text(encoding="utf-8")

# Settings that the blueprint leaves to their defaults, each with the reason.
LEFT_OUT = {
    "database_listen_url": "DATABASE_URL is a session pooler, through which LISTEN works",
    "allow_local_files": "an instance has no files of anybody's",
    "require_owned_paths": "depends on how the app lays out its bucket",
    "fullpass_home": "the image sets it, and a worker keeps nothing there",
    "llm_provider": "the key in the blueprint is that of the default",
    "anthropic_base_url": "the vendor's own",
    "use_bedrock": "another provider",
    "aws_region": "another provider",
    "aws_access_key_id": "another provider",
    "aws_secret_access_key": "another provider",
    "aws_session_token": "another provider",
    "aws_bearer_token_bedrock": "another provider",
    "anthropic_bedrock_base_url": "another provider",
    "anthropic_bedrock_mantle_base_url": "another provider",
    "anthropic_vertex_project_id": "another provider",
    "cloud_ml_region": "another provider",
    "anthropic_vertex_base_url": "another provider",
    "model_capabilities": "the default models are known",
    "batch_poll_seconds": "for tuning",
    "llm_timeout_seconds": "for tuning",
    "sections_timeout_seconds": "for tuning",
    "max_cost_usd_per_job": "no ceiling fits everybody; docs/cost.md",
    "chunk_tiers": "the app's choice, and checked by the doctor",
    "micro_chunk_characters": "for tuning",
    "medium_chunk_tokens": "for tuning",
    "chunk_overlap_tokens": "for tuning",
    "macro_chunk_characters": "for tuning",
    "extraction_window_tokens": "for tuning",
    "min_extraction_coverage": "for tuning",
    "min_conversations": "the app's choice",
    "memory_max_tokens": "the app's choice",
    "memory_limit_mb": "the instance's own limit is read",
    "poll_interval_seconds": "for tuning",
    "heartbeat_seconds": "for tuning",
    "lease_seconds": "for tuning",
    "notify_webhook": "the app's choice",
    "notify_webhook_secret": "the app's choice",
    "smtp_url": "the app's choice",
    "email_from": "the app's choice",
    "email_templates": "the app's choice",
    "otel_exporter_otlp_endpoint": "needs an extra and a collector",
    "sentry_dsn": "needs an extra and an account",
    "log_level": "INFO is meant for production",
    "dashboard_token": "a worker serves no dashboard",
    "health_port": "a background worker has no inbound traffic",
}


def variables() -> dict[str, str | None]:
    """Give the variables of the blueprint; None for one that the dashboard asks for."""
    body = BLUEPRINT.split("envVars:\n", 1)[1]
    entries = re.findall(
        r"- key: (\w+)(?: #.*)?\n +(?:value: \"?([^\"\n]*)\"?|sync: (false))\n", body
    )
    assert len(entries) == body.count("- key:"), "an entry of another shape"
    return {name: None if asked else value for name, value, asked in entries}


def test_the_blueprint_runs_one_worker_that_migrates_first_and_may_drain() -> None:
    fields = dict(re.findall(r"^    (\w+): ([^#\n]*?)(?: #.*)?$", BLUEPRINT, re.MULTILINE))
    assert "  - type: worker\n" in BLUEPRINT
    assert fields["preDeployCommand"] == "fullpass migrate"
    assert fields["dockerfilePath"] == "./Dockerfile"
    assert (ROOT / "Dockerfile").exists()
    assert int(fields["numInstances"]) == 1
    grace = variables()["SHUTDOWN_GRACE_SECONDS"]
    assert grace is not None
    assert float(grace) + 2 <= int(fields["maxShutdownDelaySeconds"])


def test_every_setting_is_in_the_blueprint_or_left_out_with_a_reason() -> None:
    listed = {name.lower() for name in variables()}
    settings = set(Settings.model_fields)
    assert not listed & LEFT_OUT.keys()
    undecided = settings - listed - LEFT_OUT.keys()
    assert not undecided, f"put into render.yaml, or into LEFT_OUT with a reason: {undecided}"
    assert listed | LEFT_OUT.keys() == settings, "a setting that there is no more"


def test_the_blueprint_states_defaults_and_holds_no_secret(monkeypatch, tmp_path) -> None:
    monkeypatch.chdir(tmp_path)  # no .env
    for name in Settings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)
    given = {name: value for name, value in variables().items() if value is not None}
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    told, default = Settings().model_dump(), Settings.model_construct().model_dump()
    assert told.pop("log_format") == "json"
    for name in (n.lower() for n in given if n != "LOG_FORMAT"):
        assert told[name] == default[name], name
    secret = {"DATABASE_URL", "SUPABASE_SERVICE_KEY", "ANTHROPIC_API_KEY", "ALERT_WEBHOOK"}
    assert secret <= {name for name, value in variables().items() if value is None}


def test_the_region_is_named_where_it_is_chosen() -> None:
    """Render asks for none: without it the worker would be far from the database, and stay there."""
    (region,) = re.findall(r"^    region: (\w+)", BLUEPRINT, re.MULTILINE)
    assert f"`{region}`" in PAGE


def test_the_table_of_plans_follows_from_the_gauge() -> None:
    rows = re.findall(r"^\| \w+ \| (\d+) MB \| (\d+) \| (\d+) \|$", PAGE, re.MULTILINE)
    assert len(rows) == 3
    for limit, calls, jobs in rows:
        gauge = Gauge(int(limit) * MIB, 180 * MIB, "cgroup v2")
        assert allowed_calls(gauge, ceiling=50) == int(calls)
        assert 1 + gauge.available_bytes // ROOM_FOR_A_JOB_BYTES == int(jobs)
    assert 'peak_rss_mb_{name}", peak.rss_mb, "MB", 180)' in (
        ROOT / "bench/bench_ingest.py"
    ).read_text(encoding="utf-8"), "the page says that bench-ingest allows 180 MB"


def test_a_pass_on_the_smallest_plan_leaves_room_for_every_call(
    tmp_path: Path,
    database_url: str,
    anthropic_server: AnthropicServer,
    storage_server: StorageServer,
) -> None:
    anthropic_server.truth = truth_of_the_example()
    storage_server.put(EXPORT, EXAMPLE.read_bytes())
    ask(database_url, "select fullpass.enqueue($1, $2)", PERSON, EXPORT)
    cli = Cli(
        tmp_path, DATABASE_URL=database_url, ANTHROPIC_API_KEY="test-key",
        ANTHROPIC_BASE_URL=anthropic_server.url, SUPABASE_URL=storage_server.url,
        SUPABASE_SERVICE_KEY=storage_server.key, FACT_EXTRACTION_CONCURRENCY=50,
    )  # fmt: skip
    with limited(os.getpid(), 512 * MIB) as group:
        # It is started inside; this process itself goes back out at once.
        worker = subprocess.Popen(
            [sys.executable, "-m", "daemon", "worker", "--once"], cwd=tmp_path,
            env=cli.environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        (group.parent / "cgroup.procs").write_text(str(os.getpid()))
        said, _ = worker.communicate(timeout=90)
        most = next(
            int((group / name).read_text())
            for name in ("memory.max_usage_in_bytes", "memory.peak")
            if (group / name).exists()
        )
    assert worker.returncode == 0, said
    calls = allowed_calls(Gauge(512 * MIB, most, "cgroup v2"), ceiling=50)
    print(f"a pass within 512 MB: {most / 1e6:.0f} MB in all, {calls} of 50 calls allowed")
    assert calls == 50
    assert most < 180 * MIB
    (row,) = ask(database_url, "select memory_limit_bytes >> 20 as mb from fullpass.workers")
    assert row["mb"] == 512


def test_a_larger_share_of_users_holds_every_smaller_one(database_url: str) -> None:
    # ROLLOUT_PERCENT: bucket < percent, so nobody who was in falls out when it is raised.
    rows = ask(
        database_url,
        "select fullpass.bucket_of(md5(n::text)::uuid) as bucket from generate_series(1, 5000) n",
    )
    buckets = [row["bucket"] for row in rows]
    assert all(0 <= bucket <= 99 for bucket in buckets)
    assert 0.03 < sum(bucket < 5 for bucket in buckets) / 5000 < 0.07


def test_a_workers_login_finds_nothing_to_apply_or_stops_the_deploy(
    tmp_path: Path, database_url: str
) -> None:
    with login_in(database_url, "fullpass_worker") as url:
        cli = Cli(tmp_path, DATABASE_URL=url)
        done = cli.run("migrate")
        assert (done.returncode, done.stdout) == (0, "up to date: nothing to apply\n")
        for command in (("cancel", PERSON), ("enqueue", "--user", PERSON, "--path", EXPORT)):
            refused = cli.run(*command)
            assert refused.returncode == 2
            assert "use that of the tables' owner" in refused.stderr
        # A release with a migration more: the login may not apply it, and nothing of it is there.
        newest = "(select max(version) from fullpass.schema_migrations)"
        ask(database_url, f"delete from fullpass.schema_migrations where version = {newest}")
        behind = cli.run("migrate")
        assert behind.returncode == 2
        assert "run fullpass migrate as the owner of the tables" in behind.stderr
        assert len(ask(database_url, "select from fullpass.schema_migrations")) > 5
