"""The field: our queue and its peers, each driven in a process of its own by the same harness.

Peers are installed for the benchmark alone, at the versions below, into a virtual environment that
is gone with it. One that cannot be installed or run stays in the table with the reason.
"""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.metrics import percentile

if TYPE_CHECKING:
    from bench.queue_server import Server

ROOT = Path(__file__).resolve().parents[1]
_SCRIPTS = Path(__file__).resolve().parent / "queue_peers"
_HARNESS_NEEDS = "asyncpg==0.32.0"
_INSTALL_SECONDS = 180.0
_MEASURE_SECONDS = 150.0
OURS = "fullpass"


@dataclass(frozen=True, slots=True)
class Peer:
    """Another queue: what to install, and whether a late holder's finish is refused."""

    name: str
    packages: tuple[str, ...]
    fences: bool

    @property
    def title(self) -> str:
        """Name and version."""
        return self.packages[0].replace("==", " ").replace("-sdk", "").replace("-pg", "")


PEERS = (
    Peer("awa", ("awa-pg==0.6.9",), fences=True),
    Peer("absurd", ("absurd-sdk==0.5.1", "absurdctl==0.5.1"), fences=True),
    Peer("pgqueuer", ("pgqueuer==1.6.0",), fences=False),
    Peer("procrastinate", ("procrastinate==3.10.0", "psycopg[binary,pool]==3.3.9"), fences=False),
)


@dataclass(slots=True)
class Entrant:
    """One queue in the field and what was measured of it; `out` is why nothing more is."""

    name: str
    title: str
    fences: bool
    python: str
    url: str = ""
    out: str | None = None
    rounds: list[dict[str, Any]] = field(default_factory=list)
    from_commit_ms: list[float] = field(default_factory=list)
    from_insert_ms: list[float] = field(default_factory=list)
    idle: dict[str, Any] = field(default_factory=dict)

    def median(self, what: str) -> float:
        """Return the median of one figure over the rounds."""
        return float(statistics.median(row[what] for row in self.rounds))

    @property
    def row(self) -> str:
        """One line of the field's table."""
        first = f"{self.title:22} {'yes' if self.fences else 'no':5}"
        if self.out is not None:
            return f"{first} not measured: {self.out}"
        cells = ["", "", "", "", "", "", "", "", ""]
        if self.rounds:
            rates = [row["jobs_per_second"] for row in self.rounds]
            cells[0:4] = [
                f"{statistics.median(rates):.0f}",
                f"{min(rates):.0f}–{max(rates):.0f}",
                f"{self.median('requests_per_job'):.2f}",
                f"{self.median('wal_bytes_per_job'):.0f}",
            ]
        if self.from_commit_ms:
            cells[4:7] = [
                f"{percentile(self.from_commit_ms, 0.5):.1f}",
                f"{percentile(self.from_commit_ms, 0.99):.1f}",
                f"{percentile(self.from_insert_ms, 0.5):.1f}",
            ]
        if self.idle:
            cells[7:9] = [
                f"{self.idle['requests_per_second']:.2f}",
                f"{self.idle['share_of_a_core_percent']:.2f}",
            ]
        return first + row_of(cells)


_WIDTHS = (8, 12, 9, 9, 9, 9, 12, 8, 8)


def row_of(cells: list[str]) -> str:
    """Align one row's figures."""
    return "".join(f"{cell:>{width}}" for cell, width in zip(cells, _WIDTHS, strict=True)).rstrip()


def head(counted: str) -> str:
    """Return the two lines over the field's table."""
    short = {"statements": "stmts", "transactions": "trans."}.get(counted, "")
    upper = f"jobs/s,,{short},WAL,pick-up,pick-up,insert to,idle,idle"
    lower = "median,least–most,a job,B a job,p50 ms,p99 ms,start p50,a s,core %"
    return f"{'':28}{row_of(upper.split(','))}\n{'queue':22} fence{row_of(lower.split(','))}"


