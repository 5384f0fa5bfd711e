"""What a perfect reader finds in a prompt: the material shown, and the planted facts in it.

The one place that knows how prompts show messages and facts. `Truth` maps exact sentences to the
facts they state and finds them in a text in time proportional to the text, however many sentences
are planted. With no truth given, `marked_sentences` falls back to a fixed list of openings such as
"I prefer". How the findings are then spoiled belongs to model_answers.py.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

EVIDENCE_ROLES = frozenset({"user", "instructions", "memory"})

_MESSAGE = re.compile(r"<message\b([^>]*)>\r?\n?(.*?)\r?\n?</message\s*>", re.DOTALL)
_ATTRIBUTE = re.compile(r"""(\w+)\s*=\s*["']([^"']*)["']""")
_FACT = re.compile(r"^\s*(?:[-*] )?\[(\d+)\] \(([^,()]*)(?:,\s*([^()]*))?\) (.*)$", re.MULTILINE)
_PAIR = re.compile(r"^\{(\d+)\} ([^|\n]*) \| ([^|\n]*)$", re.MULTILINE)
_LISTED = re.compile(r"^\s*[-*] +(.*\S)", re.MULTILINE)
_CITATIONS = re.compile(r"(?:\s*\(\d{4}-\d\d-\d\d\))?\s*\[[^\]]*\]\s*$")

# A sentence may begin at any word, at any mark, and at any sign of a script without spaces.
_UNSPACED = "\u0e00-\u0eff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af"
_STARTS = re.compile(rf"[{_UNSPACED}]|[^\W{_UNSPACED}]+|[^\w\s]")
_PREFIX_CHARACTERS = 8

_STOPS = ".!?\n。！？"
_STOP = re.compile(rf"[{_STOPS}]")
_MARKERS = (
    (re.compile(r"\bmy birthday is\b", re.IGNORECASE), "dates", "birthday"),
    (re.compile(r"\bI(?: am|'m) building\b", re.IGNORECASE), "projects", ""),
    (re.compile(r"\bI decided\b", re.IGNORECASE), "decisions", ""),
    (re.compile(r"\bI switched\b", re.IGNORECASE), "decisions", ""),
    (re.compile(r"\bI believe\b", re.IGNORECASE), "beliefs", ""),
    (re.compile(r"\bI live in\b", re.IGNORECASE), "preferences", "home"),
    (re.compile(r"\bI prefer\b", re.IGNORECASE), "preferences", ""),
    (re.compile(r"\bI love\b", re.IGNORECASE), "preferences", ""),
)
_MARKED = re.compile("|".join(marker.pattern for marker, _, _ in _MARKERS), re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class ShownMessage:
    """A message as a prompt shows it."""

    number: int
    role: str
    date: str
    text: str


@dataclass(frozen=True, slots=True)
class ShownFact:
    """A fact as a prompt shows it: `[12] (category, 2024-03-05) statement`."""

    number: int
    category: str
    date: str
    statement: str


def shown_messages(prompt: str) -> list[ShownMessage]:
    """Every `<message n= role= date=>` block of a prompt, in order; none is an empty list.

    Where no date is told it is that of the block before.
    """
    found = []
    date = ""
    for match in _MESSAGE.finditer(prompt):
        attributes = dict(_ATTRIBUTE.findall(match[1]))
        number = attributes.get("n", "")
        if number.isdecimal():
            role, date = attributes.get("role", "user"), attributes.get("date", date)
            found.append(ShownMessage(int(number), role, date, match[2]))
    return found


def shown_facts(prompt: str) -> list[ShownFact]:
    """Every numbered fact line of a prompt, in order."""
    return [
        ShownFact(int(match[1]), match[2].strip(), (match[3] or "").strip(), match[4].strip())
        for match in _FACT.finditer(prompt)
    ]


def shown_pairs(prompt: str) -> list[tuple[int, str, str]]:
    """Every `{3} earlier | later` line of a prompt, in order."""
    return [(int(m[1]), m[2].strip(), m[3].strip()) for m in _PAIR.finditer(prompt)]


def shown_lines(prompt: str) -> list[str]:
    """The statements of a prompt that shows a MEMORY: its facts and list items, uncited."""
    facts = [fact.statement for fact in shown_facts(prompt)]
    return facts or [_CITATIONS.sub("", match[1]) for match in _LISTED.finditer(prompt)]


class Planted(msgspec.Struct, frozen=True, kw_only=True):
    """One fact that a sentence of the export states. Unknown keys of a truth file are ignored."""

    sentence: str
    category: str = "preferences"
    statement: str = ""
    slot: str = ""
    polarity: str = "affirmed"
    valid_from: str = ""
    confidence: str = "high"
    fact: str = ""
    """Names what it means: sentences with the same name say the same."""
    replaces: tuple[str, ...] = ()
    """The facts that are no longer so once this is said."""

    def reported(self, message: int) -> dict[str, Any]:
        """Give the fact as an extraction reply reports it."""
        return {
            "category": self.category,
            "statement": self.statement or self.sentence,
            "slot": self.slot,
            "polarity": self.polarity,
            "message": message,
            "quote": self.sentence.strip(),
            "valid_from": self.valid_from,
            "confidence": self.confidence,
        }


class Truth:
    """Planted sentences, indexed by their first characters, then by length and whole text.

    Generated sentences share their openings, so the first characters alone would mean comparing
    thousands of candidates at each place.
    """

    def __init__(self, planted: Iterable[Planted] = ()) -> None:
        self._by_prefix: dict[str, dict[int, dict[str, list[Planted]]]] = {}
        self._prefix_lengths: tuple[int, ...] = ()
        self._count = 0
        self._by_statement: dict[str, list[Planted]] = {}
        self.add(planted)

    def __len__(self) -> int:
        return self._count

    def add(self, planted: Iterable[Planted]) -> None:
        """Plant more sentences; an empty one would be everywhere and is refused."""
        lengths = set(self._prefix_lengths)
        for fact in planted:
            sentence = fact.sentence.strip()
            if not sentence:
                raise ValueError("a planted sentence is empty")
            prefix = sentence[:_PREFIX_CHARACTERS]
            lengths.add(len(prefix))
            of_length = self._by_prefix.setdefault(prefix, {}).setdefault(len(sentence), {})
            of_length.setdefault(sentence, []).append(fact)
            self._by_statement.setdefault(fact.statement or sentence, []).append(fact)
            self._count += 1
        self._prefix_lengths = tuple(sorted(lengths))

    def relation(self, earlier: str, later: str) -> str:
        """Tell how two reported statements relate: same, replaces, or separate."""
        ones = self._by_statement.get(earlier, ())
        others = self._by_statement.get(later, ())
        if any(a.fact and a.fact == b.fact for a in ones for b in others):
            return "same"
        if any(a.fact and a.fact in b.replaces for a in ones for b in others):
            return "replaces"
        return "separate"

    @classmethod
    def read(cls, path: Path) -> Truth:
        """Read a truth file: a JSON list, a JSON object of sentence → fact(s), or JSON lines."""
        text = path.read_bytes()
        try:
            return cls(planted_from(msgspec.json.decode(text)))
        except msgspec.DecodeError:
            rows = [msgspec.json.decode(line) for line in text.splitlines() if line.strip()]
            return cls(planted_from(rows))

    def found_in(self, text: str) -> list[Planted]:
        """Every planted fact whose sentence stands in the text, in order of first standing."""
        found: dict[str, list[Planted]] = {}
        for match in _STARTS.finditer(text):
            at = match.start()
            for prefix_length in self._prefix_lengths:
                by_length = self._by_prefix.get(text[at : at + prefix_length])
                for length, by_sentence in (by_length or {}).items():
                    sentence = text[at : at + length]
                    if sentence in by_sentence:
                        found[sentence] = by_sentence[sentence]
        return [fact for facts in found.values() for fact in facts]


def planted_from(value: object) -> list[Planted]:
    """Read planted facts from parsed JSON; raises `msgspec.ValidationError` naming what is off."""
    if isinstance(value, dict) and "sentence" not in value:
        listed = [
            {"sentence": sentence, **fact}
            for sentence, facts in value.items()
            for fact in (facts if isinstance(facts, list) else [facts])
        ]
        return msgspec.convert(listed, list[Planted])
    return msgspec.convert(value if isinstance(value, list) else [value], list[Planted])


def marked_sentences(text: str) -> Iterator[Planted]:
    """Find the sentences that open in one of the known ways, each a fact of its kind."""
    end = 0
    for mark in _MARKED.finditer(text):
        if mark.start() < end:  # a second mark of a sentence already told
            continue
        begin = max(end, *(text.rfind(stop, end, mark.start()) + 1 for stop in _STOPS))
        stop = _STOP.search(text, mark.end())
        end = stop.end() if stop else len(text)
        sentence = text[begin:end].strip()
        for marker, category, slot in _MARKERS:
            if marker.search(sentence):
                yield Planted(sentence=sentence, category=category, slot=slot)
                break


def perfect_extraction(messages: Iterable[ShownMessage], truth: Truth) -> list[dict[str, Any]]:
    """Report every planted sentence of the person's own messages, quoted exactly."""
    return [
        fact.reported(message.number)
        for message in messages
        if message.role in EVIDENCE_ROLES
        for fact in (truth.found_in(message.text) if truth else marked_sentences(message.text))
    ]
