"""Asking a model about the pairs that rules leave open: same, replaced, or separate.

A question is put once: pairs go in batches whose borders follow from the pairs themselves, so that
a new fact changes one batch and the others are served from the ledger (promise 3). What a model
says is advice: guards and rules decide what may come of it, and no answer means "separate".
"""

from __future__ import annotations

import asyncio
from collections import Counter
from hashlib import sha256
from math import ceil
from typing import TYPE_CHECKING, Any, Literal

from daemon.errors import BadCall, UselessReply
from daemon.fullpass.facts import ReadItems, one_line, read_items
from daemon.fullpass.prompts import prompt
from daemon.llm.request import Reply, Request
from daemon.logs import get_logger

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from daemon.fullpass.context import Pass

_log = get_logger()

Relation = Literal["same", "replaces", "separate"]
_RELATIONS: dict[str, Relation] = {
    "same": "same", "replaces": "replaces", "separate": "separate",
}  # fmt: skip
_LARGEST_BATCH = 60
_USUAL_BATCH = 30
_LONGEST_STATEMENT = 400
_MOST_TELLING = 300
_VERDICT_CHARACTERS = len('{"pair": 12, "relation": "separate"}, ')
_SECOND_ASK = 3
"""Beyond the re-asks of a useless reply: the same batch again is another call."""

_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "pairs": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {
                    "pair": {"type": "integer"},
                    "relation": {"type": "string", "enum": ["same", "replaces", "separate"]},
                },
                "required": ["pair", "relation"],
                "additionalProperties": False,
            },
        }
    },
    "required": ["pairs"],
    "additionalProperties": False,
}

Pair = tuple[str, str]
"""The earlier statement and the later one."""


async def judge(work: Pass, pairs: Sequence[Pair], counts: Counter[str]) -> dict[Pair, Relation]:
    """Return what a model says of each pair; pairs it is silent about are missing.

    `pairs` come most telling first. The first of them, and all of which the answer would change
    facts (same, replaces), are put a second time in other company and, if the two answers differ, a
    third: two must agree, three that one replaces the other, or it was not answered. A slip seldom
    comes twice.
    """
    abreast = max(1, work.settings.fact_extraction_concurrency)
    telling = set(pairs[:_MOST_TELLING])
    # What comes after the second round is seldom much, and not known before.
    later = ceil(len(list(batched(pairs[:_MOST_TELLING]))) / abreast)
    first = await _asked(work, list(batched(pairs)), counts, ask=0, later=later)
    again = [p for p, relation in first.items() if relation != "separate" or p in telling]
    third_at_least = [p for p in again if first[p] == "replaces"]
    later = ceil(len(_turned(third_at_least)) / abreast)
    second = await _asked(work, _turned(again), counts, ask=_SECOND_ASK, later=later)
    disputed = [pair for pair in again if second.get(pair, first[pair]) != first[pair]]
    counts["pairs_disputed"] += len(disputed)
    # What would take a fact out of MEMORY is asked until three agree, four times at most.
    grave = [pair for pair in again if first[pair] == second.get(pair) == "replaces"]
    third = await _asked(work, _turned([*disputed, *grave]), counts, ask=2 * _SECOND_ASK)
    rounds = (first, second, third)
    open_still = [p for p in third if [r.get(p) for r in rounds].count("replaces") == 2]
    fourth = await _asked(work, _turned(open_still), counts, ask=3 * _SECOND_ASK)
    settled: dict[Pair, Relation] = {}
    for pair in first:
        votes = [answers[pair] for answers in (*rounds, fourth) if pair in answers]
        relation, agreeing = Counter(votes).most_common(1)[0]
        if agreeing >= min(len(votes), 3 if relation == "replaces" else 2):
            settled[pair] = relation
    return settled


def _turned(pairs: Sequence[Pair]) -> list[list[Pair]]:
    return [list(reversed(batch)) for batch in batched(pairs)]


async def _asked(
    work: Pass, batches: list[list[Pair]], counts: Counter[str], *, ask: int, later: int = 0
) -> dict[Pair, Relation]:
    said: dict[Pair, Relation] = {}
    abreast = max(1, work.settings.fact_extraction_concurrency)
    pairs = sum(map(len, batches))
    work.left.expect(
        "same",
        waves=ceil(len(batches) / abreast) + later,
        characters=pairs / max(1, len(batches)) * _VERDICT_CHARACTERS,
    )
    for start in range(0, len(batches), abreast):
        # All of a wave land, so that what was paid has its receipt (promise 2).
        answers = await asyncio.gather(
            *(_ask(work, batch, ask=ask) for batch in batches[start : start + abreast]),
            return_exceptions=True,
        )
        for batch, answer in zip(batches[start:], answers, strict=False):
            if isinstance(answer, BadCall | UselessReply):
                _log.warning("facts.unjudged", pairs=len(batch), error=str(answer))
                counts["pairs_unjudged"] += len(batch)
            elif isinstance(answer, BaseException):
                raise answer
            else:
                said |= answer
        work.left.answered("same")
    return said


def batched(pairs: Sequence[Pair]) -> Iterator[list[Pair]]:
    """Split distinct pairs into batches whose borders depend on the pairs near them only."""
    batch: list[Pair] = []
    for pair in sorted(set(pairs)):
        batch.append(pair)
        digest = sha256("\x1f".join(pair).encode("utf-8", "surrogatepass")).digest()
        if digest[0] % _USUAL_BATCH == 0 or len(batch) == _LARGEST_BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


async def _ask(work: Pass, batch: list[Pair], *, ask: int) -> dict[Pair, Relation]:
    instructions = prompt("same")
    request = Request(
        purpose="same",
        prompt_version=instructions.version,
        model=work.settings.memory_model,
        system=instructions.text,
        # Each round is a question of its own on the wire too: nothing is sent twice.
        text=f"Round {ask // _SECOND_ASK + 1}\n"
        + "\n".join(
            f"{{{n}}} {_shown(earlier)} | {_shown(later)}"
            for n, (earlier, later) in enumerate(batch, start=1)
        ),
        schema=_SCHEMA,
        max_tokens=4_096,
        timeout_seconds=work.settings.llm_timeout_seconds,
        ask=ask,
    )
    items = (await work.caller.ask(work.scope, request, _read)).value.items
    said: dict[Pair, Relation] = {}
    for item in items:
        if (told := _told(item)) is not None and 1 <= told[0] <= len(batch):
            said[batch[told[0] - 1]] = told[1]
    return said


def _told(item: dict[str, Any]) -> tuple[int, Relation] | None:
    """Return the number and the relation that one item of a reply tells, if it does."""
    number, relation = item.get("pair"), item.get("relation")
    if type(number) is not int or not isinstance(relation, str) or relation not in _RELATIONS:
        return None
    return number, _RELATIONS[relation]


def _shown(statement: str) -> str:
    return one_line(statement).replace("|", "/")[:_LONGEST_STATEMENT]


def _read(reply: Reply) -> ReadItems:
    if reply.stop_reason == "refusal":
        return ReadItems((), whole=False)
    return read_items(reply.text, "pairs")
