"""Replaces credentials that people pasted into chats by a marker, before anything else sees them.

Owns where to look and what is believed (promise 11): keys of known vendors (credentials.py has
their shapes), tokens and secrets after a word that announces them, passwords after a cue or inside
a URL, private keys, card numbers that check. Precision first: a marker in the wrong place destroys
what the person wrote. What becomes `[redacted:kind]` is the secret alone; the words around it stay.

How it is fast: the texts of a conversation are looked at as one, and only by plain searches in C.
Every vendor's key and every long secret is a stretch of twenty characters without a gap, every card
number a row of digits: one translation of the bytes turns those into rows of one letter, which a
search finds by leaps. Expressions run only at what was found, and each is bounded or possessive, so
that no line can make it slow.
"""

from __future__ import annotations

import binascii
import re
from typing import TYPE_CHECKING

from daemon.export.credentials import SHAPES, is_mixed, is_random

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

_Found = tuple[int, int, str]

_SEAM = "\n\x00\n"
"""Between texts that are looked at as one; no rule reaches across, and no clean text holds it."""
_TOGETHER_CHARACTERS = 256 * 1024
_DIGITS = b"0123456789"

# --- long stretches: vendors' keys, and secrets after a word

_STRETCH = 20
_LONGEST_TOKEN = 8_000
_REACH = 48
"""How far before a stretch its shape, or the word that announces it, may begin."""
_WORD = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-+/=~"
_STRETCHES = bytes(ord("a" if code in _WORD else " ") for code in range(256))
_LONG = b"a" * _STRETCH
_BEYOND = re.compile(r"[A-Za-z0-9_\-+/=~.:%,]{0,8000}+")

_SECRET_STEM = re.compile(r"key|secret|token|bearer", re.IGNORECASE)
_KEY_OWNER = re.compile(
    r"(?:api|access|auth|private|account|service|master|encryption|client|app)[_\- ]?$",
    re.IGNORECASE,
)
_SECRET = re.compile(
    r"[A-Za-z_\-]{0,16}+[\"']?+[ \t]{0,4}+(?::=|=|:)?+[ \t]{0,4}+[\"'`]?+"
    r"(?P<secret>[A-Za-z0-9+/_\-=~]{20,512}+)(?=[\s\"'`,;)\]}]|$)"
)

# --- passwords after a cue: found by a plain search, finished by an anchored match

