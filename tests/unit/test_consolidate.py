"""What two statements have to do with each other: the same, newer, or nothing."""

from __future__ import annotations

from datetime import date
from math import inf

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from daemon.fullpass.alike import abroad, alike
from daemon.fullpass.consolidate import worded
from daemon.fullpass.judge import _told, batched
from daemon.fullpass.meaning import may_be_same, says_only
from daemon.fullpass.sayings import Mention, Sayings
from daemon.fullpass.supersede import Meaning, succeed
from daemon.fullpass.wording import fold_slot, holds_many, read

DAY = 86_400.0
START = 1_700_000_000.0


def said(
    *mentions: tuple[str, float] | tuple[str, float, str] | tuple[str, float, str, str],
) -> Sayings:
    """Make sayings of (statement, day, slot, source); a day of -inf is unknown."""
    known = Sayings()
    for n, (statement, day, *rest) in enumerate(mentions):
        slot, source = [*rest, "", ""][:2]
        known.add(
            Mention(
                row=n,
                source=source or "chatgpt",
                category="preferences",
                slot=slot,
                statement=statement,
                confidence="high",
                place=f"conversation-{n}/message",
                position=0,
                observed=START + day * DAY if day > -inf else -inf,
                valid_from=0,
            )
        )
    known.unite_certain()
    return known


def current(*mentions: tuple[str, float] | tuple[str, float, str]) -> list[int]:
    """Return which of the mentions are current, by their place in the list."""
    known = said(*mentions)
    meanings = [Meaning(sayings) for sayings in known.meanings()]
    succeed(known, meanings, {})
    return sorted(m.newest.newest_row for m in meanings if m.replaced_by is None)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Prefers tea to coffee", "prefers  tea over coffee."),
        ("Likes tea more than coffee", "Prefers tea to coffee"),
        ("Lives in Ghent", "Home is in Ghent"),
        ("Doesn't live in Ghent", "No longer lives in Ghent anymore"),
        ("Has 2 cats", "Has two cats"),
        ("Launch is on 3 March 2025", "Launch is on 2025-03-03"),
        ("Launch is on March 3rd", "Launch is on 3 March"),
        ("Wohnt in Köln", "Lebt in Köln"),
        ("N’aime pas les olives", "Déteste les olives"),
        ("Vive en Sevilla", "Reside en Sevilla"),
        ("Mora no Porto", "Vive no Porto"),
        ("Любит чай", "Нравится чай"),
        ("紅茶が好きです。", "紅茶が好きです"),
        ("Cafe\u0301 Lumen is a favourite", "Café Lumen is a favourite"),
        ("ISPARTA'da yaşıyor", "Isparta'da yaşiyor"),
        ("İzmir'de oturuyor", "IZMIR'de oturuyor"),
        ("لديه ٣ إخوة", "لديه ثلاثة إخوة"),
        ("يُحِبّ القَهْوَة", "يحب القهوة"),
        ("猫を三匹飼っている", "猫を3匹飼っている"),
        ("有两个孩子", "有2个孩子"),
        ("娘の誕生日は三月五日", "娘の誕生日は3月5日"),
        ("결혼은 3월 5일", "결혼은 3월5일"),
        ("Geboren am 3.4.1990", "Geboren am 3. April 1990"),
        ("Is 182 cm tall", "Is 1.82 m tall"),
        ("Eats nothing after 8 pm", "Never eats after 8 pm"),
        ("Живёт в Казани", "Живет в Казани"),
        ("Ya no fuma", "Nunca fuma"),
        ("Decided against the course in Leeds", "Decided not to do the course in Leeds"),
        ("Likes tea over coffee and wants no sugar", "Likes tea over coffee, doesn't want sugar"),
    ],
)
def test_wording_makes_no_difference(one: str, other: str) -> None:
    assert read(one).key == read(other).key


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Prefers tea to coffee", "Prefers coffee to tea"),
        ("Flies from Oslo to Rome", "Flies from Rome to Oslo"),
        ("Launch is on 3 March", "Launch is on 3 April"),
        ("Has two cats", "Has three cats"),
        ("Temperature limit is 5 degrees", "Temperature limit is -5 degrees"),
        ("Eats meat", "Doesn't eat meat"),
        ("Programs in C", "Programs in C++"),
        ("Likes 🐶", "Likes 🐱"),
        ("喜欢喝茶", "不喜欢喝茶"),
        ("Sister Anna lives in Lyon", "Sister Marta lives in Lyon"),
        ("Likes tea, not coffee", "Likes coffee, not tea"),
        ("Spends less than 5 €", "Spends more than 5 €"),
        ("Anna teaches Bob chess", "Bob teaches Anna chess"),
        ("Trinkt Kaffee", "Trinkt keinen Kaffee"),
        ("Isst Fisch und Eier", "Isst weder Fisch noch Eier"),
        ("Decided on the course in Leeds", "Decided against the course in Leeds"),
        ("Likes tea and wants no sugar", "Likes no tea and wants sugar"),
        ("Works with 0.500 kg", "Works with 500 kg"),
        ("喜欢茶不喜欢咖啡", "不喜欢茶喜欢咖啡"),
    ],
)
def test_what_differs_is_never_the_same_whoever_says_so(one: str, other: str) -> None:
    a, b = read(one), read(other)
    assert a.key != b.key
    if "Anna teaches" not in one and "less" not in one and "🐶" not in one and "C" != one[-1]:
        assert not may_be_same(a, b)


