"""The report page: everything is on it, nothing of an export acts on it."""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest

from daemon.cli.page import page
from tests.support.browser import BROWSER
from tests.support.pages_read import HOSTILE, Reader

if TYPE_CHECKING:
    from pathlib import Path


@dataclass
class Told:
    memory: str = "## Preferences\n\n- Likes tea (2024-03-05) [f:00000000]\n"
    facts: list[dict[str, Any]] = field(default_factory=list)
    report: dict[str, Any] = field(default_factory=dict)


def fact(n: int, statement: str = "Likes tea", **more: Any) -> dict[str, Any]:
    return {
        "id": f"{n:08x}-0000-0000-0000-000000000000", "category": "preferences",
        "statement": statement, "slot": "", "polarity": "affirmed", "confidence": "high",
        "observed_at": "2024-03-05T10:00:00+00:00", "source": "chatgpt", "superseded_by": None,
        "evidence": [{"conversation_id": "c-1", "message_id": "m-1", "quote": statement,
                      "kind": "user", "at": "2024-03-05T10:00:00+00:00"}],
    } | more  # fmt: skip


def told(*facts: dict[str, Any], text: str = "plain", **more: Any) -> Told:
    spent = {"calls": 2, "input_tokens": 10, "output_tokens": 5, "cost_usd": 0.01,
             "calls_of_unknown_price": 0}  # fmt: skip
    report = {
        "job_id": "job", "status": "complete", "why": text, "why_no_facts": text, "conversations": 3,
        "messages": 9, "coverage": {"chunks": 4, "read": 4, "share": 1.0},
        "outcomes": {"ok": 3, "empty": 1}, "facts": {"current": len(facts), "superseded": 0},
        "rejected": {text: 2}, "damages": [text], "memory": {"writer": "llm", "lines_over_budget": 1},
        "sections": {"saved": False, "detail": text},
        "export": {"forgotten": 1, "ignored": {text: 2}, "redacted": 1},
        "cost": {**spent, "by_purpose": {"extract": spent}}, "versions": {"fullpass": "0"},
    }  # fmt: skip
    return Told(facts=list(facts), report=report, **more)


def hostile() -> Told:
    facts = [
        fact(0, HOSTILE, source=HOSTILE, confidence=HOSTILE),
        fact(1, HOSTILE, superseded_by=fact(0)["id"], observed_at=HOSTILE),
    ]
    return told(
        *facts, text=HOSTILE, memory=f"## {HOSTILE}\n\n- {HOSTILE} [f:00000000]\n{HOSTILE}\n"
    )


def test_hostile_text_of_an_export_comes_out_as_text() -> None:
    text = page(hostile())
    read = Reader(text)
    assert not {"script", "img", "iframe", "object", "link", "form"} & {tag for tag, _ in read.tags}
    assert not any(name.startswith("on") for _, attrs in read.tags for name in attrs)
    assert all(link.startswith("#") for link in read.values("href"))
    assert "\u202e" not in text
    assert "<script>document.title='taken'</script>" in "".join(read.words)
    assert read.open == []


def test_the_page_needs_nothing_but_itself() -> None:
    text = page(told(fact(0)))
    assert not re.search(r"https?:|//[a-z]|@import|url\(", text)
    assert "default-src 'none'" in text
    assert len(text) < 20_000


def test_every_link_leads_somewhere_and_every_place_is_one() -> None:
    facts = [fact(0), fact(1, "Liked coffee", superseded_by=fact(0)["id"]),
             fact(2, "Liked milk", superseded_by=fact(1)["id"])]  # fmt: skip
    read = Reader(page(told(*facts)))
    ids = read.values("id")
    assert len(ids) == len(set(ids))
    assert {link[1:] for link in read.values("href")} <= set(ids)
    assert set(read.values("aria-labelledby")) <= set(ids)
    assert {"f-00000000", "f-00000001", "f-00000002"} <= set(ids)


def test_the_page_says_what_was_replaced_what_was_read_and_what_it_cost() -> None:
    facts = [fact(0, "Drinks tea"), fact(1, "Drinks coffee", superseded_by=fact(0)["id"])]
    text = "".join(Reader(page(told(*facts))).words)
    for part in (
        "Drinks tea",
        "Before:",
        "Drinks coffee",
        "Newest wins",
        "4 of 4",
        "$0.0100",
        "2024-03",
    ):
        assert part in text


def test_a_person_of_very_many_facts_gets_a_page_that_opens() -> None:
    many = [fact(n, f"Likes item {n}") for n in range(6_000)]
    text = page(told(*many))
    assert "And 4,000 more facts" in text
    assert len(text) < 3_000_000


@pytest.mark.skipif(BROWSER is None, reason="missing component: Chromium")
def test_a_real_browser_runs_nothing_and_loads_nothing(tmp_path: Path) -> None:
    file = tmp_path / "report.html"
    file.write_text(page(hostile()), encoding="utf-8")
    shown = subprocess.run(
        [BROWSER, "--headless=new", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=500",
         f"--user-data-dir={tmp_path}", "--dump-dom", file.as_uri()],
        capture_output=True, text=True, timeout=60, check=True,
    ).stdout  # fmt: skip
    assert "<title>What fullpass knows</title>" in shown
    assert "taken&lt;" not in shown.split("<body>")[0]
    assert "<img" not in shown
    assert "&lt;script&gt;" in shown
