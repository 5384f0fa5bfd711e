"""The provider used when no key is set: facts by grammar, without a model and without a network.

It answers in the JSON a model would, from the person's own sentences, custom instructions and saved
memories. Precision before recall: questions, suppositions, pasted text, role-play and what others
say yield nothing. The grammar is data; sentences have at most 300 characters, so time is linear.
"""

import json
import re
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from itertools import pairwise
from pathlib import Path

from daemon.export.conversation import EVIDENCE_ROLES
from daemon.llm.request import NumberedFact, NumberedMessage, Reply, Request, Usage

_NEAR = {"yesterday": -1, "today": 0, "tonight": 0, "tomorrow": 1}
_VERBS = {"teach": "teaches", "fly": "flies", "study": "studies", "care about": "cares about"}
_SHORT = {"m": " am", "ve": " have", "d": " would", "ll": " will", "re": " are"}
_PERSON = {"my": "their", "our": "their", "me": "them", "us": "them", "i": "they", "we": "they"}
_PERSON |= {"myself": "themself", "am": "are"}
_SECTIONS = """\
soul communication_style personality_traits[] tone_preferences boundaries humor_style \
formality_level emotional_patterns
identity ai_name archetype vibe emoji_style signature_greeting
user name location occupation relationships[] interests[] life_context preferred_address
agents response_style behavioral_rules[] context_adaptation memory_directives do_not[]
tools likely_usage[] capabilities_emphasis[] output_preferences depth_preference"""
_WISH = "preferences: Wants the assistant (?:always )?"
_SOURCES = {
    "name": "preferences: Is called (.+)",
    "location": r"preferences: (?:(?:[^:]{0,40}?, )?[Ll]ives (?:in|near)|Moved to) ([^,;]+)",
    "occupation": "projects: (?:Works as|Works|Is) ((?:an? |at |for ).+)",
    "relationships": "preferences: ((?:Has|Adopted|Got) .+)",
    "interests": "preferences: (?:Loves|Likes|Enjoys|Adores|Is a fan of|Plays) (.+)",
    "output_preferences": rf"{_WISH}to (.*\b(?:spelling|units|format|code|lists?|English).*)",
    "behavioral_rules": f"{_WISH}to (.+)",
    "do_not": f"{_WISH}(?:not|never) to (.+)",
    "likely_usage": "projects: (.+)",
}


class OfflineProvider:
    """Answers `extract` and `sections` at once and for nothing; the pass renders MEMORY itself."""

    name = "offline"

    async def call(self, request: Request) -> Reply:
        """Reply to one request; ValueError for a purpose that needs a model."""
        if request.purpose not in ("extract", "sections"):
            raise ValueError(f"the offline provider cannot answer {request.purpose!r}")
        extracting = request.purpose == "extract"
        answer = {"facts": _extract(request.messages)} if extracting else _sections(request.facts)
        return Reply(json.dumps(answer, ensure_ascii=False), "end_turn", Usage(), "offline")

    def most_it_costs(self, request: Request) -> Decimal:  # noqa: ARG002
        """Cost nothing."""
        return Decimal(0)

    async def aclose(self) -> None:
        """Hold nothing, close nothing."""


def _grammar() -> tuple[dict[str, re.Pattern[str]], list[tuple[str, str, str, re.Pattern[str]]]]:
    """Return the named signs, and the rules as (kind, statement, slot, pattern), compiled once."""
    words: dict[str, str] = {}
    rules = []
    for line in Path(__file__).with_name("offline_grammar.txt").read_text("utf-8").splitlines():
        expanded = re.sub(r"<([A-Z_]+)>", lambda name: words.get(name[1], name[0]), line)
        if len(fields := expanded.split(" ;; ")) == 4:
            kind, statement, slot, pattern = fields
            rules.append((kind, statement, slot.strip("-"), re.compile(pattern, re.IGNORECASE)))
        elif not line.startswith("#"):
            name, _, words[name] = expanded.partition(" = ")
    return {name: re.compile(pattern, re.IGNORECASE) for name, pattern in words.items()}, rules


_SIGN, _RULES = _grammar()


def _extract(messages: tuple[NumberedMessage, ...]) -> list[dict[str, object]]:
    facts: dict[tuple[object, ...], dict[str, object]] = {}
    for message in messages:
        own = message.role == "user"
        if own and _SIGN["ROLE_PLAY"].search(message.text):
            break  # from here on, as far as this window shows, a character speaks
        for quote in _sentences(message.text, own=own) if message.role in EVIDENCE_ROLES else ():
            for clause in _clauses(quote, own=own):
                if fact := _fact(clause, message.at, own=own):
                    evidence = {"message": message.number, "quote": quote}
                    facts.setdefault((message.number, fact["statement"]), fact | evidence)
    return list(facts.values())


def _sentences(text: str, *, own: bool) -> Iterator[str]:
    """Yield sentences verbatim, up to the first sign that the rest is not the person speaking."""
    fenced = False
    for line in text.splitlines():
        if line.lstrip().startswith("```"):
            fenced = own and not fenced
        if fenced or _SIGN["NO_PROSE"].match(line):
            continue
        borrowed = _SIGN["BORROWED"].search(line) if own else None
        own_part = line[: borrowed.start()] if borrowed else line + "\n"
        depth = 0  # quotation marks open where a sentence starts
        ends = (end.end() for end in _SIGN["SENTENCE_END"].finditer(own_part))
        for start, stop in pairwise([0, *ends]):
            sentence = _SIGN["BULLET"].sub("", own_part[start:stop], count=1).strip()
            if not depth and 12 <= len(sentence) <= 300 and sentence[0] not in "\"'“\u2018«":
                yield sentence
            depth = max(0, depth + sentence.count("“") - sentence.count("”"))
            depth = (depth + sentence.count('"')) % 2 if '"' in sentence else depth
        if borrowed:
            return


