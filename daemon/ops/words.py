"""Why a pass found no facts, from the person's own stored words: counts, never contents."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from uuid import UUID

if TYPE_CHECKING:
    from daemon.database import Connection

# The person's own messages of one source, each once, by what they hold. One counts as a question
# only when it holds no other sentence.
_OWN_WORDS = r"""
with own as (
    select distinct on (c.conversation_id, m.message_id)
           substr(c.content, m.start + 1, m.stop - m.start) as words, m.role,
           substr(c.content, m.start + 1, m.stop - m.start)
               ~ '^[^.!?\u3002\uff01\uff1f]*[?\uff1f]\s*$' as question
    from public.conversation_chunks c
    join fullpass.chunk_messages m on m.chunk_id = c.id
    join fullpass.conversations k
        on k.user_id = c.user_id and k.source = c.source
        and k.conversation_id = c.conversation_id and k.last_job = $3
    where c.user_id = $1 and c.source = $2 and m.role in ('user', 'instructions', 'memory')
    order by c.conversation_id, m.message_id, m.start
)
select count(*) filter (where role = 'user') as own,
       count(*) filter (where role <> 'user') as context,
       count(*) filter (where question) as questions,
       count(*) filter (
           where length(regexp_replace(words, '[\x20-\x7e\s]', '', 'g')) > length(words) / 3
       ) as other_script,
       count(*) filter (where words ~* '\m(i|my|me|we|our)\M' and not question) as first_person
from own
"""


async def no_facts_because(connection: Connection, job: dict[str, Any]) -> str:
    """Say precisely why a completed job (`daemon.ops.status.job_account`) has no facts."""
    conversations, messages = job["conversations"] or 0, job["messages"] or 0
    row = await connection.fetchrow(
        _OWN_WORDS, UUID(job["user_id"]), job["source"] or "", UUID(job["id"])
    )
    assert row is not None  # noqa: S101 - an aggregate always answers
    held = (
        f"The export holds {_count(conversations, 'conversation')} with "
        f"{_count(messages, 'message')}"
    )
    if row["context"]:
        entries = _count(row["context"], "custom instruction", "custom instructions")
        held += f" and {entries} or saved memories"
    if not row["own"] + row["context"]:
        return f"{held}; none of them is in the person's own words."
    head = f"{held}; {row['own']} of the messages {_are(row['own'])} the person's own"
    facts = job["facts"]
    if facts["unverified"]:
        reasons = ", ".join(f"{n} × {reason}" for reason, n in facts["rejected"].items())
        found = _count(facts["unverified"], "reported fact was", "reported facts were")
        return f"{head}, and {found} not believed: {reasons}."
    kinds = [f"{row['first_person'] or 'none'} with a statement in the first person"]
    if row["questions"]:
        kinds.append(_count(row["questions"], "mere question"))
    if row["other_script"]:
        kinds.append(f"{row['other_script']} not in English")
    head += f" ({', '.join(kinds)})"
    if (job["result"] or {}).get("provider") == "offline":
        return (
            f"{head}. Without a model only plain English statements about oneself are recognised "
            "(preferences, projects, dates, beliefs, decisions), and none of these is one."
        )
    return f"{head}, and the model found nothing durable about the person in them."


def _count(number: int, one: str, many: str | None = None) -> str:
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def _are(number: int) -> str:
    return "is" if number == 1 else "are"
