"""How many pairs of facts will be put to a model, foretold from the part that was read."""

from __future__ import annotations

import random

import pytest

from daemon.fullpass.facts import CheckedFact
from daemon.fullpass.forecast import PAIRS_PER_FACT
from daemon.fullpass.pairs_ahead import PairsAhead
from daemon.fullpass.questions import MOST_QUESTIONS, open_pairs
from daemon.fullpass.sayings import Mention, Sayings

THINGS = ("canoe", "ladder", "kiln", "loom", "harp", "sledge", "tent", "quilt", "anvil", "stove")
WORDS = [f"{a}{b}" for a in ("bal", "cor", "dun", "fel", "gor") for b in ("mir", "nax", "tol")]


def _facts(statements: list[str]) -> list[CheckedFact]:
    return [
        CheckedFact("preferences", "", statement, "affirmed", "high", "", None, message)
        for message, statement in enumerate(statements)
    ]


def _read(statements: list[str]) -> PairsAhead:
    ahead = PairsAhead()
    for at in range(0, len(statements), 3):
        ahead.add(_facts(statements[at : at + 3]))
    return ahead


def _reworded(count: int) -> list[str]:
    """Return things said twice in other words, in any order."""
    dice = random.Random(3)
    said = []
    for n in range(count):
        thing = f"{THINGS[n % len(THINGS)]} {WORDS[n % len(WORDS)]}{n}"
        said += [f"Wants to repair the {thing}", f"Is mending an old {thing} at home"]
    dice.shuffle(said)
    return said


def _open(statements: list[str]) -> int:
    """Count the pairs that consolidation will find among all of them."""
    known = Sayings()
    for row, statement in enumerate(statements):
        known.add(
            Mention(row, "", "preferences", "", statement, "high", f"{row}/1", 0, float(row), 0)
        )
    known.unite_certain()
    return len(open_pairs(known))


def test_before_anything_was_read_it_is_what_most_people_have() -> None:
    assert PairsAhead().among(100, before=0) == pytest.approx(PAIRS_PER_FACT * 100)
    assert PairsAhead().among(5, before=0) == 0


def test_who_never_says_anything_alike_is_soon_known_for_it() -> None:
    letters = "abcdefghijklmnopqrstuvwxyz"
    dice = random.Random(5)
    said = [" ".join("".join(dice.choices(letters, k=7)) for _ in range(4)) for _ in range(120)]
    assert _read(said).among(240, before=0) < 0.35 * PAIRS_PER_FACT * 240


@pytest.mark.parametrize("share", [0.4, 0.7, 1.0])
def test_who_rewords_everything_is_known_for_it_from_a_part_of_it(share: float) -> None:
    said = _reworded(80)
    there_are = _open(said)
    told = _read(said[: round(share * len(said))]).among(len(said), before=0)
    assert there_are > 3 * PAIRS_PER_FACT * len(said)
    assert 0.6 * there_are <= told <= 1.4 * there_are


def test_pairs_among_what_was_known_before_take_no_time() -> None:
    ahead = _read(_reworded(60))
    alone = ahead.among(120, before=0)
    assert ahead.among(120, before=60) == pytest.approx(0.75 * alone)
    assert ahead.among(120, before=120) == 0


def test_no_more_are_foretold_than_may_be_asked_and_no_more_facts_held_than_are_compared() -> None:
    ahead = _read(_reworded(400))
    assert ahead.among(400_000, before=0) <= MOST_QUESTIONS
    assert len(ahead._held) == 250