def test_a_month_tells_the_language_and_denies_nothing() -> None:
    """Read as Italian, where "mai" is never, a trip in May was no trip."""
    trip = read("Reist vom 30. Mai bis 2. Juni 2025 mit Jonas nach Lissabon")
    assert (trip.language, trip.negated) == ("de", False)
    assert trip.values == ("@-05-30", "@2025-06-02")
    again = read("Fliegt am 30. Mai 2025 mit Jonas nach Lissabon, bleibt bis zum 2. Juni 2025")
    assert may_be_same(trip, again)
    planned = read("Release 1.0 von Zugvogel soll am 1. Oktober 2025 erscheinen")
    assert planned.values == ("#1.0", "@2025-10-01")
    assert read("Non mangia mai carne").negated
    assert read("Reads von Neumann in August").language == "en"


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("भाई दिन में सोता है", "भाई दान में सोता है"),  # the vowel sign is all that differs
        ("ชอบม้า", "ชอบมา"),
        ("すいかが好き", "いかが好き"),
        ("とりが好き", "のりが好き"),
        ("Takes vitamin D in winter", "Takes vitamin A in winter"),
        ("Prend de la vitamine D", "Prend de la vitamine A"),
        ("Wears size S", "Wears size M"),
        ("Likes milk chocolate", "Likes chocolate milk"),
        ("Thinks that family supports work", "Thinks that work supports family"),
        ("认为父母应该照顾孩子", "认为孩子应该照顾父母"),
        ("Was a smoker", "Is a smoker"),
        ("Is used to working at night", "No longer works at night"),
        ("Has one cat", "Has two cats"),
        ("Eats nothing but rice", "Doesn't eat rice"),
        ("和未婚妻住在上海", "不和婚妻住在上海"),
    ],
)
def test_rules_alone_never_join_what_only_looks_alike(one: str, other: str) -> None:
    known = said((one, 1), (other, 2))
    assert len(list(known.meanings())) == 2


