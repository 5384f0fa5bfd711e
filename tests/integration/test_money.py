"""What a pass costs: the ceiling holds, and every dollar paid or saved is told as it was."""

from __future__ import annotations

import json
import uuid
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pytest

from daemon.llm.pricing import CHECKED, KNOWN, Models, cost_usd
from daemon.llm.request import Usage
from daemon.ops import costs
from tests.support.anthropic_server import AnthropicServer
from tests.support.batch_pass import insert_job
from tests.support.exports import planted_export
from tests.support.worker_process import work_once

if TYPE_CHECKING:
    from pathlib import Path


async def cost_of(db: Any, job: uuid.UUID) -> dict[str, Any]:
    row = await db.fetchrow(
        "select j.result, p.import_cost_json from processing_jobs j "
        "join user_profiles p using (user_id) where j.id = $1",
        job,
    )
    cost = json.loads(row["result"])["cost"]
    assert json.loads(row["import_cost_json"]) == cost
    # `status JOB` and `run` sum the same receipts by themselves.
    shown = await costs.cost_of(db, job)
    assert cost == pytest.approx({name: float(shown[name]) for name in cost})
    return cost


async def test_a_ceiling_holds_with_fifty_calls_in_flight_and_what_is_done_is_kept(
    db: Any, database_url: str, tmp_path: Path
) -> None:
    export = planted_export(conversations=30, filler_words=100)
    user = uuid.uuid4()
    job = await insert_job(db, export.write(tmp_path / "c.json"), user)
    ceiling = 0.3  # dollars, where each of the thirty calls costs about two cents
    settings: dict[str, Any] = {
        "fact_extraction_concurrency": 50,
        "extraction_window_tokens": 500,
        "model_capabilities": {"haiku-5.5": {"input_usd": 10, "output_usd": 0.1}},
    }
    with AnthropicServer(truth=export.truth) as server:
        server.behave(latency_seconds=0.2)
        tally = await work_once(database_url, server.url, **settings, max_cost_usd_per_job=ceiling)
        assert "MAX_COST_USD_PER_JOB" in tally.failed[job]
        spent = await db.fetchval("select sum(cost_usd) from fullpass.llm_calls")
        assert 0 < spent <= Decimal(str(ceiling))
        read = await db.fetchval("select count(*) from fullpass.chunk_outcomes")
        assert read > 0
        assert server.record.totals()["most_in_flight"] > 1
        calls = len(server.record.completed())
        assert calls == await db.fetchval("select count(*) from fullpass.llm_calls")
        # A higher ceiling and a retry go on from there, and pay for nothing again.
        assert await db.fetchval("select fullpass.retry($1)", job)
        tally = await work_once(database_url, server.url, **settings, max_cost_usd_per_job=50.0)
        assert tally.completed == [job]
        assert not server.record.paid_again()
        assert len(server.record.completed()) > calls
    cost = await cost_of(db, job)
    assert cost["calls"] == await db.fetchval("select count(*) from fullpass.llm_calls")


async def test_a_ceiling_that_not_even_one_call_fits_under_pays_nothing(
    db: Any, database_url: str, tmp_path: Path
) -> None:
    job = await insert_job(db, planted_export(conversations=2).write(tmp_path / "c"), uuid.uuid4())
    with AnthropicServer() as server:
        tally = await work_once(database_url, server.url, max_cost_usd_per_job=0.0001)
        assert not server.record.calls
    assert "the next call may cost" in tally.failed[job]


async def test_tokens_by_kind_and_what_caching_saved_are_the_servers_own_figures(
    db: Any, database_url: str, tmp_path: Path
) -> None:
    export = planted_export(conversations=30)
    job = await insert_job(db, export.write(tmp_path / "c.json"), uuid.uuid4())
    with AnthropicServer(truth=export.truth) as server:
        await work_once(database_url, server.url)
        told = server.record.totals()
    cost = await cost_of(db, job)
    for kind in ("input_tokens", "output_tokens", "cache_read_tokens", "cache_write_tokens"):
        assert cost[kind] == told[kind]
    written, read = told["cache_write_tokens"], told["cache_read_tokens"]
    plain = told["input_tokens"] * 0.10 + told["output_tokens"] * 0.50
    assert cost["cost_usd"] == pytest.approx((plain + written * 0.125 + read * 0.01) / 1e6)
    uncached = (plain + (written + read) * 0.10) / 1e6
    assert cost["saved_by_cache_usd"] == pytest.approx(uncached - cost["cost_usd"])
    assert cost["saved_by_cache_usd"] > 0
    assert (cost["batch_calls"], cost["saved_by_batch_usd"]) == (0, 0)
    assert (cost["calls_served_by_ledger"], cost["saved_by_ledger_usd"]) == (0, 0)


async def test_the_same_export_again_tells_what_the_ledger_saved(
    db: Any, database_url: str, tmp_path: Path
) -> None:
    path = (export := planted_export(conversations=6)).write(tmp_path / "c.json")
    user = uuid.uuid4()
    with AnthropicServer(truth=export.truth) as server:
        await insert_job(db, path, user)
        await work_once(database_url, server.url)
        second = await insert_job(db, path, user)
        await work_once(database_url, server.url)
    # Chunks that were read are not even asked about; the rest was asked, and served.
    rest = await db.fetchrow(
        "select count(*) as calls, sum(cost_usd) as usd from fullpass.llm_calls "
        "where purpose <> 'extract'"
    )
    cost = await cost_of(db, second)
    assert (cost["calls"], cost["cost_usd"]) == (0, 0)
    assert cost["calls_served_by_ledger"] == rest["calls"] > 0
    assert cost["saved_by_ledger_usd"] == pytest.approx(float(rest["usd"]))


