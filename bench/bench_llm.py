"""What the way to the model costs beside the bare SDK, and how well it keeps to an account's limits.

    python bench/bench_llm.py [--only latency|pace|pass] [--rounds 5] [--base-url URL] [--export FILE]

Every client and the model server are processes of their own. Each round runs ours and a control, the
bare SDK at a fixed concurrency, one after the other (latency) or side by side at servers of their own
(pace). Time is scaled: latencies are log-normal around fractions of a second, and a minute of the
server's allowances lasts six seconds. A table for people, then one JSON line a metric; exit 1 when a
limit is missed, 3 when the control was too noisy to tell.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.llm_passes import passes
from bench.metrics import Metric
from daemon.logs import configure_logs
from tests.support import postgres
from tests.support.server_process import ServerProcess

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parents[1]
LATENCIES = {3: 0.15, 10: 0.2, 50: 1.0}
"""Median seconds by concurrency: at most about 45 calls a second, which two cores carry, and none
so short that the bare SDK's own five milliseconds a call would be a twentieth of it."""
MINUTE_SECONDS = 6.0
MINUTES = 4
LIMITS: tuple[dict[str, Any], ...] = (
    {"input_tokens_per_minute": 120_000},
    {"requests_per_minute": 120},
    {"output_tokens_per_minute": 12_000, "thinking_tokens": 100},
    {"input_tokens_per_minute": 120_000, "burst_share": 0.2},
    {"requests_per_minute": 120, "input_tokens_per_minute": 150_000, "latency_seconds": 1.5},
)
"""What the server enforces, another in each round."""
WALL_OVER_IDEAL = 1.05
NOISY_SHARE = 0.35
"""More spread than this in the control's own CPU between rounds: the machine was busy elsewhere."""