@pytest.mark.parametrize(
    ("one", "other", "word"),
    [
        ("Lives with wife Katya", "Жену зовут Катя", "believed"),  # a name in two scripts
        ("Mieszka z Anią", "Ania mieszka z nim", "believed"),
        ("Живёт с Анной", "Анна живёт с ним", "believed"),
        (
            "Favourite town is Regensburg",
            "Adores Regensbrug",
            "believed",
        ),  # two letters changed places
        ("Works with Marta", "Works with Maria", "refused"),
        ("Plays with Anna", "Plays with Hanna", "refused"),
    ],
)
def test_a_name_is_known_in_its_cases_and_misspelt_but_not_for_another(
    one: str, other: str, word: str
) -> None:
    assert may_be_same(read(one), read(other)) is (word == "believed")


def test_a_model_may_join_what_has_other_words_but_no_other_number_name_or_day() -> None:
    assert may_be_same(read("Doesn't eat meat"), read("Vegetarian"))
    assert may_be_same(read("Birthday is on 3 March"), read("Was born on 3 March 1990"))
    assert not may_be_same(read("Birthday is on 3 March 1991"), read("Was born on 3 March 1990"))
    assert not may_be_same(read("Works with Anna"), read("Works with Tom"))
    assert not may_be_same(read("Runs 5 km"), read("Runs 10 km"))


def test_the_newest_wording_and_both_sightings_make_one_fact() -> None:
    known = said(("Lives in Ghent", 1), ("Home is in Ghent", 9))
    (meaning,) = known.meanings()
    assert len(meaning) == 1
    assert meaning[0].newest_row == 1
    assert meaning[0].first == START + DAY


def test_sources_keep_their_own_facts_of_one_meaning() -> None:
    known = said(("Lives in Ghent", 1, "", "chatgpt"), ("Home is in Ghent", 2, "", "claude"))
    (meaning,) = known.meanings()
    assert sorted(s.source for s in meaning) == ["chatgpt", "claude"]


def test_a_fact_said_in_two_languages_is_worded_in_the_persons_own() -> None:
    known = said(
        ("Ist Hebamme von Beruf", 1),
        ("Is a midwife", 2),
        ("Mag den Tee", 3),
        ("Mag keinen Lauch", 4),
    )
    midwife = [s for s in known.all if {"hebamme", "midwife"} & set(s.reading.words)]
    assert worded(midwife, known.main_language()).newest_row == 0
    assert worded(midwife, "en").newest_row == 1
    assert worded(midwife, "fr").newest_row == 1


def test_the_order_in_which_mentions_come_changes_nothing() -> None:
    mentions = [("Lives in Ghent", 3.0), ("Has two cats", 1.0), ("Home is in Ghent", 9.0)]
    ways = [said(*mentions), said(*reversed(mentions))]
    told = [
        [(s.reading.key, s.newest[0], s.first) for group in way.meanings() for s in group]
        for way in ways
    ]
    assert told[0] == told[1]


