"""How quickly an export becomes rows, and in how much memory.

    python bench/bench_ingest.py                     # about ten minutes
    python bench/bench_ingest.py --full              # gigabytes in every container
    python bench/bench_ingest.py --export F          # your own export instead of made-up ones
    python bench/bench_ingest.py --only speed --rounds 9

Exports come from the loopback Storage server into the rows of a Postgres (an embedded one unless
--database-url names an empty database). Each round of the speed part runs its controls over the
same file: a textbook scanner that looks at each byte, one that leaps over strings by an expression,
and the product's own scanner doing nothing else. The limits are shares of the quickest of the
three. Memory is the resident sum over the worker's process tree; Postgres and the Storage server
are not part of it. A table for people, then one JSON line a metric; exit 1 when a limit is missed,
3 when the control was too noisy to tell.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import statistics
import sys
import sysconfig
import tempfile
import time
import uuid
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Any

import asyncpg

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench import ingest_measure as measure
from bench.ingest_export import Container, Made, write_export, write_single
from bench.metrics import Metric
from daemon import migrations
from daemon.embedded import EmbeddedPostgres
from daemon.export.redact import redact_each
from daemon.logs import configure_logs
from tests.support.storage_server import StorageServer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

MB = measure.MB
PARTS = ("speed", "memory", "single", "two", "ten", "redaction")
NOISY_SHARE = 0.35
"""More spread than this in the control between rounds: the machine was busy with something else."""
_TWO_JOBS_BYTES = 512 * 1024 * 1024
_DEADLINE_SECONDS = 3_600.0


class Bench:
    """A database, a Storage server and a folder of exports."""

    def __init__(
        self, url: str, storage: StorageServer, folder: Path, options: argparse.Namespace
    ) -> None:
        self._url = url
        self._storage = storage
        self._folder = folder
        self._options = options
        self.control_spread = 0.0

    # --- exports and jobs

    def export(self, megabytes: float, container: Container = "plain", *, seed: int = 7) -> Made:
        """Write an export into the bucket; the one from outside, where one was given."""
        path = self._folder / f"{megabytes:g}-{seed}.{container}"
        if self._options.export is not None:
            given: Path = self._options.export.resolve()
            path = self._folder / given.name
            if not path.exists():
                path.symlink_to(given)
            return Made(path, given.stat().st_size, -1, -1, -1, -1)
        return write_export(path, megabytes=megabytes, seed=seed, container=container)

    @contextlib.contextmanager
    def worker(self, *arguments: str, **settings: object) -> Iterator[Any]:
        """Start a worker as it runs in production, the model's SDK imported."""
        with measure.worker(
            {
                "DATABASE_URL": self._url,
                "SUPABASE_URL": self._storage.url,
                "SUPABASE_SERVICE_KEY": self._storage.key,
                "ANTHROPIC_API_KEY": "unused",
                "ANTHROPIC_BASE_URL": "http://127.0.0.1:9",
                "MAX_JOBS_PER_USER_PER_DAY": 0,
                "POLL_INTERVAL_SECONDS": 0.2,
                **settings,
            },
            *arguments,
        ) as process:
            yield process

    def asked(self, query: str, *arguments: object) -> list[asyncpg.Record]:
        """Run one query."""

        async def fetch() -> list[asyncpg.Record]:
            db = await asyncpg.connect(self._url, statement_cache_size=0)
            try:
                return list(await db.fetch(query, *arguments, timeout=300))
            finally:
                await db.close()

        return asyncio.run(fetch())

    def enqueue(self, made: Made) -> uuid.UUID:
        """Queue an export for a person who has none yet."""
        rows = self.asked(
            "insert into processing_jobs (user_id, storage_path) values ($1, $2) returning id",
            uuid.uuid4(),
            f"exports/{made.path.name}",
        )
        job: uuid.UUID = rows[0]["id"]
        return job

    def finished(self, *jobs: uuid.UUID) -> float:
        """Wait for jobs; return the seconds from the first start to the last end.

        Raises SystemExit when one did not complete.
        """
        deadline = time.monotonic() + _DEADLINE_SECONDS
        while True:
            rows = self.asked(
                "select status, error_message, started_at, completed_at from processing_jobs "
                "where id = any ($1)",
                list(jobs),
            )
            if all(row["status"] not in {"pending", "processing"} for row in rows):
                break
            if time.monotonic() > deadline:
                sys.exit("bench_ingest: a job did not end")
            time.sleep(0.1)  # the deadline is above; the database is asked now and then
        for row in rows:
            if row["status"] != "complete":
                sys.exit(f"bench_ingest: a job ended as {row['status']}: {row['error_message']}")
        first, last = min(r["started_at"] for r in rows), max(r["completed_at"] for r in rows)
        return float((last - first).total_seconds())

    def check(self, job: uuid.UUID, made: Made) -> None:
        """Make sure that what was timed is all there: conversations, messages, redactions."""
        (row,) = self.asked(
            """
            select j.conversation_count, j.message_count,
                   (p.ingest->>'damaged')::int as damaged, (p.ingest->>'redacted')::int as redacted,
                   (select count(distinct conversation_id) from conversation_chunks c
                    where c.user_id = j.user_id) as stored
            from processing_jobs j join fullpass.passes p on p.job_id = j.id where j.id = $1
            """,
            job,
        )
        if made.conversations < 0:
            return
        found = (row["conversation_count"], row["message_count"], row["stored"])
        if found != (made.conversations, made.messages, made.conversations):
            sys.exit(f"bench_ingest: {found} came out of {made}")
        if row["damaged"] != made.damaged or row["redacted"] < made.secrets:
            sys.exit(f"bench_ingest: {dict(row)} of {made}")

    def clear(self) -> None:
        """Make room: only what is being measured lies in the database and in the bucket."""
        self.asked(
            "truncate conversation_chunks, fullpass.conversations, fullpass.staged_chunks cascade"
        )
        for path in self._folder.iterdir():
            path.unlink()

    # --- parts

    def speed(self) -> list[Metric]:
        """Rates over one file, beside the controls."""
        made = self.export(self._options.speed_megabytes)
        megabytes = made.path.stat().st_size / MB
        steps: dict[str, Callable[[Path], int]] = {
            "control_textbook": measure.textbook_scanner,
            "control_leaping": measure.quick_scanner,
            "control_own_scanner": measure.own_scanner,
            "parse_and_linearise": measure.parse,
            "read_with_redaction": measure.read,
            "read_and_cut": measure.read_and_cut,
        }
        rates: dict[str, list[float]] = {name: [] for name in (*steps, "end_to_end")}
        used: list[measure.Processor] = []
        with self.worker() as process:
            self.finished(self.enqueue(self._small()))  # it is up and warm
            for _ in range(self._options.rounds):
                for name, step in steps.items():
                    started = time.perf_counter()
                    step(made.path)
                    rates[name].append(megabytes / (time.perf_counter() - started))
                before = self._processor_used(process.pid)
                job = self.enqueue(made)
                rates["end_to_end"].append(megabytes / self.finished(job))
                used.append(self._processor_used(process.pid).since(before))
                self.check(job, made)
                self.asked("truncate conversation_chunks, fullpass.conversations cascade")
            process.terminate()
            process.wait()
        controls = [n for n in rates if n.startswith("control")]
        bare = max(controls, key=lambda name: statistics.median(rates[name]))
        fastest = rates[bare]
        self.control_spread = (max(fastest) - min(fastest)) / max(fastest)

        def share(name: str) -> float:
            return statistics.median(a / b for a, b in zip(rates[name], fastest, strict=True))

        self.clear()
        return [
            *(Metric(f"{n}_mb_per_second", statistics.median(r), "MB/s") for n, r in rates.items()),
            *(
                Metric(
                    f"{name}_processor_ms_per_mb",
                    statistics.median(getattr(u, name) for u in used) / megabytes * 1_000,
                    "ms/MB",
                )
                for name in ("reader", "worker", "postgres")
            ),
            Metric("end_to_end_share_of_leaping_scanner", statistics.median(
                a / b for a, b in zip(rates["end_to_end"], rates["control_leaping"], strict=True)), "×"),
            Metric("parse_share_of_bare_scanner", share("parse_and_linearise"), "×", 0.7, at_least=True),
            Metric("end_to_end_share_of_bare_scanner", share("end_to_end"), "×", 0.35, at_least=True),
        ]  # fmt: skip

    def _processor_used(self, worker_pid: int) -> measure.Processor:
        """Ask the processes themselves; a server from outside may run on another machine."""
        own = self._options.database_url is None
        rows = self.asked("select pid from pg_stat_activity") if own else []
        return measure.processor_used(worker_pid, [row["pid"] for row in rows])

    def _small(self) -> Made:
        return write_export(self._folder / "small.json", megabytes=0.2)

    def memory(self) -> list[Metric]:
        """Peak of the process tree by size and container."""
        metrics: list[Metric] = []
        sizes: list[float] = self._options.sizes
        plain: dict[float, float] = {}
        for size in sizes:
            whole = self._options.full or size == min(sizes)
            containers: tuple[Container, ...] = ("plain", "gz", "zip") if whole else ("plain",)
            for container in containers:
                made = self.export(size, container)
                peak, seconds = self._peak_of(made)
                name = f"{size:g}_mb_{container}"
                rate = made.json_bytes / MB / seconds
                metrics += [
                    Metric(f"peak_rss_mb_{name}", peak.rss_mb, "MB", 180),
                    Metric(f"peak_pss_mb_{name}", peak.pss_mb, "MB"),
                    Metric(f"mb_per_second_{name}", rate, "MB/s"),
                ]
                if container == "plain":
                    plain[size] = peak.rss_mb
                self.clear()
                if self._options.export is not None:
                    return metrics
        if len(plain) > 1:
            growth = plain[max(plain)] - plain[min(plain)]
            metrics.append(Metric("peak_rss_growth_mb", growth, "MB", 15))
        return metrics

    def _peak_of(self, made: Made) -> tuple[measure.Peak, float]:
        job = self.enqueue(made)
        with self.worker("--once") as process:
            watch = measure.Watch(process.pid)
            try:
                seconds = self.finished(job)
                process.wait()
            finally:
                watch.close()
        self.check(job, made)
        return watch.peak, seconds

    def single(self) -> list[Metric]:
        """One conversation of 60 MB."""
        made = write_single(self._folder / "single.json", megabytes=60)
        peak, seconds = self._peak_of(made)
        self.clear()
        return [
            Metric("peak_rss_mb_single_60_mb", peak.rss_mb, "MB", 300),
            Metric("peak_pss_mb_single_60_mb", peak.pss_mb, "MB"),
            Metric("mb_per_second_single_60_mb", made.json_bytes / MB / seconds, "MB/s"),
        ]

    def two(self) -> list[Metric]:
        """Two jobs of 300 MB at once inside a real limit of 512 MB."""
        megabytes = 300 if self._options.full else 150
        made = [self.export(megabytes, seed=seed) for seed in (1, 2)]
        jobs = [self.enqueue(m) for m in made]
        with (
            self.worker("--once", MAX_CONCURRENT_JOBS=2) as process,
            measure.memory_limit(process.pid, _TWO_JOBS_BYTES) as most,
        ):
            watch = measure.Watch(process.pid)
            try:
                seconds = self.finished(*jobs)
                process.wait()
            finally:
                watch.close()
            # Pages of files count there too, and are given up when needed: only told.
            group_mb = int(most.read_text()) / MB if most is not None else float("nan")
        for job, m in zip(jobs, made, strict=True):
            self.check(job, m)
        self.clear()
        where = "in_cgroup" if most is not None else "no_cgroup"
        told = [] if most is None else [Metric("two_jobs_cgroup_most_mb", group_mb, "MB")]
        return [
            Metric(f"two_jobs_{where}_peak_rss_mb", watch.peak.rss_mb, "MB", _TWO_JOBS_BYTES / MB),
            *told,
            Metric("two_jobs_mb_per_second", sum(m.json_bytes for m in made) / MB / seconds, "MB/s"),
        ]  # fmt: skip

    def ten(self) -> list[Metric]:
        """Resident size at rest after ten jobs, beside that after one."""
        made = self.export(10)
        rests: list[float] = []
        with self.worker() as process:
            watch = measure.Watch(process.pid)
            for _ in range(10):
                self.finished(self.enqueue(made))
                time.sleep(1.5)  # at rest: the child has ended, the job's objects are gone
                rests.append(watch.now_mb())
            watch.close()
        self.clear()
        return [
            Metric("rss_mb_after_one_job", rests[0], "MB"),
            Metric("rss_mb_after_ten_jobs", rests[-1], "MB"),
            Metric("rss_after_ten_over_one", rests[-1] / rests[0], "×", 1.1),
        ]

    def redaction(self) -> list[Metric]:
        """Count false hits in text that nobody wrote for this, and time it."""
        texts = [p.read_text("utf-8", "replace") for p in self._options.texts]
        size = sum(map(len, texts))
        started = time.perf_counter()
        hits = sum(count for _, count in redact_each(texts))
        seconds = time.perf_counter() - started
        chats = measure.texts_of(self.export(10).path)
        rates = []
        for _ in range(self._options.rounds):
            begun = time.perf_counter()
            for conversation in chats:
                deque(redact_each(conversation), maxlen=0)
            rates.append(sum(len(t) for c in chats for t in c) / MB / (time.perf_counter() - begun))
        self.clear()
        return [
            Metric("redaction_of_chats_mb_per_second", max(rates), "MB/s"),
            Metric("redaction_text_mb", size / MB, "MB"),
            Metric("redaction_hits_per_mb", hits / (size / MB), "1/MB", 1.0),
            Metric("redaction_mb_per_second", size / MB / seconds, "MB/s"),
        ]


