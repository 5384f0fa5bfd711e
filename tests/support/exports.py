"""Small ChatGPT exports for tests, made from turns, with planted facts whose truth is known."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tests.support.planted_truth import Planted

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

Turn = tuple[str, str]

_START = 1_700_000_000.0
_DAY = 86_400.0


def conversation(number: int, turns: Sequence[Turn], *, title: str | None = None) -> dict[str, Any]:
    """Return one conversation in the shape ChatGPT exports, a day after the one before."""
    created = _START + number * _DAY
    mapping: dict[str, Any] = {
        f"root-{number}": {
            "id": f"root-{number}", "parent": None, "children": [f"m-{number}-0"], "message": None,
        }
    }  # fmt: skip
    for n, (role, text) in enumerate(turns):
        node = f"m-{number}-{n}"
        mapping[node] = {
            "id": node,
            "parent": f"m-{number}-{n - 1}" if n else f"root-{number}",
            "children": [f"m-{number}-{n + 1}"] if n + 1 < len(turns) else [],
            "message": {
                "id": node,
                "author": {"role": role, "name": None, "metadata": {}},
                "create_time": created + 30 * n,
                "content": {"content_type": "text", "parts": [text]},
                "status": "finished_successfully",
                "weight": 1.0,
                "metadata": {},
                "recipient": "all",
            },
        }
    return {
        "id": f"conv-{number}",
        "conversation_id": f"conv-{number}",
        "title": title or f"Conversation {number}",
        "create_time": created,
        "update_time": created + 30 * len(turns),
        "mapping": mapping,
        "current_node": f"m-{number}-{len(turns) - 1}",
    }


@dataclass(frozen=True, slots=True)
class PlantedExport:
    """An export and the facts planted in it."""

    conversations: list[dict[str, Any]]
    truth: list[Planted]

    def write(self, path: Path) -> Path:
        """Write the export as conversations.json text."""
        path.write_text(json.dumps(self.conversations), encoding="utf-8")
        return path


_THINGS = (
    ("preferences", "I prefer {a} tea from tin {n} over anything else.", "Prefers {a} tea from tin {n}"),
    ("projects", "I am building a {a} kite with {n} sails.", "Is building a {a} kite with {n} sails"),
    ("beliefs", "I believe that {a} rules need {n} reasons.", "Believes that {a} rules need {n} reasons"),
    ("decisions", "I decided to buy {n} {a} chairs.", "Decided to buy {n} {a} chairs"),
)  # fmt: skip
_COLOURS = ("amber", "violet", "crimson", "teal", "ochre", "indigo", "silver", "umber")


def planted_export(
    *,
    conversations: int,
    facts_each: int | Sequence[int] = 3,
    filler_words: int = 120,
    seed: int = 7,
) -> PlantedExport:
    """Make an export in which each conversation states `facts_each` facts that occur nowhere else.

    Of several numbers, conversations take turns.
    """
    dice = random.Random(seed)
    made: list[dict[str, Any]] = []
    truth: list[Planted] = []
    number = 0
    for c in range(conversations):
        turns: list[Turn] = []
        for _ in range(
            facts_each if isinstance(facts_each, int) else facts_each[c % len(facts_each)]
        ):
            number += 1
            category, sentence, statement = _THINGS[number % len(_THINGS)]
            words = {"a": _COLOURS[number % len(_COLOURS)], "n": number + 100}
            said = sentence.format(**words)
            truth.append(
                Planted(sentence=said, category=category, statement=statement.format(**words))
            )
            filler = " ".join(
                dice.choice(("rain", "window", "paper", "walk", "later", "north", "quiet"))
                for _ in range(filler_words)
            )
            turns.append(("user", f"Something about {filler}. {said} What do you think?"))
            turns.append(("assistant", f"Here is a thought about {filler}."))
        made.append(conversation(c, turns))
    return PlantedExport(made, truth)
