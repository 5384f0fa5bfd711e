"""Direct speech of others within a person's message: "He told me: I live in Munich".

Told by the person, "I" is another there, and a model that errs makes it a fact of the person
(promise 12). Only what the message shows beyond doubt counts: a quote that begins with "I", "my" or
"we", and beside it or beside the quotation marks around it somebody else who "said". Knows English,
German, French, Spanish, Dutch and Portuguese. Indirect speech ("she said I am allergic"), the
person's own speech, and speech that addresses them ("I know you love tea") are none of it.
"""

from __future__ import annotations

import re
from functools import cache

# ruff: noqa: RUF001 - quotation marks of many shapes

_NEAR = 600
"""Characters on either side of a quote in which its quotation marks are looked for."""
_TAG = 160
"""The longest "my friend from Porto told me yesterday" that is looked at."""
_MOST_PLACES = 50
"""Places of one quote that are looked at; who says the same more often is quoted everywhere."""

_MARKS = '"“”„«»'
_LEAD_IN = (
    r"(?:(?:and|but|well|yes|yeah|no|oh|hey|hi|sorry|und|aber|ja|nein|et|mais|oui|non|y|pero|sí"
    r"|e|mas|sim|en|maar|nee)[,!]?\s+){0,2}"
)
_FIRST = (
    r"(?:I|my|we|our|mine|ich|mein(?:e[mnrs]?)?|wir|unser\w*|je|j['’]\w+|mon|ma|mes|nous|notre|nos"
    r"|yo|mis?|nosotr[oa]s|nuestr[oa]s?|soy|estoy|tengo|vivo|odio|trabajo|prefiero|quiero"
    r"|eu|meus?|minhas?|nós|nossos?|nossas?|sou|estou|tenho|moro|odeio|trabalho|prefiro|quero"
    r"|ik|mijn|wij|onze)"
)
_BEGINS_WITH_I = rf"(?i){_LEAD_IN}{_FIRST}\b"
_I_BEFORE = rf"(?i)\b{_FIRST}\s+\Z"
# "I think you're allergic to nuts", the doctor said: that tells of the person.
_YOU = (
    r"(?i)\b(?:you\w*|du|dich|dir|dein\w*|ihnen|tu|te|t['’]\w+|toi|ton|vous|votre|tú|ti|usted"
    r"|você|teus?|tua|jij|jou|jouw)\b"
)