def _own_texts() -> list[Path]:
    """Prose and code of the machine: Python's library, and the words of its packages' licences."""
    paths = sysconfig.get_paths()
    library, packages = Path(paths["stdlib"]), Path(paths["purelib"])
    code = [p for p in library.rglob("*.py") if "site-packages" not in p.parts]
    # Tests of cryptography and of HTTP are full of made-up credentials.
    code = [p for p in code if not {"test", "tests"} & set(p.parts)]
    prose = [
        p for pattern in ("*/METADATA", "*/licenses/*", "*/*.rst", "*/LICENSE*")
        for p in packages.glob(pattern) if p.is_file()
    ]  # fmt: skip
    return sorted({*code, *prose})


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--export", type=Path, help="measure this export; default: made-up ones")
    parser.add_argument("--database-url", help="an empty database; default: an embedded server")
    parser.add_argument("--sizes", type=_sizes, default=[100.0, 1000.0], help="MB, with commas")
    parser.add_argument("--speed-megabytes", type=float, default=120.0)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--texts", type=Path, nargs="+", help="prose and code without a secret")
    parser.add_argument("--only", choices=PARTS, action="append", help="may be given repeatedly")
    parser.add_argument("--full", action="store_true", help="every size in every container")
    options = parser.parse_args()
    options.texts = options.texts or _own_texts()
    return options


