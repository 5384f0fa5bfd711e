"""Step regenerate_sections: soul, identity, user, agents, tools, from MEMORY and samples.

All five are valid and saved together with `soulprint_text`, or none is: yesterday's stay and the
pass completes, saying so (promise 10).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from daemon.errors import BadCall, Draining, Systemic, UselessReply, Wait
from daemon.export.conversation import EVIDENCE_ROLES
from daemon.fullpass.context import report_progress
from daemon.fullpass.facts import objects, one_line
from daemon.fullpass.forecast import SECTIONS_CHARACTERS
from daemon.fullpass.memory import SOULPRINT_MEMORY, without_citations
from daemon.fullpass.prompts import prompt
from daemon.fullpass.reduce import numbered
from daemon.llm.request import Reply, Request
from daemon.logs import get_logger

if TYPE_CHECKING:
    from collections.abc import Mapping

    from daemon.fullpass.context import Pass
    from daemon.fullpass.reduce import Reduced

_log = get_logger()

UNKNOWN = "not enough data"
SECTIONS: dict[str, dict[str, type]] = {
    "soul": {
        "communication_style": str, "personality_traits": list, "tone_preferences": str,
        "boundaries": str, "humor_style": str, "formality_level": str, "emotional_patterns": str,
    },
    "identity": {
        "ai_name": str, "archetype": str, "vibe": str, "emoji_style": str,
        "signature_greeting": str,
    },
    "user": {
        "name": str, "location": str, "occupation": str, "relationships": list, "interests": list,
        "life_context": str, "preferred_address": str,
    },
    "agents": {
        "response_style": str, "behavioral_rules": list, "context_adaptation": str,
        "memory_directives": str, "do_not": list,
    },
    "tools": {
        "likely_usage": list, "capabilities_emphasis": list, "output_preferences": str,
        "depth_preference": str,
    },
}  # fmt: skip
"""The keys of each section, as the app reads them (CONTRACT, user_profiles)."""

_TRIES = 2
_SAMPLES = 200
_SAMPLE_CHARACTERS = 300
_LONGEST_TEXT = 1000
_LONGEST_LIST = 30

Sections = dict[str, dict[str, str | list[str]]]


@dataclass(frozen=True, slots=True)
class SectionsOutcome:
    """Whether the sections were saved, and if not, why."""

    saved: bool
    detail: str = ""


def _schema() -> dict[str, Any]:
    kinds: dict[type, dict[str, Any]] = {
        str: {"type": "string"},
        list: {"type": "array", "items": {"type": "string"}},
    }
    return {
        "type": "object",
        "properties": {
            name: {
                "type": "object",
                "properties": {key: kinds[kind] for key, kind in keys.items()},
                "required": list(keys),
                "additionalProperties": False,
            }
            for name, keys in SECTIONS.items()
        },
        "required": list(SECTIONS),
        "additionalProperties": False,
    }


async def regenerate(work: Pass, reduced: Reduced, memory_md: str) -> SectionsOutcome:
    """Write and save the five sections; a failure of theirs is an outcome, not an error."""
    work.step = "regenerate_sections"
    async with work.lease.fenced() as connection:
        await report_progress(work, connection)
    conversations = await work.fetchval(
        "select count(*) from fullpass.conversations where user_id = $1 and own_characters > 0",
        work.job.user_id,
    )
    if conversations < work.settings.min_conversations:
        return SectionsOutcome(
            saved=False,
            detail=f"{conversations} conversations, fewer than "
            f"MIN_CONVERSATIONS={work.settings.min_conversations}",
        )
    if await _would_replace_a_models(work):
        return SectionsOutcome(saved=False, detail="offline sections never replace a model's")
    work.left.expect("sections", waves=1, characters=SECTIONS_CHARACTERS)
    instructions = prompt("sections")
    request = Request(
        purpose="sections",
        prompt_version=instructions.version,
        model=work.settings.sections_model,
        system=instructions.text,
        text=f"MEMORY\n\n{without_citations(memory_md)}\nSAMPLES\n\n{await _samples(work)}",
        schema=_schema(),
        max_tokens=8_192,
        timeout_seconds=work.settings.sections_timeout_seconds,
        facts=numbered(reduced.items),
        tries=_TRIES,
    )
    try:
        answer = await work.caller.ask(work.scope, request, _read)
    except (BadCall, UselessReply) as error:
        _log.warning("sections.kept", error=str(error))
        return SectionsOutcome(saved=False, detail=f"the model's sections were not valid: {error}")
    except Wait as error:
        if isinstance(error, Draining | Systemic):
            raise
        # MEMORY is there, so the pass does not wait for these.
        _log.warning("sections.kept", error=str(error))
        return SectionsOutcome(saved=False, detail=str(error))
    work.left.answered("sections", characters=len(answer.reply.text))
    await _save(work, answer.value, memory_md)
    return SectionsOutcome(saved=True)


async def _would_replace_a_models(work: Pass) -> bool:
    return work.caller.offline and bool(
        await work.fetchval(
            """
            select exists (select from fullpass.memories
                           where user_id = $1 and writer <> 'offline')
            """,
            work.job.user_id,
        )
    )


async def _samples(work: Pass) -> str:
    """Return the person's own words from their richest conversations, spread over time."""
    rows = await work.fetch(
        """
        with spread as (
            select source, conversation_id, created_at, own_characters,
                   ntile(20) over (order by created_at, conversation_id) as period
            from fullpass.conversations where user_id = $1 and own_characters > 0
        ), richest as (
            select *, row_number() over (
                partition by period order by own_characters desc, conversation_id) as place
            from spread
        )
        select r.created_at, string_agg(
                   substr(c.content, m.start + 1, m.stop - m.start), ' ' order by m.ordinal
               ) as words
        from richest r
        join public.conversation_chunks c
            on c.user_id = $1 and c.source = r.source and c.conversation_id = r.conversation_id
            and c.chunk_tier::text = $2 and c.chunk_index = 0
        join fullpass.chunk_messages m on m.chunk_id = c.id and m.role = any ($3)
        where r.place <= $4
        group by r.created_at, r.conversation_id
        order by r.created_at, r.conversation_id
        """,
        work.job.user_id, work.medium, list(EVIDENCE_ROLES), _SAMPLES // 20,
    )  # fmt: skip
    return "\n".join(
        f"[{row['created_at']:%Y-%m}] {one_line(row['words'])[:_SAMPLE_CHARACTERS]}" for row in rows
    )


