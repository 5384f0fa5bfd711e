"""LoCoMo through the pass: whether its evidence stays whole and its observations arrive.

Its licence forbids shipping it: point --locomo at a folder (or file) that holds locomo10.json.
"""

from __future__ import annotations

import asyncio
import json
import re
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from tests.support.anthropic_server import AnthropicServer
from tests.support.planted_truth import Planted

if TYPE_CHECKING:
    from pathlib import Path

_DATE = "%I:%M %p on %d %B, %Y"


def _turns(sample: dict[str, Any]) -> list[tuple[str, float, list[dict[str, Any]]]]:
    """Return the sessions of a sample as (name, time, turns), in order."""
    talk = sample["conversation"]
    names = sorted((k for k in talk if re.fullmatch(r"session_\d+", k)), key=lambda k: int(k[8:]))
    return [
        (name, _time(talk.get(f"{name}_date_time", "")) + 86_400.0 * n, talk[name])
        for n, name in enumerate(names)
    ]


def _time(text: str) -> float:
    try:
        return datetime.strptime(text.strip(), _DATE).replace(tzinfo=UTC).timestamp()
    except ValueError:
        return 1_680_000_000.0


def as_export(sample: dict[str, Any]) -> list[dict[str, Any]]:
    """Return a sample as conversations of a ChatGPT export, every turn the person's own."""
    conversations = []
    for name, start, turns in _turns(sample):
        mapping: dict[str, Any] = {
            "root": {"id": "root", "parent": None, "children": [], "message": None}
        }
        tip = "root"
        for n, turn in enumerate(turns):
            node = turn["dia_id"]
            mapping[tip]["children"].append(node)
            mapping[node] = {"id": node, "parent": tip, "children": [], "message": {
                "id": node, "author": {"role": "user", "name": None, "metadata": {}},
                "create_time": start + n, "weight": 1.0, "metadata": {}, "recipient": "all",
                "content": {"content_type": "text", "parts": [f"{turn['speaker']}: {turn['text']}"]}}}  # fmt: skip
            tip = node
        conversations.append({"id": name, "conversation_id": name, "title": name, "create_time": start,
                              "update_time": start + 1, "mapping": mapping, "current_node": tip})  # fmt: skip
    return conversations


def observations(sample: dict[str, Any]) -> list[Planted]:
    """Return its observations, each planted at the turn it was made from."""
    said = {t["dia_id"]: t["text"] for _, _, turns in _turns(sample) for t in turns}
    planted = []
    for by_speaker in sample.get("observation", {}).values():
        for entries in by_speaker.values():
            for statement, cited in entries:
                first = cited[0] if isinstance(cited, list) else cited
                if sentence := said.get(first, "").strip():
                    planted.append(Planted(sentence=sentence, statement=statement, fact=statement))
    return planted


def samples(given: Path) -> list[dict[str, Any]]:
    """Read locomo10.json from a file or a folder."""
    file = given if given.is_file() else next(given.rglob("locomo10.json"))
    loaded: list[dict[str, Any]] = json.loads(file.read_text("utf-8"))
    return loaded


async def locomo(
    url: str, given: list[dict[str, Any]], folder: Path
) -> list[tuple[str, float, float | None]]:
    """Run each sample as a person of its own; return (metric, value, limit)."""
    import asyncpg  # noqa: PLC0415

    from bench.bench_quality import one_pass  # noqa: PLC0415

    whole = asked = arrived = shown = planted_count = 0
    db = await asyncpg.connect(url, statement_cache_size=0)
    for number, sample in enumerate(given):
        export = folder / f"locomo-{number}.json"
        await asyncio.to_thread(export.write_text, json.dumps(as_export(sample)), "utf-8")
        planted = observations(sample)
        with AnthropicServer(truth=planted) as server:
            got = await one_pass(url, export, server, memory_max_tokens=100_000)
        pieces = await db.fetch(
            """
            select m.message_id, substr(c.content, m.start + 1, m.stop - m.start) as text
            from conversation_chunks c join fullpass.chunk_messages m on m.chunk_id = c.id
            where c.user_id = $1
            """,
            got["user"],
        )
        texts: dict[str, set[str]] = {}
        for piece in pieces:
            texts.setdefault(piece["message_id"], set()).add(piece["text"])
        for _, _, turns in _turns(sample):
            for turn in turns:
                asked += 1
                whole += any(turn["text"].strip() in t for t in texts.get(turn["dia_id"], ()))
        evidence = {e["quote"] for row in got["facts"] for e in row["evidence"]}
        statements = {row["statement"] for row in got["facts"]}
        planted_count += len(planted)
        arrived += sum(p.statement in statements or p.sentence in evidence for p in planted)
        shown += sum(p.statement in got["memory"] for p in planted)
    await db.close()
    return [
        ("locomo.evidence_kept_whole", whole / max(1, asked), 1.0),
        ("locomo.observations", planted_count, None),
        ("locomo.observations_in_facts", arrived / max(1, planted_count), 0.99),
        ("locomo.observations_in_memory", shown / max(1, planted_count), None),
    ]
