"""Passwords after a word that announces one, in the languages whose words are known here.

Owns the words, how a password may follow them, and what is believed to be one: a placeholder in a
manual is none, nor is the way a sentence goes on. Leaves to redact.py where to look.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from daemon.export.credentials import Found

STEMS: dict[bytes, re.Pattern[str]] = {
    stem: re.compile(rest, re.IGNORECASE)
    for stem, rest in (
        (b"pass", r"w(?:or[dt]|d)|phrase|code|e(?<=mot de passe)"),
        (b"pwd", r""),
        (b"kennwort", r""),
        (b"contrase", r"ña|na"),
        (b"senha", r"(?!\w)"),
        (b"wachtwoord", r""),
    )
}
# Their first letters may be large; those of the other scripts have no case.
_FOREIGN_STEMS: dict[str, re.Pattern[str]] = {
    "asło": re.compile(r"(?<=[hH]asło)"),
    "арол": re.compile(r"(?<=[пП]арол)[^\W_]{1,2}"),
    "密码": re.compile(r""),
    "密碼": re.compile(r""),
    "パスワード": re.compile(r""),
    "비밀번호": re.compile(r""),
}
_SIGNS = frozenset("!@#$%^&*+?~|=€£§")
_VALUE = r"(?P<quote>[\"'`]?)(?P<secret>[^\s\"'`,;<>()\[\]{}]{4,128}+)"
_IS = r"(?:is|was|used to be|will be|has been|ist|war|lautet|es|era|é|è|est|était|to|jest|było)"
_ASSIGNED = re.compile(
    r"[A-Za-z0-9_]{0,12}+[\"'`*]{0,3}+[ \t]{0,4}+(?::=|=|:)\*{0,2}+[ \t]{0,4}+" + _VALUE
)
_CUE_END = (
    r"[^\n.?!:=@/\"'`]{0,30}?"
    rf"(?:[ \t]{_IS}\b[ \t]{{0,3}}+:?+|[ \t]{{0,3}}[:\uff1a=—])[ \t]{{0,3}}+"
)
_SAID = re.compile(_CUE_END + _VALUE, re.IGNORECASE)
_SAID_UNSPACED = re.compile(r"[^\n。\uff1a:]{0,8}?[是为為は는은:\uff1a][ \t]{0,3}+" + _VALUE)
# A phrase of several words: in quotation marks, or two words with which the sentence ends.
_SAID_PHRASE = re.compile(
    _CUE_END + r"(?:[\"'`“„«](?P<quoted>[^\"'`“”»\n]{4,64})[\"'`”“»]"
    r"|(?P<words>[^\W\d_]{3,20}[ \t\-][^\W\d_]{3,20})"
    r"(?=[.!;,]?[ \t]{0,3}(?:[\n\x00]|$)|[.!;,][ \t]))",
    re.IGNORECASE,
)
_OWNER = re.compile(r"\b(?:my|our|meine?|mi|mon|ma|minha|mijn)\b[^\n.?!:=]{0,30}$", re.IGNORECASE)

_PLACEHOLDER = re.compile(
    r"x{4,}|\*{3,}|\.{3}|^\$|\$[{(]|%[sd(]|your|example|placeholder|change|redacted|password"
    r"|passwd|passwort|secret|null|none|undefined|true|false|string|required|optional|hidden|env\b|config|self\."
    r"|process\.|this\.|request\.|os\.|->|::|\w\(|https?:|/\w+/|^[\w.]+\.\w+$|^[_A-Z][A-Z0-9_]*$"
    r"|^[a-z]+(?:_[a-z0-9]+)+$|^[a-z]+(?:[A-Z][a-z]+)+\d?$|^\d{1,2}$|^\d{4}-\d\d",
)
_PROSE = re.compile(
    r"(?:.*(?:ed|ing|ly|able|ible|ful|ous|ent|ant|ive|ist|lich|isch)|the same|weak|strong|safe"
    r"|secure|wrong|correct|incorrect|invalid|valid|simple|really|always|never|something|nothing"
    r"|anything|probably|already|still|too|long|short|about|different|public|private|hunter"
    r"|because|between|unique|random|unknown|around|another|falsch|richtig|sicher|vergessen|segura"
    r"|fuerte|larga|muito|correcta|incorrecta|toujours|different|trop)",
    re.IGNORECASE,
)  # fmt: skip
_SMALL_WORDS = frozenset(
    re.split(
        r"\s+",
        "the a an not no my your his her its our their this that these those same one now then "
        "here there fine gone lost out off set reset due kept saved stored up in on at by for from "
        "with without to of and or but just only very quite way bit kind sort day days week month "
        "year time again first last next new old good bad hard easy wrong right all any some both "
        "each other how what when where which who why yes enough more most less name birthday date "
        "back down over under until since after before also even ever like much many well yet been "
        "being have has had can could may might must should would will was were are longer anymore",
    )
)


def after(text: str, at: int, stem: bytes) -> Iterator[Found]:
    """Take the password that follows the word which begins with `stem` at this place, if any."""
    word = STEMS[stem].match(text, at + len(stem))
    if word is not None:
        yield from _password(text, at, word.end())


def foreign(text: str, on_look: Callable[[], None]) -> Iterator[Found]:
    """Find what stands after a word for a password that is no ASCII."""
    for name, rest in _FOREIGN_STEMS.items():
        at = text.find(name)
        while at >= 0:
            on_look()
            word = rest.match(text, at + len(name))
            if word is not None:
                yield from _password(text, at, word.end())
            at = text.find(name, at + len(name))


def _password(text: str, start: int, end: int) -> Iterator[Found]:
    """Take the password after the cue at `start` to `end`, if one follows."""
    own = _OWNER.search(text, max(0, start - 40), start) is not None
    if own:
        phrase = _SAID_PHRASE.match(text, end)
        if phrase is not None and _is_phrase(phrase):
            yield *phrase.span(phrase.lastgroup or 0), "password"
            return
    match = _ASSIGNED.match(text, end) or _SAID.match(text, end)
    if match is None and not text[start:end].isascii():
        match = _SAID_UNSPACED.match(text, end)
    if match is None:
        return
    secret = match.group("secret")
    if not (_is_password(secret) or (own and _is_own_password(secret))):
        return
    if not match.group("quote"):
        secret = secret.rstrip(".!?:*")  # the sentence's, not the password's
    begin = match.start("secret")
    yield begin, begin + len(secret), "password"


def _is_phrase(phrase: re.Match[str]) -> bool:
    """Whether several words are a pass phrase rather than how the sentence goes on."""
    said = phrase.group("quoted") or phrase.group("words")
    words = said.replace("-", " ").split()
    if _PLACEHOLDER.search(said) is not None or len(words) < 2:
        return False
    if phrase.group("quoted") is not None:
        return True
    return not any(w.lower() in _SMALL_WORDS or _PROSE.fullmatch(w) for w in words)


def _is_password(secret: str) -> bool:
    """Accept what people choose as passwords: letters with digits or signs, or digits alone."""
    secret = secret.rstrip(".!?:*")
    digits = any(map(str.isdigit, secret))
    letters = any(map(str.isalpha, secret))
    signs = not _SIGNS.isdisjoint(secret)
    if letters:
        likely = (digits or signs) and len(secret) >= 5
    else:
        likely = len(secret) >= 6 and secret.isdigit()
    # Last, since it takes the longest.
    return likely and _PLACEHOLDER.search(secret) is None


def _is_own_password(secret: str) -> bool:
    """After "my password is" a plain word counts too, unless the sentence goes on about it."""
    word = secret.rstrip(".!?")
    if word.replace("-", "").isalpha() and len(word) >= 6 and not _PLACEHOLDER.search(word):
        return _PROSE.fullmatch(word) is None
    return False
