"""The loopback Anthropic server answers and refuses as the real one, seen by the real SDK."""

from __future__ import annotations

import importlib
import json
import time
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from tests.support.anthropic_client import (
    CHINESE,
    EXTRACT,
    FACTS,
    MEMORY,
    MODEL,
    REDUCE,
    SECTIONS,
    SHIP,
    TEA,
    TEXT,
    TRUTH,
    WINDOW,
    a_list,
    an_object,
    ask,
    create,
    said,
    sdk,
    shown,
)
from tests.support.anthropic_server import AnthropicServer
from tests.support.planted_truth import Planted, Truth, shown_messages

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="module")
def anthropic() -> Any:
    # Two seconds and 53 MB: paid by the tests that use it, not by collecting them.
    return importlib.import_module("anthropic")


@pytest.fixture
def server() -> Iterator[AnthropicServer]:
    with AnthropicServer(truth=TRUTH) as running:
        yield running


# What it answers


async def test_extraction_reports_each_planted_sentence_where_it_stands(
    server: AnthropicServer,
) -> None:
    reply = await ask(server)
    facts = said(reply)["facts"]
    assert [(fact["quote"], fact["message"]) for fact in facts] == [
        (TEA, 4),
        (CHINESE, 6),
        (SHIP, 7),
    ]
    assert facts[0] == {
        "category": "preferences",
        "statement": "Drinks jasmine tea",
        "slot": "drink",
        "polarity": "affirmed",
        "message": 4,
        "quote": TEA,
        "valid_from": "",
        "confidence": "high",
    }
    assert reply.stop_reason == "end_turn"
    (call,) = server.record.completed()
    assert (call.purpose, call.messages, call.answered) == ("extract", 4, 3)
    assert call.input_tokens == reply.usage.input_tokens > 0
    assert call.output_tokens == reply.usage.output_tokens > 0


async def test_without_a_truth_the_usual_openings_are_facts() -> None:
    window = shown(1, "Well. I prefer short answers! My birthday is 4 May. What is a lease?")
    with AnthropicServer() as server:
        facts = said(await ask(server, window))["facts"]
    assert [(fact["category"], fact["quote"]) for fact in facts] == [
        ("preferences", "I prefer short answers!"),
        ("dates", "My birthday is 4 May."),
    ]


def test_a_large_truth_is_found_in_time_proportional_to_the_text() -> None:
    truth = Truth(Planted(sentence=f"I own the boat number {n}.") for n in range(50_000))
    text = " ".join(f"I own the boat number {n}." for n in range(0, 50_000, 500))
    other = "Here is a long answer about nothing in particular. " * 600
    began = time.perf_counter()
    assert len(truth.found_in(text + other)) == 100
    assert time.perf_counter() - began < 1.0  # comparing each with each takes far longer


def test_prompt_reading_tolerates_attribute_order_and_broken_tags() -> None:
    (message,) = shown_messages(
        "<message role='user' n='12'>\nsee <\u200b/message> and <b>\n</message>"
    )
    assert (message.number, message.role, message.text) == (
        12,
        "user",
        "see <\u200b/message> and <b>",
    )


async def test_reduce_memory_and_sections_follow_the_facts_shown(server: AnthropicServer) -> None:
    async with sdk(server.url) as client:
        assert said(await create(client, FACTS, REDUCE)) == {"merged": []}
        server.behave(reduce="same")
        assert said(await create(client, FACTS, REDUCE)) == {
            "merged": [{"statement": "Loves jasmine tea", "facts": [3, 9]}]
        }
        server.behave(reduce="everything")
        assert len(said(await create(client, FACTS, REDUCE))["merged"]) == 3
        lines = said(await create(client, FACTS, MEMORY))["lines"]
        assert [line["facts"] for line in lines] == [[3], [9], [8]]
        assert lines[2]["text"] == "The launch (of Otter) is on 3 March"
        server.behave(memory_facts_per_line=2, memory_uncited_lines=1, memory_miscited_lines=1)
        lines = said(await create(client, FACTS, MEMORY))["lines"]
        assert [line["facts"] for line in lines] == [[3, 9], [8], [10], []]
        memory = "## Preferences\n- Loves jasmine tea [3]\n- Lives in Porto (2024-03-05) [f4, f7]\n"
        sections = said(await create(client, memory, SECTIONS))
        assert sections["user"] == {
            "name": "not enough data",
            "location": "Porto",
            "interests": ["jasmine tea"],
        }
        server.behave(sections="missing")
        assert "tools" not in said(await create(client, memory, SECTIONS))
    purposes = [call.purpose for call in server.record.calls]
    assert purposes == ["reduce"] * 3 + ["memory"] * 2 + ["sections"] * 2


async def test_a_forced_tool_is_answered_by_its_schema(server: AnthropicServer) -> None:
    tool = {"name": "report", "description": "Report.", "input_schema": EXTRACT}
    forced = {"tools": [tool], "tool_choice": {"type": "tool", "name": "report"}}
    reply = await ask(server, WINDOW, None, **forced)
    assert reply.stop_reason == "tool_use"
    assert len(reply.content[0].input["facts"]) == 3