def _sizes(given: str) -> list[float]:
    return [float(size) for size in given.split(",")]


def main() -> int:
    """Run the parts that were asked for."""
    options = _options()
    configure_logs(log_format="json", level="ERROR")
    with contextlib.ExitStack() as cleanup:
        folder = Path(cleanup.enter_context(tempfile.TemporaryDirectory(prefix="fp-bench-")))
        folder.chmod(0o711)
        exports = folder / "bucket" / "exports"
        exports.mkdir(parents=True)
        url = options.database_url
        if url is None:
            data = folder / "server"
            data.mkdir(mode=0o711)
            url = cleanup.enter_context(
                EmbeddedPostgres(data, durable=False, max_connections=40)
            ).url
        asyncio.run(migrations.apply(url))
        storage = cleanup.enter_context(StorageServer(root=folder / "bucket"))
        bench = Bench(url, storage, exports, options)
        metrics: list[Metric] = []
        for name in PARTS:
            if options.only is None or name in options.only:
                found: list[Metric] = getattr(bench, name)()
                for m in found:
                    print(m.row)
                metrics += found
    for m in metrics:
        print(m.line)
    if bench.control_spread > NOISY_SHARE:
        print("the control was too noisy to tell", file=sys.stderr)
        return 3
    return 0 if all(m.ok for m in metrics) else 1


if __name__ == "__main__":
    sys.exit(main())