async def test_a_receipt_that_serves_every_resume_of_a_job_is_counted_once(
    db: Any, database_url: str, tmp_path: Path
) -> None:
    export = planted_export(conversations=4)
    job = await insert_job(db, export.write(tmp_path / "c.json"), uuid.uuid4())
    with AnthropicServer(truth=export.truth) as server:
        server.behave(faults={"forbidden": 1.0}, fault_purposes=("sections",))
        for _ in range(3):  # each resume asks for MEMORY again
            await work_once(database_url, server.url)
            await db.execute("update processing_jobs set run_at = now() where id = $1", job)
        server.behave(faults={})
        tally = await work_once(database_url, server.url)
        assert tally.completed == [job]
        assert not server.record.paid_again()
    cost = await cost_of(db, job)
    receipts = await db.fetch("select * from fullpass.llm_calls")
    again = [r["cost_usd"] for r in receipts if r["purpose"] not in {"extract", "sections"}]
    assert cost["calls"] == len(receipts)
    assert cost["calls_served_by_ledger"] == len(again)
    assert cost["saved_by_ledger_usd"] == pytest.approx(float(sum(again)))


async def test_a_model_of_unknown_price_works_and_its_price_is_said_to_be_unknown(
    db: Any, database_url: str, tmp_path: Path
) -> None:
    export = planted_export(conversations=4)
    jobs = [
        await insert_job(db, export.write(tmp_path / f"{n}.json"), uuid.uuid4()) for n in range(2)
    ]
    named = {"extraction_model": "mine", "memory_model": "mine", "sections_model": "mine"}
    priced = {"mine": {"input_usd": 0.2, "output_usd": 1}}
    with AnthropicServer(truth=export.truth) as server:
        server.behave(models=("mine",))
        await work_once(database_url, server.url, **named)
        unknown = await cost_of(db, jobs[0])
        assert unknown["calls_of_unknown_price"] == unknown["calls"] > 0
        assert unknown["cost_usd"] == 0
        third = await insert_job(db, tmp_path / "0.json", uuid.uuid4())
        await work_once(database_url, server.url, **named, model_capabilities=priced)
    known = await cost_of(db, third)
    assert known["calls_of_unknown_price"] == 0
    tokens = Decimal(known["input_tokens"]) * Decimal("0.2") + known["output_tokens"]
    assert known["cost_usd"] == pytest.approx(float(tokens / 1_000_000))


def test_a_screen_tells_what_was_saved_and_is_silent_where_nothing_was() -> None:
    cost: dict[str, Any] = {
        "input_tokens": 12_000, "output_tokens": 34, "cache_read_tokens": 0,
        "cache_write_tokens": 0, "saved_by_cache_usd": 0, "saved_by_batch_usd": 0,
        "calls_served_by_ledger": 0, "saved_by_ledger_usd": 0,
    }  # fmt: skip
    assert costs.savings(cost) == ""
    assert costs.tokens(cost) == "12,000 tokens in, 34 out"
    cost |= {
        "cache_read_tokens": 7_000, "cache_write_tokens": 700, "saved_by_cache_usd": 0.0005,
        "saved_by_batch_usd": 0.02, "calls_served_by_ledger": 1, "saved_by_ledger_usd": 0.003,
    }  # fmt: skip
    assert costs.savings(cost) == (
        "saved $0.0005 by caching, $0.0200 by batches, $0.0030 by 1 call paid before"
    )
    assert costs.tokens(cost).endswith("34 out, 7,000 from cache, 700 to cache")


# Prices


@pytest.mark.parametrize("model", list(KNOWN), ids=lambda model: model.id)
def test_every_known_model_has_all_that_the_table_promises(model: Any) -> None:
    for price in (model.input_usd, model.output_usd, model.cache_read_usd, model.cache_write_usd):
        assert price is not None
    assert model.cache_read_usd < model.input_usd < model.cache_write_usd
    assert model.prices_checked == CHECKED
    assert model.context_tokens > model.max_output_tokens
    assert model.bedrock.startswith("anthropic.")
    assert model.vertex


def test_a_long_prompt_costs_its_factor_on_the_whole_request() -> None:
    short, long = (cost_usd("haiku-5.5", Usage(n, 1_000)) for n in (100_000, 100_001))
    assert short == (Decimal("0.10") * 100_000 + Decimal("0.50") * 1_000) / 1_000_000
    assert long == 5 * (Decimal("0.10") * 100_001 + Decimal("0.50") * 1_000) / 1_000_000


def test_a_batch_costs_half_and_says_what_it_saved() -> None:
    usage = Usage(1_000, 100, 2_000, 0)
    model = Models().named("sonnet")
    alone, batch = model.bill(usage), model.bill(usage, batch=True)
    assert alone is not None
    assert batch is not None
    assert batch.cost_usd == batch.saved_by_batch_usd == alone.cost_usd / 2
    assert batch.saved_by_cache_usd == alone.saved_by_cache_usd / 2


def test_a_changed_price_leaves_the_rest_of_the_table_as_it_is() -> None:
    changed = Models({"haiku-5.5": {"input_usd": 0.09}})
    assert changed.named("claude-haiku-5-5").input_usd == Decimal("0.09")
    assert changed.named("claude-haiku-5-5").output_usd == Decimal("0.50")
    assert KNOWN.named("haiku-5.5").input_usd == Decimal("0.10")
