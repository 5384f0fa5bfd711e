"""The page that Prometheus reads: what was counted, the worker's vitals, the queue's length.

Owns names and meaning of the gauges; the counters stand in `daemon.instruments`. Promises a bounded
number of series (no label holds an id, a path or a text, promise 11), and an answer within seconds
whatever the database does: figures it does not give in time are left out.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, ProcessCollector
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector

from daemon import __version__
from daemon.database import database_errors
from daemon.errors import FullpassError
from daemon.instruments import REGISTRY

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prometheus_client import Metric

    from daemon.database import Pool
    from daemon.ops.vital_signs import Sign, VitalSigns

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
    select coalesce(run_at, created_at) as since from public.processing_jobs
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
        self._registry = CollectorRegistry()
        self._registry.register(_Gauges(signs, self._queue))
        ProcessCollector(registry=self._registry)

    async def page(self) -> tuple[bytes, str]:
        """Return the page and its content type."""
        async with self._counting:
            if self._queue_at is None or time.monotonic() > self._queue_at + _QUEUE_AGE_SECONDS:
                await self._count_queue()
        return generate_latest(REGISTRY) + generate_latest(self._registry), CONTENT_TYPE_LATEST

    async def _count_queue(self) -> None:
        """Have the worker's loop ask the database; do without if it does not answer in time."""
        self._queue.clear()
        seen = self._signs.attended
        if seen is None:
            return
        counting = _queue_figures(seen.pool)
        try:
            asked = asyncio.run_coroutine_threadsafe(counting, seen.echo.loop)
        except RuntimeError:  # the worker's loop is closed: it has just ended
            counting.close()
            return
        try:
            async with asyncio.timeout(_QUEUE_SECONDS):
                figures = await asyncio.wrap_future(asked)
        except (TimeoutError, FullpassError):
            asked.cancel()
            return
        self._queue.update(figures)
        self._queue_at = time.monotonic()


async def _queue_figures(pool: Pool) -> dict[str, float]:
    with database_errors():
        row = await pool.fetchrow(_QUEUE, timeout=_QUEUE_SECONDS)
    figures: dict[str, float] = dict(row or {})
    return figures


class _Gauges(Collector):
    """What is so at this moment."""

    def __init__(self, signs: VitalSigns, queue: dict[str, float]) -> None:
        self._signs = signs
        self._queue = queue

    def collect(self) -> Iterator[Metric]:
        signs = self._signs
        info = GaugeMetricFamily("fullpass_worker_info", "Always 1.", labels=["version"])
        info.add_metric([__version__], 1)
        yield info
        yield _gauge("fullpass_worker_healthy", "1 when /healthz is.", _well(signs.alive()))
        yield _gauge("fullpass_worker_ready", "1 when /readyz is.", _well(signs.ready()))
        vitals: dict[str, Any] = signs.vitals()
        waits = vitals["waiting_for"] is not None
        yield _gauge(
            "fullpass_worker_waiting", "1 while no job is claimed: every one would meet it.", waits
        )
        for key, (name, said) in _VITALS.items():
            if vitals.get(key) is not None:
                yield _gauge(name, said, vitals[key])
        if (seen := signs.attended) is not None:
            yield _gauge("fullpass_jobs_running", "Jobs at work here.", seen.heartbeat.jobs)
            yield _gauge(
                "fullpass_loop_silent_seconds",
                "How long the worker's event loop has owed an answer.",
                seen.echo.silent_seconds,
            )
            yield _gauge(
                "fullpass_claiming_late_seconds",
                "How long the next look for work is overdue.",
                seen.pulse.late_seconds,
            )
        if (age := signs.beat_age_seconds) is not None:
            yield _gauge(
                "fullpass_beat_age_seconds", "Since the database acknowledged a beat.", age
            )
        if self._queue:
            yield _gauge(
                "fullpass_queue_due_jobs",
                f"Jobs that are due, of all workers; {MOST_DUE} means that many or more.",
                self._queue["due"],
            )
            yield _gauge(
                "fullpass_queue_oldest_due_seconds",
                "How long the oldest of these has been due.",
                self._queue["oldest_due_seconds"],
            )
            yield _gauge(
                "fullpass_queue_processing_jobs",
                "Jobs at work, of all workers.",
                self._queue["processing"],
            )


def _gauge(name: str, said: str, value: float) -> Metric:
    return GaugeMetricFamily(name, said, value=float(value))


def _well(signs: list[Sign]) -> bool:
    return all(sign.well for sign in signs)
