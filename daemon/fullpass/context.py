"""What every step of one pass works with."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, get_args

from daemon.database import database_errors
from daemon.errors import FullpassError
from daemon.fullpass.time_left import TimeLeft, in_words
from daemon.llm.caller import Scope

if TYPE_CHECKING:
    import asyncpg

    from daemon.database import Connection, Pool
    from daemon.fullpass.turns import Tier
    from daemon.llm.batches import Batches
    from daemon.llm.caller import Caller
    from daemon.queue.jobs import Job
    from daemon.queue.lease import Lease
    from daemon.settings import Settings

Step = Literal[
    "download_conversations",
    "chunk_conversations",
    "save_chunks",
    "extract_facts",
    "consolidate_facts",
    "reduce_facts",
    "generate_memory",
    "save_memory",
    "regenerate_sections",
]
STEPS: tuple[Step, ...] = get_args(Step)

# Percent at which each step begins, by the share of a pass it usually takes.
STARTS: dict[Step, int] = {
    "download_conversations": 1,
    "chunk_conversations": 3,
    "save_chunks": 5,
    "extract_facts": 20,
    "consolidate_facts": 80,
    "reduce_facts": 83,
    "generate_memory": 87,
    "save_memory": 92,
    "regenerate_sections": 94,
}
STAGES: dict[Step, str] = {
    "download_conversations": "Downloading your conversations",
    "chunk_conversations": "Reading your conversations",
    "save_chunks": "Saving your conversations",
    "extract_facts": "Learning from your conversations",
    "consolidate_facts": "Putting facts together",
    "reduce_facts": "Choosing what matters",
    "generate_memory": "Writing your memory",
    "save_memory": "Saving your memory",
    "regenerate_sections": "Describing how to work with you",
}
BEFORE_FACTS = frozenset(
    {"download_conversations", "chunk_conversations", "save_chunks", "extract_facts"}
)
_TELL_SECONDS = 1.0
EARLY_STAGE = "Writing a first memory; more is being read"


@dataclass(slots=True)
class Pass:
    """One attempt at one job. Holds no results: those are rows (DESIGN, Flow)."""

    job: Job
    lease: Lease
    pool: Pool
    settings: Settings
    caller: Caller
    tiers: tuple[Tier, ...]
    medium: str
    """What this database calls the tier that extraction reads."""
    source: str = ""
    step: Step = "download_conversations"
    a_window_was_read: bool = False
    """Whether the model could read any window of this job yet."""
    windows_unread: int = 0
    """Before that."""
    batches: Batches | None = None
    """The provider's message batches; None where it has none."""
    early: bool = False
    """While a first MEMORY is made from a part: progress stands where the reading stands."""
    left: TimeLeft = field(init=False)

    def __post_init__(self) -> None:
        self.left = TimeLeft(self.caller.speeds, self.settings, self.caller.offline)

    async def fetch(self, query: str, *arguments: object) -> list[asyncpg.Record]:
        """Read rows; raises Systemic on trouble with the database."""
        with database_errors():
            return await self.pool.fetch(query, *arguments)

    async def fetchrow(self, query: str, *arguments: object) -> asyncpg.Record | None:
        """Read one row; raises Systemic on trouble with the database."""
        with database_errors():
            return await self.pool.fetchrow(query, *arguments)

    async def fetchval(self, query: str, *arguments: object) -> Any:
        """Read one value; raises Systemic on trouble with the database."""
        with database_errors():
            return await self.pool.fetchval(query, *arguments)

    @property
    def scope(self) -> Scope:
        """On whose behalf model calls are made."""
        return Scope(
            job_id=self.job.id,
            user_id=self.job.user_id,
            holder=self.lease,
            max_cost_usd=self.settings.max_cost_usd_per_job,
        )

    @property
    def extractor(self) -> Literal["llm", "offline"]:
        """Which kind of reader this pass has; an offline one never replaces a model's."""
        return "offline" if self.caller.offline else "llm"


async def report_progress(
    work: Pass,
    connection: Connection,
    *,
    share: float = 0.0,
    conversations: int | None = None,
    messages: int | None = None,
    advanced: bool = False,
) -> None:
    """Write where the pass stands, inside a fenced transaction; `share` is the step's own 0–1.

    `advanced` says that something new was saved with it, which an attempt after this one need not
    do again: it clears the job of earlier deaths and waits.
    """
    step = work.step
    if work.early:
        step, share = "extract_facts", 0.0
    start = STARTS[step]
    later = [p for p in STARTS.values() if p > start]
    end = min(later) if later else 99
    seconds_left = None if _by_batch(work) else work.left.seconds(step, share)
    work.left.tell(seconds_left)
    await connection.execute(
        "select fullpass.progress($1, $2, $3, $4, $5, $6, $7, $8)",
        work.job.id,
        step,
        int(start + (end - start) * min(1.0, max(0.0, share))),
        _stage(work, seconds_left),
        conversations,
        messages,
        advanced,
        seconds_left,
    )


async def keep_telling(work: Pass, over: asyncio.Event) -> None:
    """Say the time left anew whenever it is another than what stands there, until `over`.

    Between two writes of progress the number counts down by itself; but a call may take longer than
    it should, and the words stand still. It is no progress: a step that hangs is noticed all the
    same (promise 6).
    """
    while True:
        with suppress(TimeoutError):
            await asyncio.wait_for(over.wait(), _TELL_SECONDS)
            return
        seconds_left = None if _by_batch(work) else work.left.anew(work.step)
        if seconds_left is None:
            continue
        try:
            async with work.lease.fenced(progress=False) as connection:
                await connection.execute(
                    "select fullpass.tell_time_left($1, $2, $3)",
                    work.job.id, _stage(work, seconds_left), seconds_left,
                )  # fmt: skip
        except FullpassError:
            continue  # the step meets it too, and knows what to do
        work.left.tell(seconds_left)


def _by_batch(work: Pass) -> bool:
    """Whether the work waits for a batch: what goes by batch is back when it is back."""
    batch = work.settings.extraction_mode == "batch"
    return work.early or (batch and work.step in BEFORE_FACTS)


def _stage(work: Pass, seconds_left: float | None) -> str:
    stage = EARLY_STAGE if work.early else STAGES[work.step]
    return stage if seconds_left is None else f"{stage}, {in_words(seconds_left)}"
