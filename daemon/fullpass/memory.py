"""Steps generate_memory and save_memory: the page about the person, and its way to the profile.

The model proposes lines; code decides. A line is kept only if every fact it cites exists and its
words and numbers come from those facts; facts that no kept line covers are added as they stand
while the budget lasts. So MEMORY says nothing that no fact supports, and a model that fails or
invents can cost style but never truth: then it is a plain rendering, and says so.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from daemon.errors import BadCall, UselessReply
from daemon.fullpass.context import report_progress
from daemon.fullpass.facts import CATEGORIES, ReadItems, fold, one_line, read_items
from daemon.fullpass.meaning import says_only
from daemon.fullpass.prompts import prompt
from daemon.fullpass.reduce import by_rank, fact_lines, numbered
from daemon.fullpass.time_left import memory_characters
from daemon.fullpass.tokens import estimate_tokens
from daemon.fullpass.wording import is_filler, read
from daemon.llm.request import Reply, Request
from daemon.logs import get_logger

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime
    from uuid import UUID

    from daemon.fullpass.context import Pass
    from daemon.fullpass.reduce import Item, Reduced

_log = get_logger()

HEADINGS = {
    "preferences": "## Preferences",
    "projects": "## Projects",
    "dates": "## Important Dates",
    "beliefs": "## Beliefs & Values",
    "decisions": "## Decisions",
}
SOULPRINT_MEMORY = "\n\n# MEMORY\n\n"
"""Where MEMORY begins in the soulprint, which ends with it; no line of a section can hold this."""
NO_DATA = "No data yet."
Writer = Literal["llm", "rendering", "offline"]

_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "lines": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {
                    "category": {"type": "string", "enum": list(CATEGORIES)},
                    "text": {"type": "string"},
                    "facts": {"type": "array", "items": {"type": "integer"}},
                },
                "required": ["category", "text", "facts"],
                "additionalProperties": False,
            },
        }
    },
    "required": ["lines"],
    "additionalProperties": False,
}


@dataclass(frozen=True, slots=True)
class Line:
    """One line of MEMORY: what it says, since when, and by which facts."""

    category: str
    text: str
    observed_at: datetime | None
    ids: tuple[UUID, ...]
    weight: int = 1

    @property
    def statement(self) -> str:
        """Its text, by the name that the ranking knows."""
        return self.text

    def render(self) -> str:
        """Render as a list item with date and citations."""
        date = f" ({self.observed_at:%Y-%m-%d})" if self.observed_at is not None else ""
        cited = ", ".join(f"f:{i.hex[:8]}" for i in self.ids)
        return f"- {self.text}{date} [{cited}]"


@dataclass(frozen=True, slots=True)
class Memory:
    """A written MEMORY with the account of how it came about."""

    markdown: str
    writer: Writer
    facts: int
    details: dict[str, int]


async def generate(work: Pass, reduced: Reduced) -> Memory:
    """Write MEMORY from the reduced facts."""
    work.step = "generate_memory"
    items = reduced.items
    if items:
        statements = sum(len(item.statement) for item in items)
        work.left.expect("memory", waves=1, characters=memory_characters(statements, len(items)))
    async with work.lease.fenced() as connection:
        await report_progress(work, connection)
    proposed: list[dict[str, Any]] = []
    writer: Writer = "offline" if work.caller.offline else "llm"
    if items and not work.caller.offline:
        try:
            proposed = list((await _ask(work, items)).items)
        except (BadCall, UselessReply) as error:
            _log.warning("memory.rendered", error=str(error))
            writer = "rendering"
    lines, details = accept(proposed, items)
    kept, dropped = _fit(lines, work.settings.memory_max_tokens)
    details |= {"lines": len(kept), "lines_over_budget": dropped}
    facts = len({i for line in kept for i in line.ids})
    return Memory(render(kept), writer, facts, details)


async def _ask(work: Pass, items: Sequence[Item]) -> ReadItems:
    instructions = prompt("memory")
    facts = numbered(items)
    request = Request(
        purpose="memory",
        prompt_version=instructions.version,
        model=work.settings.memory_model,
        system=instructions.text,
        text=fact_lines(facts),
        schema=_SCHEMA,
        max_tokens=max(8_192, 4 * work.settings.memory_max_tokens),
        timeout_seconds=max(work.settings.llm_timeout_seconds, 120.0),
        facts=facts,
    )
    answer = await work.caller.ask(work.scope, request, _read)
    work.left.answered("memory", characters=len(answer.reply.text))
    return answer.value


def _read(reply: Reply) -> ReadItems:
    if reply.stop_reason == "refusal":
        raise UselessReply("the model refused to write MEMORY")
    return read_items(reply.text, "lines")


def accept(
    proposed: Sequence[dict[str, Any]], items: Sequence[Item]
) -> tuple[list[Line], dict[str, int]]:
    """Keep the proposed lines that their facts support; add every fact that no kept line covers."""
    lines: list[Line] = []
    covered: set[int] = set()
    rejected = 0
    for proposal in proposed:
        given = proposal.get("facts")
        cited = sorted({n for n in (given if isinstance(given, list) else []) if type(n) is int})
        text = one_line(str(proposal.get("text", "")))
        if (
            not cited
            or cited[0] < 1
            or cited[-1] > len(items)
            or covered.intersection(cited)
            or not supported(text, [items[n - 1].statement for n in cited])
        ):
            rejected += 1
            continue
        covered.update(cited)
        lines.append(_line(text, [items[n - 1] for n in cited]))
    plain = [_line(i.statement, [i]) for n, i in enumerate(items, start=1) if n not in covered]
    return lines + plain, {
        "lines_accepted": len(lines),
        "lines_rejected": rejected,
        "facts_added_as_they_stand": len(plain),
    }


def _line(text: str, items: Sequence[Item]) -> Line:
    dates = [i.observed_at for i in items if i.observed_at is not None]
    category = Counter(i.category for i in items).most_common(1)[0][0]
    return Line(
        category=category,
        text=_plain(text),
        observed_at=max(dates, default=None),
        ids=tuple(i for item in items for i in item.ids),
        weight=max(i.weight for i in items),
    )


def supported(text: str, statements: Sequence[str]) -> bool:
    """Whether a line says only what its facts say, as far as code can tell.

    Each number must be one of theirs and each of theirs must be kept; so must words, read with the
    wording set aside ("resides in" for "lives in"), denials, names and order (`says_only`). What is
    refused costs style only: the facts stand as they are.
    """
    if not text:
        return False
    source = " ".join(statements)
    if set(re.findall(r"\d+", text)) != set(re.findall(r"\d+", source)):
        return False
    if _strung_together(text, statements):
        return True
    line = read(text)
    facts = [read(statement) for statement in statements]
    values = {v for fact in facts for v in fact.values}
    return set(line.values) == values and says_only(line, facts)


def _strung_together(text: str, statements: Sequence[str]) -> bool:
    """Whether a line is its facts as they stand, with words between them that say nothing."""
    rest = fold(text)
    for statement in sorted(map(fold, statements), key=len, reverse=True):
        # Whole words: "employed" does not stand in "unemployed".
        bare = re.escape(statement.rstrip(".!。 "))
        rest, found = re.subn(rf"(?<!\w){bare}(?!\w)", " ", rest, count=1)
        if not found:
            return False
    return all(is_filler(word) for word in re.findall(r"\w+", rest))


def _plain(text: str) -> str:
    """Return text that cannot break out of its list item: no markup, no citation of its own.

    What only looks like markup stays: "less than 5" is not "5", and -18 is not 18.
    """
    while _CITATION.search(text):  # taking one away may make another
        text = _CITATION.sub("", text)
    text = re.sub(r"<(?=[A-Za-z/!?])", "\u2039", text).replace("`", "'").replace("|", "/")
    return re.sub(r"^(?:(?:[#*>+-]+|\d+[.)])\s+)+", "", text).strip()


_CITATION = re.compile(r"\[f:[0-9a-f, :]*\]")


def _fit(lines: list[Line], budget: int) -> tuple[list[Line], int]:
    """Keep the best-ranked lines (`by_rank`) that the budget holds, newest first; count the rest.

    A line too long for what is left is passed over. The budget is that of the whole document.
    """
    left = budget - estimate_tokens(render([]))
    kept: list[Line] = []
    for line in by_rank(lines):
        cost = estimate_tokens(line.render()) + 1
        if cost <= left:
            left -= cost
            kept.append(line)
    while kept and estimate_tokens(render(kept)) > budget:
        kept.pop()
    kept.sort(
        key=lambda line: (
            -(line.observed_at.timestamp() if line.observed_at else float("-inf")), line.text
        )
    )  # fmt: skip
    return kept, len(lines) - len(kept)


def render(lines: Sequence[Line]) -> str:
    """Render MEMORY: five headings, always, each with its lines newest first."""
    parts: list[str] = []
    for category, heading in HEADINGS.items():
        own = [line.render() for line in lines if line.category == category]
        parts.append("\n".join([heading, "", *(own or [NO_DATA])]))
    return "\n\n".join(parts) + "\n"


def without_citations(markdown: str) -> str:
    """Return MEMORY as prompts use it."""
    return re.sub(r" \[f:[0-9a-f]{8}(?:, f:[0-9a-f]{8})*\]", "", markdown)


async def save(work: Pass, memory: Memory) -> bool:
    """Save MEMORY to the profile at once; False when an offline one would replace a model's."""
    work.step = "save_memory"
    async with work.lease.fenced() as connection:
        previous = await connection.fetchval(
            """
            select writer from fullpass.memories
            where user_id = $1 and job_id <> $2 order by created_at desc limit 1
            """,
            work.job.user_id, work.job.id,
        )  # fmt: skip
        applied = not (memory.writer == "offline" and previous in {"llm", "rendering"})
        if applied:
            await connection.execute(
                """
                insert into fullpass.memories (job_id, user_id, writer, memory_md, facts, details)
                values ($1, $2, $3, $4, $5, $6)
                on conflict (job_id) do update set
                    writer = excluded.writer, memory_md = excluded.memory_md,
                    facts = excluded.facts, details = excluded.details,
                    created_at = clock_timestamp()
                """,
                work.job.id, work.job.user_id, memory.writer, memory.markdown, memory.facts,
                json.dumps(memory.details),
            )  # fmt: skip
            # The soulprint ends with it. Its sections may stay yesterday's (promise 10); what the
            # person deleted must not stay with them.
            await connection.execute(
                """
                update public.user_profiles set
                    memory_md = $2,
                    soulprint_text = case
                        when position($3 in soulprint_text) > 0
                        then split_part(soulprint_text, $3, 1) || $3 || $2
                        else soulprint_text end
                where user_id = $1
                """,
                work.job.user_id, memory.markdown, SOULPRINT_MEMORY,
            )  # fmt: skip
            await connection.execute(
                "update fullpass.passes set memory_saved_at = clock_timestamp() where job_id = $1",
                work.job.id,
            )
        await report_progress(work, connection)
    return applied
