"""Replaces credentials that people pasted into chats by a marker, before anything else sees them.

Owns the rules: keys of known providers, tokens, private keys, card numbers that check, passwords
after a cue or inside a URL (promise 11). Each rule begins with a cheap look for a fixed string, so
that ordinary text costs little, and each expression is bounded or possessive, so that no line can
make it slow. Precision first: a marker in the wrong place destroys what the person wrote.

What becomes `[redacted:kind]` is the secret alone; the words around it stay.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


def _has_digit(secret: str) -> bool:
    return any(c.isdigit() for c in secret)


class _Rule(NamedTuple):
    """`needle` must occur for the pattern to be tried; its group `secret` is what is replaced."""

    needle: str
    pattern: re.Pattern[str]
    accept: Callable[[str], bool] = _has_digit
    kind: str = "api-key"


_LONGEST_TOKEN = 8_000
_END = r"(?![A-Za-z0-9_])"
_BEGIN = r"(?<![A-Za-z0-9_])"


def _token(pattern: str) -> re.Pattern[str]:
    return re.compile(f"{_BEGIN}(?P<secret>{pattern}){_END}")


def _mixed(secret: str) -> bool:
    """Say whether a token is random rather than words: digits and letters, in no readable order."""
    digits = sum(c.isdigit() for c in secret)
    uppers = sum(c.isupper() for c in secret)
    lowers = sum(c.islower() for c in secret)
    if not digits or not (lowers or uppers):
        return False
    if uppers >= 2 and lowers >= 2 and digits >= 2:
        return True
    hexadecimal = sum(c in "0123456789abcdefABCDEF" for c in secret)
    return digits >= 4 and hexadecimal >= 28


def _random(secret: str) -> bool:
    """Judge what follows a word like `token`: a long value may hold few digits."""
    return _mixed(secret) or (
        len(secret) >= 32
        and any(c.isdigit() for c in secret)
        and sum(c.isupper() for c in secret) >= 4
        and sum(c.islower() for c in secret) >= 4
    )


_KEYS = (
    _Rule("sk-", _token(r"sk-(?:[a-z]{2,12}\d{0,2}-){0,3}[A-Za-z0-9_\-]{20,}+"), _mixed),
    _Rule("AKIA", _token(r"AKIA[A-Z0-9]{16}")),
    _Rule("ASIA", _token(r"ASIA[A-Z0-9]{16}"), _mixed),
    _Rule("AIza", _token(r"AIza[A-Za-z0-9_\-]{35}")),
    _Rule("glpat-", _token(r"glpat-[A-Za-z0-9_\-]{20,}+")),
    _Rule("xox", _token(r"xox[abeoprs]-[A-Za-z0-9\-]{10,}+")),
    _Rule("eyJ", _token(r"eyJ[A-Za-z0-9_\-]{8,}+(?:\.[A-Za-z0-9_\-]{8,}+){2}"), kind="jwt"),
)
# All of these hold an underscore, which prose does not.
_UNDERSCORED = (
    *(_Rule(f"gh{kind}_", _token(rf"gh{kind}_[A-Za-z0-9]{{36,}}+")) for kind in "pousr"),
    _Rule("github_pat_", _token(r"github_pat_[A-Za-z0-9_]{22,}+")),
    _Rule("sb_secret_", _token(r"sb_secret_[A-Za-z0-9_\-]{20,}+")),
    _Rule("_live_", _token(r"[rs]k_live_[A-Za-z0-9]{16,}+")),
    _Rule("_test_", _token(r"[rs]k_test_[A-Za-z0-9]{16,}+")),
    _Rule("whsec_", _token(r"whsec_[A-Za-z0-9+/=]{24,}+")),
    _Rule("npm_", _token(r"npm_[A-Za-z0-9]{36}")),
    _Rule("hf_", _token(r"hf_[A-Za-z0-9]{30,}+")),
    _Rule("sbp_", _token(r"sbp_[0-9a-f]{40}")),
    _Rule("gsk_", _token(r"gsk_[A-Za-z0-9]{40,}+")),
)

# --- passwords and secrets after a cue
# A cue is found by a plain search in the lower-cased text; what follows it by an anchored match.

# Stems, so that few searches cover many words: the match that follows finishes the word.

_PASSWORD_STEMS = {
    "pass": re.compile(r"w(?:or[dt]|d)|phrase|code|e(?<=mot de passe)"),
    "pwd": re.compile(r""),
    "kennwort": re.compile(r""),
    "contrase": re.compile(r"ña|na"),
    "senha": re.compile(r"(?!\w)"),
    "wachtwoord": re.compile(r""),
    "hasło": re.compile(r""),
    "парол": re.compile(r"[^\W_]{1,2}"),
    "密码": re.compile(r""),
    "密碼": re.compile(r""),
    "パスワード": re.compile(r""),
    "비밀번호": re.compile(r""),
}
_VALUE = r"(?P<quote>[\"'`]?)(?P<secret>[^\s\"'`,;<>()\[\]{}]{4,128}+)"
_ASSIGNED = re.compile(
    r"[A-Za-z0-9_]{0,12}+[\"'`*]{0,3}+[ \t]{0,4}+(?::=|=|:)\*{0,2}+[ \t]{0,4}+" + _VALUE
)
_SAID = re.compile(
    r"[^\n.?!:=\"'`]{0,30}?(?:[ \t](?:is|was|ist|lautet|es|é|è|est|to|jest)\b[ \t]{0,3}+:?+"
    r"|[ \t]{0,3}[:\uff1a=—])[ \t]{0,3}+" + _VALUE,
    re.IGNORECASE,
)
_SAID_UNSPACED = re.compile(r"[^\n。\uff1a:]{0,8}?[是为為は는은:\uff1a][ \t]{0,3}+" + _VALUE)
_OWNER = re.compile(r"\b(?:my|our|meine?|mi|mon|ma|minha|mijn)\b[^\n.?!:=]{0,30}$", re.IGNORECASE)

_SECRET_STEMS = ("key", "secret", "token", "bearer")
_KEY_OWNER = re.compile(
    r"(?:api|access|auth|private|account|service|master|encryption|client|app)[_\- ]?$",
    re.IGNORECASE,
)
_SECRET = re.compile(
    r"[A-Za-z_\-]{0,16}+[\"']?+[ \t]{0,4}+(?::=|=|:)?+[ \t]{0,4}+[\"'`]?+"
    r"(?P<secret>[A-Za-z0-9+/_\-=~]{20,512}+)(?=[\s\"'`,;)\]}]|$)"
)

_PLACEHOLDER = re.compile(
    r"x{4,}|\*{3,}|\.{3}|^\$|\$[{(]|%[sd(]|your|example|placeholder|change|redacted|password|passwd|passwort"
    r"|secret|null|none|undefined|true|false|string|required|optional|hidden|env\b|config|self\."
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
    if _is_password(secret):
        return True
    word = secret.rstrip(".!?")
    if word.replace("-", "").isalpha() and len(word) >= 6 and not _PLACEHOLDER.search(word):
        return _PROSE.fullmatch(word) is None
    return False


_USERINFO = re.compile(
    r"(?<=://)[^\s/:@\"'<>{}$%]{0,100}+:(?P<secret>[^\s/@\"'<>]{3,}+)(?=@[\w\[])"
)
_URL_PLACEHOLDER = re.compile(
    r"\[redacted:.*|\$|\{|%[sd(]|\*\*|x{3,}|\.\.\.|pass(?:word|wd)?\d?|pwd|secret|pw|user(?:name)?|token|your.*",
    re.IGNORECASE,
)

# --- card numbers

_CARD = re.compile(
    r"(?P<secret>[2-6](?<![\w.\-/].)\d{3}(?:(?P<gap>[ \-])\d{4}(?P=gap)\d{4}(?P=gap)\d{4}"
    r"|(?P<gap6>[ \-])\d{6}(?P=gap6)\d{4,5}|\d{10,12}))(?![\w\-/]|\.\d)"
)
_ISSUERS = re.compile(
    r"(?:4\d{15}|5[1-5]\d{14}|2(?:22[1-9]|2[3-9]\d|[3-6]\d\d|7[01]\d|720)\d{12}|3[47]\d{13}"
    r"|6(?:011|5\d\d|4[4-9]\d)\d{12}|3(?:0[0-5]|[68]\d)\d{11}|35(?:2[89]|[3-8]\d)\d{12}|62\d{14})"
)
_NOT_DIGITS = bytes(code for code in range(256) if code not in b"0123456789")
_SHORTEST_CARD = 14


def _is_card(text: str) -> bool:
    digits = text.replace(" ", "").replace("-", "")
    if _ISSUERS.fullmatch(digits) is None or len(set(digits)) == 1:
        return False
    total = 0
    for index, char in enumerate(reversed(digits)):
        value = int(char) * (1 + index % 2)
        total += value - 9 if value > 9 else value
    return total % 10 == 0


_CARDS = _Rule("", _CARD, _is_card, kind="card")

_PEM_BEGIN = re.compile(r"-----BEGIN (?:[A-Z0-9]{1,12} ){0,3}PRIVATE KEY(?: BLOCK)?-----")
_BREAK = r"(?:\s|\\[nr])"
_PEM_BODY = re.compile(
    rf"{_BREAK}*+(?:[A-Z][A-Za-z\-]{{2,30}}: [^\n\\]{{0,100}}+{_BREAK}++)*+"
    rf"(?:[A-Za-z0-9+/=]{{16,}}+{_BREAK}*+)++"
    rf"(?:[A-Za-z0-9+/=]{{1,15}}+(?={_BREAK}*+(?:-----END|=|$)){_BREAK}*+){{0,2}}"
)


def _private_keys(text: str) -> Iterator[tuple[int, int, str]]:
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


def _found(rule: _Rule, text: str) -> Iterator[tuple[int, int, str]]:
    for match in rule.pattern.finditer(text):
        secret = match.group("secret")
        if len(secret) <= _LONGEST_TOKEN and rule.accept(secret):
            yield *match.span("secret"), rule.kind


def _spans(text: str) -> Iterator[tuple[int, int, str]]:
    """Find every secret; spans may overlap."""
    for rule in _KEYS:
        if rule.needle in text:
            yield from _found(rule, text)
    if "_" in text:
        for rule in _UNDERSCORED:
            if rule.needle in text:
                yield from _found(rule, text)
    if "PRIVATE KEY" in text:
        yield from _private_keys(text)
    if "://" in text and "@" in text:
        for match in _USERINFO.finditer(text):
            if _URL_PLACEHOLDER.fullmatch(match.group("secret")) is None:
                yield *match.span("secret"), "password"
    yield from _cued(text)
    if len(text.encode("ascii", "ignore").translate(None, _NOT_DIGITS)) >= _SHORTEST_CARD:
        yield from _found(_CARDS, text)


def _cued(text: str) -> Iterator[tuple[int, int, str]]:
    """Find what stands after a word that announces a secret."""
    lower = text.lower()
    if len(lower) != len(text):  # a few letters grow when lower-cased, and places would shift
        lower = "".join(c.lower() if len(c.lower()) == 1 else c for c in text)
    for stem, rest in _PASSWORD_STEMS.items():
        at = lower.find(stem)
        while at >= 0:
            word = rest.match(lower, at + len(stem))
            if word is not None:
                found = _password(text, at, word.end())
                if found is not None:
                    yield *found, "password"
            at = lower.find(stem, at + len(stem))
    for stem in _SECRET_STEMS:
        at = lower.find(stem)
        while at >= 0:
            named = stem != "key" or _KEY_OWNER.search(text, max(0, at - 12), at) is not None
            at += len(stem)
            match = _SECRET.match(text, at) if named else None
            if match is not None and _random(match.group("secret")):
                yield *match.span("secret"), "api-key"
            at = lower.find(stem, at)


def _password(text: str, start: int, end: int) -> tuple[int, int] | None:
    """Take the password after the cue at `start` to `end`, if one follows."""
    match = _ASSIGNED.match(text, end) or _SAID.match(text, end)
    if match is None and not text[start:end].isascii():
        match = _SAID_UNSPACED.match(text, end)
    if match is None:
        return None
    secret = match.group("secret")
    accepted = _is_password(secret)
    if not accepted and _OWNER.search(text, max(0, start - 40), start) is not None:
        accepted = _is_own_password(secret)
    if not accepted:
        return None
    if not match.group("quote"):
        secret = secret.rstrip(".!?:*")  # the sentence's, not the password's
    begin = match.start("secret")
    return begin, begin + len(secret)


def redact(text: str) -> tuple[str, int]:
    """Replace every secret by `[redacted:kind]`; returns the text and how many there were."""
    spans = sorted(_spans(text))
    if not spans:
        return text, 0
    pieces: list[str] = []
    at = count = 0
    for start, end, kind in spans:
        if start < at:
            continue
        pieces += text[at:start], f"[redacted:{kind}]"
        at = end
        count += 1
    pieces.append(text[at:])
    return "".join(pieces), count
