"""The lease protocol, explored: every order of what workers, crashes and apps can do, to a depth.

Each transition calls the real SQL functions; savepoints take the search back, and a state that was
seen with as many steps left is not searched again. Checked in every state: at most one writer, an
epoch that only grows, budgets that count what they should, and that no job is stuck for ever. The
mutations show that the search would find it if the fence, the refund or the ticket were missing.
"""

from __future__ import annotations

import os
import uuid
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

LONG = os.environ.get("FULLPASS_FAULTS") == "long"
DEPTH = 5 if LONG else 4
WORKERS = ("a", "b")
JOBS = (uuid.UUID(int=1), uuid.UUID(int=2))
OPEN = ("pending", "processing")


@dataclass(frozen=True)
class Known:
    """What the model knows beside the rows: who believes to hold what, and what was done."""

    beliefs: tuple[tuple[str, uuid.UUID, int], ...] = ()
    errors: tuple[int, ...] = (0, 0)
    """Errors of the job's own since its last retry: what `attempts` must count."""
    epochs: tuple[int, ...] = (0, 0)
    finished: tuple[str | None, ...] = (None, None)


@dataclass
class Search:
    """A depth-first search over one connection's open transaction."""

    db: asyncpg.Connection[asyncpg.Record]
    seen: dict[Any, int] = field(default_factory=dict)
    edges: int = 0

    async def explore(self, known: Known, depth: int, path: tuple[str, ...] = ()) -> None:
        known = await self.check(known, path)
        key = await self.abstract(known)
        if self.seen.get(key, -1) >= depth:
            return
        self.seen[key] = depth
        if depth == 0:
            await self.check_not_stuck(path)
            return
        for name, step in self.steps(known):
            async with self.taken_back():
                self.edges += 1
                await self.explore(await step(), depth - 1, (*path, name))

    def steps(self, known: Known) -> list[tuple[str, Any]]:
        found: list[tuple[str, Any]] = []
        for worker in WORKERS:
            found.append((f"claim {worker}", partial(self.claim, known, worker)))
            if any(w == worker for w, _, _ in known.beliefs):
                found.append((f"beat {worker}", partial(self.beat, known, worker)))
                found.append((f"die {worker}", partial(self.die, known, worker)))
        for belief in known.beliefs:
            ends = ("write", "complete", "fail", "release", "wait", "yield")
            found += [(f"{end} {belief[0]}", partial(self.act, known, belief, end)) for end in ends]
        found.append(("expire", partial(self.expire, known)))
        found.append(("cancel", partial(self.app, known, "cancel")))
        found.append(("retry", partial(self.app, known, "retry")))
        found.append(("time passes", partial(self.time_passes, known)))
        return found

    # Transitions

    async def claim(self, known: Known, worker: str) -> Known:
        job = await self.db.fetchrow("select * from fullpass.claim($1, 60, 'model')", worker)
        if job is None:
            return known
        return replace(known, beliefs=(*known.beliefs, (worker, job["id"], job["lease_epoch"])))

    async def beat(self, known: Known, worker: str) -> Known:
        mine = [(j, e) for w, j, e in known.beliefs if w == worker]
        rows = await self.db.fetch(
            "select * from fullpass.beat($1, $2, $3, 60, '{}')",
            worker,
            [j for j, _ in mine],
            [e for _, e in mine],
        )
        verdicts = {row["job_id"]: row["verdict"] for row in rows}
        for job, epoch in mine:
            if len([j for j, _ in mine if j == job]) == 1:
                holds = await self.holds(job, epoch)
                assert (verdicts[job] != "lost") == holds, "a beat told an untruth"
        return known

    async def die(self, known: Known, worker: str) -> Known:
        return replace(known, beliefs=tuple(b for b in known.beliefs if b[0] != worker))

    async def act(self, known: Known, belief: tuple[str, uuid.UUID, int], end: str) -> Known:
        _, job, epoch = belief
        held = await self.holds(job, epoch)
        asked = await self.db.fetchval(
            "select cancel_requested_at is not null from processing_jobs where id = $1", job
        )
        statement = {
            "write": "select fullpass.hold($1, $2, 60)",
            "complete": "select fullpass.complete($1, $2, '{}', '{}')",
            "fail": "select fullpass.fail($1, $2, 'step: no', true)",
            "release": "select fullpass.release($1, $2, 0, 'drain', 3600)",
            "wait": "select fullpass.release($1, $2, 30, 'outage', 3600)",
            "yield": "select fullpass.yield_cancelled($1, $2)",
        }[end]
        refused = None
        try:
            async with self.db.transaction():
                await self.db.execute(statement, job, epoch)
        except asyncpg.PostgresError as error:
            refused = error.sqlstate
        done = refused is None
        assert refused in {None, "FP002" if held else "FP001"}
        assert done == (held and not (end == "write" and asked)), f"{end} by a zombie was accepted"
        n = JOBS.index(job)
        errors = list(known.errors)
        if done and end == "fail" and not asked:
            errors[n] += 1
        return replace(known, errors=tuple(errors))

    async def expire(self, known: Known) -> Known:
        await self.db.execute(
            "update processing_jobs set lease_expires_at = clock_timestamp() - interval '1 s' "
            "where status = 'processing'"
        )
        return known

    async def app(self, known: Known, what: str) -> Known:
        changed = await self.db.fetchval(f"select fullpass.{what}($1)", JOBS[0])
        if what == "retry" and changed:
            finished = (None, *known.finished[1:])
            return replace(known, errors=(0, *known.errors[1:]), finished=finished)
        return known

    async def time_passes(self, known: Known) -> Known:
        await self.db.execute("update processing_jobs set run_at = now() where status = 'pending'")
        await self.db.execute("update fullpass.tickets set due_at = now() where not ready")
        return known

    # What must hold

    async def holds(self, job: uuid.UUID, epoch: int) -> bool:
        held: bool = await self.db.fetchval(
            "select exists (select from processing_jobs "
            "where id = $1 and lease_epoch = $2 and status = 'processing')",
            job,
            epoch,
        )
        return held

    async def check(self, known: Known, path: tuple[str, ...]) -> Known:
        rows = await self.db.fetch("select * from processing_jobs order by id")
        epochs, finished = [], []
        for n, row in enumerate(rows):
            assert row["lease_epoch"] >= known.epochs[n], path
            writers = [
                w
                for w, j, e in known.beliefs
                if j == row["id"] and e == row["lease_epoch"] and row["status"] == "processing"
            ]
            assert len(writers) <= 1, (path, writers)
            if row["status"] in OPEN or row["error_message"] == "step: no":
                running = row["status"] == "processing"
                assert row["attempts"] == known.errors[n] + running, (path, row["attempts"])
            assert row["crashes"] <= 2, path
            before = known.finished[n]
            assert before is None or before == row["status"] or path[-1].startswith("beat"), path
            epochs.append(row["lease_epoch"])
            finished.append(None if row["status"] in OPEN else row["status"])
        running = [row["user_id"] for row in rows if row["status"] == "processing"]
        assert len(running) == len(set(running)), path
        return replace(known, epochs=tuple(epochs), finished=tuple(finished))

    async def check_not_stuck(self, path: tuple[str, ...]) -> None:
        """With every worker gone and time passing, a fresh worker ends every job."""
        async with self.taken_back():
            for n in range(12):
                await self.expire(Known())
                await self.time_passes(Known())
                if not await self.db.fetchval(
                    "select count(*) from processing_jobs where status in ('pending', 'processing')"
                ):
                    return
                row = await self.db.fetchrow("select * from fullpass.claim($1, 60, 'm')", f"z{n}")
                if row is not None:
                    await self.db.execute(
                        "select fullpass.complete($1, $2, '{}', '{}')",
                        row["id"],
                        row["lease_epoch"],
                    )
            left = await self.db.fetch("select id, status from processing_jobs")
            raise AssertionError(f"stuck after {path}: {left}")

    async def abstract(self, known: Known) -> Any:
        rows = await self.db.fetch(
            """
            select j.id, j.status, j.attempts, j.crashes, j.cancel_requested_at is null,
                   j.lease_epoch, j.lease_expires_at < clock_timestamp(),
                   j.run_at <= clock_timestamp(), j.worker_id, p.alone, p.death_worker,
                   p.death_epoch = j.lease_epoch - 1, p.death_counted, p.waiting_since is null
            from processing_jobs j left join fullpass.passes p on p.job_id = j.id order by j.id
            """
        )
        tickets = await self.db.fetch(
            "select user_id, ready, alone, reserved_by, count(*) > 0 from fullpass.tickets "
            "group by 1, 2, 3, 4 order by 1, 2, 3, 4"
        )
        # A sweep asks who still beats.
        beats = await self.db.fetch(
            "select worker_id, last_beat_at > clock_timestamp() - interval '10 seconds' "
            "from fullpass.workers order by 1"
        )
        epoch_of = {row["id"]: row["lease_epoch"] for row in rows}
        beliefs = frozenset((w, j, epoch_of[j] - e) for w, j, e in known.beliefs)
        shapes = tuple(tuple(v for k, v in row.items() if k != "lease_epoch") for row in rows)
        lines = (*(tuple(t) for t in tickets), *(tuple(b) for b in beats))
        return shapes, lines, beliefs, known.errors, known.finished

    @asynccontextmanager
    async def taken_back(self) -> AsyncIterator[None]:
        transaction = self.db.transaction()
        await transaction.start()
        try:
            yield
        finally:
            await transaction.rollback()


