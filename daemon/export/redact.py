"""Replaces credentials that people pasted into chats by a marker, before anything else sees them.

Owns where to look and what is believed (promise 11): keys of known vendors (credentials.py has
their shapes), tokens and secrets after a word that announces them, passwords after a cue or inside
a URL, private keys, card numbers that check. Precision first: a marker in the wrong place destroys
what the person wrote. What becomes `[redacted:kind]` is the secret alone; the words around it stay.

How it is fast: the texts of a conversation are looked at as one, and once, by an automaton that
knows every hint there is: a word for a password, `://`, a row of digits, and a stretch of twenty
characters without a gap, which every vendor's key and every long secret is. Other expressions run
only where it stopped, and each is bounded or possessive, so that no line can make it slow.
"""

from __future__ import annotations

import binascii
import re
from typing import TYPE_CHECKING

import re2

from daemon.export import passwords
from daemon.export.credentials import SHAPES, is_mixed, is_random

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from daemon.export.credentials import Found

_SEAM = "\n\x00\n"
"""Between texts that are looked at as one; no rule reaches across, and no clean text holds it."""
_TOGETHER_CHARACTERS = 256 * 1024
_HINTS_A_LOOK = 1024
_DIGITS = b"0123456789"

# --- long stretches: vendors' keys, and secrets after a word

_STRETCH = 20
_WORD = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-+/=~"
_LONGEST_TOKEN = 8_000
_REACH = 48
"""How far before a stretch its shape, or the word that announces it, may begin."""
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

# --- what stands in a header or a URL, cards, private keys

_HEADER = b"authorization"
_AUTHORIZATION = re.compile(
    r"[\"']?+[ \t]{0,4}+[:=][ \t]{0,4}+[\"']?+basic[ \t]{1,4}+(?P<secret>[A-Za-z0-9+/=]{8,400}+)",
    re.IGNORECASE | re.ASCII,  # else `s` is also the long s, which is no base64
)

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
_CARD_GROUP = 4
"""The first digits of a card number may end a stretch that its other digits are no part of."""
_CARD_ROWS = (b"0000-0000-0000-0000", b"0000-000000-0000", b"0" * 14)

_PRIVATE_KEY = b"PRIVATE KEY"
_PEM_BEGIN = re.compile(r"-----BEGIN (?:[A-Z0-9]{1,12} ){0,3}PRIVATE KEY(?: BLOCK)?-----")
_BREAK = r"(?:\s|\\[nr])"
_PEM_BODY = re.compile(
    rf"{_BREAK}*+(?:[A-Z][A-Za-z\-]{{2,30}}: [^\n\\]{{0,100}}+{_BREAK}++)*+"
    rf"(?:[A-Za-z0-9+/=]{{16,}}+{_BREAK}*+)++"
    rf"(?:[A-Za-z0-9+/=]{{1,15}}+(?={_BREAK}*+(?:-----END|=|\x00|$)){_BREAK}*+){{0,2}}"
)


# --- the hints

_STEMS = (*passwords.STEMS, _HEADER)
_BYTES = re2.Options()
_BYTES.encoding = re2.Options.Encoding.LATIN1
_HINTS = re2.compile(  # a stretch comes first: it swallows the words inside it
    rb"[A-Za-z0-9_\-+/=~]{%d,}|(?i:%s)|://|%s|\d(?:[ \-]?\d){12}"
    % (_STRETCH, b"|".join(_STEMS), _PRIVATE_KEY),
    _BYTES,
)


def redact(text: str) -> tuple[str, int]:
    """Replace every secret by `[redacted:kind]`; returns the text and how many there were."""
    return _redacted([text])[0]


def redact_each(
    texts: Iterable[str], on_look: Callable[[], None] = lambda: None
) -> Iterator[tuple[str, int]]:
    """Redact many texts, none of which knows of the others; much quicker than one by one.

    Holds a quarter of a million characters at a time, and the text that goes beyond. `on_look` is
    called again and again: a text of hints and nothing else takes minutes.
    """
    batch: list[str] = []
    size = 0
    for text in texts:
        batch.append(text)
        size += len(text)
        if size > _TOGETHER_CHARACTERS:
            yield from _redacted(batch, on_look)
            batch, size = [], 0
    yield from _redacted(batch, on_look)


def _redacted(
    texts: Sequence[str], on_look: Callable[[], None] = lambda: None
) -> list[tuple[str, int]]:
    done = [(text, 0) for text in texts]
    for group in _groups(texts):
        joined = _SEAM.join([texts[n] for n in group])
        spans = _apart(_spans(joined, on_look))
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


def _apart(found: Iterator[Found]) -> list[Found]:
    """Sort spans; of two that overlap the one that begins first stays."""
    spans: list[Found] = []
    for span in sorted(found):
        if not spans or span[0] >= spans[-1][1]:
            spans.append(span)
    return spans


