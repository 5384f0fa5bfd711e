"""Consolidating very many facts: planting them, and a process that does nothing else."""

from __future__ import annotations

import random
import resource
import time
import uuid
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import asyncpg

from daemon.database import open_pool
from daemon.fullpass.consolidate import consolidate
from daemon.fullpass.context import Pass
from daemon.llm.speed import Speeds
from daemon.queue.lease import Lease

_PEOPLE = 3_000
_VERBS = (
    "Likes",
    "Enjoys",
    "Is fond of",
    "Dislikes",
    "Wants",
    "Owns",
    "Remembers",
    "Collects",
    "Avoids",
    "Mends",
)
_KINDS = ("maps", "lamps", "clocks", "kites", "drums", "stamps", "tins", "ropes", "bells", "masks")
_CATEGORIES = ("preferences", "projects", "dates", "beliefs", "decisions")


async def plant(url: str, facts: int, seed: int = 5) -> str:
    """Put verified facts, a quarter of them repeated, straight into the table; return the person."""
    user, job = uuid.uuid4(), uuid.uuid4()
    dice = random.Random(seed)
    start = datetime(2020, 1, 1, tzinfo=UTC)

    def rows() -> Any:
        for n in range(facts):
            k = dice.randrange(facts * 3 // 4) if n % 4 == 0 else n
            verb, kind = _VERBS[k % 10], _KINDS[k // 10 % 10]
            said = f"{verb} the {kind} of Maker{k % _PEOPLE} from shelf {k // 100} in Town{k % 977}"
            slot = f"shelf {k // 100} count {k % 7}" if k % 5 == 0 else ""
            yield (user, "chatgpt", job, f"hash-{n}", f"conv-{n // 20}", f"msg-{n}", "user", _CATEGORIES[k % 5], slot,
                   said, "affirmed", "high", said, start + timedelta(minutes=n), None)  # fmt: skip

    db = await asyncpg.connect(url, statement_cache_size=0)
    try:
        await db.execute(
            "insert into processing_jobs (id, user_id, storage_path, status, lease_epoch, lease_expires_at) "
            "values ($1, $2, 'file:///none', 'processing', 1, now() + interval '1 hour')",
            job, user,
        )  # fmt: skip
        await db.copy_records_to_table(
            "extracted_facts", schema_name="fullpass", records=rows(),
            columns=["user_id", "source", "job_id", "content_hash", "conversation_id", "message_id", "origin", "category",
                     "slot", "statement", "polarity", "confidence", "quote", "observed_at", "valid_from"],
        )  # fmt: skip
        await db.execute("analyze fullpass.extracted_facts")
    finally:
        await db.close()
    return f"{user}"


class _Silent:
    """A model that is there and says nothing: the questions are made, none is answered."""

    offline = False
    speeds = Speeds()

    async def ask(self, _scope: Any, _request: Any, _read: Any) -> Any:
        return SimpleNamespace(value=SimpleNamespace(items=()))


async def consolidate_for(url: str, user: str) -> dict[str, float]:
    """Consolidate one person's facts; return seconds and the peak of this process's memory."""
    pool = await open_pool(url)
    row = await pool.fetchrow(
        "select id, lease_epoch from processing_jobs where user_id = $1", uuid.UUID(user)
    )
    assert row is not None
    lease = Lease(pool, job_id=row["id"], epoch=row["lease_epoch"], lease_seconds=60.0)
    settings: Any = SimpleNamespace(
        fact_extraction_concurrency=3,
        extraction_mode="realtime",
        extraction_model="none",
        memory_model="none",
        sections_model="none",
        memory_max_tokens=5000,
        llm_timeout_seconds=60.0,
        max_cost_usd_per_job=None,
    )
    work = Pass(
        job=SimpleNamespace(id=row["id"], user_id=uuid.UUID(user)), lease=lease, pool=pool, settings=settings,  # type: ignore[arg-type]
        caller=_Silent(), tiers=(), medium="medium", source="chatgpt",  # type: ignore[arg-type]
    )  # fmt: skip
    started = time.perf_counter()
    counts = await consolidate(work)
    seconds = time.perf_counter() - started
    await pool.close()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"seconds": seconds, "peak_mb": peak, **counts}
