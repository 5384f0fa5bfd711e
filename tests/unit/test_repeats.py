"""How many different things a person says, foretold from the part that was read."""

from __future__ import annotations

import random

import pytest

from daemon.fullpass.repeats import Repeats


def _noted(said: list[str]) -> Repeats:
    repeats = Repeats()
    for statement in said:
        repeats.add(statement)
    return repeats


def test_who_never_repeats_anything_is_taken_to_go_on_so() -> None:
    repeats = _noted([f"Owns chair {n}" for n in range(24)])
    assert repeats.different(of=240) == 240
    assert repeats.different(of=24) == 24
    assert Repeats().different(of=50) == 50


def test_case_spaces_and_the_last_stop_make_no_difference() -> None:
    assert _noted(["Lives in Bern.", "lives  in Bern"]).different(of=2) == 1


@pytest.mark.parametrize(("different", "read", "of"), [(30, 40, 240), (200, 150, 600)])
def test_of_things_said_again_and_again_few_are_still_unsaid(
    different: int, read: int, of: int
) -> None:
    dice = random.Random(3)
    said = [f"Likes tea {dice.randrange(different)}" for _ in range(of)]
    assert _noted(said[:read]).different(of=of) == pytest.approx(len(set(said)), rel=0.25)


def test_one_favourite_saying_does_not_hide_how_much_else_is_said() -> None:
    dice = random.Random(5)
    said = [f"Owns book {n}" if dice.random() < 0.9 else "Lives in Bern" for n in range(1000)]
    assert _noted(said[:100]).different(of=1000) == pytest.approx(len(set(said)), rel=0.1)


def test_of_very_many_a_bounded_part_is_held_and_counts_for_all() -> None:
    repeats = _noted([f"Owns stamp {n}" for n in range(50_000)])
    assert len(repeats._held) <= 4_096
    assert repeats.different(of=50_000) == pytest.approx(50_000, rel=0.1)
