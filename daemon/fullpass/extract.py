"""Step extract_facts: every unread chunk to the model, in parallel; every chunk an outcome.

Windows are worked by a few more tasks than calls are allowed, those of all years in turn. When one
fails, no new window is started, but those in flight land: their receipts and their effects are kept
(promises 2 and 4). What reading one window means is `outcomes.py`; which windows go by batch is
`batch.py`.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING

from daemon.errors import PoorCoverage
from daemon.fullpass import batch, windows
from daemon.fullpass.chunks import CHUNKING_VERSION
from daemon.fullpass.context import report_progress
from daemon.fullpass.outcomes import read_window

if TYPE_CHECKING:
    from collections.abc import Sequence

    from daemon.fullpass.context import Pass

_PAGE = 10_000
"""Windows queued at a time, which is a number each."""
_STATEMENTS = 4_000
"""Of the facts that a person had, so many tell how often they repeat themselves."""
_GOLDEN = (5**0.5 - 1) / 2
AHEAD = 2
"""Tasks beyond the calls allowed: while one stores what came, another has its window ready."""


@dataclass(frozen=True, slots=True)
class Coverage:
    """How much of the person's text of this source was read, in chunks."""

    chunks: int
    outcomes: dict[str, int]

    @property
    def read(self) -> int:
        """Chunks whose text was read, with or without facts."""
        return sum(n for o, n in self.outcomes.items() if o in {"ok", "empty", "salvaged", "split"})

    @property
    def share(self) -> float:
        """`read` of all chunks, 1.0 when there are none."""
        return self.read / self.chunks if self.chunks else 1.0


async def extract(work: Pass) -> Coverage | None:
    """Read every unread chunk; None when some of them are still out by batch.

    Raises PoorCoverage below MIN_EXTRACTION_COVERAGE.
    """
    work.step = "extract_facts"
    async with work.lease.fenced() as connection:
        await report_progress(work, connection)
    total = await windows.plan(work)
    await _expect(work, total)
    work.a_window_was_read = await _read_before(work)
    async with work.lease.fenced() as connection:
        await report_progress(work, connection)
    if total and not await batch.read_all(work, lambda: _work_all(work, total)):
        return None
    coverage = await measure_coverage(work)
    floor = work.settings.min_extraction_coverage
    if coverage.share < floor:
        counts = ", ".join(f"{n} {o}" for o, n in sorted(coverage.outcomes.items()))
        why = await work.fetchval(
            """
            select detail from fullpass.chunk_outcomes
            where user_id = $1 and source = $2 and outcome in ('failed', 'refused')
            group by detail order by count(*) desc, detail limit 1
            """,
            work.job.user_id, work.source,
        )  # fmt: skip
        raise PoorCoverage(
            f"only {coverage.read} of {coverage.chunks} chunks could be read ({counts}; mostly: "
            f"{why}), below MIN_EXTRACTION_COVERAGE={floor:g}; no MEMORY is written from so "
            "little: mend that, then retry the job"
        )
    return coverage


async def _read_before(work: Pass) -> bool:
    """Whether this model read a window in an earlier attempt at this job: then it can be used."""
    read: bool = await work.fetchval(
        """
        select exists (
            select from fullpass.windows w
            join fullpass.chunk_outcomes o
                on o.user_id = w.user_id and o.content_hash = w.content_hashes[1]
            where w.user_id = $1 and w.source = $2 and w.state = 'done' and w.model = $3
              and o.job_id = $4 and o.outcome in ('ok', 'empty', 'salvaged', 'split'))
        """,
        work.job.user_id, work.source, work.settings.extraction_model, work.job.id,
    )  # fmt: skip
    return read