class Field:
    """Every queue that is measured, ours first."""

    def __init__(self, entrants: list[Entrant]) -> None:
        self.entrants = entrants

    @property
    def ours(self) -> Entrant:
        """Return our own queue."""
        return self.entrants[0]

    @property
    def running(self) -> list[Entrant]:
        """Those that can be measured so far."""
        return [entrant for entrant in self.entrants if entrant.out is None]

    @property
    def counted(self) -> str:
        """What `requests` counts: statements, or transactions where the server can tell no more."""
        found = [*self.ours.rounds, self.ours.idle]
        return next((row["counted"] for row in found if "counted" in row), "")

    def of(self, name: str) -> Entrant | None:
        """Return a queue by its name, if it was measured."""
        return next((e for e in self.running if e.name == name), None)

    @classmethod
    async def gather(cls, server: Server, peers: str, folder: Path) -> Field:
        """Install what `peers` names (auto, none, or names with commas) and make the schemas."""
        wanted = {"auto": {p.name for p in PEERS}, "none": set()}.get(peers, set(peers.split(",")))
        if unknown := wanted - {p.name for p in PEERS}:
            raise SystemExit(f"--peers: unknown: {', '.join(sorted(unknown))}")
        entrants = [Entrant(OURS, OURS, fences=True, python=sys.executable)]
        python = folder / "bin" / "python"
        broken = await asyncio.to_thread(_make_environment, folder) if wanted else None
        for peer in PEERS:
            entrant = Entrant(peer.name, peer.title, peer.fences, str(python))
            if peer.name not in wanted:
                entrant.out = "not asked for (--peers)"
            else:
                entrant.out = broken or await asyncio.to_thread(_install, python, peer.packages)
            entrants.append(entrant)
        field_ = cls(entrants)
        for entrant in field_.running:
            entrant.url = await server.database(entrant.name)
            await field_.measure(entrant, "install")
        return field_

    async def throughput(self, jobs: int, turn: int) -> None:
        """Measure one round of jobs a second; each round begins with another queue."""
        for entrant in self._from(turn):
            if found := await self.measure(entrant, "throughput", "--jobs", str(jobs)):
                entrant.rounds.append(found)

    async def pick_up(self, samples: int, turn: int) -> None:
        """Measure one round of pick-up latency."""
        for entrant in self._from(turn):
            if found := await self.measure(entrant, "pick_up", "--samples", str(samples)):
                entrant.from_commit_ms += found["from_commit_ms"]
                entrant.from_insert_ms += found["from_insert_ms"]

    async def idle(self, seconds: float) -> None:
        """Let all do nothing side by side: each has its own database, process and counters."""
        running = self.running
        found = await asyncio.gather(
            *(self.measure(entrant, "idle", "--seconds", str(seconds)) for entrant in running)
        )
        for entrant, idle in zip(running, found, strict=True):
            entrant.idle = idle

    def _from(self, turn: int) -> list[Entrant]:
        running = self.running
        at = turn % len(running)
        return running[at:] + running[:at]

    async def measure(self, entrant: Entrant, what: str, *options: str) -> dict[str, Any]:
        """Run one question in a process of the queue's own; a peer that fails is out."""
        script = _SCRIPTS / f"peer_{entrant.name}.py"
        process = await asyncio.create_subprocess_exec(
            entrant.python, str(script), what, entrant.url, *options,
            env={**_plain_environment(), "PYTHONPATH": str(ROOT) if entrant is self.ours else ""},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        try:
            output, errors = await asyncio.wait_for(process.communicate(), _MEASURE_SECONDS)
            if process.returncode == 0:
                found: dict[str, Any] = json.loads(output)
                return found
            reason = _last_line(errors)
        except TimeoutError:
            process.kill()
            await process.wait()
            reason = f"no answer in {_MEASURE_SECONDS:.0f} s"
        if entrant is self.ours:
            raise RuntimeError(f"{what}: {reason}")
        entrant.out = f"{what}: {reason}"
        return {}


def _make_environment(folder: Path) -> str | None:
    """Make the peers' virtual environment; return why not."""
    made = _run([sys.executable, "-m", "venv", str(folder)])
    return made or _install(folder / "bin" / "python", (_HARNESS_NEEDS,))


def _install(python: Path, packages: tuple[str, ...]) -> str | None:
    """Install one peer; return why not."""
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    return _run([*pip, "--retries", "1", *packages])


def _run(command: list[str]) -> str | None:
    try:
        subprocess.run(
            command, check=True, capture_output=True, text=True, timeout=_INSTALL_SECONDS
        )
    except subprocess.TimeoutExpired:
        return f"not installed in {_INSTALL_SECONDS:.0f} s"
    except subprocess.CalledProcessError as error:
        return _last_line(error.stderr.encode()) or "could not be installed"
    return None


def _plain_environment() -> dict[str, str]:
    """Return this environment without settings of ours or of a database."""
    return {
        name: os.environ[name] for name in ("PATH", "HOME", "LANG", "TMPDIR") if name in os.environ
    }


def _last_line(output: bytes) -> str:
    """Return what a process said last that looks like an error."""
    lines = [
        line.strip() for line in output.decode("utf-8", "replace").splitlines() if line.strip()
    ]
    errors = [line for line in lines if "error" in line.lower()]
    return (errors or lines or ["it said nothing"])[-1][:160]