@pytest.mark.parametrize(
    ("older", "newer"),
    [
        (("Lives in Porto", 1, "home city"), ("Lives in Ghent", 2, "Home  City")),
        (("Lives in Porto", 1), ("Home is in Ghent", 2)),
        (("Eats meat", 1), ("Doesn't eat meat", 2)),
        (("Doesn't eat meat", 1), ("Eats meat", 2)),
        (("Has two cats", 1), ("Has three cats", 2)),
        (("Decided to buy the boat", 1), ("Decided not to buy the boat", 2)),
        (("Lanternfish runs on SQLite", 1, "Lanternfish database"),
         ("Uses Postgres for Lanternfish", 2, "lanternfish database")),
        (("Launch is on 3 March", 1), ("Launch is on 3 April", 2)),
        (("Prefers Vim", 1, "favourite editor"), ("Prefers Helix", 2, "favourite editor")),
        (("Lives in Porto", -inf, "home city"), ("Lives in Ghent", 2, "home city")),
        (("Favourite language is Elixir", 1, "favourite language"),
         ("Favourite language is Gleam", 2, "favourite language")),
        (("Believes remote work is the future", 1, "view on remote work"),
         ("Believes remote work hollows teams out", 2, "view on remote work")),
        (("Decided to save 20% of salary", 1, "savings rate"),
         ("Saves 25% of salary", 2, "savings rate")),
    ],
)  # fmt: skip
def test_the_newest_answer_stands(older: tuple, newer: tuple) -> None:
    assert current(older, newer) == [1]
    assert current(newer, older) == [0]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (("Likes sushi", 1, "food preference"), ("Likes pizza", 2, "food preference")),
        (("Speaks French", 1, "language"), ("Speaks German", 2, "language")),
        (("Has a cat called Miso", 1, "pets"), ("Has a dog called Rex", 2, "pets")),
        (("Sister lives in Porto", 1), ("Lives in Ghent", 2)),
        (("Lives in a small flat", 1), ("Lives in Ghent", 2)),
        (("Lanternfish is in beta", 1, "status"), ("Saltmarsh is finished", 2, "status")),
        (("Decided to buy 12 chairs", 1), ("Decided to buy 14 chairs", 2)),
        (("Lives in Porto", -inf, "home city"), ("Lives in Ghent", -inf, "home city")),
        (
            ("Mother's birthday is on 3 May", 1, "birthday"),
            ("Father's birthday is on 9 June", 2, "birthday"),
        ),
        (("Is allergic to peanuts", 1, "allergy"), ("Is allergic to penicillin", 2, "allergy")),
        (("Thesis deadline is 1 June", 1, "deadline"), ("Grant deadline is 9 June", 2, "deadline")),
        (
            ("Dentist on 3 March 2021", 1, "appointment"),
            ("Dentist on 9 June 2024", 2, "appointment"),
        ),
        (("Lives in Berlin with Tom", 1, "home city"), ("Lives in Berlin", 2, "home city")),
        (("Concert is on 3 March 2021", 1), ("Concert is on 5 May 2024", 2)),
        (("Wants to learn the fiddle", 1, "music"), ("Wants to sing in a choir", 2, "music")),
        (("Flies to Oslo on 3 March 2029", 1), ("Flies to Oslo on 9 June 2029", 2)),
        (("Takes metformin", 1, "medication"), ("Takes lisinopril", 2, "medication")),
        (("Has a brother Callum", 1, "sibling"), ("Has a sister Isla", 2, "sibling")),
        (("Has a cat named Simba", 1, "pet"), ("Has a cat named Nala", 2, "pet")),
        (("Mother drives a Probox", 1, "car"), ("Drives a Fit", 2, "car")),
        (("Has a 2016 Yaris", 1), ("Has a 2020 Yaris", 2)),
        (("Works at Kelvin Grid", 1, "employer"), ("No longer works at Finch", 2, "employer")),
        (("Works at Kelvin Grid", 1, "employer"), ("Works at Anchor", 2, "weekend job")),
    ],
)
def test_what_can_both_be_true_stands_side_by_side(one: tuple, other: tuple) -> None:
    # A statement elsewhere shows that the projects' names are names.
    assert current(one, other, ("Works on Lanternfish and Saltmarsh", 0)) == [0, 1, 2]


def test_what_nobody_can_date_never_replaces_what_has_a_date() -> None:
    assert current(("Lives in Ghent", 5, "home city"), ("Lives in Porto", -inf, "home city")) == [0]


def test_said_again_makes_an_old_answer_the_newest() -> None:
    assert current(
        ("Lives in Porto", 1, "home city"),
        ("Lives in Ghent", 2, "home city"),
        ("Lives in Porto", 3, "home city"),
    ) == [2]


def placed(*mentions: tuple[str, str, int]) -> list[str]:
    """Return what is current of (statement, conversation, position), all said in one second."""
    known = Sayings()
    for n, (statement, conversation, position) in enumerate(mentions):
        known.add(
            Mention(
                row=n, source="chatgpt", category="preferences", slot="home city",
                statement=statement, confidence="high", place=f"{conversation}/{n}",
                position=position, observed=START, valid_from=0,
            )
        )  # fmt: skip
    known.unite_certain()
    meanings = [Meaning(sayings) for sayings in known.meanings()]
    succeed(known, meanings, {})
    return sorted(mentions[m.newest.newest_row][0] for m in meanings if m.replaced_by is None)


