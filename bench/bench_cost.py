"""What a pass costs: tokens measured by a real pass, dollars by model and mode worked from them.

    python bench/bench_cost.py                       # a made-up export of 1,000 conversations
    python bench/bench_cost.py --export conversations.json [--truth truth.json]

One pass runs against the loopback model. Its server counts a token for four characters, on both
sides; the token estimate of docs/decisions/0050 counts the same export's text, and every figure is
scaled by the ratio of the two. Input per token read counts what is paid in full, as the API's
`input_tokens` does; with what comes from the cache it is a metric of its own. Prices are those of daemon/llm/pricing.py. Prints the tables of
docs/cost.md, then JSON lines {"metric", "value", "limit", "ok"}; exit 1 when a limit is missed. No
time is measured, so there is no control and one round says it all.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import sys
import tempfile
import uuid
from decimal import Decimal
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import asyncpg  # noqa: E402

from daemon.fullpass.facts import EXTRACT_SCHEMA  # noqa: E402
from daemon.fullpass.prompts import prompt  # noqa: E402
from daemon.fullpass.tokens import estimate_tokens  # noqa: E402
from daemon.llm.pricing import KNOWN, Model  # noqa: E402
from daemon.llm.request import Request, Usage  # noqa: E402
from daemon.llm.wire import parameters  # noqa: E402
from daemon.logs import configure_logs  # noqa: E402
from tests.support import postgres  # noqa: E402
from tests.support.anthropic_server import AnthropicServer  # noqa: E402
from tests.support.exports import conversation  # noqa: E402
from tests.support.planted_truth import Planted, Truth  # noqa: E402
from tests.support.worker_process import work_once  # noqa: E402

MOST_SENT_PER_TOKEN_READ = 1.15
_WORDS = (  # noqa: SIM905 - it reads as prose
    "the of and to in that it is was for on with as by at from this have or one had not but what "
    "all were when we there can an your which their said if do will each about how up out them "
    "then she many some so these would other into has more her two like him see time could no "
    "make than first been its who now people my made over did down only way find use may water "
    "long little very after words called just where most know garden kitchen letter project window "
    "station meeting recipe budget morning evening library software function database holiday"
).split()
_SAID = (
    ("preferences", "I prefer the {a} blend from shelf {n}."),
    ("projects", "I am building a {a} boat with {n} ribs."),
    ("beliefs", "I believe that {a} rules need {n} reasons."),
    ("decisions", "I decided to keep {n} {a} hens."),
)
_COLOURS = ("amber", "violet", "crimson", "teal", "ochre", "indigo", "silver", "umber")


def made_up(conversations: int, seed: int) -> tuple[list[dict[str, Any]], list[Planted]]:
    """Make an export of prose: a few turns mostly, sometimes many; a fact in every second one."""
    dice = random.Random(seed)
    told: list[Planted] = []

    def prose(words: int) -> str:
        sentences = []
        while words > 0:
            length = min(words, dice.randint(6, 20))
            sentences.append(" ".join(dice.choices(_WORDS, k=length)).capitalize() + ".")
            words -= length
        return " ".join(sentences)

    made = []
    for number in range(conversations):
        turns = []
        for _ in range(max(1, min(40, round(dice.lognormvariate(1.1, 0.8))))):
            said = prose(max(4, min(400, round(dice.lognormvariate(3.3, 0.9)))))
            turns.append(("user", said))
            turns.append(
                ("assistant", prose(max(20, min(900, round(dice.lognormvariate(5.0, 0.6))))))
            )
        if number % 2 == 0:
            category, form = _SAID[number // 2 % len(_SAID)]
            sentence = form.format(a=dice.choice(_COLOURS), n=100 + number)
            told.append(Planted(sentence=sentence, category=category))
            turns[0] = ("user", f"{turns[0][1]} {sentence}")
        made.append(conversation(number, turns))
    return made, told


async def measured(url: str, export: Path, truth: Truth) -> dict[str, Any]:
    """Run the pass; return its cost account, calls by purpose, and the text it read."""
    user = uuid.uuid4()
    db = await asyncpg.connect(url, statement_cache_size=0)
    try:
        job = await db.fetchval(
            "insert into processing_jobs (user_id, storage_path) values ($1, $2) returning id",
            user, f"file://{export}",
        )  # fmt: skip
        with AnthropicServer(truth=truth) as server:
            await work_once(
                url, server.url, fact_extraction_concurrency=8,
                lease_seconds=60.0, heartbeat_seconds=5.0,
            )  # fmt: skip
        row = await db.fetchrow("select * from processing_jobs where id = $1", job)
        assert row is not None
        if row["status"] != "complete":
            raise SystemExit(f"the pass did not complete: {row['status']} {row['error_message']}")
        by_purpose = await db.fetch(
            """
            select purpose, count(*)::int as calls, sum(output_tokens)::int as output,
                   sum(input_tokens)::int as input, sum(cache_read_tokens)::int as read,
                   sum(cache_write_tokens)::int as written
            from fullpass.llm_calls where job_id = $1 group by 1 order by min(id)
            """,
            job,
        )
        texts = [r["content"] for r in await db.fetch("select content from conversation_chunks")]
        return {
            "conversations": row["conversation_count"],
            "messages": row["message_count"],
            "by_purpose": [dict(r) for r in by_purpose],
            "characters": sum(map(len, texts)),
            "tokens": sum(map(estimate_tokens, texts)),
            "chunks": len(texts),
        }
    finally:
        await db.close()


def caches(model: Model) -> bool:
    """Whether extraction's instructions reach what this model caches."""
    instructions = prompt("extract")
    request = Request("extract", instructions.version, model.id, instructions.text, "",
                      EXTRACT_SCHEMA, 8_192, 60.0)  # fmt: skip
    return not isinstance(parameters(request, model)["system"], str)


