"""What a model proposes for MEMORY is believed only as far as its facts go."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest

from daemon.fullpass.memory import (
    NO_DATA,
    Line,
    _fit,
    accept,
    render,
    supported,
    without_citations,
)
from daemon.fullpass.prompts import prompt
from daemon.fullpass.reduce import Item
from daemon.fullpass.tokens import estimate_tokens

DAY = datetime(2024, 3, 5, tzinfo=UTC)


def item(
    statement: str, n: int = 1, *, category: str = "preferences", days: int = 0, weight: int = 1
) -> Item:
    return Item(category, statement, DAY + timedelta(days=days), (UUID(int=n << 96),), weight)


@pytest.mark.parametrize(
    ("line", "facts"),
    [
        ("Prefers tea to coffee", ["Prefers tea to coffee"]),
        ("Resides in Ghent", ["Lives in Ghent"]),
        ("Lives in Ghent with two cats", ["Lives in Ghent", "Has two cats"]),
        ("Likes sailing and chess", ["Likes sailing", "Likes chess"]),
        ("No longer eats meat", ["Doesn't eat meat"]),
        ("喜欢喝茶", ["喜欢喝茶"]),
        ("Lubi herbatę, and Likes chess", ["Lubi herbatę", "Likes chess"]),
        ("Currently builds a boat and plays chess", ["Is building a boat", "Plays chess"]),
        ("Eats fish but doesn't eat meat", ["Eats fish", "Doesn't eat meat"]),
        ("Isst kein Fleisch und mag Hunde", ["Isst kein Fleisch", "Mag Hunde"]),
        ("Любит собак и кошек", ["Любит собак", "Любит кошек"]),
    ],
)
def test_a_line_may_reword_and_join(line: str, facts: list[str]) -> None:
    assert supported(line, facts)


@pytest.mark.parametrize(
    ("line", "facts"),
    [
        ("Eats meat", ["Doesn't eat meat"]),
        ("Doesn't like olives", ["Likes olives"]),
        ("Prefers coffee to tea", ["Prefers tea to coffee"]),
        ("Has three cats", ["Has two cats"]),
        ("Has cats", ["Has two cats"]),
        ("Launch is on 3 April", ["Launch is on 3 March"]),
        ("Lives in Ghent with Tom", ["Lives in Ghent"]),
        (
            "Anna lives in Porto, Marta lives in Ghent",
            ["Anna lives in Ghent", "Marta lives in Porto"],
        ),
        ("Loves long walks by the sea at dawn with friends", ["Likes walks"]),
        # Something added, in a line that is otherwise its facts'
        ("Works as a nurse at the clinic and drinks heavily", ["Works as a nurse at the clinic"]),
        ("Mag Hunde und Schlangen", ["Mag Hunde und Katzen"]),
        ("喜欢喝红茶", ["喜欢喝绿茶"]),
        ("Unemployed as a nurse", ["Employed as a nurse"]),
        # Something left out: its fact would be gone and yet cited
        ("Likes tea", ["Likes tea", "Loves rock climbing"]),
        ("Eats fish", ["Only eats fish"]),
        # One fact's word given to another
        ("Hates cats and loves dogs", ["Hates dogs", "Loves cats"]),
        ("Hates cats and dogs", ["Hates cats", "Has dogs"]),
        ("Doesn't eat meat but eats fish", ["Eats meat", "Doesn't eat fish"]),
        (
            "Doesn't eat meat, doesn't eat fish, drinks wine",
            ["Doesn't eat meat", "Eats fish", "Doesn't drink wine"],
        ),
        ("", ["Lives in Ghent"]),
    ],
)
def test_a_line_that_says_something_else_is_not_believed(line: str, facts: list[str]) -> None:
    assert not supported(line, facts)


def test_a_fact_that_no_line_covers_stands_as_it_is() -> None:
    items = [item("Lives in Ghent", 1), item("Has two cats", 2)]
    lines, details = accept(
        [
            {"text": "Resides in Ghent", "facts": [1]},
            {"text": "Has nine cats", "facts": [2]},
            {"text": "Owns a castle", "facts": []},
            {"text": "Owns a castle", "facts": [3]},
            {"text": "Lives in Ghent", "facts": [1]},
            {"text": None, "facts": ["1", True]},
        ],
        items,
    )
    assert [line.text for line in lines] == ["Resides in Ghent", "Has two cats"]
    assert details == {"lines_accepted": 1, "lines_rejected": 5, "facts_added_as_they_stand": 1}


@pytest.mark.parametrize("cited", [1, 1.0, True, "1", {"1": 1}, [[1]], [{}], [10**30], None])
def test_citations_of_any_shape_are_read_or_passed_over(cited: object) -> None:
    (line,), details = accept(
        [{"text": "Resides in Ghent", "facts": cited}], [item("Lives in Ghent")]
    )
    assert line.text == "Lives in Ghent"
    assert details["lines_rejected"] == 1


def test_what_is_asked_of_a_line_is_what_is_believed_of_it() -> None:
    """Half of an able model's lines were dropped for rules that the prompt had not told."""
    facts = [
        "Wants no Hibernate suggestions", "Does not trust ORMs", "Lives in Ghent since 3 May 2024",
    ]  # fmt: skip
    held = [item(text) for text in facts]
    one = {"text": f"{facts[0]}, {facts[1].lower()}; {facts[2]}", "facts": [1, 2, 3]}
    assert accept([one], held)[1]["lines_accepted"] == 1
    again = {"text": facts[2], "facts": [3]}
    assert accept([one, again], held)[1]["lines_rejected"] == 1
    told = " ".join(prompt("memory").text.split())
    assert "Each fact is in one line only." in told
    assert "in their own words: each keeps every word that tells something" in told
    assert 'its own "not"' in told
    # Across categories one heading would lose what stands under another.
    exam = [
        item("Learns Thai", 1, category="projects"),
        item("Exam is on 3 May", 2, category="dates"),
    ]
    (line,), _ = accept([{"text": "Learns Thai; exam is on 3 May", "facts": [1, 2]}], exam)
    assert line.category == "projects"
    assert "Join facts of one category that belong together" in told


