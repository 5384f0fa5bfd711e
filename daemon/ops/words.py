"""Why a pass found no facts, from the person's own stored words: counts, never contents."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from uuid import UUID

if TYPE_CHECKING:
    from daemon.database import Connection

# The person's own messages of one source, each once, by what kind of sentence they end with. A
# message of many sentences that ends with a question may still state something: it counts as a
# question only when it holds no other sentence.
_OWN_WORDS = r"""
with own as (
    select distinct on (c.conversation_id, m.message_id)
           substr(c.content, m.start + 1, m.stop - m.start) as words
    from public.conversation_chunks c
    join fullpass.chunk_messages m on m.chunk_id = c.id
    where c.user_id = $1 and c.source = $2 and m.role in ('user', 'instructions', 'memory')
    order by c.conversation_id, m.message_id, m.start
)
select count(*) as own,
       count(*) filter (where words ~ '^[^.!?\u3002\uff01\uff1f]*[?\uff1f]\s*$') as questions,
       count(*) filter (
           where length(regexp_replace(words, '[\x20-\x7e\s]', '', 'g')) > length(words) / 3
       ) as foreign_script,
       count(*) filter (
           where words ~* '\m(i|my|me|we|our)\M'
             and words !~ '^[^.!?\u3002\uff01\uff1f]*[?\uff1f]\s*$'
       ) as first_person
from own
"""


async def no_facts_because(connection: Connection, job: dict[str, Any]) -> str:
    """Say precisely why a completed job (`job_account`) has no facts."""
    conversations, messages = job["conversations"] or 0, job["messages"] or 0
    if not conversations:
        return "the export holds no conversation that may be read."
    row = await connection.fetchrow(_OWN_WORDS, UUID(job["user_id"]), job["source"] or "")
    own = 0 if row is None else row["own"]
    held = (
        f"The export holds {_count(conversations, 'conversation')} with "
        f"{_count(messages, 'message')}"
    )
    if row is None or not own:
        return f"{held}, none of them in the person's own words."
    head = f"{held}, {own} of them in the person's own words"
    rejected = job["facts"]["unverified"]
    if rejected:
        reasons = ", ".join(f"{n} × {reason}" for reason, n in job["facts"]["rejected"].items())
        return f"{head}; {_count(rejected, 'fact')} reported and not believed: {reasons}."
    kinds = [
        f"{row['questions']} only ask a question" if row["questions"] else "",
        f"{row['foreign_script']} are not in English" if row["foreign_script"] else "",
        f"{row['first_person'] or 'none of them'} state something in the first person",
    ]
    counted = ", ".join(kind for kind in kinds if kind)
    if (job["result"] or {}).get("provider") == "offline":
        return (
            f"{head}: {counted}. Without a model only plain English statements about oneself "
            "(preferences, projects, dates, beliefs, decisions) are recognised, and none of these "
            "is one."
        )
    return f"{head}: {counted}. The model found nothing durable about the person in them."


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
