"""Every sample export: a damaged copy of it still gives each conversation that is not damaged."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from daemon.errors import BadExport
from tests.support.export_samples import FIXTURES, read

if TYPE_CHECKING:
    from daemon.export.conversation import Conversation

SAMPLES = sorted(str(path.relative_to(FIXTURES)) for path in FIXTURES.rglob("*.json"))

DAMAGES: dict[str, Callable[[str], str]] = {
    "a bracket in the wrong place": lambda text: text.replace("{", "{]", 1),
    "its last brace lost": lambda text: text[: text.rindex("}")],
    "cut in the middle": lambda text: text[: len(text) // 2],
    "a quotation mark lost": lambda text: text.replace('": ', ": ", 1),
}


UNENDED = {"its last brace lost", "cut in the middle", "a quotation mark lost"}
UNUSUAL = {"chatgpt/bot-knows-chatgpt_export.json", "chatgpt/mitkury-example-conversation.json"}
"""Their keys stand in an order that no app writes, so that before the first sound conversation
nothing tells where the next one begins: one that does not end there takes the next along."""


def parts_of(name: str) -> list[Any]:
    """The conversations (of Gemini: the entries) that a sample holds."""
    held = json.loads((FIXTURES / name).read_text(encoding="utf-8"))
    if isinstance(held, dict):
        held = next((value for value in held.values() if isinstance(value, list)), [held])
    return list(held)


def told(conversations: list[Conversation]) -> list[tuple[str, list[tuple[str, str]]]]:
    """What is said in conversations, whatever ids it has."""
    return [(c.title, [(m.role, m.text) for m in c.messages]) for c in conversations]


def read_or_nothing(folder: Path, texts: list[str]) -> list[Conversation]:
    """The conversations of these texts; none where they hold none."""
    try:
        return read(folder, f"[{', '.join(texts)}]".encode())[0]
    except BadExport:
        return []


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", SAMPLES)
def test_a_damaged_copy_gives_its_undamaged_conversations(
    name: str, damage: str, tmp_path: Path
) -> None:
    texts = [json.dumps(part, ensure_ascii=False) for part in parts_of(name)]
    whole, report = read(tmp_path, f"[{', '.join(texts)}]".encode())
    assert report.whole
    for place in range(len(texts) + 1):
        if place == 0 and damage in UNENDED and name in UNUSUAL:
            continue
        # A broken copy of one of them stands between the sound ones.
        broken = DAMAGES[damage](texts[min(place, len(texts) - 1)])
        copy = [*texts[:place], broken, *texts[place:]]
        found, account = read(tmp_path, f"[{', '.join(copy)}]".encode())
        for expected in told(whole):
            assert expected in told(found), f"damaged at {place}"
        assert account.damaged >= 1
        assert not account.whole
        assert account.damages


@pytest.mark.parametrize("name", SAMPLES)
def test_a_copy_cut_short_anywhere_gives_what_came_before(name: str, tmp_path: Path) -> None:
    texts = [json.dumps(part, ensure_ascii=False) for part in parts_of(name)]
    whole, _ = read(tmp_path, f"[{', '.join(texts)}]".encode())
    for count in range(1, len(texts)):
        cut = ", ".join(texts[: count + 1])[: -len(texts[count]) // 2]
        if not told(read_or_nothing(tmp_path, texts[:count])):
            continue  # of Gemini's entries the first ones are other products'
        found, account = read(tmp_path, f"[{cut}".encode())
        assert told(found)[:count] == told(whole)[:count]
        assert not account.whole
