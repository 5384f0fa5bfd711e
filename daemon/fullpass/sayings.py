"""What a person was reported to say, grouped by what it means.

A `Saying` is everything that one source holds in the same words (wording set aside); `Sayings`
joins sayings that mean the same, whatever their source. Statements and quotes stay in the database:
in memory each saying is its reading and a few numbers, so that a hundred thousand fit a small
worker (promise 7). Every choice follows from what was said and when, never from row numbers, so
the same facts give the same result and the same prompts (promise 3).
"""

from __future__ import annotations

import re
from array import array
from collections import Counter
from dataclasses import dataclass
from hashlib import blake2b
from math import inf
from typing import TYPE_CHECKING, NamedTuple

from daemon.fullpass.wording import Reading, fold_slot, read

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


CONFIDENCES = ("low", "medium", "high")


class Mention(NamedTuple):
    """One verified report of a fact, as consolidation reads it."""

    row: int
    source: str
    category: str
    slot: str
    statement: str
    confidence: str
    place: str
    """Conversation and message that it stands in."""
    position: int
    """Where in its conversation; 0 when nobody knows."""
    observed: float
    """When it was said, in epoch seconds; -inf when nobody knows."""
    valid_from: int
    """Ordinal of the day it starts at or is about; 0 when none is told."""


Order = tuple[float, int, int, int]
"""When something was said: time, place in its conversation, day it is about; then its hash."""


@dataclass(slots=True)
class Saying:
    """All mentions of one source that say the same in the same words."""

    number: int
    source: str
    category: str
    slot: str
    reading: Reading
    confidence: int
    """The highest of its mentions: an index of CONFIDENCES."""
    first: float
    """When it was first said, of the mentions with a date; inf when none has one."""
    first_tie: int
    first_key: tuple[str, ...]
    """Its words, which all its mentions share."""
    newest: Order
    newest_row: int
    valid_from: int
    place: tuple[int, int]
    """Hashes of the conversation and the message that hold its newest mention."""
    order_of_slot: Order