def _replaced(joined: str, start: int, stop: int, spans: Sequence[Found]) -> str:
    pieces: list[str] = []
    for begin, end, kind in spans:
        pieces += joined[start:begin], f"[redacted:{kind}]"
        start = min(end, stop)
    pieces.append(joined[start:stop])
    return "".join(pieces)


def _spans(text: str, on_look: Callable[[], None]) -> Iterator[Found]:
    """Find every secret; spans may overlap."""
    # One byte a character, so that places in the bytes are places in the text.
    data = text.encode("ascii", "replace")
    urls = b"@" in data
    private_keys = digits = False
    seen = 0
    for number, hint in enumerate(_HINTS.finditer(data)):
        if number % _HINTS_A_LOOK == 0:
            on_look()
        start, end = hint.span()
        word = data[start:end]
        if word == b"://":
            match = _USERINFO.match(text, end) if urls else None
            if match is not None and _URL_PLACEHOLDER.fullmatch(match.group("secret")) is None:
                yield *match.span("secret"), "password"
        elif word == _PRIVATE_KEY:
            private_keys = True
        elif word[0] in _DIGITS and b" " in word:
            digits = True
        elif len(word) < _STRETCH:
            if word[0] in _DIGITS:
                digits = True
            else:
                yield from _cued(text, start, word.lower())
        else:
            while start and data[start - 1] in _WORD:  # a row of digits took its beginning
                start -= 1
            word = data[start:end]
            digits = digits or len(word) - len(word.translate(None, _DIGITS)) >= _CARD_GROUP
            seen, found = _stretch(text, word, start, seen)
            yield from found
            lower = word.lower()
            for stem in _STEMS:
                for at in _places(lower, stem):
                    yield from _cued(text, start + at, stem)
    if not text.isascii():
        yield from passwords.foreign(text, on_look)
    if private_keys:
        yield from _private_keys(text)
    if digits:
        rows = data.translate(_ROWS)
        if any(row in rows for row in _CARD_ROWS):
            for match in _CARD.finditer(text):
                on_look()
                if _is_card(match.group("secret")):
                    yield *match.span("secret"), "card"


def _places(data: bytes, needle: bytes) -> Iterator[int]:
    at = data.find(needle)
    while at >= 0:
        yield at
        at = data.find(needle, at + len(needle))


def _cued(text: str, at: int, stem: bytes) -> Iterator[Found]:
    """Take the password after a word for one, or after the name of the header that holds one."""
    if stem != _HEADER:
        yield from passwords.after(text, at, stem)
        return
    match = _AUTHORIZATION.match(text, at + len(stem))
    if match is not None and _is_basic(match.group("secret")):
        yield *match.span("secret"), "password"


def _stretch(text: str, row: bytes, start: int, seen: int) -> tuple[int, list[Found]]:
    """Look at a long stretch if it holds a digit: it may be a key, or announced as a secret.

    `seen` is how far keys were looked for, and is returned anew.
    """
    found: list[Found] = []
    end = start + len(row)
    if len(row) <= _LONGEST_TOKEN and len(row.translate(None, _DIGITS)) < len(row):
        before = max(seen, start - _REACH)
        beyond = _BEYOND.match(text, end)
        seen = max(seen, end if beyond is None else min(beyond.end(), end + _LONGEST_TOKEN))
        found += _shapes(text, before, seen)
        if is_random(row.decode()):
            found += _announced(text, max(0, start - _REACH), end)
    return seen, found


def _shapes(text: str, start: int, stop: int) -> Iterator[Found]:
    for match in SHAPES.finditer(text, start, stop):
        secret = match[0]
        if len(secret) > _LONGEST_TOKEN or not any(c in "0123456789" for c in secret):
            continue
        if match.lastgroup != "likely" or is_mixed(secret):
            yield *match.span(), "jwt" if match.lastgroup == "jwt" else "api-key"


def _announced(text: str, start: int, stop: int) -> Iterator[Found]:
    """Find a random value after a word that announces one, between two places."""
    for stem in _SECRET_STEM.finditer(text, start, stop):
        if stem[0].lower() == "key" and not _KEY_OWNER.search(
            text, max(0, stem.start() - 12), stem.start()
        ):
            continue
        match = _SECRET.match(text, stem.end())
        if match is not None and is_random(match.group("secret")):
            yield *match.span("secret"), "api-key"


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


def _private_keys(text: str) -> Iterator[Found]:
    """Find PEM blocks; one whose end was cut off ends with its last line of base64."""
    at = 0
    while (begin := _PEM_BEGIN.search(text, at)) is not None:
        body = _PEM_BODY.match(text, begin.end())
        at = end = begin.end() if body is None else body.end()
        if body is None:
            continue
        if text.startswith("-----END ", end):
            tail = text.find("-----", end + 9, end + 80)
            if tail >= 0 and "\x00" not in text[end:tail]:  # else another text's
                at = end = tail + 5
        else:
            end -= len(text[begin.end() : end]) - len(text[begin.end() : end].rstrip())
        yield begin.start(), end, "private-key"
