"""The page that Prometheus reads: what was counted, the worker's vitals, the queue's length.

Owns names and meaning of the gauges; the counters stand in `daemon.instruments`. Promises a bounded
number of series (no label holds an id, a path or a text, promise 11), and an answer within seconds
whatever the database does: figures it does not give in time are left out.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

import asyncpg
import psutil

from daemon import __version__
from daemon.database import database_errors
from daemon.errors import FullpassError
from daemon.instruments import COUNTERS, HISTOGRAMS, SECONDS

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from daemon.database import Pool
    from daemon.ops.vital_signs import Sign, VitalSigns

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_QUEUE_SECONDS = 2.0
_QUEUE_AGE_SECONDS = 10.0
"""However often it is asked, the database counts no more often than this."""
MOST_DUE = 10_000

# Bounded work, however long the queue: more than so many are not counted.
_QUEUE = f"""
select count(*)::float8 as due,
       coalesce(extract(epoch from clock_timestamp() - min(d.since)), 0)::float8
           as oldest_due_seconds,
       (select count(*) from public.processing_jobs where status = 'processing')::float8
           as processing
from (
    select coalesce(
        case when run_at between '1970-01-01 UTC' and '9999-01-01 UTC' then run_at end,
        case when created_at between '1970-01-01 UTC' and '9999-01-01 UTC' then created_at end
    ) as since
    from public.processing_jobs
    where status = 'pending' and coalesce(run_at, '-infinity') <= clock_timestamp()
    limit {MOST_DUE}
) as d
"""

_VITALS = {
    "peak_rss_bytes": ("fullpass_worker_peak_rss_bytes", "The most memory it ever had resident."),
    "memory_limit_bytes": ("fullpass_worker_memory_limit_bytes", "The limit that counts."),
    "llm_in_flight": ("fullpass_llm_calls_in_flight", "Model calls under way."),
    "llm_limit": ("fullpass_llm_calls_limit", "Model calls that may be under way."),
}


class Metrics:
    """Makes the page for one worker; called on the health port's own loop."""

    def __init__(self, signs: VitalSigns) -> None:
        self._signs = signs
        self._queue: dict[str, float] = {}
        self._queue_at: float | None = None
        self._counting = asyncio.Lock()
        self._process = psutil.Process()

    async def page(self) -> tuple[bytes, str]:
        """Return the page and its content type."""
        async with self._counting:
            if self._queue_at is None or time.monotonic() > self._queue_at + _QUEUE_AGE_SECONDS:
                await self._count_queue()
        lines = [*_counted(), *self._gauges(), *self._of_process()]
        return "".join(f"{line}\n" for line in lines).encode(), CONTENT_TYPE

    async def _count_queue(self) -> None:
        """Have the worker's loop ask the database; do without if it does not answer in time."""
        self._queue.clear()
        seen = self._signs.attended
        if seen is None:
            return
        # Also when it fails: whoever asks meanwhile is not to wait for the same again.
        self._queue_at = time.monotonic()
        counting = _queue_figures(seen.pool)
        try:
            asked = asyncio.run_coroutine_threadsafe(counting, seen.echo.loop)
        except RuntimeError:  # the worker's loop is closed: it has just ended
            counting.close()
            return
        try:
            async with asyncio.timeout(_QUEUE_SECONDS):
                figures = await asyncio.wrap_future(asked)
        except (TimeoutError, FullpassError, asyncpg.PostgresError):
            asked.cancel()
            return
        self._queue.update(figures)

    def _gauges(self) -> Iterator[str]:
        signs = self._signs
        yield from _family(
            "fullpass_worker_info", "gauge", "Always 1.", [("", {"version": __version__}, 1.0)]
        )
        yield from _gauge("fullpass_worker_healthy", "1 when /healthz is.", _well(signs.alive()))
        yield from _gauge("fullpass_worker_ready", "1 when /readyz is.", _well(signs.ready()))
        vitals: dict[str, Any] = signs.vitals()
        waits = vitals["waiting_for"] is not None
        yield from _gauge(
            "fullpass_worker_waiting", "1 while no job is claimed: every one would meet it.", waits
        )
        for key, (name, said) in _VITALS.items():
            if vitals.get(key) is not None:
                yield from _gauge(name, said, vitals[key])
        if (seen := signs.attended) is not None:
            yield from _gauge("fullpass_jobs_running", "Jobs at work here.", seen.heartbeat.jobs)
            yield from _gauge(
                "fullpass_loop_silent_seconds",
                "How long the worker's event loop has owed an answer.",
                seen.echo.silent_seconds,
            )
            yield from _gauge(
                "fullpass_claiming_late_seconds",
                "How long the next look for work is overdue.",
                seen.pulse.late_seconds,
            )
        if (age := signs.beat_age_seconds) is not None:
            yield from _gauge(
                "fullpass_beat_age_seconds", "Since the database acknowledged a beat.", age
            )
        if self._queue:
            yield from _gauge(
                "fullpass_queue_due_jobs",
                f"Jobs that are due, of all workers; {MOST_DUE} means that many or more.",
                self._queue["due"],
            )
            yield from _gauge(
                "fullpass_queue_oldest_due_seconds",
                "How long the oldest of these has been due.",
                self._queue["oldest_due_seconds"],
            )
            yield from _gauge(
                "fullpass_queue_processing_jobs",
                "Jobs at work, of all workers.",
                self._queue["processing"],
            )

    def _of_process(self) -> Iterator[str]:
        process = self._process
        with process.oneshot():
            cpu = process.cpu_times()
            yield from _family(
                "process_cpu_seconds_total", "counter", "CPU time, user and system.",
                [("", {}, cpu.user + cpu.system)],
            )  # fmt: skip
            yield from _gauge(
                "process_resident_memory_bytes", "Resident memory.", process.memory_info().rss
            )
            yield from _gauge(
                "process_start_time_seconds", "Start, since the epoch.", process.create_time()
            )
            yield from _gauge("process_open_fds", "Open files and sockets.", process.num_fds())