class Sayings:
    """Every saying of a person, and which of them mean the same."""

    def __init__(self) -> None:
        self.all: list[Saying] = []
        self.rows = array("q")
        self.said_by_row = array("I")
        self._known: dict[tuple[str, tuple[str, ...]], Saying] = {}
        self._parents = array("I")
        self._texts: dict[str, str] = {}
        self._renamings: list[tuple[Order, str, str]] = []
        """When something was renamed, from what to what, folded."""
        self._present: dict[str, str] = {}

    def add(self, mention: Mention) -> None:
        """Add one mention; the order in which they come does not matter."""
        reading = read(mention.statement)
        words = tuple(map(self._shared, reading.words))
        reading = Reading(
            words, reading.ordered, tuple(map(self._shared, reading.names)),
            self._shared(reading.language),
        )  # fmt: skip
        tie = _hash(f"{mention.statement}\x1f{mention.place}")
        order = (mention.observed, mention.position, mention.valid_from, tie)
        conversation = mention.place.partition("/")[0]
        place = (_hash(conversation), _hash(mention.place))
        source = self._shared(mention.source)
        saying = self._known.get((source, reading.key))
        if saying is None:
            saying = Saying(
                number=len(self.all),
                source=source,
                category=self._shared(mention.category),
                slot="",
                reading=reading,
                confidence=0,
                first=inf,
                first_tie=tie,
                first_key=reading.key,
                newest=order,
                newest_row=mention.row,
                valid_from=0,
                place=place,
                order_of_slot=(-inf, -1, -1, 0),
            )
            self._known[(source, reading.key)] = saying
            self._parents.append(saying.number)
            self.all.append(saying)
        elif order > saying.newest:
            # The newest wording stands.
            saying.newest, saying.newest_row = order, mention.row
            saying.category = self._shared(mention.category)
            if reading.names != saying.reading.names:
                saying.reading = reading
            saying.place = place
        if mention.observed > -inf and (mention.observed, tie) < (saying.first, saying.first_tie):
            saying.first, saying.first_tie = mention.observed, tie
        if mention.slot and order >= saying.order_of_slot:
            saying.slot, saying.order_of_slot = self._shared(mention.slot), order
        if mention.valid_from and order >= saying.newest:
            saying.valid_from = mention.valid_from
        saying.confidence = max(saying.confidence, CONFIDENCES.index(mention.confidence))
        self.rows.append(mention.row)
        self.said_by_row.append(saying.number)
        renamed = _renaming(mention.statement)
        if renamed is not None and renamed[0] != renamed[1]:
            self._renamings.append((order, *renamed))

    def _shared(self, text: str) -> str:
        """Keep one copy of each word."""
        return self._texts.setdefault(text, text)

    def __len__(self) -> int:
        return len(self.all)

    def main_language(self) -> str:
        """Name the language that most sayings are in; they are in the language of the messages."""
        used = Counter(saying.reading.language for saying in self.all)
        return max(used, key=lambda name: (used[name], name), default="")

    # What means the same

    def meaning_of(self, saying: Saying) -> int:
        """Return the number that all sayings of one meaning share."""
        number = saying.number
        parents = self._parents
        while parents[number] != number:
            parents[number] = parents[parents[number]]
            number = parents[number]
        return number

    def unite(self, a: Saying, b: Saying) -> None:
        """Let two sayings mean the same."""
        first, second = sorted((self.meaning_of(a), self.meaning_of(b)))
        self._parents[second] = first

    def unite_certain(self) -> None:
        """Join what is the same without any doubt: wording aside, and a project's new name."""
        self._number_by_content()
        self._unite_by_key(lambda saying: saying.reading.key)
        self._present = _present_names(sorted(self._renamings))
        if self._present:
            self._unite_by_key(
                lambda saying: tuple(self.current_name(w) for w in saying.reading.key)
            )

    def _number_by_content(self) -> None:
        """Give sayings numbers by what they say: rows come in whatever order they were written."""
        self._known.clear()
        self.all.sort(key=lambda s: (s.first_key, s.source))
        new = array("I", [0]) * len(self.all)
        for number, saying in enumerate(self.all):
            new[saying.number] = number
            saying.number = number
        for at, number in enumerate(self.said_by_row):
            self.said_by_row[at] = new[number]

    def _unite_by_key(self, key_of: Callable[[Saying], tuple[str, ...]]) -> None:
        first: dict[tuple[str, ...], Saying] = {}
        for saying in self.all:
            key = key_of(saying)
            if (known := first.setdefault(key, saying)) is not saying:
                self.unite(known, saying)

    def current_name(self, word: str) -> str:
        """Return what a project is called now."""
        return self._present.get(word, word)

    def question_of(self, saying: Saying) -> str:
        """Return the slot of a saying, folded and with projects by their present name."""
        return " ".join(self.current_name(w) for w in fold_slot(saying.slot).split())

    def meanings(self) -> Iterator[list[Saying]]:
        """Yield the sayings of each meaning."""
        groups: dict[int, list[Saying]] = {}
        for saying in self.all:
            groups.setdefault(self.meaning_of(saying), []).append(saying)
        yield from groups.values()


# "Renamed Seedbank to Furrow", "Seedbank is now called Furrow"; "Furrow (formerly Seedbank)".
_NAME = r"([A-ZÀ-ÖØ-Þ][\w-]+)"
_OLD_THEN_NEW = (
    re.compile(
        r"(?:[Rr]enamed|[Rr]enombró|[Rr]enomeou|[Rr]enommé|[Rr]inominato) (?:the (?:project|app) )?"
        rf"{_NAME} (?:to|as|into|a|como|en|para|in) {_NAME}"
    ),
    re.compile(
        rf"{_NAME} (?:is now called|is now named|was renamed(?: to)?|was renamed as|heißt jetzt|"
        rf"wurde umbenannt in|s'appelle maintenant|ahora se llama|agora se chama) {_NAME}"
    ),
)
_NEW_THEN_OLD = re.compile(
    rf"{_NAME},? \(?(?:formerly|previously called|früher|anciennement|antes|eerder) {_NAME}"
)


def _renaming(statement: str) -> tuple[str, str] | None:
    """Return the old and the new name of what a statement says was renamed."""
    for pattern in _OLD_THEN_NEW:
        if (found := pattern.search(statement)) is not None:
            return found[1].casefold(), found[2].casefold()
    if (found := _NEW_THEN_OLD.search(statement)) is not None:
        return found[2].casefold(), found[1].casefold()
    return None


def _present_names(renamings: list[tuple[Order, str, str]]) -> dict[str, str]:
    """Return every former name with the one that its owner bears since the last renaming."""
    present: dict[str, str] = {}
    for _, old, new in renamings:
        present[old] = new
        present.pop(new, None)  # named back: the name is in use again
        present = {name: new if now == old else now for name, now in present.items()}
    return present


def _hash(text: str) -> int:
    return int.from_bytes(blake2b(text.encode("utf-8", "surrogatepass"), digest_size=7).digest())