def test_of_one_second_the_later_message_of_the_conversation_counts() -> None:
    porto, ghent = "Lives in Porto", "Lives in Ghent"
    assert placed((porto, "a", 1), (ghent, "a", 2)) == [ghent]
    assert placed((porto, "a", 3), (ghent, "a", 2)) == [porto]
    assert placed((porto, "a", 1), (ghent, "b", 2)) == [ghent, porto]


def test_a_project_named_back_bears_its_first_name_again() -> None:
    known = said(
        ("Falke runs on MySQL", 1, "Falke database"),
        ("Renamed Falke to Habicht", 2),
        ("Habicht runs on Postgres", 3, "Habicht database"),
        ("Renamed Habicht to Falke", 4),
    )
    assert {known.current_name(n) for n in ("falke", "habicht")} == {"falke"}
    meanings = [Meaning(sayings) for sayings in known.meanings()]
    succeed(known, meanings, {})
    assert {m.newest.newest_row for m in meanings if m.replaced_by is not None} == {0}


def test_a_renamed_project_keeps_its_questions() -> None:
    assert current(
        ("Seedbank runs on SQLite", 1, "Seedbank database"),
        ("Renamed Seedbank to Furrow", 2),
        ("Furrow runs on Postgres", 3, "Furrow database"),
    ) == [1, 2]


def test_slots_are_compared_without_their_wording() -> None:
    assert fold_slot("Home city") == fold_slot("city of home") == fold_slot("user's home_city")
    assert holds_many("hobbies")
    assert holds_many("food preference")
    assert not holds_many("home city")


def test_rewordings_are_found_among_many_facts() -> None:
    crowd = [(f"Has item {n} from shop{n % 7} at corner{n % 11}", float(n)) for n in range(2_000)]
    known = said(
        *crowd, ("Plays the hurdy-gurdy on Sundays", 1), ("On Sundays one hears the hurdy-gurdy", 2)
    )
    asked = {frozenset((a.newest_row, b.newest_row)) for a, b in alike(known, most=500)}
    assert frozenset((2_000, 2_001)) in asked


def test_a_translation_is_put_to_the_model_even_if_it_shares_no_word() -> None:
    known = said(
        ("Arbeitet als Hebamme", 1, "Beruf"), ("Is a midwife", 2, "occupation"),
        *((f"Likes item {n}", 3.0) for n in range(50)),
    )  # fmt: skip
    asked = {frozenset((a.newest_row, b.newest_row)) for a, b in abroad(known, most=100)}
    assert frozenset((0, 1)) in asked
    assert len(asked) < 20


def test_a_name_in_another_script_and_a_slip_of_the_pen_lead_to_a_question() -> None:
    known = said(
        ("Lives with wife Katya", 1), ("Жену зовут Катя", 2), ("Does ketlebells at dawn", 3),
        ("Kettlebells at dawn are a habit", 4), *((f"Likes item {n}", 5.0) for n in range(50)),
    )  # fmt: skip
    asked = {frozenset((a.newest_row, b.newest_row)) for a, b in alike(known, most=100)}
    assert {frozenset((0, 1)), frozenset((2, 3))} <= asked


def test_a_new_question_leaves_most_batches_as_they_were() -> None:
    pairs = [(f"Likes {n}", f"Enjoys {n}") for n in range(1_000)]
    before = [tuple(b) for b in batched(pairs)]
    after = [tuple(b) for b in batched([*pairs, ("Likes 500x", "Enjoys 500x")])]
    assert len(set(after) - set(before)) <= 2


