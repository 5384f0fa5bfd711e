"""One made-up person: what is true of them, and all the ways they tell it.

Written as somebody would who has never seen the code under test: nothing here is taken from its
word lists, nor the other way round.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import random

Said = tuple[str, str]
"""What the person says, and how a good reader would note it."""

NAMES = ["Anna", "Marta", "Tom", "Jonas", "Ingrid", "Pavel", "Lucia", "Kofi", "Mei", "Omar", "Greta", "Rui",
         "Aylin", "Bela", "Cosmo", "Dana", "Elif", "Fabio", "Hana", "Ivo"]  # fmt: skip
CITIES = ["Ghent", "Porto", "Graz", "Lyon", "Turku", "Bergen", "Leeds", "Brno", "Sevilla", "Trieste",
          "Utrecht", "Malmö", "Cork", "Split", "Basel", "Riga"]  # fmt: skip
FIRMS = ["Halberd Freight", "Nordlicht", "Quillworks", "Tessellate", "Brightwater", "Ostara Labs",
         "Kiln & Co", "Fennimore"]  # fmt: skip
PROJECTS = ["Lanternfish", "Seedbank", "Tidewheel", "Copperleaf", "Moonraker", "Papercrane", "Driftglass",
            "Hollyhock", "Ironbark", "Saltmarsh", "Windrose", "Juniper"]  # fmt: skip
FOODS = ["olives", "coriander", "blue cheese", "mushrooms", "aubergine", "liquorice", "oysters", "beetroot",
         "marzipan", "anchovies", "tofu", "kale"]  # fmt: skip
HOBBIES = ["bouldering", "birdwatching", "pottery", "sailing", "chess", "bookbinding", "beekeeping",
           "fencing", "origami", "gardening", "rowing", "astronomy"]  # fmt: skip
TOOLS = ["Vim", "Emacs", "Helix", "Zed", "Sublime", "Kate"]
STORES = ["Postgres", "SQLite", "DuckDB", "MySQL", "Redis"]
MONTHS = ["January", "February", "March", "April", "May", "June", "July", "August", "September",
          "October", "November", "December"]  # fmt: skip


@dataclass
class PlannedFact:
    """One thing that is true of the person, in all the ways it is told."""

    category: str
    wordings: list[Said]
    slots: list[str] = field(default_factory=lambda: [""])
    polarity: str = "affirmed"
    valid_from: str = ""
    mentions: int = 1
    replaces: int | None = None
    """Index of the fact that this one takes the place of."""
    kind: str = ""


def planned(dice: random.Random, scale: int) -> list[PlannedFact]:
    """Plan the facts of one person; `scale` instances of every family."""
    facts: list[PlannedFact] = []

    def add(category: str, wordings: list[Said], *, kind: str, **more: Any) -> int:
        facts.append(PlannedFact(category, wordings, kind=kind, **more))
        return len(facts) - 1

    def chain(
        category: str, states: list[list[Said]], slots: list[str], *, kind: str, **more: Any
    ) -> None:
        before: int | None = None
        for wordings in states:
            before = add(category, wordings, kind=kind, slots=slots, replaces=before,
                         mentions=dice.choice([1, 1, 2]), **more)  # fmt: skip

    cities, firms, names = (dice.sample(x, len(x)) for x in (CITIES, FIRMS, NAMES))
    # -- once: the things that change in the life of anyone
    home = cities[:3]
    chain("preferences", [
        [(f"I live in {c} these days.", f"Lives in {c}"), (f"My home is in {c}.", f"Home is in {c}"),
         (f"I'm based in {c}, by the way.", f"Is based in {c}")] for c in home
    ], ["home city", "Home city", "city of residence"], kind="moved")  # fmt: skip
    chain("preferences", [
        [(f"I work at {f} now.", f"Works at {f}"), (f"{f} is my employer.", f"Employer is {f}"),
         (f"I have a job at {f}.", f"Has a job at {f}")] for f in firms[:2]
    ], ["employer"], kind="employer")  # fmt: skip
    chain("preferences", [
        [("I eat meat about once a week.", "Eats meat about once a week")],
        [("I don't eat meat.", "Doesn't eat meat"), ("I'm a vegetarian.", "Vegetarian"),
         ("I've stopped eating meat.", "Has stopped eating meat")],
    ], ["diet"], kind="diet")  # fmt: skip
    chain("preferences", [
        [(f"I have {n} cats.", f"Has {n} cats"), (f"There are {n} cats in my flat.", f"Owns {n} cats")]
        for n in ("two", "three")
    ], ["number of cats", "cats"], kind="recounted")  # fmt: skip
    chain("preferences", [
        [("I drink coffee every morning.", "Drinks coffee every morning")],
        [("I no longer drink coffee every morning.", "No longer drinks coffee every morning"),
         ("I don't drink coffee every morning any more.", "Doesn't drink coffee every morning any more")],
    ], ["", "morning drink"], kind="negated")  # fmt: skip
    chain("preferences", [
        [(f"My editor of choice is {t}.", f"Editor of choice is {t}"), (f"I write all my code in {t}.", f"Writes code in {t}")]
        for t in dice.sample(TOOLS, 3)
    ], ["favourite editor"], kind="tool")  # fmt: skip
    add(
        "preferences",
        [
            ("I prefer tea to coffee.", "Prefers tea to coffee"),
            ("I like tea more than coffee.", "Likes tea more than coffee"),
            ("Between tea and coffee I'd always take tea.", "Would always take tea over coffee"),
        ],
        kind="reworded",
        mentions=3,
    )
    add(
        "preferences",
        [("I prefer coffee to hot chocolate.", "Prefers coffee to hot chocolate")],
        kind="lookalike",
    )
    add("preferences", [("I program in C.", "Programs in C")], kind="lookalike")
    add("preferences", [("I program in C++.", "Programs in C++")], kind="lookalike")
    add(
        "beliefs",
        [
            (
                "I believe that honesty matters more than politeness.",
                "Believes that honesty matters more than politeness",
            ),
            (
                "To me being honest counts for more than being polite.",
                "Values honesty over politeness",
            ),
        ],
        kind="reworded",
        mentions=2,
    )
    _peculiar(add, chain)
    for n in range(scale):
        name, other = names[n % len(names)], names[(n + 7) % len(names)]
        city, food = CITIES[n % len(CITIES)], FOODS[n % len(FOODS)]
        hobby, project = HOBBIES[n % len(HOBBIES)], PROJECTS[n % len(PROJECTS)]
        tag = f" {n // len(PROJECTS) + 2}" if n >= len(PROJECTS) else ""
        project += tag
        day, month = dice.randrange(2, 28), MONTHS[dice.randrange(12)]
        later = MONTHS[(MONTHS.index(month) + 1) % 12]
        kin = ["sister", "brother", "cousin", "aunt", "neighbour"][n // len(names) % 5]
        # -- several wordings
        add(
            "preferences",
            [
                (f"I can't stand {food}{tag}.", f"Can't stand {food}{tag}"),
                (f"I really dislike {food}{tag}.", f"Dislikes {food}{tag}"),
                (f"Honestly, {food}{tag} are not for me.", f"Doesn't care for {food}{tag}"),
            ],
            kind="reworded",
            mentions=2,
        )
        add(
            "preferences",
            [
                (f"I love {hobby}{tag}.", f"Loves {hobby}{tag}"),
                (f"I'm a big fan of {hobby}{tag}.", f"Is a big fan of {hobby}{tag}"),
                (
                    f"{hobby.capitalize()}{tag} is my favourite pastime.",
                    f"Favourite pastime is {hobby}{tag}",
                ),
            ],
            slots=["", "hobby", "hobbies"],
            kind="reworded",
            mentions=2,
        )
        add(
            "dates",
            [
                (
                    f"My {kin} {name}'s birthday is on {day} {month}.",
                    f"{kin.capitalize()} {name}'s birthday is on {day} {month}",
                ),
                (
                    f"{name}, my {kin}, was born on {month} {day}.",
                    f"{kin.capitalize()} {name} was born on {month} {day}",
                ),
            ],
            slots=[f"{name}'s birthday"],
            kind="reworded",
            mentions=2,
        )
        add(
            "projects",
            [
                (
                    f"I'm building {project}, a tool for {hobby}.",
                    f"Is building {project}, a tool for {hobby}",
                ),
                (
                    f"I've been developing {project}, my {hobby} tool.",
                    f"Is developing {project}, a {hobby} tool",
                ),
                (
                    f"{project} is the {hobby} tool that I am making.",
                    f"Makes {project}, a tool for {hobby}",
                ),
            ],
            slots=[f"{project} purpose", ""],
            kind="reworded",
            mentions=3,
        )
        # -- changes
        chain("projects", [
            [(f"{project} runs on {s}.", f"{project} runs on {s}"), (f"I use {s} as the database of {project}.", f"Uses {s} as the database of {project}")]
            for s in dice.sample(STORES, 2)
        ], [f"{project} database"], kind="project state")  # fmt: skip
        chain("dates", [
            [(f"The launch of {project} is on {day} {m}.", f"Launch of {project} is on {day} {m}"),
             (f"{project} launches on {m} {day}.", f"{project} launches on {day} {m}")] for m in (month, later)
        ], [f"{project} launch date"], kind="redated")  # fmt: skip
        chain("decisions", [
            [(f"I decided to spend the summer in {city}{tag}.", f"Decided to spend the summer in {city}{tag}")],
            [(f"I decided not to spend the summer in {city}{tag}.", f"Decided not to spend the summer in {city}{tag}")],
        ], [""], kind="negated")  # fmt: skip
        # -- lookalikes, each true
        km = dice.sample(range(3, 42), 2)
        for k, when in zip(km, ("morning", "Sunday"), strict=True):
            add(
                "preferences",
                [
                    (
                        f"I run {k} km every {when} with {name}.",
                        f"Runs {k} km every {when} with {name}",
                    )
                ],
                kind="lookalike",
            )
        for who in (name, other):
            add(
                "preferences",
                [(f"My friend {who} lives in {city}{tag}.", f"Friend {who} lives in {city}{tag}")],
                kind="lookalike",
            )
        add(
            "dates",
            [
                (
                    f"I fly from {city} to Oslo on {day} {month} 2024.",
                    f"Flies from {city} to Oslo on {day} {month} 2024",
                )
            ],
            kind="lookalike",
            valid_from="",
        )
        add(
            "dates",
            [
                (
                    f"I fly from Oslo to {city} on {day} {month} 2024.",
                    f"Flies from Oslo to {city} on {day} {month} 2024",
                )
            ],
            kind="lookalike",
        )
        add(
            "decisions",
            [
                (
                    f"I decided to buy {day + 20} chairs for {project}.",
                    f"Decided to buy {day + 20} chairs for {project}",
                )
            ],
            kind="numbered",
        )
        add(
            "beliefs",
            [
                (
                    f"I think {hobby}{tag} should be taught at school.",
                    f"Thinks {hobby}{tag} should be taught at school",
                )
            ],
            kind="once",
        )
        # -- other languages, two wordings each
        for said in _abroad(n, name, city):
            add("preferences", said, kind="language", mentions=2)
    return facts


_TWINS = [
    ("I take vitamin D in winter.", "Takes vitamin D in winter"),
    ("I take vitamin A in winter.", "Takes vitamin A in winter"),
    ("My cycling shirts are size S.", "Wears size S in cycling shirts"),
    ("My cycling shirts used to be size M.", "Used to wear size M in cycling shirts"),
    ("I like milk chocolate best warm.", "Likes milk chocolate warm"),
    ("I like chocolate milk best warm.", "Likes chocolate milk warm"),
    ("I think that rules serve people.", "Thinks that rules serve people"),
    ("I think that people serve rules.", "Thinks that people serve rules"),
    ("I was a smoker once.", "Was a smoker"),
    ("My uncle is a smoker.", "Uncle is a smoker"),
    ("I'm used to sleeping on trains.", "Is used to sleeping on trains"),
    ("I never sleep on trains.", "Never sleeps on trains"),
    ("मेरा भाई दिन में सोता है।", "भाई दिन में सोता है"),
    ("मेरा भाई दान में सोता है।", "भाई दान में सोता है"),
    ("ฉันชอบม้าสีขาว", "ชอบม้าสีขาว"),
    ("ฉันชอบมาสีขาว", "ชอบมาสีขาว"),
    ("すいかが好きです。", "すいかが好き"),
    ("いかが好きです。", "いかが好き"),
    ("我喜欢狗不喜欢猫。", "喜欢狗不喜欢猫"),
    ("我哥哥不喜欢狗喜欢猫。", "哥哥不喜欢狗喜欢猫"),
    ("Je prends le bus D.", "Prend le bus D"),
    ("Je prends le bus A.", "Prend le bus A"),
    ("My mother drives a van.", "Mother drives a van"),
    ("I run 5 km in 24:30.", "Runs 5 km in 24:30"),
    ("I run 10 km in 51:12.", "Runs 10 km in 51:12"),
]
"""Neighbours that only look alike."""


def _peculiar(add: Any, chain: Any) -> None:
    """Add what other scripts, letters, units, tenses, slips of the pen and wishes make difficult."""
    for said in _TWINS:
        add("preferences", [said], kind="twin")
    for slot, one, other in [
        (
            "allergy",
            ("I'm allergic to lupins.", "Is allergic to lupins"),
            ("I'm allergic to walnuts.", "Is allergic to walnuts"),
        ),
        (
            "medication",
            ("I take metformin at noon.", "Takes metformin at noon"),
            ("I take lisinopril at dawn.", "Takes lisinopril at dawn"),
        ),
        (
            "musical goal",
            ("I want to learn the fiddle.", "Wants to learn the fiddle"),
            ("I want to sing in a choir.", "Wants to sing in a choir"),
        ),
        (
            "sibling",
            ("My brother Callum studies law.", "Has a brother Callum who studies law"),
            ("My sister Isla nurses.", "Has a sister Isla who is a nurse"),
        ),
    ]:
        for said in (one, other):
            add("preferences", [said], slots=[slot], kind="both hold")
    for wordings, slot in [
        (
            [
                ("I'm 182 cm tall.", "Is 182 cm tall"),
                ("At 1.82 m I bump into lamps.", "Is 1.82 m tall"),
            ],
            "height",
        ),
        (
            [
                ("猫を三匹飼っています。", "猫を三匹飼っている"),
                ("うちには猫が3匹います。", "猫が3匹いる"),
            ],
            "number of cats at home",
        ),
        (
            [("لدي ٣ إخوة.", "لديه ٣ إخوة"), ("عندي ثلاثة إخوة.", "لديه ثلاثة إخوة")],
            "number of siblings",
        ),
        (
            [
                ("Мою жену зовут Катя.", "Жену зовут Катя"),
                ("My wife is Katya.", "Wife is named Katya"),
            ],
            "wife's name",
        ),
        (
            [
                ("Regensburg is my favourite town.", "Favourite town is Regensburg"),
                ("I adore Regensbrug.", "Adores Regensbrug"),
            ],
            "",
        ),
        (
            [
                ("Mieszkam z Anią i psem.", "Mieszka z Anią i psem"),
                ("Ania i pies mieszkają ze mną.", "Ania i pies mieszkają z nim"),
            ],
            "",
        ),
    ]:
        add("preferences", wordings, slots=[slot], kind="peculiar", mentions=2)
    chain("beliefs", [
        [("I believe remote work is the future.", "Believes remote work is the future")],
        [("Remote work hollows teams out.", "Believes remote work hollows teams out")],
        [("Remote work is fine with monthly visits.", "Believes remote work is fine with monthly visits")],
    ], ["view on remote work"], kind="change of mind")  # fmt: skip
    chain("dates", [
        [("Marmot goes live in April.", "Marmot goes live in April")],
        [("Scratch that, Marmot goes live in May, not April.", "Marmot goes live in May, not April")],
    ], ["Marmot launch"], kind="corrected")  # fmt: skip


def _abroad(n: int, name: str, city: str) -> list[list[Said]]:
    tag = f" {n + 2}"
    return [
        [(f"Ich trinke gern Tee aus {city}{tag}.", f"Trinkt gern Tee aus {city}{tag}"), (f"Tee aus {city}{tag} mag ich sehr.", f"Mag Tee aus {city}{tag} sehr")],
        [(f"Meine Freundin {name} wohnt in Haus{tag}.", f"Freundin {name} wohnt in Haus{tag}"), (f"{name}, meine Freundin, lebt in Haus{tag}.", f"Die Freundin {name} lebt in Haus{tag}")],
        [(f"J'adore le café numéro{tag} à {city}.", f"Adore le café numéro{tag} à {city}"), (f"Le café numéro{tag} à {city} me plaît beaucoup.", f"Aime beaucoup le café numéro{tag} à {city}")],
        [(f"Me encanta la librería{tag} de {city}.", f"Le encanta la librería{tag} de {city}"), (f"Me gusta mucho la librería{tag} de {city}.", f"Le gusta mucho la librería{tag} de {city}")],
        [(f"Não como peixe do mercado{tag}.", f"Não come peixe do mercado{tag}"), (f"Nunca como peixe do mercado{tag}.", f"Nunca come peixe do mercado{tag}")],
        [(f"Lavoro ogni sabato al rifugio{tag} con {name}.", f"Lavora ogni sabato al rifugio{tag} con {name}"), (f"Ogni sabato sono al rifugio{tag} con {name} a lavorare.", f"Ogni sabato lavora al rifugio{tag} con {name}")],
        [(f"Ik fiets elke dag route{tag} naar {city}.", f"Fietst elke dag route{tag} naar {city}"), (f"Elke dag fiets ik route{tag} naar {city}.", f"Fietst dagelijks route{tag} naar {city}")],
        [(f"Я люблю читать книгу номер{tag}.", f"Любит читать книгу номер{tag}"), (f"Мне нравится читать книгу номер{tag}.", f"Нравится читать книгу номер{tag}")],
        [(f"Lubię chodzić szlakiem{tag} z psem.", f"Lubi chodzić szlakiem{tag} z psem"), (f"Chętnie chodzę szlakiem{tag} z psem.", f"Chętnie chodzi szlakiem{tag} z psem")],
        [(f"我每天早上喝{n + 2}杯绿茶。", f"每天早上喝{n + 2}杯绿茶"), (f"每天早上我都会喝{n + 2}杯绿茶。", f"每天早上都会喝{n + 2}杯绿茶")],
        [(f"私は{n + 2}番の喫茶店が好きです。", f"{n + 2}番の喫茶店が好き"), (f"{n + 2}番の喫茶店が大好きです。", f"{n + 2}番の喫茶店が大好き")],
    ]  # fmt: skip
