"""Calls on every platform by the real SDK clients, and in every shape a server may want."""

from __future__ import annotations

import json
import subprocess
import sys
import uuid
from contextlib import asynccontextmanager
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest

from daemon.errors import BadCall, CallFailed, Systemic, UsageError
from daemon.fullpass.facts import EXTRACT_SCHEMA, read_items
from daemon.fullpass.prompts import prompt
from daemon.llm.pricing import Models
from daemon.llm.providers import provider_from
from daemon.llm.request import Request, Usage
from daemon.settings import load_settings
from tests.support.anthropic_client import CHINESE, SHIP, TEA, TRUTH, WINDOW
from tests.support.anthropic_wire import MODELS
from tests.support.cloud_server import (
    ACCESS_KEY,
    INVOKE_VERSION,
    REGION,
    SECRET_KEY,
    CloudServer,
    service_account,
)
from tests.support.exports import planted_export
from tests.support.planted_truth import Truth
from tests.support.worker_process import work_once

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from daemon.llm.messages_api import MessagesProvider
    from daemon.llm.request import Reply
    from tests.support.anthropic_server import AnthropicServer


def asked(model: str = "claude-haiku-5-5", **changes: Any) -> Request:
    instructions = prompt("extract")
    return Request(
        **{
            "purpose": "extract",
            "prompt_version": instructions.version,
            "model": model,
            "system": instructions.text,
            "text": WINDOW,
            "schema": EXTRACT_SCHEMA,
            "max_tokens": 4_000,
            "timeout_seconds": 10.0,
            **changes,
        }
    )


@asynccontextmanager
async def provider(**settings: Any) -> AsyncIterator[MessagesProvider]:
    made: Any = provider_from(load_settings(**settings))
    yield made
    await made.aclose()


def at(server: AnthropicServer, **settings: Any) -> Any:
    return provider(anthropic_api_key="test-key", anthropic_base_url=server.url, **settings)


def of_bedrock(server: CloudServer, **settings: Any) -> Any:
    return provider(
        **{
            "use_bedrock": True,
            "aws_region": REGION,
            "aws_access_key_id": ACCESS_KEY,
            "aws_secret_access_key": SECRET_KEY,
            "anthropic_bedrock_base_url": server.url,
            "anthropic_bedrock_mantle_base_url": f"{server.url}/anthropic",
            **settings,
        }
    )


def quotes(reply: Reply) -> set[str]:
    return {item["quote"] for item in read_items(reply.text, "facts").items}


@pytest.fixture
def clouds() -> Any:
    with CloudServer(truth=TRUTH) as server:
        yield server


# Bedrock


@pytest.mark.parametrize("name", ["haiku-4.5", "us.anthropic.claude-haiku-4-5-20251001-v1:0"])
async def test_bedrock_invokes_a_versioned_model_signed_and_with_its_version_pinned(
    clouds: CloudServer, name: str
) -> None:
    async with of_bedrock(clouds) as bedrock:
        reply = await bedrock.call(asked(name))
    assert quotes(reply) == {TEA, SHIP, CHINESE}
    (arrival,) = clouds.arrivals
    geography = "eu" if name == "haiku-4.5" else "us"
    assert arrival.path == f"/model/{geography}.anthropic.claude-haiku-4-5-20251001-v1:0/invoke"
    assert arrival.body["anthropic_version"] == INVOKE_VERSION
    assert "model" not in arrival.body
    assert reply.model == "claude-haiku-4-5-20251001"
    listed = Models().named(name).bill(reply.usage)
    assert reply.bill is not None
    assert listed is not None
    assert reply.bill.cost_usd == listed.cost_usd * Decimal("1.1")


async def test_bedrock_sends_newer_models_to_its_messages_endpoint(clouds: CloudServer) -> None:
    async with of_bedrock(clouds) as bedrock:
        reply = await bedrock.call(asked("haiku-5.5"))
    assert quotes(reply) == {TEA, SHIP, CHINESE}
    (arrival,) = clouds.arrivals
    assert arrival.path == "/anthropic/v1/messages"
    assert arrival.body["model"] == "anthropic.claude-haiku-5-5"