async def test_thinking_comes_first_and_is_paid_from_max_tokens(server: AnthropicServer) -> None:
    server.behave(thinking_tokens=50)
    async with sdk(server.url) as client:
        reply = await create(client)
        assert [block.type for block in reply.content] == ["thinking", "text"]
        assert reply.usage.output_tokens > 50
        reply = await create(client, max_tokens=40)
    assert [block.type for block in reply.content] == ["thinking"]
    assert (reply.stop_reason, reply.usage.output_tokens) == ("max_tokens", 40)


async def test_a_reply_never_exceeds_max_tokens(server: AnthropicServer) -> None:
    reply = await ask(server, max_tokens=30)
    assert (reply.stop_reason, reply.usage.output_tokens) == ("max_tokens", 30)
    with pytest.raises(json.JSONDecodeError):
        said(reply)


async def test_marked_prefixes_are_cached_from_the_models_minimum_on(
    server: AnthropicServer,
) -> None:
    def system(characters: int) -> Any:
        return [{"type": "text", "text": "x" * characters, "cache_control": {"type": "ephemeral"}}]

    async with sdk(server.url) as client:
        first = (await create(client, system=system(4_000))).usage
        again = (await create(client, "other", system=system(4_000))).usage
        short = (await create(client, schema=None, system=system(400))).usage
    assert first.cache_creation_input_tokens == again.cache_read_input_tokens >= 1_000
    assert first.cache_read_input_tokens == again.cache_creation_input_tokens == 0
    assert short.cache_creation_input_tokens == short.cache_read_input_tokens == 0


async def test_models_and_token_counts(server: AnthropicServer, anthropic: Any) -> None:
    async with sdk(server.url) as client:
        listed = [model.id async for model in client.models.list()]
        assert MODEL in listed
        assert (await client.models.retrieve(MODEL)).max_tokens == 128_000
        with pytest.raises(anthropic.NotFoundError):
            await client.models.retrieve("claude-nothing-1")
        counted = await client.messages.count_tokens(
            model=MODEL, messages=[{"role": "user", "content": "x" * 400}]
        )
        assert counted.input_tokens == 100
        server.behave(models_endpoint=False)
        with pytest.raises(anthropic.NotFoundError) as bare:
            await client.models.retrieve(MODEL)
        assert not isinstance(bare.value.body, dict)


async def test_headers_tell_the_request_and_the_limits(server: AnthropicServer) -> None:
    async with sdk(server.url) as client:
        raw = await client.messages.with_raw_response.create(
            model=MODEL, max_tokens=10, messages=[{"role": "user", "content": "hi"}]
        )
    (call,) = server.record.completed()
    assert raw.headers["request-id"] == call.request_id
    for kind in ("requests", "input-tokens", "output-tokens"):
        prefix = f"anthropic-ratelimit-{kind}"
        assert int(raw.headers[f"{prefix}-remaining"]) <= int(raw.headers[f"{prefix}-limit"])
        assert raw.headers[f"{prefix}-reset"].endswith("Z")


# What it refuses


async def test_wrong_key_unknown_model_and_bad_schema_are_refused(
    server: AnthropicServer, anthropic: Any
) -> None:
    async with sdk(server.url, key="wrong") as stranger:
        with pytest.raises(anthropic.AuthenticationError, match="authentication_error"):
            await create(stranger)
    async with sdk(server.url) as client:
        with pytest.raises(anthropic.NotFoundError, match="not_found_error"):
            await create(client, model="claude-nothing-1")
        with pytest.raises(anthropic.BadRequestError, match="additionalProperties"):
            await create(client, schema={"type": "object", "properties": {"facts": a_list(TEXT)}})
        with pytest.raises(anthropic.BadRequestError, match="minLength"):
            await create(client, schema=an_object(facts=a_list({**TEXT, "minLength": 1})))
        with pytest.raises(anthropic.BadRequestError, match="temperature"):
            await create(client, extra_body={"temperature": 0})
        server.behave(context_tokens=10)
        with pytest.raises(anthropic.BadRequestError, match="too long"):
            await create(client)
    assert {call.fault for call in server.record.calls} == {"refused"}
    assert not server.record.completed()


async def test_plain_http_sees_the_error_shape(server: AnthropicServer) -> None:
    body = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}]}
    headers = {"x-api-key": "test-key", "anthropic-version": "2023-06-01"}
    async with httpx.AsyncClient(base_url=server.url, trust_env=False) as client:
        answer = await client.post("/v1/messages", json=body, headers=headers)
        assert answer.status_code == 400
        assert answer.json()["type"] == "error"
        assert answer.json()["error"] == {
            "type": "invalid_request_error",
            "message": "max_tokens: Field required",
        }
        assert answer.json()["request_id"] == answer.headers["request-id"]
        answer = await client.post("/v1/messages", json={**body, "max_tokens": 5})
        assert answer.status_code == 401