async def _queue_figures(pool: Pool) -> dict[str, float]:
    with database_errors():
        row = await pool.fetchrow(_QUEUE, timeout=_QUEUE_SECONDS)
    figures: dict[str, float] = dict(row or {})
    return figures


# --- the text format of Prometheus, version 0.0.4


def _counted() -> Iterator[str]:
    for counter in COUNTERS:
        samples = [
            ("", dict(zip(counter.labels, values, strict=True)), count)
            for values, count in dict(counter.values).items()
        ]
        yield from _family(counter.name, "counter", counter.said, samples)
    for histogram in HISTOGRAMS:
        samples = []
        for value, counts in dict(histogram.buckets).items():
            label = {histogram.label: value}
            total = 0
            for bound, count in zip((*map(str, SECONDS), "+Inf"), tuple(counts), strict=True):
                total += count
                samples.append(("_bucket", {**label, "le": bound}, total))
            samples.append(("_count", label, total))
            samples.append(("_sum", label, histogram.sums.get(value, 0.0)))
        yield from _family(histogram.name, "histogram", histogram.said, samples)


def _gauge(name: str, said: str, value: float) -> Iterator[str]:
    return _family(name, "gauge", said, [("", {}, value)])


def _family(
    name: str, kind: str, said: str, samples: Iterable[tuple[str, dict[str, str], float]]
) -> Iterator[str]:
    """Give the lines of one metric; names, labels and words are all from this code."""
    yield f"# HELP {name} {said}"
    yield f"# TYPE {name} {kind}"
    for suffix, labels, value in samples:
        shown = ",".join(f'{label}="{word}"' for label, word in labels.items())
        yield (
            f"{name}{suffix}{{{shown}}} {float(value)!r}"
            if shown
            else (f"{name}{suffix} {float(value)!r}")
        )


def _well(signs: list[Sign]) -> bool:
    return all(sign.well for sign in signs)