def _read(reply: Reply) -> Sections:
    """Read all five sections of a reply, or raise UselessReply naming what is wrong."""
    given = next((v for v, _ in objects(reply.text) if SECTIONS.keys() & v.keys()), None)
    if given is None:
        raise UselessReply("the reply holds no whole JSON object with the sections")
    return {name: _section(name, given.get(name), keys) for name, keys in SECTIONS.items()}


def _section(name: str, given: object, keys: Mapping[str, type]) -> dict[str, str | list[str]]:
    if not isinstance(given, dict):
        raise UselessReply(f"the section {name} is missing")
    section: dict[str, str | list[str]] = {}
    for key, kind in keys.items():
        value = given.get(key)
        if kind is list:
            if not isinstance(value, list):
                raise UselessReply(f"{name}.{key} is no list")
            texts = [one_line(str(v))[:_LONGEST_TEXT] for v in value[:_LONGEST_LIST]]
            section[key] = [t for t in texts if t]
        else:
            if not isinstance(value, str):
                raise UselessReply(f"{name}.{key} is no text")
            section[key] = one_line(value)[:_LONGEST_TEXT] or UNKNOWN
    return section


async def _save(work: Pass, sections: Sections, memory_md: str) -> None:
    texts = {name: json.dumps(section, ensure_ascii=False) for name, section in sections.items()}
    async with work.lease.fenced() as connection:
        await connection.execute(
            """
            update public.user_profiles set
                soul_md = $2, identity_md = $3, user_md = $4, agents_md = $5, tools_md = $6,
                soulprint_text = $7
            where user_id = $1
            """,
            work.job.user_id, *(texts[name] for name in SECTIONS), soulprint(sections, memory_md),
        )  # fmt: skip
        await connection.execute(
            "update fullpass.passes set sections_saved_at = clock_timestamp() where job_id = $1",
            work.job.id,
        )
        await report_progress(work, connection, share=1.0)


def soulprint(sections: Sections, memory_md: str) -> str:
    """Render the sections as `## Title` blocks of labelled values and lists, MEMORY last."""
    parts: list[str] = []
    for name, section in sections.items():
        lines = [f"## {name.title()}", ""]
        for key, value in section.items():
            label = key.replace("_", " ").capitalize()
            if isinstance(value, list):
                lines.append(f"**{label}:**" + ("" if value else f" {UNKNOWN}"))
                lines.extend(f"- {entry}" for entry in value)
            else:
                lines.append(f"**{label}:** {value}")
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + f"{SOULPRINT_MEMORY}{memory_md.strip()}\n"