@pytest.mark.parametrize(
    ("region", "model", "there"),
    [
        ("us-east-1", "haiku-4.5", "us.anthropic.claude-haiku-4-5-20251001-v1:0"),
        ("eu-west-3", "haiku-4.5", "eu.anthropic.claude-haiku-4-5-20251001-v1:0"),
        ("ap-south-1", "haiku-4.5", "global.anthropic.claude-haiku-4-5-20251001-v1:0"),
        ("ap-south-1", "sonnet-5.5", "anthropic.claude-sonnet-5-5"),
        ("us-east-1", "claude-next-6", "anthropic.claude-next-6"),
        ("us-east-1", "arn:aws:bedrock:us-east-1:1:application-inference-profile/a1", None),
    ],
)
async def test_a_model_has_its_own_id_in_each_region_of_bedrock(
    clouds: CloudServer, region: str, model: str, there: str | None
) -> None:
    async with of_bedrock(clouds, aws_region=region) as bedrock:
        place = bedrock.platform.place(model, bedrock.models.named(model))
    assert place.model_id == (there or model)
    versioned = place.extra_body == {"anthropic_version": INVOKE_VERSION}
    assert versioned == (there is None or there.endswith("-v1:0"))


@pytest.mark.parametrize("model", ["haiku-4.5", "haiku-5.5"])
async def test_a_wrong_aws_key_is_everybodys_trouble_and_names_the_variables(
    clouds: CloudServer, model: str
) -> None:
    async with of_bedrock(clouds, aws_secret_access_key="wrong") as bedrock:
        with pytest.raises(Systemic, match="AWS_SECRET_ACCESS_KEY") as raised:
            await bedrock.call(asked(model))
    assert "wrong" not in str(raised.value)


async def test_a_model_that_bedrock_does_not_have_is_everybodys_trouble(
    clouds: CloudServer,
) -> None:
    async with of_bedrock(clouds) as bedrock:
        with pytest.raises(Systemic, match=r"EXTRACTION_MODEL.*AWS_REGION"):
            await bedrock.call(asked("eu.anthropic.claude-no-such-v9:0"))


async def test_missing_aws_credentials_are_a_wait_that_says_what_to_set(
    clouds: CloudServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    async with of_bedrock(clouds, aws_access_key_id=None, aws_secret_access_key=None) as bedrock:
        for model in ("haiku-4.5", "haiku-5.5"):
            with pytest.raises(Systemic, match="AWS_ACCESS_KEY_ID"):
                await bedrock.call(asked(model))
    assert not clouds.arrivals


# Vertex


async def test_vertex_logs_in_with_googles_credentials_and_calls_by_its_own_ids(
    clouds: CloudServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    key_file = service_account(tmp_path, clouds.url)
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(key_file))
    async with provider(
        llm_provider="vertex",
        anthropic_vertex_project_id="loopback",
        anthropic_vertex_base_url=clouds.url,
    ) as vertex:
        older = await vertex.call(asked("haiku-4.5"))
        newer = await vertex.call(asked("haiku-5.5"))
    assert quotes(older) == quotes(newer) == {TEA, SHIP, CHINESE}
    first, second = clouds.arrivals
    models = "/projects/loopback/locations/global/publishers/anthropic/models"
    assert first.path == f"{models}/claude-haiku-4-5@20251001:rawPredict"
    assert first.body["anthropic_version"] == "vertex-2023-10-16"
    assert second.path == f"{models}/claude-haiku-5-5:rawPredict"


async def test_google_credentials_that_are_not_there_are_a_wait_that_says_what_to_check(
    clouds: CloudServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "none.json"))
    async with provider(
        llm_provider="vertex",
        anthropic_vertex_project_id="loopback",
        anthropic_vertex_base_url=clouds.url,
    ) as vertex:
        with pytest.raises(Systemic, match="GOOGLE_APPLICATION_CREDENTIALS"):
            await vertex.call(asked())


# Choosing one


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"llm_provider": "anthropic"}, "ANTHROPIC_API_KEY"),
        ({"use_bedrock": True}, "AWS_REGION"),
        ({"llm_provider": "vertex"}, "ANTHROPIC_VERTEX_PROJECT_ID"),
        ({"use_bedrock": True, "aws_region": "x", "aws_access_key_id": "a"}, "need each other"),
        ({"model_capabilities": {"haiku": {"colour": 1}}}, "MODEL_CAPABILITIES: haiku: no such"),
        (
            {"max_cost_usd_per_job": 1.0, "memory_model": "mine", "anthropic_api_key": "k"},
            "the price of mine is not known",
        ),
    ],
)
def test_a_provider_that_cannot_work_is_refused_at_the_start_by_the_variable_to_mend(
    settings: dict[str, Any], says: str
) -> None:
    with pytest.raises(UsageError, match=says):
        provider_from(load_settings(**settings))