# Who speaks. What is written or felt by the person ("my profile says", "my gut told me") is theirs.
_NO_SPEAKER = (
    r"(?:I|we|me|and|or|who|that|which|to|self|brain|head|heart|mind|gut|body|voice|bio|profile|cv"
    r"|r[eé]sum[eé]|notes?|diary|journal|letter|e-?mail|mail|messages?|posts?|contract|chart|tattoo"
    r"|sign|badge|card|(?:t-)?shirt|website|page|blog|will|draft|essay|texts?|application|form"
    r"|statement|prompt|instructions|rules?|list|plan|profil|lebenslauf|tagebuch|perfil|profiel"
    r"|ich|wir|und|ik|en|je|nous|et|yo|y|eu|e)\b"
)
_NO_NAME = (
    r"(?:I|We|You|It|He|She|They|As|Like|When|Whenever|If|After|Before|Because|Since|While|Once"
    r"|Although|Though|What|Whatever|How|That|This|And|But|So|Then|Or|Also|Just|Always|Never|Often"
    r"|Later|Today|Yesterday|Finally|Already|Only|Again|Have|Had|Has|Ich|Wir|Und|Dann|Als|Wenn|Wie"
    r"|Je|Nous|Et|Puis|Comme|Quand|Ik|Wij|We|Toen|Zoals|Eu|Nós|Como|Quando|Cuando|Yo)\b"
)
_NAME = rf"(?!{_NO_NAME})[A-ZÀ-ÖØ-Þ][\w'’-]+(?:\s[A-ZÀ-ÖØ-Þ][\w'’-]+){{0,2}}(?:(?<=['’]s)\s\w+)?"
# "The note on my door said": the door is no speaker either.
_SOMEONE = (
    r"(?i:(?<!\bon )(?<!\bin )(?<!\bof )(?<!\bat )(?<!\bto )(?<!\bfor )(?<!\bfrom )"
    r"(?:my|his|her|their|our|the|a|an|one|some|another|mein|meine|der|die|das|ein"
    r"|eine|unser|unsere|mon|ma|mes"
    r"|le|la|un|une|notre|mi|mis|el|los|meu|minha|o|mijn|onze|de|het|een)"
    rf"(?:\s(?!{_NO_SPEAKER})[\w'’-]+){{1,5}}?)"
)
_PRONOUN = r"(?i:s?he|they|er|sie|ils?|elles?|él|ella|ell[oa]s|el[ea]s?|hij|zij|ze)"
_MEANWHILE = (
    r"(?i:(?:\s(?:also|always|just|then|once|often|later|even|only|actually|simply|finally|recently"
    r"|usually|has|had|have|both|all))){0,2}"
)
_SAID_PAST = (
    r"(?i:said|told|wrote|texted|asked|replied|answered|added|explained|messaged"
    r"|sagte|meinte|schrieb|erzählte|antwortete|fragte|zei|schreef|vertelde|vroeg|appte|antwoordde"
    r"|dijo|escribió|preguntó|contó|respondió|disse|escreveu|perguntou|contou|falou|respondeu"
    r"|a\sdit|a\sécrit|a\sdemandé|a\srépondu|m['’]a\s(?:dit|écrit|demandé|répondu)|disait|écrivait)"
)
_SAID = (
    rf"(?:{_SAID_PAST}|(?i:says?|tells?|writes?|asks?|sagt|schreibt|meint|zegt|schrijft|dit|écrit"
    r"|hat(?:\s(?:mir|uns))?\s(?:gesagt|geschrieben|erzählt|gefragt)|heeft\s(?:me\s)?gezegd))"
)
_TO_WHOM = (
    r"(?i:(?:\s|-)(?:(?:to|at|zu|tegen|aan|à|a)\s)?(?:me|us|him|her|them|everyone|everybody|mir|uns"
    r"|ihm|ihr|allen|mij|ons|hem|haar|moi|nous|lui|mí|nosotros|mim|nós))?"
    r"(?i:\s(?:yesterday|today|once|again|later|recently|back|last\s\w+|this\s\w+|gestern|hier|ayer"
    r"|ontem|gisteren|(?:in|by|on|over)\s(?:(?:a|an|his|her|their|the)\s)?"
    r"(?:e-?mail|letter|text|message|phone|mail)))?"
)
_OBJECT_FIRST = r"(?:\s(?i:me|nos|nous|m['’]))?"
_OTHER = rf"(?:\b{_PRONOUN}|(?<=,\s)(?i:who)|\b{_SOMEONE}|\b{_NAME})"
# In Spanish and Portuguese the verb alone says that it is another.
_NO_SUBJECT = (
    r"\b(?i:(?:(?:me|nos)\s)?(?:dijo|escribió|preguntó|contó|respondió)"
    r"|(?:(?:me|nos)\s)?(?:escreveu|perguntou|falou)|(?:me|nos)\sdisse|disse-(?:me|nos))"
)
_BEFORE = rf"(?:{_OTHER}{_MEANWHILE}{_OBJECT_FIRST}\s{_SAID}|{_NO_SUBJECT}){_TO_WHOM}"
_SAID_THEN_MARK = rf"{_BEFORE}\s?[:,.]?\s*\Z"
_SAID_COLON = rf"{_BEFORE}\s?:\s*['‘‚‹]?\s*(?i:{_LEAD_IN})\Z"
# A comma alone: only at the head of a sentence, or "the day she asked, I said yes" would be hers.
# In other languages it begins indirect speech ("Er sagte, ich sei müde").
_SAID_COMMA = (
    rf"(?:\A|[.!?;:\n]\s*|\b(?:and|but|then)\s)(?:{_PRONOUN}|{_SOMEONE}|{_NAME}){_MEANWHILE}"
    rf"\s(?i:said|told|wrote|texted|replied|answered){_TO_WHOM},\s*['‘]?\Z"
)
_ADVICE = r"(?i)I\s(?:should|shouldn['’]t|ought)\b"
_NEED = r"(?i)I\s(?:must|need|have\sto|had\sto|can|could|may|might|am\sto|was\sto)\b"
_AGREEING = r"(?i)\b(?:as|like|what|wie|comme|como|zoals)\s+\Z"

