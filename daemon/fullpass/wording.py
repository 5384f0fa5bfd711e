"""Reading a statement: what it says, with the wording set aside.

`read` turns "Doesn't live in Ghent any more" and "No longer lives in Ghent" into the same words, so
that everything after compares tuples. It knows the small change of eight languages (wording.txt)
and leaves what it does not know as it stands: a word it misses costs a merge, never a fact.
Numbers begin with "#", days with "@", predicates with "~"; "!" denies.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import cache, lru_cache
from importlib.resources import files

from daemon.fullpass.tokenise import DAY_IN_FIGURES, NOT, tokens, words

_NONE = "\x02"
"""Marks a word that denies the whole wherever it stands: "eats nothing after eight"."""
_MONTH = "\x01"
"""Marks a month until its day and year are found; no word begins with it."""


@dataclass(frozen=True, slots=True)
class _Language:
    """The phrases of one language by their first word, longest first."""

    phrases: dict[str, list[tuple[tuple[str, ...], tuple[str, ...]]]] = field(default_factory=dict)
    filler: set[str] = field(default_factory=set)
    months: dict[str, int] = field(default_factory=dict)
    order: set[str] = field(default_factory=set)
    denials: set[str] = field(default_factory=set)

    def add(self, phrase: tuple[str, ...], meaning: tuple[str, ...]) -> None:
        known = self.phrases.setdefault(phrase[0], [])
        known.append((phrase, meaning))
        known.sort(key=lambda entry: -len(entry[0]))


@dataclass(frozen=True, slots=True)
class _Wording:
    languages: dict[str, _Language]
    sets: dict[str, frozenset[str]]


@cache
def _wording() -> _Wording:
    """Load wording.txt."""
    languages: dict[str, _Language] = {}
    sets: dict[str, frozenset[str]] = {}
    language = _Language()
    for line in files(__package__).joinpath("wording.txt").read_text("utf-8").splitlines():
        if not line or line.startswith("#"):
            continue
        if line.startswith("["):
            language = languages[line.strip("[]")] = _Language()
            continue
        head, _, tail = line.partition(": ")
        kind, _, canonical = head.partition(" ")
        phrases = [p.strip() for p in tail.split("|")]
        if kind in {"single", "many", "many-slots", "one-slots", "kin"}:
            sets[kind] = frozenset(p if p[0] == "~" else words(p)[0] for p in phrases)
            continue
        for phrase in phrases:
            # A clitic ("it's") is no word of its own: size S is not the s of "it's".
            told = (phrase,) if phrase.startswith("'") else tuple(words(phrase))
            if kind == "order":
                language.order.update(told)
            elif kind == "month":
                language.months.update(dict.fromkeys(told, int(canonical)))
            elif kind == "filler":
                language.add(told, ())
                language.filler.update(told)
            else:
                meaning = {"not": (NOT,), "none": (_NONE,), "number": (f"#{canonical}",)}.get(kind)
                language.add(told, meaning or tuple(canonical.split()))
                if kind == "not":
                    language.filler.update(told)
                    language.denials.update(told if len(told) == 1 else ())
    return _Wording(languages, sets)


@dataclass(frozen=True, slots=True)
class Reading:
    """What a statement says, as comparable words, in its order."""

    words: tuple[str, ...]
    ordered: bool
    """Whether two parts of it may not change places ("tea to coffee", "from Porto to Ghent")."""
    names: tuple[str, ...]
    """Its proper names, folded, as far as capitals tell; the first word is never known for one."""
    language: str

    @property
    def negated(self) -> bool:
        """Whether the statement denies."""
        return NOT in self.words

    @property
    def claim(self) -> tuple[str, ...]:
        """What it affirms or denies."""
        return tuple(w for w in self.words if w != NOT)

    @property
    def key(self) -> tuple[str, ...]:
        """What two statements share when they say the same, word for word but for the wording."""
        return self.words if self.ordered or not self.negated else (NOT, *self.claim)

    @property
    def values(self) -> tuple[str, ...]:
        """Its numbers and days, in order."""
        return tuple(w for w in self.words if w[0] in "#@")

    @property
    def frame(self) -> tuple[str, ...]:
        """What it says with the numbers and days left open."""
        return tuple(w[0] if w[0] in "#@" else w for w in self.key)


def read(statement: str) -> Reading:
    """Read a statement."""
    said = tokens(statement)
    wording = _wording()
    name = _language_of(said)
    language = wording.languages[name]
    shared = wording.languages["all"]
    told: list[str] = []
    at = 0
    ordered = False
    while at < len(said):
        word = said[at]
        ordered = ordered or word in language.order
        month = language.months.get(word)
        if word == DAY_IN_FIGURES and _between("".join(said[at + 1 : at + 2]), 1, 12) is not None:
            month, at = int(said[at + 1][1:]), at + 1
        if month is not None and (word not in _MONTHS_OR_NOT or _by_number(said, at)):
            told.append(f"{_MONTH}{month}")
            at += 1
            continue
        for phrase, meaning in language.phrases.get(word) or shared.phrases.get(word) or ():
            taken, denied = _matched(phrase, said, at, language.denials)
            if taken:
                told += [NOT] * (denied and NOT not in meaning)
                told.extend(meaning)
                at += taken
                break
        else:
            told.append(word)
            at += 1
    if _NONE in told:
        told = [NOT, *(w for w in told if w != _NONE)]
    told = _compared(_with_days(_denied_once(told)))
    if name == "en":
        told = _bare_verb(told)
    ordered = ordered or ">" in told or NOT in told[2:]
    return Reading(
        words=tuple(told) or tuple(said) or (statement.strip() or "?",),
        ordered=ordered,
        names=_names(statement, told) if name != "de" else (),
        language=name,
    )


_MONTHS_OR_NOT = frozenset({"may", "march", "mar", "mars", "mai"})


def _names(statement: str, said: list[str]) -> tuple[str, ...]:
    """Return the capitalised words that carry meaning, but for the first of the statement."""
    known = set(said)
    later = _LETTERS.findall(statement)[1 if statement[:1].isupper() else 0 :]
    capitals = [w for w in later if w[0].isupper()]
    return tuple(dict.fromkeys(n for c in capitals for n in words(c) if n in known))


_LETTERS = re.compile(r"[^\W\d_]+(?:\+\+|\+|#)?")


def _denied_once(words: list[str]) -> list[str]:
    """Count "ne … pas" and "not … any more" as one denial; a last word's denies the whole.

    "Wants no meetings" is "does not want meetings": what a predicate denies, it is denied.
    """
    once = [w for n, w in enumerate(words) if w != NOT or NOT not in words[max(0, n - 2) : n]]
    for n in range(1, len(once)):
        if once[n] == NOT and once[n - 1] in _DENIED_WITH_WHAT_THEY_TAKE:
            once[n - 1 : n + 1] = [NOT, once[n - 1]]
    if once[-1:] == [NOT]:
        once.pop()
        once = once if NOT in once else [NOT, *once]
    return once


_DENIED_WITH_WHAT_THEY_TAKE = frozenset({"~has", "~like", "~speak", "~use", "~want"})


def _bare_verb(words: list[str]) -> list[str]:
    """Read "eats" and "does not eat" alike: the first word loses its third-person ending."""
    at = 1 if words[:1] == [NOT] else 0
    if at < len(words) and len(verb := words[at]) > 3 and verb.isalpha():
        for ending, bare in _ENDINGS:
            if verb.endswith(ending):
                words = [*words[:at], verb.removesuffix(ending) + bare, *words[at + 1 :]]
                break
    return words


_ENDINGS = (
    ("ss", "ss"), ("ies", "y"), ("ches", "ch"), ("shes", "sh"), ("xes", "x"), ("zes", "z"),
    ("oes", "o"), ("s", ""),
)  # fmt: skip


def _matched(
    phrase: tuple[str, ...], words: list[str], at: int, denials: set[str]
) -> tuple[int, bool]:
    """Return how many words a phrase takes here (0: none), and whether a denial stands in it.

    "Decided not to" is "decided to", denied.
    """
    end = at
    denied = False
    for n, wanted in enumerate(phrase):
        if n and not denied and end < len(words) and words[end] in denials:
            denied = words[end] != wanted
            end += denied
        if end >= len(words) or words[end] != wanted:
            return 0, False
        end += 1
    return end - at, denied


def _by_number(words: list[str], at: int) -> bool:
    near = words[max(0, at - 2) : at] + words[at + 1 : at + 2]
    return any(w[0] == "#" for w in near)


def _language_of(words: list[str]) -> str:
    """Name the language whose small words stand most often in it.

    "en" when none does, "all" when none does and it is not written in plain Latin letters. Letters
    of Polish, Turkish and the like make words of one letter ("i", "o", "a") no sign of another.
    """
    foreign = any(_INFLECTED.search(word) for word in words)
    signs = _signs()
    hits: dict[str, float] = {}
    for word in words:
        if foreign and len(word) == 1:
            continue
        for name, weight in signs.get(word, ()):
            hits[name] = hits.get(name, 0.0) + weight
    if not hits:
        return "en" if all(w.isascii() or w[0] in "#!" for w in words) else "all"
    most = max(hits.values())
    tied = [name for name in _wording().languages if hits.get(name) == most]
    return tied[0] if len(tied) == 1 else max(tied, key=lambda name: _phrased(words, name))


_INFLECTED = re.compile(r"[ąęłśźżćńčřšžěůőűğşāēīūņļķģ\u0370-\u052f]")


def _phrased(words: list[str], name: str) -> int:
    """Count the words of phrases of several words: "vive no" is Portuguese, not "does not live"."""
    language = _wording().languages[name]
    return sum(
        len(phrase)
        for at, word in enumerate(words)
        for phrase, _ in language.phrases.get(word, ())
        if len(phrase) > 1 and tuple(words[at : at + len(phrase)]) == phrase
    )


@cache
def _signs() -> dict[str, tuple[tuple[str, float], ...]]:
    """Return which languages each known word speaks for, and how much.

    Months and words of order weigh least, but alone they keep "vom 30. Mai bis 2. Juni" from being
    read as Italian, where "mai" denies.
    """
    signs: dict[str, tuple[tuple[str, float], ...]] = {}
    for name, language in _wording().languages.items():
        if name != "all":
            for word in language.filler | language.phrases.keys() | _weakly(language):
                known = 0.7 if word in language.phrases else 0.5
                weight = 1.0 if word in language.filler else known
                signs[word] = (*signs.get(word, ()), (name, weight))
    return signs


def _weakly(language: _Language) -> set[str]:
    return {word for word in language.months.keys() | language.order if word[0] != ">"}


def _with_days(words: list[str]) -> list[str]:
    """Join day, month and year into one word: @2025-03-03, @-03-03 or @2025-03."""
    told: list[str] = []
    at = 0
    while at < len(words):
        if not words[at].startswith(_MONTH):
            told.append(words[at])
            at += 1
            continue
        month = int(words[at].removeprefix(_MONTH))
        day = year = None
        at += 1
        if told and (day := _between(told[-1], 1, 31)) is not None:
            told.pop()
        elif at < len(words) and (day := _between(words[at], 1, 31)) is not None:
            at += 1
        if at < len(words) and (year := _between(words[at], 1000, 2999)) is not None:
            at += 1
        told.append(
            "@" + (str(year) if year else "") + f"-{month:02}" + (f"-{day:02}" if day else "")
        )
    return told


def _between(word: str, low: int, high: int) -> int | None:
    digits = word.removeprefix("#")
    return int(digits) if digits.isdecimal() and low <= int(digits) <= high else None


def _compared(words: list[str]) -> list[str]:
    """Read "likes A more than B" and "prefers A to B" alike."""
    if "~morethan" in words and "~like" in words:
        return ["~prefer" if w == "~like" else ">" if w == "~morethan" else w for w in words]
    if "~prefer" in words:
        words = [">" if w in _PREFERRED_OVER else w for w in words]
        return [w for n, w in enumerate(words) if w != ">" or words[n - 1] != ">"]
    return words


_PREFERRED_OVER = frozenset(
    ["to", "over", "rather", "than", "instead", "à", "au", "aux", "que", "a", "al", "als",
     "gegenüber", "boven", "~morethan"]
)  # fmt: skip


@lru_cache(maxsize=4096)
def is_filler(word: str) -> bool:
    """Whether a word says nothing of its own in some language; denials do."""
    return any(
        (word in language.filler and word not in language.denials) or f"'{word}" in language.filler
        for language in _wording().languages.values()
    )


def sides(reading: Reading) -> tuple[frozenset[str], ...]:
    """Split what a statement says at the words whose sides may not change places."""
    order = _wording().languages[reading.language].order
    parts: list[set[str]] = [set()]
    for word in reading.words:
        if word in order or word in {NOT, ">"}:
            parts.append({word})
        else:
            parts[-1].add(word)
    return tuple(map(frozenset, parts))


def is_predicate(word: str, kind: str) -> bool:
    """Whether a predicate has one answer at a time ("single") or several ("many")."""
    return word in _wording().sets[kind]


def is_kin(word: str) -> bool:
    """Whether a word names somebody by what they are to the person: "sister", "jefe"."""
    return word in _wording().sets["kin"]


@lru_cache(maxsize=65_536)
def fold_slot(slot: str) -> str:
    """Return a slot up to case, order of no account words, plural and possessive."""
    said = [w for w in words(slot.replace("_", " ").replace("-", " ")) if w not in _SLOT_FILLER]
    return " ".join(sorted(said))


_SLOT_FILLER = frozenset(
    {"the", "of", "'s", "s", "my", "user", "current", "new", "a", "for", "in"}
)  # fmt: skip


def holds_many(slot: str) -> bool:
    """Whether a slot is a kind of thing of which a person has several ("hobbies", "pet").

    A favourite is one of them.
    """
    said = words(slot.replace("_", " "))
    sets = _wording().sets
    return not said or (said[-1] in sets["many-slots"] and not sets["one-slots"] & set(said))