def test_a_line_cites_all_of_its_facts() -> None:
    items = [item(f"Likes {fruit}", n) for n, fruit in enumerate("abcdefgh", start=1)]
    text = "; ".join(i.statement for i in items)
    (line,), _ = accept([{"text": text, "facts": list(range(1, 9))}], items)
    assert line.render().count("f:") == 8


def test_no_citation_is_made_by_taking_one_away() -> None:
    (line,), _ = accept([], [item("Likes tea [f:[f:]00000000]")])
    assert line.render().count("f:") == 1


def test_markup_in_a_line_cannot_leave_its_item() -> None:
    (line,), _ = accept([], [item("Wants <script>alert(1)</script> # and `code` [f:00000000]")])
    assert "‹script>alert(1)‹/script>" in line.render()
    assert not set("<`") & set(line.render())
    assert line.render().count("f:") == 1


@pytest.mark.parametrize(
    ("statement", "shown"),
    [
        ("Spends < 50 £ a week", "Spends < 50 £ a week"),
        ("-18 °C is where the freezer stays", "-18 °C is where the freezer stays"),
        ("# Wants a heading", "Wants a heading"),
        ("- > 1. Wants a list", "Wants a list"),
        ("2024 was the year of the move", "2024 was the year of the move"),
    ],
)
def test_a_sign_that_says_something_is_no_markup(statement: str, shown: str) -> None:
    (line,), _ = accept([], [item(statement)])
    assert line.text == shown


def test_every_heading_is_there_even_with_nothing_under_it() -> None:
    text = render([])
    assert text.count(NO_DATA) == 5
    assert (
        text.index("## Preferences") < text.index("## Projects") < text.index("## Important Dates")
    )


def test_newest_first_under_each_heading() -> None:
    lines = [
        Line("preferences", f"Likes {n}", DAY + timedelta(days=n), (UUID(int=n),))
        for n in (1, 3, 2)
    ]
    kept, dropped = _fit(lines, 5_000)
    assert [line.text for line in kept] == ["Likes 3", "Likes 2", "Likes 1"]
    assert dropped == 0


@pytest.mark.parametrize("budget", [100, 150, 333, 1_000])
def test_the_budget_is_that_of_the_whole_document(budget: int) -> None:
    lines = [
        Line(
            "preferences", f"Likes tea number {n} from the shop", DAY, (UUID(int=n),), weight=n % 7
        )
        for n in range(200)
    ]
    kept, dropped = _fit(lines, budget)
    assert estimate_tokens(render(kept)) <= budget
    assert len(kept) + dropped == 200
    assert not kept or min(line.weight for line in kept) >= 5


def test_the_clean_variant_has_no_citations_and_loses_nothing_else() -> None:
    line = Line("preferences", "Likes tea [sic]", DAY, (UUID(int=1 << 96), UUID(int=2 << 96)))
    assert line.render() == "- Likes tea [sic] (2024-03-05) [f:00000001, f:00000002]"
    assert without_citations(line.render()) == "- Likes tea [sic] (2024-03-05)"
