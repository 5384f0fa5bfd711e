"""What this database calls the sizes of chunks.

Databases differ: the column may be an enum, a domain, have a CHECK, or be plain text, with the
names micro/medium/macro or small/medium/large. The accepted names are read, never assumed.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from daemon.database import database_errors
from daemon.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from daemon.database import Pool

_RANKS = {
    "micro": ("micro", "small", "tiny", "s"),
    "medium": ("medium", "mid", "m"),
    "macro": ("macro", "large", "big", "l"),
}
# A CHECK that names what is refused, or a pattern or a length, lists no names.
_SAYS_WHAT_NOT = re.compile(r"<>|!=|\bNOT\b|~|\bLIKE\b|length\(", re.IGNORECASE)


async def accepted_tiers(pool: Pool) -> dict[str, str]:
    """Map micro, medium and macro to names that conversation_chunks.chunk_tier accepts.

    Raises UsageError when the column accepts none that could mean medium.
    """
    with database_errors():
        row = await pool.fetchrow(
            """
            select (select array_agg(e.enumlabel::text order by e.enumsortorder)
                    from pg_enum e where e.enumtypid in (t.oid, t.typbasetype)) as labels,
                   (select array_agg(pg_get_constraintdef(c.oid)) from pg_constraint c
                    where c.contype = 'c' and (c.contypid = t.oid
                          or c.conrelid = a.attrelid and a.attnum = any (c.conkey))) as checks
            from pg_attribute a join pg_type t on t.oid = a.atttypid
            where a.attrelid = 'public.conversation_chunks'::regclass
              and a.attname = 'chunk_tier' and not a.attisdropped
            """
        )
    if row is None:
        raise UsageError(
            "public.conversation_chunks has no column chunk_tier: run `fullpass migrate`"
        )
    names: list[str] = list(row["labels"] or [])
    if not names:
        for definition in row["checks"] or []:
            if not _SAYS_WHAT_NOT.search(definition.replace("IS NOT NULL", "")):
                names.extend(re.findall(r"'([^']+)'", definition))
    if not names:
        return {rank: rank for rank in _RANKS}
    found: dict[str, str] = {}
    for place, (rank, aliases) in enumerate(_RANKS.items()):
        named = next((n for alias in aliases for n in names if n.lower() == alias), None)
        # Three names of another fashion are taken by rank, in their own order.
        by_place = names[place] if len(names) == len(_RANKS) else None
        if (name := named or by_place) is not None:
            found[rank] = name
    if "medium" not in found:
        raise UsageError(
            f"conversation_chunks.chunk_tier accepts only {', '.join(names)}: none of them can be "
            "taken for medium, which extraction reads; let it accept 'medium'"
        )
    return found


def named_tiers(names: Iterable[str]) -> dict[str, str]:
    """Map micro, medium and macro to the names that CHUNK_TIERS uses for them, asking no database.

    A name that no rank knows is not in the map: `tiers_for` then says so.
    """
    given = {name.lower(): name for name in names}
    return {
        rank: next((given[alias] for alias in aliases if alias in given), rank)
        for rank, aliases in _RANKS.items()
    }
