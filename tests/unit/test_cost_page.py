"""The cost page: every figure follows from the measured tokens and the prices of the code."""

from __future__ import annotations

import re
from dataclasses import fields
from decimal import Decimal
from pathlib import Path

import pytest

from bench.bench_cost import caches, dollars
from daemon.llm.pricing import CHECKED, KNOWN, Model

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "cost.md").read_text(encoding="utf-8")
MODELS = list(KNOWN)


def table(first: str) -> list[list[str]]:
    """Give the rows of the table whose first heading is this one and whose rows start with it."""
    head = next(line for line in PAGE.splitlines() if line.startswith(f"| {first} "))
    rows = PAGE.split(head, 1)[1].split("\n\n", 1)[0].splitlines()[2:]
    return [[cell.strip(" `") for cell in row.strip("|").split("|")] for row in rows]


def measured() -> list[dict[str, object]]:
    names = ("calls", "input", "read", "written", "output")
    return [
        {
            "purpose": row[0],
            **{n: int(v.replace(",", "")) for n, v in zip(names, row[1:], strict=True)},
        }
        for row in table("purpose")
    ]


def test_the_prices_of_the_page_are_the_prices_of_the_code() -> None:
    assert f"checked {CHECKED}" in PAGE
    rows = {row[0]: row[1:] for row in table("model | input")}
    assert list(rows) == [model.id for model in MODELS]
    for model in MODELS:
        prices = [model.input_usd, model.cache_read_usd, model.cache_write_usd, model.output_usd]
        assert [Decimal(cell) for cell in rows[model.id][:4]] == prices
        assert rows[model.id][4] == f"{model.cache_minimum_tokens:,} tokens"


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.id)
def test_the_dollars_of_a_pass_follow_from_its_tokens(model: Model) -> None:
    rows = {row[0]: row[1:] for row in table("model | at once")}
    told = [f"${dollars(model, measured(), batch=batch):.2f}" for batch in (False, True)]
    assert rows[model.id] == told
    # And by the sentence of the page, without the code's own arithmetic.
    total = Decimal(0)
    for row in measured():
        input_, read, written, output = (
            Decimal(int(str(row[name]))) for name in ("input", "read", "written", "output")
        )
        if not caches(model):
            input_, read, written = input_ + read + written, Decimal(0), Decimal(0)
        assert model.input_usd is not None
        assert model.output_usd is not None
        total += input_ * model.input_usd + output * model.output_usd
        total += read * (model.cache_read_usd or 0) + written * (model.cache_write_usd or 0)
    assert float(total / 1_000_000) == pytest.approx(float(told[0][1:]), abs=0.006)


def test_only_the_models_that_the_page_names_cache_extraction() -> None:
    assert [model.id for model in MODELS if caches(model)] == [
        "claude-haiku-5-5", "claude-sonnet-5-5",
    ]  # fmt: skip
    assert "above the minima of Haiku 5.5 and Sonnet 5.5" in PAGE


def test_thinking_is_priced_as_the_page_says() -> None:
    calls = sum(int(str(row["calls"])) for row in measured())
    assert f"{calls} calls are {calls * 1_000:,} tokens of output" in PAGE
    for name, told in (("haiku-5.5", "$0.11"), ("sonnet-5.5", "$2.25")):
        price = KNOWN.named(name).output_usd
        assert price is not None
        assert f"${calls * 1_000 * price / 1_000_000:.2f}" == told
        assert told in PAGE


def test_every_capability_is_on_the_page() -> None:
    names = set(re.findall(r"`(\w+)`", PAGE.split("| capability |", 1)[1]))
    assert {field.name for field in fields(Model)} - {"id"} <= names