def test_a_line_may_join_facts_but_not_mix_them() -> None:
    facts = [read("Anna lives in Ghent"), read("Marta lives in Porto")]
    assert says_only(read("Anna lives in Ghent, Marta lives in Porto"), facts)
    assert not says_only(read("Anna lives in Porto, Marta lives in Ghent"), facts)
    assert not says_only(read("Doesn't like olives"), [read("Likes olives")])
    assert not says_only(read("Prefers coffee to tea"), [read("Prefers tea to coffee")])
    assert not says_only(read("Lives in Ghent with Tom"), [read("Lives in Ghent")])


_PIECES = st.lists(
    st.sampled_from(["month", "may", "3", "31", "2025-13-40", "2025-02-30", "isomonth", "−", "n't", "no", "longer", "decided", "to", "not", "~", "!", ">", "'", "不", "ない", "3月", "++", "1.000,5"])
).map(" ".join)  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(st.one_of(st.text(), _PIECES), _PIECES)
def test_any_text_can_be_read(one: str, other: str) -> None:
    a, b = read(one), read(other)
    assert a.words
    assert a.frame
    assert read(one).key == a.key
    may_be_same(a, b)
    says_only(a, [b])


def test_two_sisters_answer_for_themselves_whatever_their_slot() -> None:
    diet = "sister's diet"
    both = ("Sister Ipek is vegan", 0, diet), ("Sister Ilke is a vegetarian", 9, diet)
    assert current(*both) == [0, 1]
    assert current(both[0], ("Sister Ipek is a vegetarian", 9, diet)) == [1]


@pytest.mark.parametrize("relation", [[], {}, None, 3, ["same"], "identical"])
def test_an_answer_of_any_shape_about_a_pair_is_passed_over(relation: object) -> None:
    assert _told({"pair": 1, "relation": relation}) is None
    assert _told({"pair": relation, "relation": "same"}) in {None, (3, "same")}


def test_an_answer_said_again_later_is_not_replaced_by_what_came_between() -> None:
    """Two answers that replaced each other would both be gone from MEMORY."""
    known = Sayings()
    told = [("Lives in Porto", 2020), ("Lives in Ghent", 2022), ("Живёт в Порту", 2020)]
    for n, (statement, since) in enumerate(told):
        known.add(
            Mention(
                row=n,
                source="chatgpt",
                category="preferences",
                slot="home city",
                statement=statement,
                confidence="high",
                place=f"conversation-{n}/message",
                position=0,
                observed=START + n * DAY,
                valid_from=date(since, 1, 1).toordinal(),
            )
        )
    known.unite_certain()
    porto, ghent, again = sorted(known.all, key=lambda s: s.newest_row)
    known.unite(porto, again)  # as a model says of the two
    meanings = [Meaning(sayings) for sayings in known.meanings()]
    succeed(known, meanings, {(known.meaning_of(porto), known.meaning_of(ghent)): True})
    assert [m.newest.newest_row for m in meanings if m.replaced_by is None] == [2]


@pytest.mark.parametrize(
    ("earlier", "later", "left"),
    [
        (
            "Wants answers kept short and without a pep talk",
            "Wants full reasoning for data questions, otherwise short answers",
            [0, 1],
        ),
        ("Wants answers of 3 pages", "Wants answers of 5 pages", [1]),  # one sentence, two values
    ],
)
def test_two_answers_of_one_slot_that_a_model_calls_separate_both_stand(
    earlier: str, later: str, left: list[int]
) -> None:
    assert current((earlier, 1, "answer style"), (later, 2, "answer style")) == [1]
    known = said((earlier, 1, "answer style"), (later, 2, "answer style"))
    first, second = sorted(known.all, key=lambda s: s.newest_row)
    meanings = [Meaning(sayings) for sayings in known.meanings()]
    succeed(known, meanings, {(known.meaning_of(first), known.meaning_of(second)): False})
    assert sorted(m.newest.newest_row for m in meanings if m.replaced_by is None) == left