def _clauses(quote: str, *, own: bool) -> list[str]:
    """Return what may speak of the writer, in plain spelling: "im" and "I'm" become "I am"."""
    spelt = re.compile(r"(?<=\bi)'?(m|ve)\b|'(ve|d|ll|re)\b", re.IGNORECASE)
    plain = spelt.sub(lambda w: _SHORT[(w[1] or w[2]).casefold()], quote.replace("\u2019", "'"))
    plain = _SIGN["PAIR"].sub("we", _SIGN["NOT"].sub(r"\1 not", plain))
    if not own:
        return [_SIGN["LABEL"].sub("", plain)]
    if _SIGN["REPORTED"].search(plain) or _SIGN["SUPPOSED"].search(plain):
        return []
    clauses = [_SIGN["FILLER"].sub("", part, count=1) for part in _SIGN["CLAUSE_END"].split(plain)]
    if plain.rstrip(")\"' ").endswith("?") and not _SIGN["QUESTION"].match(clauses.pop()):
        return []
    return [_SIGN["ADVERB"].sub("", clause) for clause in clauses]


def _fact(clause: str, at: datetime | None, *, own: bool) -> dict[str, object] | None:
    """Return the fact that the first matching rule sees in a clause."""
    for kind, template, where, pattern in _RULES:
        category = kind.lstrip("-~=")
        if (own and "=" in kind) or not (found := pattern.match(clause)):
            continue
        if own and category not in ("projects", "dates") and _SIGN["ASIDE"].match(clause):
            return None  # about the work at hand
        words = {
            name: _SIGN["TAIL"].sub("", text or "") for name, text in found.groupdict().items()
        }
        for name, text in words.items():
            shifted = re.sub("[A-Za-z]+", lambda w: _PERSON.get(w[0].casefold(), w[0]), text)
            inner = found.start(name) == 0 and not template.startswith(f"{{{name}")
            words[name] = shifted[:1].lower() + shifted[1:] if inner else shifted
        day = _day(clause, at)
        if when := words.get("d"):
            own_day = re.search(r"\b(?:born|birthday)\b", clause, re.IGNORECASE)
            remote = day and at and abs(day.year - at.year) > 6 and not own_day
            if remote or (when.casefold() in _NEAR and not day):
                return None  # nobody can say which day it is, or it is history and not this life
            words["d"] = f"{day.day} {day:%B %Y}" if day else when
        if verb := words.get("v", "").casefold():
            words["v"] = "cannot stand" if " stand" in verb else _VERBS.get(verb, verb + "s")
        slot = where.format_map(words)
        slot = _SIGN["SLOT_END"].sub("", slot) if slot.startswith("taste") else slot
        topic = _SIGN["TOPIC"].search(clause)
        if topic and not slot and category in ("preferences", "decisions"):
            owner = _SIGN["OWNER"].search(clause)
            slot = f"{owner[1]} {topic.lastgroup}" if owner else str(topic.lastgroup)
        text = " ".join(template.format_map(words).split()).strip(" .").removeprefix("their ")
        return {
            "category": category,
            "statement": text[:1].upper() + text[1:],
            "slot": slot.casefold(),
            "polarity": "negated" if "-" in kind else "affirmed",
            "valid_from": day.isoformat() if day else "",
            "confidence": "medium" if "~" in kind else "high",
        }
    return None


def _day(text: str, at: datetime | None) -> date | None:
    """Return the one full date that `text` names, or None when it is not certain."""
    if found := _SIGN["FULL_DATE"].search(text):
        year, month, day = (found[k + "1"] or found[k + "2"] or found[k + "3"] for k in "ymd")
        with suppress(ValueError):
            form = "%Y %m %d" if month.isdigit() else "%Y %b %d"
            return datetime.strptime(f"{year} {month[:3]} {day}", form).replace(tzinfo=UTC).date()
        return None
    near = [word for word in re.findall("[a-z]+", text.casefold()) if word in _NEAR]
    return (at + timedelta(days=_NEAR[near[0]])).date() if at and len(near) == 1 else None


def _sections(facts: tuple[NumberedFact, ...]) -> dict[str, object]:
    """Fill what facts say outright, newest first; everything else stays unknown."""
    newest = sorted(facts, key=lambda fact: str(fact.observed_at or ""), reverse=True)
    said = [f"{fact.category}: {fact.statement}" for fact in newest]
    answer: dict[str, object] = {}
    for row in _SECTIONS.splitlines():
        section, *keys = row.split()
        answer[section] = filled = dict[str, object]()
        for key in keys:
            name = key.rstrip("[]")
            matches = (re.match(_SOURCES.get(name, "(?!)"), line) for line in said)
            found = list(dict.fromkeys(match[1] for match in matches if match))
            filled[name] = found[:12] if key != name else (found or ["not enough data"])[0]
    return answer
