"""Which languages a person writes in, told by script and by small words.

One decision a message: where most letters are of a script that one language owns, that language;
else the language whose commonest words occur most. A message too short to tell is "unclear", and
said to be. Owns nothing but the words; good for an account, not for a decision.
"""

# ruff: noqa: RUF001 - letters of many alphabets

from __future__ import annotations

import re
from collections import Counter

UNCLEAR = "unclear"
_LOOKED_AT = 600
"""Characters of a message that are looked at."""
_LEAST_HITS = 2

_CODE = re.compile(r"```.*?(?:```|\Z)|`[^`\n]*`|https?://\S+", re.DOTALL)
_WORD = re.compile(r"[^\W\d_]+")
# A script that belongs to one language, or to one as good as always. Kana come before Han: Japanese
# has both.
_SCRIPTS = tuple(
    (name, re.compile(f"[{letters}]"))
    for name, letters in (
        ("Japanese", "\u3040-\u30ff"),
        ("Chinese", "\u4e00-\u9fff\u3400-\u4dbf"),
        ("Korean", "\uac00-\ud7a3\u1100-\u11ff"),
        ("Thai", "\u0e00-\u0e7f"),
        ("Hebrew", "\u0590-\u05ff"),
        ("Greek", "\u0370-\u03ff"),
        ("Georgian", "\u10a0-\u10ff"),
        ("Armenian", "\u0530-\u058f"),
        ("Hindi (Devanagari)", "\u0900-\u097f"),
        ("Bengali", "\u0980-\u09ff"),
        ("Tamil", "\u0b80-\u0bff"),
        ("Telugu", "\u0c00-\u0c7f"),
        ("Arabic script", "\u0600-\u06ff"),
        ("Cyrillic", "\u0400-\u04ff"),
    )
)
_KANA_AMONG_HAN = 0.08
_SMALL_WORDS = {
    "English": "the and to of is in that it for you with on my are this have be not what how can i "
    "me do was we at so but or a an if would should could any about from there",
    "German": "der die das und ist nicht ich ein eine zu mit für auf den wie von auch kann bitte",
    "French": "le la les et est je que pas une des pour dans avec sur ce mon qui vous comment du",
    "Spanish": "el los las y es que de en un una para con por mi como está pero más puedo qué",
    "Portuguese": "o os as e é que de em um uma para com por meu como não mas mais posso você do",
    "Italian": "il gli e è che di in un una per con mi come non ma più sono della posso questo",
    "Dutch": "de het een en is ik niet van in dat op te met voor zijn maar mijn hoe kan wat",
    "Polish": "w nie się z jest że jak mam czy dla jestem ale mój przez już tylko więc mnie",
    "Swedish": "och att det som en är jag på för inte med av har ett den min kan hur vad till",
    "Turkish": "bir ve bu için ile ben ne mi da de var çok nasıl gibi olarak daha ama benim",
    "Indonesian": "yang dan di ini untuk dengan saya tidak itu dari ke ada bisa apa akan adalah",
    "Vietnamese": "là và của tôi có không cho một được với các này trong những để người",
    "Russian": "и в не на я что с как это по но мне для есть у так мы из же если бы",
    "Ukrainian": "і в не на я що з як це та але мені для є у так ми із ж якщо щоб",
    "Bulgarian": "и в не на аз че с как това по но ми за е от се да си със ще",
    "Serbian": "и у не на ја да са како то али ми за је од се су што би ће",
}
_LANGUAGES_OF: dict[str, list[str]] = {}
for _language, _words in _SMALL_WORDS.items():
    for _one in _words.split():
        _LANGUAGES_OF.setdefault(_one, []).append(_language)


def language_of(text: str) -> str:
    """Name the language of a message, or `UNCLEAR`."""
    sample = _CODE.sub(" ", text[: 4 * _LOOKED_AT])[:_LOOKED_AT]
    if not sample.isascii():
        letters = sum(map(str.isalpha, sample))
        counts = {name: len(letter.findall(sample)) for name, letter in _SCRIPTS}
        if counts["Chinese"] and counts["Japanese"] > _KANA_AMONG_HAN * counts["Chinese"]:
            counts["Japanese"] += counts["Chinese"]
        name = max(counts, key=lambda script: counts[script])
        if counts[name] * 2 > letters:
            return name if name != "Cyrillic" else _by_words(sample) or name
    return _by_words(sample) or UNCLEAR


def _by_words(sample: str) -> str | None:
    hits: Counter[str] = Counter()
    found = _WORD.findall(sample.lower())
    words = len(found)
    for word in found:
        hits.update(_LANGUAGES_OF.get(word, ()))
    best = hits.most_common(2)
    if (
        not best
        or best[0][1] < min(_LEAST_HITS, words // 3)
        or (len(best) > 1 and best[0][1] == best[1][1])
    ):
        return None
    return best[0][0]