_PASSWORD_STEMS: dict[bytes, re.Pattern[str]] = {
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
_AUTHORIZATION = re.compile(
    r"[\"']?+[ \t]{0,4}+[:=][ \t]{0,4}+[\"']?+basic[ \t]{1,4}+(?P<secret>[A-Za-z0-9+/=]{8,400}+)",
    re.IGNORECASE,
)

# --- URLs, cards, private keys

_USERINFO = re.compile(r"[^\s/:@\"'<>{}$%]{0,100}+:(?P<secret>[^\s/@\"'<>]{3,}+)(?=@[\w\[])")
_URL_PLACEHOLDER = re.compile(
    r"\[redacted:.*|\$|\{|%[sd(]|\*\*|x{3,}|\.\.\.|pass(?:word|wd)?\d?|pwd|secret|pw"
    r"|user(?:name)?|token|your.*",
    re.IGNORECASE,
)
_CARD = re.compile(
    r"(?P<secret>[2-6](?<![\w.\-/].)\d{3}(?:(?P<gap>[ \-])\d{4}(?P=gap)\d{4}(?P=gap)\d{4}"
    r"|(?P<gap6>[ \-])\d{6}(?P=gap6)\d{4,5}|\d{10,12}))(?![\w\-/]|\.\d)"
)
_ISSUERS = re.compile(
    r"(?:4\d{15}|5[1-5]\d{14}|2(?:22[1-9]|2[3-9]\d|[3-6]\d\d|7[01]\d|720)\d{12}|3[47]\d{13}"
    r"|6(?:011|5\d\d|4[4-9]\d)\d{12}|3(?:0[0-5]|[68]\d)\d{11}|35(?:2[89]|[3-8]\d)\d{12}|62\d{14})"
)
_ROWS = bytes(
    ord("0") if code in _DIGITS else ord("-") if code in b" -" else ord("x") for code in range(256)
)
_CARD_ROWS = (b"0000-0000-0000-0000", b"0000-000000-0000", b"0" * 14)

_PEM_BEGIN = re.compile(r"-----BEGIN (?:[A-Z0-9]{1,12} ){0,3}PRIVATE KEY(?: BLOCK)?-----")
_BREAK = r"(?:\s|\\[nr])"
_PEM_BODY = re.compile(
    rf"{_BREAK}*+(?:[A-Z][A-Za-z\-]{{2,30}}: [^\n\\]{{0,100}}+{_BREAK}++)*+"
    rf"(?:[A-Za-z0-9+/=]{{16,}}+{_BREAK}*+)++"
    rf"(?:[A-Za-z0-9+/=]{{1,15}}+(?={_BREAK}*+(?:-----END|=|\x00|$)){_BREAK}*+){{0,2}}"
)


def redact(text: str) -> tuple[str, int]:
    """Replace every secret by `[redacted:kind]`; returns the text and how many there were."""
    return _redacted([text])[0]


def redact_each(texts: Iterable[str]) -> Iterator[tuple[str, int]]:
    """Redact many texts, none of which knows of the others; much quicker than one by one.

    Holds a quarter of a million characters at a time, and the text that goes beyond.
    """
    batch: list[str] = []
    size = 0
    for text in texts:
        batch.append(text)
        size += len(text)
        if size > _TOGETHER_CHARACTERS:
            yield from _redacted(batch)
            batch, size = [], 0
    yield from _redacted(batch)


def _redacted(texts: Sequence[str]) -> list[tuple[str, int]]:
    done = [(text, 0) for text in texts]
    for group in _groups(texts):
        joined = _SEAM.join([texts[n] for n in group])
        spans = _apart(_spans(joined))
        start = at = 0
        for n in group:
            if at == len(spans):
                break
            stop = start + len(texts[n])
            first = at
            while at < len(spans) and spans[at][0] < stop:
                at += 1
            if at > first:
                done[n] = _replaced(joined, start, stop, spans[first:at]), at - first
            start = stop + len(_SEAM)
    return done


def _groups(texts: Sequence[str]) -> Iterator[list[int]]:
    """Put texts together; plain ASCII apart, which is searched more quickly."""
    for plain in (True, False):
        group: list[int] = []
        for n, text in enumerate(texts):
            if text and text.isascii() is plain:
                group.append(n)
        if group:
            yield group


def _apart(found: Iterator[_Found]) -> list[_Found]:
    """Sort spans; of two that overlap the one that begins first stays."""
    spans: list[_Found] = []
    for span in sorted(found):
        if not spans or span[0] >= spans[-1][1]:
            spans.append(span)
    return spans


def _replaced(joined: str, start: int, stop: int, spans: Sequence[_Found]) -> str:
    pieces: list[str] = []
    for begin, end, kind in spans:
        pieces += joined[start:begin], f"[redacted:{kind}]"
        start = min(end, stop)
    pieces.append(joined[start:stop])
    return "".join(pieces)


def _spans(text: str) -> Iterator[_Found]:
    """Find every secret; spans may overlap."""
    # One byte a character, so that places in the bytes are places in the text.
    data = text.encode("ascii", "replace")
    lower = data.lower()
    yield from _stretches(text, data)
    yield from _passwords(text, lower)
    for at in _places(lower, b"authorization"):
        match = _AUTHORIZATION.match(text, at + len(b"authorization"))
        if match is not None and _is_basic(match.group("secret")):
            yield *match.span("secret"), "password"
    if b"@" in data:
        for at in _places(data, b"://"):
            match = _USERINFO.match(text, at + 3)
            if match is not None and _URL_PLACEHOLDER.fullmatch(match.group("secret")) is None:
                yield *match.span("secret"), "password"
    if b"PRIVATE KEY" in data:
        yield from _private_keys(text)
    rows = data.translate(_ROWS)
    if any(row in rows for row in _CARD_ROWS):
        for match in _CARD.finditer(text):
            if _is_card(match.group("secret")):
                yield *match.span("secret"), "card"


def _places(data: bytes, needle: bytes) -> Iterator[int]:
    at = data.find(needle)
    while at >= 0:
        yield at
        at = data.find(needle, at + len(needle))


def _stretches(text: str, data: bytes) -> Iterator[_Found]:
    """Look at every long stretch that holds a digit: it may be a key, or announced as a secret."""
    rows = data.translate(_STRETCHES)
    seen = 0
    start = rows.find(_LONG)
    while start >= 0:
        end = rows.find(b" ", start + _STRETCH)
        end = len(rows) if end < 0 else end
        row = data[start:end]
        if len(row) <= _LONGEST_TOKEN and len(row.translate(None, _DIGITS)) < len(row):
            before = max(seen, start - _REACH)
            beyond = _BEYOND.match(text, end)
            seen = max(seen, end if beyond is None else min(beyond.end(), end + _LONGEST_TOKEN))
            yield from _shapes(text, before, seen)
            if is_random(row.decode()):
                yield from _announced(text, max(0, start - _REACH), end)
        start = rows.find(_LONG, end)


def _shapes(text: str, start: int, stop: int) -> Iterator[_Found]:
    for match in SHAPES.finditer(text, start, stop):
        secret = match[0]
        if len(secret) > _LONGEST_TOKEN or not any(c in "0123456789" for c in secret):
            continue
        if match.lastgroup != "likely" or is_mixed(secret):
            yield *match.span(), "jwt" if match.lastgroup == "jwt" else "api-key"


def _announced(text: str, start: int, stop: int) -> Iterator[_Found]:
    """Find a random value after a word that announces one, between two places."""
    for stem in _SECRET_STEM.finditer(text, start, stop):
        if stem[0].lower() == "key" and not _KEY_OWNER.search(
            text, max(0, stem.start() - 12), stem.start()
        ):
            continue
        match = _SECRET.match(text, stem.end())
        if match is not None and is_random(match.group("secret")):
            yield *match.span("secret"), "api-key"


def _passwords(text: str, lower: bytes) -> Iterator[_Found]:
    """Find what stands after a word for a password."""
    for stem, rest in _PASSWORD_STEMS.items():
        for at in _places(lower, stem):
            word = rest.match(text, at + len(stem))
            if word is not None:
                yield from _password(text, at, word.end())
    if text.isascii():
        return
    for name, rest in _FOREIGN_STEMS.items():
        at = text.find(name)
        while at >= 0:
            word = rest.match(text, at + len(name))
            if word is not None:
                yield from _password(text, at, word.end())
            at = text.find(name, at + len(name))


def _password(text: str, start: int, end: int) -> Iterator[_Found]:
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
    if len(secret) < 4 or _PLACEHOLDER.search(secret):
        return False
    digits = any(c.isdigit() for c in secret)
    letters = any(c.isalpha() for c in secret)
    signs = any(c in "!@#$%^&*+?~|=€£§" for c in secret)
    if letters:
        return (digits or signs) and len(secret) >= 5
    return digits and len(secret) >= 6 and secret.isdigit()


def _is_own_password(secret: str) -> bool:
    """After "my password is" a plain word counts too, unless the sentence goes on about it."""
    word = secret.rstrip(".!?")
    if word.replace("-", "").isalpha() and len(word) >= 6 and not _PLACEHOLDER.search(word):
        return _PROSE.fullmatch(word) is None
    return False


def _is_basic(encoded: str) -> bool:
    """Whether it is a user and a password as HTTP's basic authorization packs them."""
    try:
        user, colon, password = binascii.a2b_base64(encoded).partition(b":")
    except binascii.Error:
        return False
    return bool(colon and password) and (user + password).isascii()


def _is_card(text: str) -> bool:
    digits = text.replace(" ", "").replace("-", "")
    if _ISSUERS.fullmatch(digits) is None or len(set(digits)) == 1:
        return False
    total = 0
    for index, char in enumerate(reversed(digits)):
        value = int(char) * (1 + index % 2)
        total += value - 9 if value > 9 else value
    return total % 10 == 0


def _private_keys(text: str) -> Iterator[_Found]:
    """Find PEM blocks; one whose end was cut off ends with its last line of base64."""
    at = 0
    while (begin := _PEM_BEGIN.search(text, at)) is not None:
        body = _PEM_BODY.match(text, begin.end())
        at = end = begin.end() if body is None else body.end()
        if body is None:
            continue
        if text.startswith("-----END ", end):
            tail = text.find("-----", end + 9, end + 80)
            at = end = tail + 5 if tail >= 0 else end
        else:
            end -= len(text[begin.end() : end]) - len(text[begin.end() : end].rstrip())
        yield begin.start(), end, "private-key"
