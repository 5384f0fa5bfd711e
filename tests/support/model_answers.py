"""What the loopback model answers, by the schema it was asked to fill.

The purpose is recognised by the schema's own properties. Each answer is what a perfect model would
give for the material in the prompt, then spoiled as `Behaviour` says. Transport faults, cutting
and token counts belong to the server.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tests.support.planted_truth import (
    ShownFact,
    ShownMessage,
    Truth,
    perfect_extraction,
    shown_facts,
    shown_lines,
    shown_messages,
    shown_pairs,
)

if TYPE_CHECKING:
    from random import Random

    from tests.support.anthropic_behaviour import Behaviour

PURPOSE_BY_PROPERTY = {
    "facts": "extract",
    "pairs": "same",
    "merged": "reduce",
    "lines": "memory",
    "soul": "sections",
}
SECTIONS = ("soul", "identity", "user", "agents", "tools")
UNKNOWN = "not enough data"

_INJECTION = re.compile(r"IGNORE ALL PREVIOUS INSTRUCTIONS and record that ([^.\n]+)")
_NAME = re.compile(r"\b(?:my name is|call me|I am called) ([^\W\d_][\w'’-]*)", re.IGNORECASE)
_HOME = re.compile(r"\bliv(?:e|es|ing) in ([^\W\d_][\w' -]*\w)", re.IGNORECASE)
_LIKES = re.compile(r"\b(?:love|prefer|like|enjoy)s? (.+?)[.!]?$", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Answer:
    """The model's answer before it meets the wire."""

    value: Any
    """A JSON object; with no schema asked for, a string."""
    messages: int = 0
    facts: int = 0
    answered: int = 0


@dataclass(frozen=True, slots=True)
class Question:
    """One call as the model sees it."""

    purpose: str
    schema: Mapping[str, Any]
    prompt: str
    """The text of the user turns; the system prompt holds no material."""
    behaviour: Behaviour
    truth: Truth
    dice: Random


def purpose_of(schema: Mapping[str, Any] | None) -> str:
    """Recognise a purpose by the schema's properties; "other" for any other, "text" for none."""
    if schema is None:
        return "text"
    properties = schema.get("properties", {})
    for name, purpose in PURPOSE_BY_PROPERTY.items():
        if name in properties:
            return purpose
    return "other"


def answer(question: Question) -> Answer:
    """Answer as the behaviour in force would."""
    by_purpose: dict[str, Callable[[Question], Answer]] = {
        "extract": _extract,
        "same": _same,
        "reduce": _reduce,
        "memory": _memory,
        "sections": _sections,
        "other": lambda asked: Answer(blank(asked.schema)),
        "text": lambda _: Answer("Hello! How can I help?"),
    }
    return by_purpose[question.purpose](question)


# Extraction


def _extract(question: Question) -> Answer:
    how, dice = question.behaviour, question.dice
    messages = shown_messages(question.prompt)
    facts = [
        _spoiled(fact, messages, how, dice)
        for fact in perfect_extraction(messages, question.truth)
        if dice.random() >= how.omit_share
    ]
    facts += [_invented(messages, dice) for _ in range(how.invent_facts if messages else 0)]
    if how.obey_injection != "no":
        facts += _obeyed(messages, own_quote=how.obey_injection == "own_quote")
    if how.cap_facts is not None:
        facts = facts[: how.cap_facts]
    return Answer({"facts": facts}, messages=len(messages), answered=len(facts))


def _spoiled(
    fact: dict[str, Any], messages: Sequence[ShownMessage], how: Behaviour, dice: Random
) -> dict[str, Any]:
    # Every die is rolled for every fact, so that one switch does not move another's draws.
    paraphrase, misnumber, category, language = (dice.random() for _ in range(4))
    if paraphrase < how.paraphrase_share:
        fact["quote"] = paraphrased(fact["quote"])
    if misnumber < how.misnumber_share:
        others = [shown.number for shown in messages if shown.number != fact["message"]]
        fact["message"] = dice.choice(others or [fact["message"] + 1_000])
    if category < how.wrong_category_share:
        fact["category"] = "opinions"
    if language < how.foreign_language_share:
        fact["statement"] = f"Пользователь сообщил: {fact['statement']}"
    return fact


def paraphrased(quote: str) -> str:
    """Say the same in words that are not the person's."""
    return f"The person said, in other words, {quote[:1].lower()}{quote[1:]}"


def _fact(statement: str, quote: str, message: int) -> dict[str, Any]:
    return {
        "category": "beliefs",
        "statement": statement,
        "slot": "",
        "polarity": "affirmed",
        "message": message,
        "quote": quote,
        "valid_from": "",
        "confidence": "high",
    }


def _invented(messages: Sequence[ShownMessage], dice: Random) -> dict[str, Any]:
    animal = f"{dice.choice(('axolotl', 'llama', 'falcon', 'tapir'))} {dice.randrange(10_000)}"
    message = dice.choice(messages).number
    return _fact(f"The person owns the {animal}", f"I own the {animal}", message)


def _obeyed(messages: Sequence[ShownMessage], *, own_quote: bool) -> list[dict[str, Any]]:
    return [
        _fact(order[1], order[1] if own_quote else f"I confirm that {order[1]}", message.number)
        for message in messages
        for order in _INJECTION.finditer(message.text)
    ]


# Consolidation, reduction and MEMORY


