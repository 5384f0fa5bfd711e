"""How good the facts and MEMORY of a pass are, against a truth that the code has not seen.

    python bench/bench_quality.py                          # a made-up person, perfect and noisy
    python bench/bench_quality.py --seed 9 --scale 20
    python bench/bench_quality.py --export F --truth F     # any export with its truth
    LIVE=1 ANTHROPIC_API_KEY=… python bench/bench_quality.py --max-usd 1
    python bench/bench_quality.py --locomo FOLDER          # evidence and observations of LoCoMo

The format of a truth file is in docs/memory.md. Prints a table, then JSON lines
{"metric", "value", "limit", "ok"}; exit 1 when a limit is missed, 3 when the machine was too noisy
to tell.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections import Counter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import asyncpg  # noqa: E402

from bench.quality_export import make  # noqa: E402
from bench.quality_judge import (  # noqa: E402
    Json,
    Metric,
    Truth,
    best_ranked,
    judge_pass,
    memory_lines,
)
from daemon.logs import configure_logs  # noqa: E402
from tests.support import postgres  # noqa: E402
from tests.support.anthropic_server import AnthropicServer  # noqa: E402
from tests.support.worker_process import work_once  # noqa: E402

NOISE: Json = {
    "cap_facts": 30, "paraphrase_share": 0.1, "misnumber_share": 0.05, "omit_share": 0.05,
    "invent_facts": 1, "obey_injection": "own_quote", "same_wrong_share": 0.03,
    "memory_mild": True, "memory_facts_per_line": 2, "memory_omit_share": 0.1,
    "memory_uncited_lines": 3, "memory_miscited_lines": 3, "memory_padded_share": 0.1,
    "memory_lazy_share": 0.1,
}  # fmt: skip
_CONTROL_SPREAD = 0.5


async def one_pass(url: str, export: Path, llm: AnthropicServer | None, **settings: Any) -> Json:
    """Run a pass for a new person; return its rows, MEMORY and result."""
    user = uuid.uuid4()
    db = await asyncpg.connect(url, statement_cache_size=0)
    try:
        job = await db.fetchval(
            "insert into processing_jobs (user_id, storage_path) values ($1, $2) returning id",
            user, f"file://{export}",
        )  # fmt: skip
        if llm is not None:
            await work_once(url, llm.url, lease_seconds=60.0, heartbeat_seconds=5.0, **settings)
        else:
            key = {"anthropic_base_url": None, "anthropic_api_key": os.environ["ANTHROPIC_API_KEY"]}
            await work_once(url, os.environ.get("ANTHROPIC_BASE_URL"), **{**key, **settings})
        row = await db.fetchrow(
            "select status, error_message, result from processing_jobs where id=$1", job
        )
        assert row is not None
        if row["status"] != "complete":
            raise SystemExit(f"the pass did not complete: {row['status']} {row['error_message']}")
        facts = [
            dict(r) for r in await db.fetch("select * from fullpass.facts where user_id = $1", user)
        ]
        for fact in facts:
            fact["evidence"] = json.loads(fact["evidence"])
        reported = {
            r["quote"] for r in await db.fetch(
                "select distinct quote from fullpass.extracted_facts where user_id=$1 and rejected is null", user)
        }  # fmt: skip
        proven = await db.fetchrow(
            """
            select count(*) as quotes, count(*) filter (where exists (
                select from public.conversation_chunks c
                join fullpass.chunk_messages m on m.chunk_id = c.id
                where c.user_id = f.user_id and c.conversation_id = e->>'conversation_id'
                  and m.message_id = e->>'message_id' and m.role <> 'assistant'
                  and strpos(substr(c.content, m.start + 1, m.stop - m.start), e->>'quote') > 0)) as proven
            from fullpass.facts f cross join lateral jsonb_array_elements(f.evidence) as e
            where f.user_id = $1
            """,
            user,
        )
        assert proven is not None
        memory = await db.fetchval("select memory_md from user_profiles where user_id = $1", user)
        return {"user": user, "facts": facts, "memory": memory, "reported": reported, "result": json.loads(row["result"]),
                "proven": proven["proven"] / max(1, proven["quotes"])}  # fmt: skip
    finally:
        await db.close()


# Scale: a hundred thousand facts, time and memory of the consolidation alone


_SCALE = """
import asyncio, json, resource, sys, time
sys.path.insert(0, sys.argv[1])
from bench.quality_scale import consolidate_for
print(json.dumps(asyncio.run(consolidate_for(sys.argv[2], sys.argv[3]))))
"""


def control_seconds() -> float:
    """Time a fixed piece of work: how fast this machine is just now."""
    started = time.perf_counter()
    words = [f"word{n % 5000}" for n in range(400_000)]
    Counter(tuple(words[n : n + 3]) for n in range(0, len(words), 2))
    return time.perf_counter() - started


def scale(url: str, facts: int, rounds: int) -> list[Metric]:
    """Consolidate many facts in a process of its own, a few rounds between controls."""
    from bench.quality_scale import plant  # noqa: PLC0415

    seconds, peaks, controls = [], [], [control_seconds()]
    for _ in range(rounds):
        user = asyncio.run(plant(url, facts))
        done = subprocess.run(
            [sys.executable, "-c", _SCALE, str(ROOT), url, user], capture_output=True, text=True, check=False, cwd=ROOT,
        )  # fmt: skip
        if done.returncode:
            raise SystemExit(done.stderr[-2000:])
        got = json.loads(done.stdout.splitlines()[-1])
        seconds.append(got["seconds"])
        peaks.append(got["peak_mb"])
        controls.append(control_seconds())
    spread = (max(controls) - min(controls)) / statistics.median(controls)
    return [
        Metric("scale.facts", facts),
        Metric(
            "scale.seconds",
            statistics.median(seconds),
            60.0 * facts / 100_000,
            at_least=False,
            timed=True,
        ),
        Metric("scale.peak_mb", max(peaks), 200.0, at_least=False),
        Metric("scale.control_spread", spread),
    ]


def report(metrics: list[Metric], details: dict[str, Json], *, verbose: bool) -> int:
    """Print the table and the JSON lines; return the exit code."""
    width = max(len(m.name) for m in metrics)
    for m in metrics:
        limit = "" if m.limit is None else f"{'≥' if m.at_least else '≤'} {m.limit:g}"
        print(
            f"{m.name:<{width}}  {m.value:>12.4f}  {limit:>10}  {'' if m.limit is None else 'ok' if m.ok else 'MISSED'}"
        )
    if verbose:
        for label, found in details.items():
            print(f"\n{label}: {json.dumps(found, ensure_ascii=False, indent=1, default=str)}")
    for m in metrics:
        print(
            json.dumps({"metric": m.name, "value": round(m.value, 6), "limit": m.limit, "ok": m.ok})
        )
    missed = [m for m in metrics if not m.ok]
    spread = next((m.value for m in metrics if m.name == "scale.control_spread"), 0.0)
    if missed and all(m.timed for m in missed) and spread > _CONTROL_SPREAD:
        return 3
    return 1 if missed else 0


async def quality(
    url: str, export: Path, truth: Truth, options: argparse.Namespace
) -> tuple[list[Metric], dict[str, Json]]:
    """Run the passes and judge them."""
    metrics: list[Metric] = []
    details: dict[str, Json] = {}
    room = {"memory_max_tokens": 100_000}
    if os.environ.get("LIVE") == "1":
        got = await one_pass(url, export, None, max_cost_usd_per_job=options.max_usd, **room)
        found, details["live"] = judge_pass(truth, got, "live", heard_only=False)
        found.append(
            Metric(
                "live.cost_usd", got["result"]["cost"]["cost_usd"], options.max_usd, at_least=False
            )
        )
        return found, details
    with AnthropicServer(truth=truth.planted()) as server:
        got = await one_pass(url, export, server, **room)
        found, details["perfect"] = judge_pass(truth, got, "perfect", heard_only=False)
        metrics += found
        got = await one_pass(url, export, server)
        lines = len(memory_lines(got["memory"]))
        metrics.append(Metric("tight.memory_lines", lines))
        metrics.append(Metric("tight.ranked_as_stated", best_ranked(got), 0.97))
        server.behave(same="nothing")
        got = await one_pass(url, export, server, **room)
        found, details["silent"] = judge_pass(truth, got, "silent", heard_only=False)
        for m in found:
            if m.name.split(".")[1] in {"missed_merges", "contradictions_current_is_newest"}:
                m.limit = None  # no model was asked: told for what rules do alone
        metrics += found
        server.behave(same="truth", reduce="everything")
        started = time.perf_counter()
        await one_pass(url, export, server, memory_max_tokens=400)
        metrics.append(
            Metric("never_shrinks.seconds", time.perf_counter() - started, 120.0, at_least=False)
        )
        server.behave(reduce="nothing", **NOISE)
        got = await one_pass(url, export, server, **room)
        found, details["noisy"] = judge_pass(truth, got, "noisy", heard_only=True)
        metrics += found
        rejected = got["result"]["memory"].get("lines_rejected", 0)
        proposed = rejected + got["result"]["memory"].get("lines_accepted", 0)
        metrics.append(Metric("noisy.memory_lines_rejected_share", rejected / max(1, proposed)))
    return metrics, details


def main() -> int:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--export", type=Path, help="an export with known facts")
    parser.add_argument("--truth", type=Path, help="its truth file")
    parser.add_argument("--seed", type=int, default=20261122)
    parser.add_argument("--scale", type=int, default=8, help="size of the made-up person's life")
    parser.add_argument(
        "--facts", type=int, default=100_000, help="facts of the scale test; 0 skips it"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--locomo", type=Path, help="a folder with LoCoMo's locomo10.json")
    parser.add_argument("--max-usd", type=float, default=1.0)
    parser.add_argument(
        "--write", type=Path, help="only write the made-up export and its truth here"
    )
    parser.add_argument("-v", "--verbose", action="store_true")
    options = parser.parse_args()
    configure_logs(log_format="json", level="ERROR")
    if options.write:
        options.write.mkdir(parents=True, exist_ok=True)
        print(*make(seed=options.seed, scale=options.scale).write(options.write))
        return 0
    if bool(options.export) != bool(options.truth):
        parser.error("--export and --truth go together")
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as cleanup:
        server = postgres.OneServer()
        cleanup.callback(server.stop)
        url = postgres.create_database(server.get().url, migrated=True)
        cleanup.callback(postgres.drop_database, url)
        if options.locomo:
            from bench.quality_locomo import locomo, samples  # noqa: PLC0415

            measured = asyncio.run(locomo(url, samples(options.locomo), Path(folder)))
            return report([Metric(*m) for m in measured], {}, verbose=False)
        export = options.export and options.export.resolve()
        truth = options.truth
        if export is None:
            export, truth = make(seed=options.seed, scale=options.scale).write(Path(folder))
        metrics, details = asyncio.run(quality(url, export, Truth.read(truth), options))
        if options.facts and not options.export and os.environ.get("LIVE") != "1":
            metrics += scale(url, options.facts, options.rounds)
        return report(metrics, details, verbose=options.verbose)


if __name__ == "__main__":
    sys.exit(main())