async def _expect(work: Pass, total: int) -> None:
    """Tell the estimate of time what is before it."""
    row = await work.fetchrow(
        """
        select (select coalesce(sum(token_count), 0)::bigint from fullpass.windows
                where user_id = $1 and source = $2 and state = 'planned') as tokens,
               (select count(*) from fullpass.extracted_facts
                where user_id = $1 and rejected is null) as facts,
               array(select statement from fullpass.extracted_facts
                     where user_id = $1 and rejected is null order by id desc limit $3) as newest,
               (select count(*) from fullpass.conversations
                where user_id = $1 and own_characters > 0) as conversations
        """,
        work.job.user_id, work.source, _STATEMENTS,
    )  # fmt: skip
    if row is not None:
        work.left.planned(
            windows=total, tokens=row["tokens"], facts=row["facts"], newest=row["newest"]
        )
        work.left.sections = row["conversations"] >= work.settings.min_conversations


async def learn_speeds(work: Pass) -> None:
    """Tell the estimate of time what calls took others, if this worker made none yet."""
    speeds = work.caller.speeds
    if work.caller.offline or speeds.knows(work.settings.extraction_model):
        return
    for call in await work.fetch(
        """
        select model, length(response) as characters, output_tokens, latency_ms from (
            select id, model, response, output_tokens, latency_ms from fullpass.llm_calls
            where response <> '' and latency_ms > 0 and not batch
            order by id desc limit 200) as newest
        order by id
        """
    ):
        speeds.seen(
            call["model"],
            call["characters"],
            call["latency_ms"] / 1000,
            output_tokens=call["output_tokens"],
            past=True,
        )


async def _work_all(work: Pass, total: int) -> None:
    """Work all planned windows but those out by batch, as many at a time as keep calls going."""
    queue: asyncio.Queue[int] = asyncio.Queue()
    done = 0
    newest = 0
    failure: BaseException | None = None
    running = 0

    async def refill() -> None:
        nonlocal newest
        page = await windows.planned(work, after=newest, limit=_PAGE)
        for window_id in spread(page):
            queue.put_nowait(window_id)
        newest = page[-1] if page else newest

    async def worker() -> None:
        nonlocal done, failure, running, total
        while failure is None:
            if queue.empty():
                await refill()
            if queue.empty():
                # Another task's window may yet split in two.
                if running == 0:
                    return
                await asyncio.sleep(0.02)
                continue
            window_id = queue.get_nowait()
            running += 1
            try:
                with work.left.window():
                    parts = await read_window(work, window_id, done / total)
                total += parts
                work.left.split(parts)
                done += 1
            except BaseException as error:  # noqa: BLE001 - raised below, when all have landed
                failure = failure or error
            finally:
                running -= 1

    await refill()
    calls = work.settings.fact_extraction_concurrency
    tasks = calls + AHEAD if calls > 1 else 1  # one at a time means just that
    await asyncio.gather(*(worker() for _ in range(min(tasks, max(total, 1)))))
    if failure is not None:
        raise failure


def spread(windows: Sequence[int]) -> list[int]:
    """Return windows in an order in which the first few stand evenly among all.

    They are planned by the time of their conversations, and people's lives differ by years: what
    was read so far speaks for the rest only if it is of every part (decision 0126).
    """
    return [windows[n] for n in sorted(range(len(windows)), key=lambda n: n * _GOLDEN % 1)]


async def measure_coverage(work: Pass) -> Coverage:
    """Count the outcomes of all chunks of this person and source."""
    rows = await work.fetch(
        """
        select coalesce(o.outcome, 'unread') as outcome, count(*) as chunks
        from public.conversation_chunks c
        left join fullpass.chunk_outcomes o
            on o.user_id = c.user_id and o.content_hash = c.content_hash
        where c.user_id = $1 and c.source = $2 and c.chunk_tier::text = $3
          and c.chunking_version = $4
        group by 1
        """,
        work.job.user_id, work.source, work.medium, CHUNKING_VERSION,
    )  # fmt: skip
    outcomes = {row["outcome"]: row["chunks"] for row in rows}
    return Coverage(chunks=sum(outcomes.values()), outcomes=outcomes)
