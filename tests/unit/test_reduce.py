"""What is left out of a full MEMORY follows one stated rule."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import islice
from uuid import UUID

from daemon.fullpass.reduce import Item, _ranked, by_rank, joins, keeps_numbers

DAY = datetime(2024, 3, 5, tzinfo=UTC)


def item(
    statement: str, *, category: str = "preferences", day: int | None = 0, weight: int = 1
) -> Item:
    at = None if day is None else DAY + timedelta(days=day)
    return Item(category, statement, at, (UUID(int=1),), weight)


def test_better_founded_first_then_newer_then_undated() -> None:
    items = [
        item("undated", day=None),
        item("old", day=1),
        item("new", day=9),
        item("often", weight=3),
    ]
    assert [i.statement for i in by_rank(items)] == ["often", "new", "old", "undated"]


def test_categories_take_turns_so_that_none_crowds_out_another() -> None:
    crowd = [item(f"like {n}", weight=9) for n in range(50)]
    quiet = [item("launch", category="projects"), item("birthday", category="dates")]
    first = [i.category for i in islice(by_rank([*crowd, *quiet]), 3)]
    assert first == ["preferences", "projects", "dates"]


def test_the_ranking_does_not_depend_on_the_order_of_rows() -> None:
    items = [item(f"like {n}", day=n % 3, weight=n % 2) for n in range(30)]
    assert list(by_rank(items)) == list(by_rank(reversed(items)))


def test_what_is_ranked_in_keeps_its_order_and_its_room() -> None:
    items = [item(f"likes number {n}", day=n) for n in range(100)]
    kept = _ranked(items, 300)
    assert kept == sorted(kept, key=lambda i: i.observed_at or DAY)
    assert kept[-1] == items[-1]
    assert sum(i.tokens for i in kept) <= 300


def test_a_join_keeps_every_number() -> None:
    assert keeps_numbers("Runs 5 km and swims 2 km", ["Runs 5 km", "Swims 2 km"])
    assert not keeps_numbers("Runs 5 km and swims", ["Runs 5 km", "Swims 2 km"])
    assert not keeps_numbers("", ["Runs"])


def test_a_join_says_all_of_its_members_and_nothing_else() -> None:
    members = ["Loves rock climbing", "Plays chess on Sundays"]
    assert joins("Loves rock climbing and plays chess on Sundays", members)
    assert not joins("Plays chess on Sundays", members)
    assert not joins("Was convicted of fraud", members)
    assert not joins("Plays rock climbing and loves chess on Sundays", members)