async def search(url: str, *, one_user: bool, depth: int, mutation: str = "") -> Search:
    db = await asyncpg.connect(url)
    try:
        if mutation:
            await db.execute(mutation)
        transaction = db.transaction()
        await transaction.start()
        for n, job in enumerate(JOBS):
            await db.execute(
                "insert into processing_jobs (id, user_id, storage_path) values ($1, $2, $3)",
                job,
                uuid.UUID(int=9 if one_user else 9 + n),
                f"exports/{n}",
            )
        found = Search(db)
        await found.explore(Known(), depth)
        return found
    finally:
        db.terminate()


@pytest.mark.parametrize("one_user", [True, False])
async def test_no_order_of_events_gives_two_writers_or_a_stuck_job(
    database_url: str,
    one_user: bool,  # noqa: FBT001 - a parameter of the test
) -> None:
    found = await search(database_url, one_user=one_user, depth=DEPTH)
    assert found.edges > 500


REFUND = "v.attempts := greatest(0, coalesce(v.attempts, 0) - 1);"
MUTATIONS = {
    "the fence of a write": [("hold", " and lease_epoch = p_epoch", "")],
    "the fence of an ending": [("grip", " and lease_epoch = p_epoch", "")],
    # Any one of them would do: claim, and whatever ended the lease before.
    "an epoch that grows": [
        ("take", "lease_epoch = 1 + greatest", "lease_epoch = greatest"),
        ("sweep", "v_pass.lease_epoch) + 1", "v_pass.lease_epoch)"),
    ],
    "the refund of a sweep": [("sweep", REFUND, "")],
    "the refund of a release": [("release", REFUND, "")],
    "the ticket of what goes back": [
        ("queue_updated", "if new.run_at is distinct", "if false and new.run_at is distinct")
    ],
    "the sweep in a claim": [("claim", "perform fullpass.sweep();", "")],
    "one job of a user at a time": [
        ("claim", "j.user_id = v_ticket.user_id and j.status = 'processing'", "false")
    ],
}


@pytest.mark.parametrize("what", MUTATIONS)
async def test_the_search_finds_it_when_a_guard_is_missing(database_url: str, what: str) -> None:
    db = await asyncpg.connect(database_url)
    mutations = []
    for function, before, after in MUTATIONS[what]:
        definition = await db.fetchval(
            "select pg_get_functiondef(p.oid) from pg_proc p "
            "where p.pronamespace = 'fullpass'::regnamespace and p.proname = $1",
            function,
        )
        assert before in definition
        mutations.append(definition.replace(before, after))
    if what == "one job of a user at a time":
        mutations.append("drop index public.processing_jobs_one_running")
    await db.close()
    with pytest.raises(AssertionError):
        await search(database_url, one_user=True, depth=4, mutation=";\n".join(mutations))
