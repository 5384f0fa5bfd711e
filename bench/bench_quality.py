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
import re
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import asyncpg  # noqa: E402

from bench.quality_export import make  # noqa: E402
from daemon.logs import configure_logs  # noqa: E402
from tests.support import postgres  # noqa: E402
from tests.support.anthropic_server import AnthropicServer  # noqa: E402
from tests.support.planted_truth import Planted  # noqa: E402
from tests.support.worker_process import work_once  # noqa: E402

Json = dict[str, Any]
NOISE: Json = {
    "cap_facts": 30, "paraphrase_share": 0.1, "misnumber_share": 0.05, "omit_share": 0.05,
    "invent_facts": 1, "obey_injection": "own_quote", "same_wrong_share": 0.03,
    "memory_mild": True, "memory_facts_per_line": 2, "memory_omit_share": 0.1,
    "memory_uncited_lines": 3, "memory_miscited_lines": 3,
}  # fmt: skip
_CONTROL_SPREAD = 0.5


@dataclass
class Metric:
    """One measured number and its limit; `limit` None is told and not judged."""

    name: str
    value: float
    limit: float | None = None
    at_least: bool = True
    timed: bool = False

    @property
    def ok(self) -> bool:
        """Whether the limit is met."""
        if self.limit is None:
            return True
        return self.value >= self.limit if self.at_least else self.value <= self.limit


@dataclass
class Truth:
    """A truth file, read: facts with their mentions, and traps."""

    facts: list[Json]
    traps: list[Json]
    fact_of_sentence: dict[str, str] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> Truth:
        """Read the documented format, or a list of `truths` of one sentence each."""
        loaded = json.loads(path.read_text("utf-8"))
        facts = loaded.get("facts") or [
            {"id": f"truth-{n}", "category": t["category"], "current": t.get("current", True),
             "replaces": [], "mentions": [t]}
            for n, t in enumerate(loaded.get("truths", []))
        ]  # fmt: skip
        truth = cls(facts, loaded.get("traps", []))
        for fact in facts:
            fact.setdefault("current", True)
            fact.setdefault("replaces", [])
            for mention in fact["mentions"]:
                truth.fact_of_sentence[" ".join(mention["sentence"].split())] = fact["id"]
        return truth

    def planted(self) -> list[Planted]:
        """Return what a perfect reader reports."""
        return [
            Planted(
                sentence=m["sentence"], category=f["category"], statement=m["statement"],
                slot=m.get("slot", ""), polarity=m.get("polarity", "affirmed"),
                valid_from=m.get("valid_from", ""), fact=f["id"], replaces=tuple(f["replaces"]),
            )
            for f in self.facts for m in f["mentions"]
        ]  # fmt: skip

    def fact_of(self, quote: str) -> str | None:
        """Return the fact whose sentence holds a quote (or stands in it)."""
        quote = " ".join(quote.split())
        if (known := self.fact_of_sentence.get(quote)) is not None:
            return known
        if len(quote) < 12:
            return None
        return next((f for s, f in self.fact_of_sentence.items() if quote in s or s in quote), None)


async def one_pass(url: str, export: Path, llm: AnthropicServer | None, **settings: Any) -> Json:
    """Run a pass for a new person; return its rows, MEMORY and result."""
    user = uuid.uuid4()
    db = await asyncpg.connect(url, statement_cache_size=0)
    try:
        job = await db.fetchval(
            "insert into processing_jobs (user_id, storage_path) values ($1, $2) returning id",
            user, f"file://{export.resolve()}",
        )  # fmt: skip
        if llm is not None:
            await work_once(url, llm.url, lease_seconds=60.0, heartbeat_seconds=5.0, **settings)
        else:
            key = {"anthropic_base_url": None, "anthropic_api_key": os.environ["ANTHROPIC_API_KEY"]}
            await work_once(url, os.environ.get("ANTHROPIC_BASE_URL"), **{**key, **settings})
        row = await db.fetchrow(
            "select status, error_message, result from processing_jobs where id=$1", job
        )
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
        memory = await db.fetchval("select memory_md from user_profiles where user_id = $1", user)
        return {"user": user, "facts": facts, "memory": memory, "reported": reported, "result": json.loads(row["result"]),
                "proven": proven["proven"] / max(1, proven["quotes"])}  # fmt: skip
    finally:
        await db.close()