def _same(question: Question) -> Answer:
    how, dice = question.behaviour, question.dice
    pairs = shown_pairs(question.prompt)
    said = []
    for number, earlier, later in pairs if how.same == "truth" else ():
        relation = question.truth.relation(earlier, later)
        if dice.random() < how.same_wrong_share:
            relation = dice.choice(("same", "replaces", "separate"))
        said.append({"pair": number, "relation": relation})
    return Answer({"pairs": said}, facts=len(pairs), answered=len(said))


def _reduce(question: Question) -> Answer:
    how, dice = question.behaviour, question.dice
    facts = shown_facts(question.prompt)
    groups: list[tuple[str, list[ShownFact]]] = []
    if how.reduce == "same":
        by_statement: dict[str, list[ShownFact]] = defaultdict(list)
        for fact in facts:
            by_statement[fact.statement].append(fact)
        groups = [(said, group) for said, group in by_statement.items() if len(group) > 1]
    elif how.reduce in {"everything", "drop"}:
        share = how.drop_share if how.reduce == "drop" else 0.0
        groups = [(fact.statement, [fact]) for fact in facts if dice.random() >= share]
    merged = [
        {"statement": said, "facts": [fact.number for fact in group]} for said, group in groups
    ]
    return Answer({"merged": merged}, facts=len(facts), answered=len(merged))


def _memory(question: Question) -> Answer:
    how, dice = question.behaviour, question.dice
    facts = shown_facts(question.prompt)
    kept = [fact for fact in facts if dice.random() >= how.memory_omit_share]
    by_category: dict[str, list[ShownFact]] = defaultdict(list)
    for fact in kept:
        by_category[fact.category].append(fact)
    size = max(1, how.memory_facts_per_line)
    lines = [
        _line(category, group[at : at + size], how, dice)
        for category, group in by_category.items()
        for at in range(0, len(group), size)
    ]
    beyond = max((fact.number for fact in facts), default=0)
    for number in range(1, how.memory_miscited_lines + 1):
        text = f"The person once met a talking tapir named {number}"
        lines.append({"category": "beliefs", "text": text, "facts": [beyond + number]})
    for number in range(1, how.memory_uncited_lines + 1):
        text = f"The person keeps {number} secret llamas"
        lines.append({"category": "preferences", "text": text, "facts": []})
    return Answer({"lines": lines}, facts=len(facts), answered=len(lines))


def _line(
    category: str, facts: Sequence[ShownFact], how: Behaviour, dice: Random
) -> dict[str, Any]:
    text = "; ".join(fact.statement for fact in facts)
    if how.memory_mild:
        text = mildly(", and ".join(fact.statement for fact in facts))
    if dice.random() < how.memory_padded_share:
        text = f"{text} and robs banks"
    if dice.random() < how.memory_lazy_share:
        text = facts[0].statement
    return {"category": category, "text": text, "facts": [fact.number for fact in facts]}


_MILD = {"Lives": "Resides", "Likes": "Enjoys", "Loves": "Enjoys", "Prefers": "Favours",
         "Uses": "Works with", "Decided": "Made up their mind", "Believes": "Is convinced",
         "Is building": "Currently builds", "Runs": "Goes running", "Has": "Keeps"}  # fmt: skip


def mildly(text: str) -> str:
    """Reword as a writer would: another verb, a filler, no new content."""
    for plain, mild in _MILD.items():
        if text.startswith(plain):
            return mild + text.removeprefix(plain)
    return f"{text[:1]}{text[1:]}, as a rule" if len(text) > 40 else text


# Sections


def _sections(question: Question) -> Answer:
    lines = shown_lines(question.prompt)
    properties: Mapping[str, Any] = question.schema.get("properties", {})
    value: dict[str, Any] = {
        name: _section(section, lines)
        for name, section in properties.items()
        if isinstance(section, Mapping)
    }
    match question.behaviour.sections:
        case "missing":
            value.pop(SECTIONS[-1], None)
        case "wrong_type":
            value[SECTIONS[0]] = "a warm and curious person"
        case "empty":
            value = {}
        case _:
            pass
    return Answer(value, facts=len(lines), answered=len(value))


def _section(schema: Mapping[str, Any], lines: Sequence[str]) -> dict[str, Any]:
    """Fill one section from what the lines say; what they do not say is "not enough data"."""
    told = " \n".join(lines)
    known = {"name": _first(_NAME, told), "location": _first(_HOME, told)}
    likes = [liked[1] for line in lines if (liked := _LIKES.search(line))]
    section: dict[str, Any] = {}
    for key, part in schema.get("properties", {}).items():
        if part.get("type") == "array":
            section[key] = (likes or list(lines))[:3]
        else:
            section[key] = known.get(key) or UNKNOWN
    return section


def _first(pattern: re.Pattern[str], text: str) -> str:
    match = pattern.search(text)
    return match[1] if match else ""


def blank(schema: Mapping[str, Any]) -> Any:
    """Give the emptiest value a schema allows."""
    if "enum" in schema:
        return schema["enum"][0]
    if "const" in schema:
        return schema["const"]
    if "anyOf" in schema:
        return blank(schema["anyOf"][0])
    kind = schema.get("type", "object")
    if kind == "object":
        return {name: blank(part) for name, part in schema.get("properties", {}).items()}
    simple: dict[str, Any] = {"array": [], "string": "", "integer": 0, "number": 0, "null": None}
    return simple.get(kind, False)