class Client:
    """A client process that makes a round of calls when told to."""

    def __init__(self, cleanup: contextlib.ExitStack, **task: Any) -> None:
        self.task = task
        self._process = subprocess.Popen(
            [sys.executable, str(ROOT / "bench/llm_client.py"), json.dumps(task)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        cleanup.callback(self._end)

    def ready(self) -> Client:
        """Wait until its connections are open."""
        self._line()
        return self

    def go(self) -> None:
        """Begin a round."""
        assert self._process.stdin is not None
        self._process.stdin.write("go\n")
        self._process.stdin.flush()

    def account(self) -> dict[str, Any]:
        """Wait for the round's end and give its account."""
        account: dict[str, Any] = json.loads(self._line())
        return account

    def _line(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"a client ended: {self.task}")
        return line

    def _end(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()


@dataclass
class Bench:
    """What all parts work with."""

    url: str
    rounds: int
    calls: int
    base_url: str | None
    api_key: str
    model: str
    control_cpu: dict[int, list[float]] = field(default_factory=dict)

    @contextlib.contextmanager
    def server(self, **behaviour: Any) -> Iterator[tuple[str, ServerProcess | None]]:
        """Give the model's URL, and our own server's reins where it is ours."""
        if self.base_url is not None:
            yield self.base_url, None
            return
        with ServerProcess("tests.support.anthropic_server") as server:
            server.control(behaviour=behaviour)
            yield server.url, server

    # -- latency, CPU and memory -----------------------------------------------------------------

    def latency(self) -> list[Metric]:
        """Measure the same calls made by us and by the bare SDK, at each concurrency."""
        metrics = []
        for concurrency, median in LATENCIES.items():
            metrics += self._at(concurrency, median)
        return metrics

    def _at(self, concurrency: int, median: float) -> list[Metric]:
        ideal = walls = bare_ideal = bare_walls = 0.0
        above: list[float] = []
        cpu: dict[str, list[float]] = {"ours": [], "fixed": []}
        peak = 0.0
        calls = max(concurrency, self.calls // self.rounds)
        with (
            self.server(latency_seconds=median, latency_sigma=0.5) as (url, server),
            contextlib.ExitStack() as cleanup,
        ):
            clients = {
                kind: Client(
                    cleanup, kind=kind, base_url=url, database_url=self.url, calls=calls,
                    concurrency=concurrency, characters=32_000, api_key=self.api_key,
                    model=self.model,
                ).ready()
                for kind in ("ours", "fixed")
            }  # fmt: skip
            for _ in range(self.rounds):
                for kind, client in clients.items():
                    if server is not None:
                        server.control(clear=True)
                    client.go()
                    account = client.account()
                    latencies = [a[1] for a in account["attempts"]]
                    if server is not None:
                        answered = server.record()["calls"]
                        latencies = [c["finished_at"] - c["started_at"] for c in answered]
                    wall = account["wall_seconds"] - max(latencies)
                    cpu[kind].append(1000 * account["cpu_seconds"] / calls)
                    if kind == "ours":
                        ideal, walls = ideal + sum(latencies) / concurrency, walls + wall
                        peak = max(peak, account["peak_rss_mb"])
                    else:
                        bare_ideal = bare_ideal + sum(latencies) / concurrency
                        bare_walls += wall
                above.append(cpu["ours"][-1] - cpu["fixed"][-1])
        self.control_cpu[concurrency] = cpu["fixed"]
        name = f"at_{concurrency}"
        return [
            Metric(f"{name}.wall_over_ideal", walls / ideal, "×", WALL_OVER_IDEAL),
            Metric(f"{name}.control_wall_over_ideal", bare_walls / bare_ideal, "×"),
            Metric(f"{name}.cpu_above_control", statistics.median(above), "ms/call", 2.0),
            Metric(f"{name}.control_cpu", statistics.median(cpu["fixed"]), "ms/call"),
            Metric(f"{name}.peak_rss", peak, "MB", 130.0 if concurrency == 50 else None),
        ]

    # -- rate limits -----------------------------------------------------------------------------

    def pace(self) -> list[Metric]:
        """Measure clients that would call without end, at a server that enforces allowances."""
        found: dict[str, list[tuple[float, float]]] = {}
        for n in range(self.rounds):
            limits = {"latency_seconds": 0.4, **LIMITS[n % len(LIMITS)]}
            slow = {**limits, "latency_seconds": MINUTE_SECONDS / 3}
            # Two setups side by side, each at a server of its own.
            for setups in (
                {"one": (limits, ["ours"]), "control": (limits, ["fixed"])},
                {"sharing": (slow, ["ours shared"] * 2), "not_sharing": (slow, ["ours"] * 2)},
            ):
                for name, shares in self._side_by_side(n, setups).items():
                    found.setdefault(name, []).append(shares)
        metrics = []
        for name, rounds in found.items():
            bound = name in {"one", "sharing"}
            used, refused = (statistics.median(part) for part in zip(*rounds, strict=True))
            metrics += [
                Metric(f"pace.{name}.used", used, "", 0.95 if bound else None, at_least=True),
                Metric(f"pace.{name}.refused", refused, "", 0.01 if bound else None),
            ]
            if bound:
                metrics += [
                    Metric(f"pace.{name}.used_least", min(used for used, _ in rounds)),
                    Metric(f"pace.{name}.refused_most", max(refused for _, refused in rounds)),
                ]
        return metrics

    def _side_by_side(
        self, n: int, setups: dict[str, tuple[dict[str, Any], list[str]]]
    ) -> dict[str, tuple[float, float]]:
        """Return of each setup the share of the allowance used, and of calls refused."""
        running: dict[str, list[Client]] = {}
        with contextlib.ExitStack() as cleanup:
            for name, (limits, kinds) in setups.items():
                url, server = cleanup.enter_context(self.server())
                assert server is not None
                running[name] = [
                    Client(
                        cleanup, kind=kind.split()[0], base_url=url, database_url=self.url,
                        seconds=MINUTES * MINUTE_SECONDS, minute_seconds=MINUTE_SECONDS,
                        concurrency=25, seed=seed, account=f"{name}-{n}" if "shared" in kind else "",
                    )
                    for seed, kind in enumerate(kinds)
                ]  # fmt: skip
                for client in running[name]:
                    client.ready()
                server.control(
                    behaviour={"latency_sigma": 0.5, "minute_seconds": MINUTE_SECONDS, **limits}
                )
            for client in (client for clients in running.values() for client in clients):
                client.go()
            return {
                name: _after_the_first_minute(setups[name][0], [c.account() for c in clients])
                for name, clients in running.items()
            }


def _after_the_first_minute(
    limits: dict[str, Any], accounts: list[dict[str, Any]]
) -> tuple[float, float]:
    """Reckon the share of the scarcest allowance used, and the share of calls refused."""
    begin = min(account["started_at"] for account in accounts) + MINUTE_SECONDS
    end = begin + (MINUTES - 1) * MINUTE_SECONDS
    attempts = [a for account in accounts for a in account["attempts"] if begin <= a[0] < end]
    answered = [a for a in attempts if a[2] == 200]
    sums = {
        "requests": len(answered),
        "input_tokens": sum(a[3] for a in answered),
        "output_tokens": sum(a[4] for a in answered),
    }
    used = max(
        sums[kind] / (limits[f"{kind}_per_minute"] * (MINUTES - 1))
        for kind in sums
        if f"{kind}_per_minute" in limits
    )
    return used, sum(a[2] == 429 for a in attempts) / max(1, len(attempts))


def report(bench: Bench, metrics: list[Metric]) -> int:
    """Print the table and the JSON lines; return the exit code."""
    for m in metrics:
        print(m.row)
    for m in metrics:
        print(m.line)
    missed = [m for m in metrics if not m.ok]
    # Where the bare SDK itself could not keep to the limit, the machine had no time to spare.
    noisy = {
        m.name.partition(".")[0]
        for m in metrics
        if m.name.endswith("control_wall_over_ideal") and m.value > WALL_OVER_IDEAL
    } | {
        f"at_{concurrency}"
        for concurrency, cpu in bench.control_cpu.items()
        if max(cpu) - min(cpu) > NOISY_SHARE * statistics.median(cpu)
    }
    # Likewise a control that calls without end and is never refused: it found no time to call.
    if any(m.name == "pace.control.refused" and m.value < 0.05 for m in metrics):
        noisy.add("pace")
    if missed and all(m.name.partition(".")[0] in noisy for m in missed):
        print("the control was too noisy to tell", file=sys.stderr)
        return 3
    return 1 if missed else 0


def main() -> int:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--database-url", help="an empty database; default: a server of its own")
    parser.add_argument(
        "--base-url", help="another model server; its limits cannot be set: no pace"
    )
    parser.add_argument("--api-key", default="test-key")
    parser.add_argument("--model", default="claude-haiku-5-5")
    parser.add_argument("--export", type=Path, help="for the passes, instead of a made-up one")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--calls", type=int, default=3_000, help="of all rounds, per concurrency")
    parser.add_argument("--conversations", type=int, default=1_100, help="of the made-up export")
    parser.add_argument("--only", choices=["latency", "pace", "pass"])
    given = parser.parse_args()
    configure_logs(log_format="json", level="ERROR")
    metrics: list[Metric] = []
    with contextlib.ExitStack() as cleanup:
        url = given.database_url
        if url is None:
            own = postgres.OneServer()
            cleanup.callback(own.stop)
            url = postgres.create_database(own.get().url, migrated=True)
            cleanup.callback(postgres.drop_database, url)
        bench = Bench(url, given.rounds, given.calls, given.base_url, given.api_key, given.model)
        if given.only in {None, "latency"}:
            metrics += bench.latency()
        if given.only in {None, "pace"} and given.base_url is None:
            metrics += bench.pace()
        if given.only in {None, "pass"}:
            folder = Path(cleanup.enter_context(tempfile.TemporaryDirectory()))
            with bench.server() as (base_url, _):
                found = passes(
                    url, base_url, given.api_key, folder,
                    export=given.export, conversations=given.conversations,
                )  # fmt: skip
            metrics += [Metric(*one) for one in found]
        return report(bench, metrics)


if __name__ == "__main__":
    sys.exit(main())
