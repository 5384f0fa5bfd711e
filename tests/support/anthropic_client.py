"""A small prompt of every purpose, and the real SDK to send it with.

For tests of the loopback server itself: the schemas and texts stand for those fullpass sends and
are kept apart from them, so that a change of a prompt does not silently change what is tested.
"""

from __future__ import annotations

import importlib
import json
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from tests.support.planted_truth import Planted

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.support.loopback import LoopbackServer

MODEL = "claude-haiku-5-5"


def an_object(**properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def a_list(of: Any) -> dict[str, Any]:
    return {"type": "array", "items": of}


TEXT, NUMBER = {"type": "string"}, {"type": "integer"}
EXTRACT = an_object(
    facts=a_list(an_object(category=TEXT, statement=TEXT, message=NUMBER, quote=TEXT))
)
REDUCE = an_object(merged=a_list(an_object(statement=TEXT, facts=a_list(NUMBER))))
MEMORY = an_object(lines=a_list(an_object(category=TEXT, text=TEXT, facts=a_list(NUMBER))))
SECTIONS = an_object(
    soul=an_object(communication_style=TEXT, personality_traits=a_list(TEXT)),
    identity=an_object(ai_name=TEXT),
    user=an_object(name=TEXT, location=TEXT, interests=a_list(TEXT)),
    agents=an_object(behavioral_rules=a_list(TEXT)),
    tools=an_object(likely_usage=a_list(TEXT)),
)

TEA = "I drink jasmine tea."
SHIP = "The launch is on 3 March."
CHINESE = "我喜欢茉莉花茶"
TRUTH = (
    Planted(sentence=TEA, statement="Drinks jasmine tea", slot="drink"),
    Planted(sentence=SHIP, category="dates", valid_from="2024-03-03"),
    Planted(sentence=CHINESE, statement="喜欢茉莉花茶"),
)


def shown(number: int, text: str, role: str = "user") -> str:
    return f'<message n="{number}" role="{role}" date="2024-03-05">\n{text}\n</message>'


WINDOW = f"""
{shown(4, f"Hello. {TEA} And a < b & c.")}
{shown(5, SHIP, "assistant")}
{shown(6, f"但是{CHINESE}。")}
{shown(7, f"Yes: {SHIP}")}
"""
FACTS = """
[3] (preferences, 2024-03-05) Loves jasmine tea
[8] (dates, 2024-03-06) The launch (of Otter) is on 3 March
[9] (preferences, 2024-04-01) Loves jasmine tea
"""


@asynccontextmanager
async def sdk(url: str, key: str = "test-key") -> AsyncIterator[Any]:
    sdk_of = importlib.import_module("anthropic").AsyncAnthropic
    async with sdk_of(api_key=key, base_url=url, max_retries=0, timeout=10.0) as client:
        yield client


async def create(
    client: Any, text: str = WINDOW, schema: dict[str, Any] | None = EXTRACT, **more: Any
) -> Any:
    if schema is not None:
        more["output_config"] = {"format": {"type": "json_schema", "schema": schema}}
    call = {"model": MODEL, "max_tokens": 4_000, **more}
    return await client.messages.create(messages=[{"role": "user", "content": text}], **call)


async def ask(server: LoopbackServer, *arguments: Any, **more: Any) -> Any:
    async with sdk(server.url) as client:
        return await create(client, *arguments, **more)


def said(reply: Any) -> Any:
    return json.loads(next(block.text for block in reply.content if block.type == "text"))
