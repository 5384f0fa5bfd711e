"""The example in the repository is what its one command writes."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def test_what_is_committed_is_what_make_example_writes() -> None:
    build = runpy.run_path(str(EXAMPLES / "build.py"))
    source = (EXAMPLES / "conversations.txt").read_text(encoding="utf-8")
    conversations, truth = build["build"](source)
    assert json.loads((EXAMPLES / "conversations.json").read_text("utf-8")) == conversations
    assert json.loads((EXAMPLES / "truth.json").read_text("utf-8")) == truth
    memory = build["memory"](EXAMPLES / "conversations.json")
    assert memory == (EXAMPLES / "MEMORY.md").read_text("utf-8")