@pytest.mark.parametrize(
    ("settings", "module", "extra"),
    [
        ("use_bedrock=True, aws_region='eu-west-1'", "boto3", "bedrock"),
        ("llm_provider='vertex', anthropic_vertex_project_id='p'", "google", "vertex"),
        ("llm_provider='vertex', anthropic_vertex_project_id='p'", "google.auth", "vertex"),
    ],
)
def test_a_missing_extra_is_named_with_the_command_that_installs_it(
    settings: str, module: str, extra: str
) -> None:
    # A process of its own in which the library cannot be found.
    script = f"""
import sys
class Hide:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}: raise ModuleNotFoundError(name=name)
sys.meta_path.insert(0, Hide())
from daemon.errors import UsageError
from daemon.llm.providers import provider_from
from daemon.settings import load_settings
try: provider_from(load_settings({settings}))
except UsageError as error: print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert f"pip install 'fullpass[{extra}]'" in done.stdout, done.stderr


def test_libraries_of_other_platforms_are_not_loaded() -> None:
    script = (
        "import sys; from daemon.llm.providers import provider_from; "
        "from daemon.settings import load_settings; "
        "provider_from(load_settings(llm_provider='anthropic', anthropic_api_key='k')); "
        "print([m for m in ('boto3', 'botocore', 'google.auth') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


# Shapes


class Recorder(CloudServer):
    """Keeps every body, and refuses what it does not know, as older servers do."""

    refuses: tuple[str, ...] = ()

    async def handle(self, request: Any) -> Any:
        if request.path == "/v1/messages":
            body = self._arrived(request)
            for word in self.refuses:
                if word in json.dumps(body):
                    from tests.support.anthropic_wire import error_reply

                    said = f"{word}: Extra inputs are not permitted"
                    return error_reply(400, "invalid_request_error", said, "req_1")
        return await super().handle(request)


@pytest.fixture
def recorder() -> Any:
    with Recorder(truth=TRUTH) as server:
        yield server


async def test_a_model_with_structured_output_is_held_to_the_schema(recorder: Recorder) -> None:
    async with at(recorder) as anthropic:
        await anthropic.call(asked())
    (arrival,) = recorder.arrivals
    assert arrival.body["output_config"]["format"]["schema"] == EXTRACT_SCHEMA
    assert "tools" not in arrival.body


async def test_a_model_without_it_must_call_a_tool_of_that_shape(recorder: Recorder) -> None:
    changes = {"haiku-4.5": {"structured_output": False}}
    async with at(recorder, model_capabilities=changes) as anthropic:
        reply = await anthropic.call(asked("haiku-4.5"))
        assert quotes(reply) == {TEA, SHIP, CHINESE}
        assert reply.stop_reason == "tool_use"
        recorder.script("max_tokens")
        cut = await anthropic.call(asked("haiku-4.5"))
    assert (cut.text, cut.cut_short) == ("", True)
    body = recorder.arrivals[0].body
    assert body["tool_choice"] == {"type": "tool", "name": body["tools"][0]["name"]}
    assert body["tools"][0]["input_schema"] == EXTRACT_SCHEMA
    assert "output_config" not in body


async def test_a_server_that_refuses_a_way_is_asked_the_next_way_from_then_on(
    recorder: Recorder,
) -> None:
    recorder.refuses = ("cache_control", "output_config", "tool_choice")
    recorder.behave(models=("my-model",))
    changes = {"my-model": {"cache_minimum_tokens": 100, "effort": True}}
    async with at(recorder, model_capabilities=changes) as anthropic:
        for _ in range(2):
            reply = await anthropic.call(asked("my-model"))
            assert reply.text == "Hello! How can I help?"  # it was told the schema in words only
    # Four refusals, none paid; then each call is answered at once.
    assert len(recorder.arrivals) == 4 + 2
    last = recorder.arrivals[-1].body
    assert {"tools", "tool_choice", "output_config"}.isdisjoint(last)
    assert json.dumps(EXTRACT_SCHEMA, ensure_ascii=False) in last["system"]


async def test_a_model_nobody_knows_is_told_the_schema_in_words_too(recorder: Recorder) -> None:
    recorder.behave(models=("my-model",))
    async with at(recorder) as anthropic:
        reply = await anthropic.call(asked("my-model"))
    assert quotes(reply) == {TEA, SHIP, CHINESE}
    assert reply.usage is not None
    assert reply.bill is None
    (arrival,) = recorder.arrivals
    assert json.dumps(EXTRACT_SCHEMA, ensure_ascii=False) in arrival.body["system"]
    assert "format" in arrival.body["output_config"]


async def test_what_the_person_wrote_never_changes_how_calls_are_made(recorder: Recorder) -> None:
    async with at(recorder) as anthropic:
        recorder.script("too_large")
        with pytest.raises(BadCall):
            await anthropic.call(asked(text="output_config tool_choice cache_control effort"))
        await anthropic.call(asked())
    assert "output_config" in recorder.arrivals[-1].body


# Caching


async def test_instructions_are_cached_where_they_reach_the_models_minimum(
    recorder: Recorder,
) -> None:
    async with at(recorder) as anthropic:
        first = await anthropic.call(asked())
        second = await anthropic.call(asked(text=WINDOW + "\nmore"))
    assert first.usage is not None
    assert second.usage is not None
    assert first.usage.cache_write_tokens > MODELS["claude-haiku-5-5"][3]
    assert second.usage.cache_read_tokens == first.usage.cache_write_tokens
    assert first.bill is not None
    assert second.bill is not None
    assert first.bill.saved_by_cache_usd < 0 < second.bill.saved_by_cache_usd
    # Two calls pay for writing already; what is saved is the difference to plain input, exactly.
    plain = Models().named("haiku-5.5")
    tokens = second.usage.cache_read_tokens
    assert plain.input_usd is not None
    assert plain.cache_read_usd is not None
    saved = tokens * (plain.input_usd - plain.cache_read_usd) / 1_000_000
    assert second.bill.saved_by_cache_usd == saved


@pytest.mark.parametrize(
    "request_", [asked("haiku-4.5"), asked(purpose="memory"), asked(system="Short.")]
)
async def test_below_the_minimum_or_for_what_is_sent_once_nothing_is_marked(
    recorder: Recorder, request_: Request
) -> None:
    async with at(recorder) as anthropic:
        reply = await anthropic.call(request_)
    assert isinstance(recorder.arrivals[0].body["system"], str)
    assert recorder.arrivals[0].body["system"] == request_.system
    assert reply.usage is not None
    assert (reply.usage.cache_write_tokens, reply.usage.cache_read_tokens) == (0, 0)


def test_how_a_call_is_made_is_no_part_of_its_key() -> None:
    user = str(uuid.UUID(int=7))
    key = "cdeda307d6883a8ceec2979a2ee849e7"
    plain = asked(system="S", text="T", prompt_version="v1", schema={"type": "object"})
    assert plain.content_key(user)[:32] == key


# Refusals


@pytest.mark.parametrize(
    ("fault", "raises", "says"),
    [
        ("unauthorized", Systemic, "ANTHROPIC_API_KEY"),
        ("no_such_model", Systemic, "EXTRACTION_MODEL"),
        ("billing", Systemic, "billing"),
        ("spend_limit", Systemic, "limits"),
        ("tier_spend_cap", Systemic, "limits"),
        ("forbidden", Systemic, "permissions"),
        ("rate_limited", CallFailed, "429"),
        ("overloaded", CallFailed, "529"),
        ("bad_gateway", CallFailed, "502"),
        ("truncated_body", CallFailed, "broke off"),
        ("too_large", BadCall, "413"),
    ],
)
async def test_each_refusal_asks_for_what_helps(
    recorder: Recorder, fault: Any, raises: type[Exception], says: str
) -> None:
    recorder.script(fault)
    async with at(recorder) as anthropic:
        with pytest.raises(raises, match=says):
            await anthropic.call(asked())


# A whole pass


async def test_a_pass_runs_on_bedrock_by_both_of_its_ways_and_is_priced_as_there(
    database_url: str, clouds: CloudServer, tmp_path: Path
) -> None:
    export = planted_export(conversations=4)
    clouds.truth = Truth(export.truth)
    db = await asyncpg.connect(database_url, statement_cache_size=0)
    try:
        job = await db.fetchval(
            "INSERT INTO processing_jobs (user_id, storage_path) VALUES ($1, $2) RETURNING id",
            uuid.uuid4(),
            f"file://{export.write(tmp_path / 'c.json')}",
        )
        tally = await work_once(
            database_url,
            None,
            llm_provider="bedrock",
            extraction_model="haiku-4.5",
            aws_region=REGION,
            aws_access_key_id=ACCESS_KEY,
            aws_secret_access_key=SECRET_KEY,
            anthropic_bedrock_base_url=clouds.url,
            anthropic_bedrock_mantle_base_url=f"{clouds.url}/anthropic",
        )
        assert tally.completed == [job]
        rows = await db.fetch("select * from fullpass.llm_calls order by id")
        facts = await db.fetchval("select count(*) from fullpass.facts")
    finally:
        await db.close()
    assert facts == len(export.truth)
    assert {row["provider"] for row in rows} == {"bedrock"}
    assert {a.path.startswith("/model/eu.") for a in clouds.arrivals} == {True, False}
    extraction = next(row for row in rows if row["purpose"] == "extract")
    listed = (
        Models()
        .named("haiku-4.5")
        .bill(Usage(extraction["input_tokens"], extraction["output_tokens"]))
    )
    assert listed is not None
    assert extraction["cost_usd"] == round(listed.cost_usd * Decimal("1.1"), 8)