_INVERTED = (
    rf"(?i:(?:a|m['’]a)-t-(?:il|elle|on)\s(?:dit|écrit|répondu)|dit-(?:il|elle)"
    rf"|hat\s(?:er|sie)\s(?:gesagt|geschrieben))|{_SAID_PAST}\s(?:{_PRONOUN}|{_SOMEONE}|{_NAME})"
)
_TAG_ENDS = rf"{_TO_WHOM}\s*(?=[.!?,;:)\n…–—-]|\Z|\band\b|\bund\b|\bet\b|\by\b|\be\b)"
# Without marks "my doctor said" behind a sentence may report ("I need iron, my doctor said").
_COMMA_SAID = (
    rf",\s*(?:(?:{_INVERTED})|(?:{_PRONOUN}|{_NAME}){_OBJECT_FIRST}\s{_SAID_PAST}|{_NO_SUBJECT})"
    rf"{_TAG_ENDS}"
)
_MARK_SAID = (
    rf"\s*[,.]?\s*(?:(?:{_INVERTED})|{_OTHER}{_MEANWHILE}{_OBJECT_FIRST}\s{_SAID}|{_NO_SUBJECT})\b"
)
_END_OF_SENTENCE = re.compile(r"[.!?\n]")


# Compiled when first asked for: a worker that rests carries none of them.
_compiled = cache(re.compile)


def another_says(text: str, quote: str) -> bool:
    """Whether a quote stands in a message only where somebody else is made to say it."""
    if _compiled(_YOU).search(quote) is not None:
        return False
    at = text.find(quote)
    places = 0
    while at >= 0 and places < _MOST_PLACES:
        if not _says(text, at, at + len(quote)):
            return False
        places += 1
        at = text.find(quote, at + len(quote))
    return places > 0


def _says(text: str, start: int, stop: int) -> bool:
    """Whether the piece of the text says "I" and is another's direct speech."""
    if _compiled(_BEGINS_WITH_I).match(text, start) is None:
        before = _compiled(_I_BEFORE).search(text[max(0, start - 20) : start])
        if before is None:
            return False
        start -= len(before[0])
    return (
        _in_marks(text, start, stop)
        or _after_a_colon_or_comma(text, start)
        or _before_a_tag(text, start, stop)
    )


def _in_marks(text: str, start: int, stop: int) -> bool:
    """Whether it stands in quotation marks, opened and closed, beside which another "said"."""
    opened = max(text.rfind(mark, max(0, start - _NEAR), start) for mark in _MARKS)
    closing = [text.find(mark, stop - 1, stop + _NEAR) for mark in _MARKS]
    closed = min((at for at in closing if at >= 0), default=-1)
    if opened < 0 or closed < 0 or (text[opened] != "«" and text[opened + 1].isspace()):
        return False
    tag = _compiled(_SAID_THEN_MARK).search(text[max(0, opened - _TAG) : opened])
    if tag is not None and not _agrees(text, opened, tag):
        return True
    opens = opened == 0 or (not text[opened - 1].isalnum() and text[opened - 1] not in ".!?,")
    return opens and _compiled(_MARK_SAID).match(text[closed + 1 : closed + 1 + _TAG]) is not None


def _after_a_colon_or_comma(text: str, start: int) -> bool:
    """Whether it follows "he told me:" in the same sentence, itself or as a further "I …"."""
    head = text[max(0, start - _TAG) : start]
    if _compiled(_ADVICE).match(text, start) is not None:
        return False
    tag = _compiled(_SAID_COLON).search(head)
    if tag is None and _compiled(_NEED).match(text, start) is None:
        tag = _compiled(_SAID_COMMA).search(head)
    if tag is not None:
        return not _agrees(text, start, tag)
    # "He told me: I hate children, I live in Munich"; not "he said: never, so I moved".
    colon = text.rfind(":", max(0, start - _TAG), start)
    if colon < 0 or re.search(r"(?i)(?:,|,?\s(?:and|und|et|y|e|en))\s*\Z", head) is None:
        return False
    between = text[colon + 1 : start].lstrip()
    if (
        _compiled(_BEGINS_WITH_I).match(between) is None
        or _END_OF_SENTENCE.search(between) is not None
    ):
        return False
    tag = _compiled(_SAID_COLON).search(text[max(0, colon + 1 - _TAG) : colon + 1])
    return tag is not None and not _agrees(text, colon + 1, tag)


def _before_a_tag(text: str, start: int, stop: int) -> bool:
    """Whether ", he said" ends its clause, or stands in it."""
    for tag in _compiled(_COMMA_SAID).finditer(text, start, stop + _TAG):
        at = tag.start()
        if _END_OF_SENTENCE.search(text, start, at) is not None:
            return False
        if re.search(r"[,;:]", text[stop:at]) is None:
            return True
    return False


def _agrees(text: str, end: int, tag: re.Match[str]) -> bool:
    """Whether the tag found before `end` agrees: "as my mother said: I am stubborn"."""
    begins = max(0, end - _TAG) + tag.start()
    return _compiled(_AGREEING).search(text[max(0, begins - 12) : begins]) is not None