def dollars(model: Model, rows: list[dict[str, Any]], *, batch: bool) -> Decimal:
    """Price a pass: extraction by batch or not, the rest always at once."""
    total = Decimal(0)
    for row in rows:
        usage = Usage(row["input"] + row["read"] + row["written"], row["output"])
        if caches(model):
            usage = Usage(row["input"], row["output"], row["read"], row["written"])
        for_one = Usage(*(n // row["calls"] for n in (
            usage.input_tokens, usage.output_tokens, usage.cache_read_tokens,
            usage.cache_write_tokens)))  # fmt: skip
        # The price depends on the length of each prompt; within a purpose they are alike.
        one = model.bill(for_one, batch=batch and row["purpose"] == "extract")
        assert one is not None
        total += one.cost_usd * row["calls"]
    return total


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--conversations", type=int, default=1_000)
    parser.add_argument("--seed", type=int, default=20261122)
    parser.add_argument("--export", type=Path, help="an export of your own")
    parser.add_argument(
        "--truth", type=Path, help="what the model shall find in it (docs/memory.md)"
    )
    options = parser.parse_args()
    configure_logs(log_format="json", level="ERROR")
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as cleanup:
        export, truth = options.export and options.export.resolve(), Truth()
        if export is None:
            conversations, told = made_up(options.conversations, options.seed)
            export, truth = Path(folder) / "conversations.json", Truth(told)
            export.write_text(json.dumps(conversations), encoding="utf-8")
        elif options.truth:
            truth = Truth.read(options.truth)
        server = postgres.OneServer()
        cleanup.callback(server.stop)
        url = postgres.create_database(server.get().url, migrated=True)
        cleanup.callback(postgres.drop_database, url)
        found = asyncio.run(measured(url, export, truth))
    return report(found)


def report(found: dict[str, Any]) -> int:
    """Print the tables and the metrics; return the exit code."""
    scale = found["tokens"] / (found["characters"] / 4)
    kinds = ("input", "read", "written", "output")
    rows = [
        {**row, **{kind: round(row[kind] * scale) for kind in kinds}} for row in found["by_purpose"]
    ]
    print(f"{found['conversations']:,} conversations, {found['messages']:,} messages, "
          f"{found['chunks']:,} chunks of {found['tokens']:,} tokens; "
          f"{scale:.3f} tokens for four characters\n")  # fmt: skip
    print("| purpose | calls | input | from cache | to cache | output |\n|---|---|---|---|---|---|")
    for row in rows:
        figures = " | ".join(f"{row[kind]:,}" for kind in kinds)
        print(f"| {row['purpose']} | {row['calls']:,} | {figures} |")
    print("\n| model | at once | by batch |\n|---|---|---|")
    metrics: list[dict[str, Any]] = []
    for model in KNOWN:
        at_once, by_batch = (dollars(model, rows, batch=batch) for batch in (False, True))
        print(f"| `{model.id}` | ${at_once:.2f} | ${by_batch:.2f} |")
        for mode, usd in (("at_once", at_once), ("by_batch", by_batch)):
            name = f"cost_usd.{model.id}.{mode}"
            metrics.append(
                {"metric": name, "value": round(float(usd), 4), "limit": None, "ok": True}
            )
    extract = next(row for row in found["by_purpose"] if row["purpose"] == "extract")
    read = found["characters"] / 4
    plain = (extract["input"] + extract["written"]) / read
    sent = plain + extract["read"] / read
    metrics += [
        {"metric": "extraction_input_per_token_read", "value": round(plain, 4),
         "limit": MOST_SENT_PER_TOKEN_READ, "ok": plain <= MOST_SENT_PER_TOKEN_READ},
        {"metric": "extraction_input_and_cached_per_token_read", "value": round(sent, 4),
         "limit": None, "ok": True},
    ]  # fmt: skip
    print()
    for metric in metrics:
        print(json.dumps(metric))
    return 0 if all(metric["ok"] for metric in metrics) else 1


if __name__ == "__main__":
    sys.exit(main())