def judge_pass(
    truth: Truth, got: Json, label: str, *, heard_only: bool
) -> tuple[list[Metric], Json]:
    """Compare a pass with the truth. `heard_only`: what the reader left out is not held against it."""
    rows_of: dict[str, set[Any]] = defaultdict(set)
    facts_in: dict[Any, Counter[str]] = defaultdict(Counter)
    by_row = {row["id"]: row for row in got["facts"]}
    foreign = 0
    for row in got["facts"]:
        for piece in row["evidence"]:
            fact = truth.fact_of(piece["quote"])
            if fact is None:
                foreign += 1
            else:
                rows_of[fact].add(row["id"])
                facts_in[row["id"]][fact] += 1
    heard = {f for q in got["reported"] if (f := truth.fact_of(q)) is not None}
    wanted = [f for f in truth.facts if not heard_only or f["id"] in heard]
    lost = [f["id"] for f in wanted if not rows_of[f["id"]]]

    merged = wrong = 0
    wrong_rows = []
    for row_id, inside in facts_in.items():
        total = sum(inside.values())
        right = sum(n * (n - 1) // 2 for n in inside.values())
        pairs = total * (total - 1) // 2
        merged += pairs
        wrong += pairs - right
        if len(inside) > 1:
            wrong_rows.append((by_row[row_id]["statement"], dict(inside)))
    wrong_facts = {f for inside in facts_in.values() if len(inside) > 1 for f in inside}
    repeated = [
        f for f in wanted if len({m["sentence"] for m in f["mentions"]} & got["reported"]) > 1
    ]
    missed = [f for f in repeated if len(rows_of[f["id"]]) > 1]

    replaced = {r: f["id"] for f in truth.facts for r in f["replaces"]}
    known_ids = {f["id"] for f in wanted}
    chains = [(old, new) for old, new in replaced.items() if {old, new} <= known_ids]

    def current(fact: str) -> bool:
        return any(by_row[r]["superseded_by"] is None for r in rows_of[fact])

    stale = [c for c in chains if current(c[0])]
    newest_gone = [c for c in chains if c[1] not in replaced and not current(c[1])]
    alive = [f for f in wanted if f["current"] and rows_of[f["id"]]]
    buried = [f for f in alive if not current(f["id"])]

    lines = memory_lines(got["memory"])
    cited = {c for _, cites in lines for c in cites}
    prefix = {str(r["id"]).replace("-", "")[:8]: r for r in got["facts"]}
    invented = [
        text for text, cites in lines
        if not cites or any(c not in prefix for c in cites) or not says_only(text, [prefix[c] for c in cites])
    ]  # fmt: skip
    snares = {" ".join(t["sentence"].split()) for t in truth.traps}
    trapped = {
        c for c, row in prefix.items()
        if all(" ".join(e["quote"].split()) in snares for e in row["evidence"])
    }  # fmt: skip
    invented += [
        text for text, cites in lines
        if trapped.intersection(cites)
        or any(t.get("statement", "\x00").casefold() in text.casefold() for t in truth.traps)
    ]  # fmt: skip
    shown = [
        f for f in alive if any(str(r).replace("-", "")[:8] in cited for r in rows_of[f["id"]])
    ]
    metrics = [
        Metric(f"{label}.facts_recall", 1 - len(lost) / max(1, len(wanted)), 0.99),
        Metric(f"{label}.quotes_verified", got["proven"], 1.0),
        Metric(
            f"{label}.wrong_merges", len(wrong_facts) / max(1, len(wanted)), 0.005, at_least=False
        ),
        Metric(f"{label}.missed_merges", len(missed) / max(1, len(repeated)), 0.03, at_least=False),
        Metric(
            f"{label}.contradictions_current_is_newest",
            1 - (len({*stale, *newest_gone})) / max(1, len(chains)),
            1.0,
        ),
        Metric(
            f"{label}.current_facts_buried", len(buried) / max(1, len(alive)), 0.005, at_least=False
        ),
        Metric(f"{label}.memory_recall", len(shown) / max(1, len(alive)), 0.97),
        Metric(f"{label}.memory_invented_lines", len(invented), 0, at_least=False),
        Metric(f"{label}.foreign_evidence", foreign),
    ]
    details = {"lost": lost, "wrong": wrong_rows, "invented": invented,
               "missed": [[by_row[r]["statement"] for r in rows_of[f["id"]]] for f in missed],
               "stale": [(names(rows_of[a], by_row), names(rows_of[b], by_row)) for a, b in stale],
               "buried": [(names(rows_of[f["id"]], by_row),
                           [by_row[by_row[r]["superseded_by"]]["statement"] for r in rows_of[f["id"]]]) for f in buried],
               "unshown": [names(rows_of[f["id"]], by_row) for f in alive if f not in shown],
               "memory": got["result"]["memory"], "facts": got["result"]["facts"]}  # fmt: skip
    return metrics, details


def names(rows: set[Any], by_row: Json) -> list[str]:
    return sorted(by_row[r]["statement"] for r in rows)


def memory_lines(markdown: str) -> list[tuple[str, list[str]]]:
    """Every list item of a MEMORY with the ids that it cites."""
    items = re.findall(
        r"^- (.*?)(?: \[((?:f:[0-9a-f]{8}(?:, )?)+)\])?$", markdown or "", re.MULTILINE
    )
    return [(text, re.findall(r"f:([0-9a-f]{8})", cites)) for text, cites in items]


def says_only(text: str, rows: list[Json]) -> bool:
    """Whether the numbers of a line, its date aside, are those of the facts that it cites."""
    plain = re.sub(r" \(\d{4}-\d\d-\d\d\)$", "", text)
    told = " ".join(r["statement"] for r in rows)
    words = set(re.findall(r"\w+", told.casefold()))
    own = re.findall(r"\w+", plain.casefold())
    return (
        set(re.findall(r"\d+", plain)) <= set(re.findall(r"\d+", told))
        and sum(w in words for w in own) >= len(own) / 2
    )


def best_ranked(got: Json, truth: Truth, budget_lines: int) -> float:
    """Share of the lines in MEMORY that the stated ranking puts before all that was left out."""
    lines = memory_lines(got["memory"])
    cited = {c for _, cites in lines for c in cites}
    by_meaning: dict[Any, list[Json]] = defaultdict(list)
    for row in got["facts"]:
        if row["superseded_by"] is None:
            by_meaning[row["meaning"]].append(row)
    wrong = total = 0
    groups: dict[str, list[tuple[tuple[float, ...], bool, int]]] = defaultdict(list)
    for rows in by_meaning.values():
        newest = max((r["observed_at"] for r in rows if r["observed_at"]), default=None)
        weight = sum(r["mentions"] for r in rows) + 2 * any(
            e.get("kind") in {"memory", "instructions"} for r in rows for e in r["evidence"]
        )
        shown = any(str(r["id"]).replace("-", "")[:8] in cited for r in rows)
        rank = (weight, newest.timestamp() if newest else 0.0)
        groups[rows[0]["category"]].append((rank, shown, len(rows[0]["statement"])))
    for ranked in groups.values():
        least_shown = min((r for r, shown, _ in ranked if shown), default=None)
        for rank, shown, length in ranked:
            total += 1
            wrong += not shown and least_shown is not None and rank > least_shown and length < 60
    return 1 - wrong / max(1, total)


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
        metrics.append(Metric("tight.ranked_as_stated", best_ranked(got, truth, lines), 0.97))
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
            from bench.quality_locomo import locomo  # noqa: PLC0415

            metrics = asyncio.run(locomo(url, options.locomo, Path(folder)))
            return report([Metric(*m) for m in metrics], {}, verbose=False)
        export, truth = options.export, options.truth
        if export is None:
            export, truth = make(seed=options.seed, scale=options.scale).write(Path(folder))
        metrics, details = asyncio.run(quality(url, export, Truth.read(truth), options))
        if options.facts and not options.export and os.environ.get("LIVE") != "1":
            metrics += scale(url, options.facts, options.rounds)
        return report(metrics, details, verbose=options.verbose)


if __name__ == "__main__":
    sys.exit(main())
