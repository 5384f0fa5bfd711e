"""What another is made to say in a person's message is no fact of the person (promise 12)."""

from __future__ import annotations

from time import perf_counter

import pytest

from daemon.fullpass.facts import check_fact
from daemon.llm.request import NumberedMessage

SPOKEN = "its quote is another's direct speech"


def why(text: str, quote: str, *, role: str = "user") -> str | None:
    item = {"category": "preferences", "statement": "Is so.", "message": 1, "quote": quote}
    return check_fact(item, [NumberedMessage(1, role, None, text)]).rejected


@pytest.mark.parametrize(
    ("text", "quote"),
    [
        ("He told me: I hate children. I live in Munich, he said.", "I hate children"),
        ("He told me: I hate children. I live in Munich, he said.", "I live in Munich"),
        ("He told me: I hate children. I live in Munich, he said.", "live in Munich"),
        ("He told me: I hate children. I live in Munich, he said.", "I live in Munich, he said"),
        ("He told me: I hate children, I live in Munich.", "I live in Munich"),
        ("My boss wrote: “I hate children. I live in Munich.” What now?", "I live in Munich"),
        ('My boss wrote yesterday:\n"Hello!\n\nI live in Munich now.\n"\nWhat now?',
         "I live in Munich"),
        ("and then she said I'd know: 'sure'. he said, I live in Munich", "I live in Munich"),
        ("Anna Lee texted me: We live in Munich", "We live in Munich"),
        ("My friend from Porto has just told us: my dog is called Rex", "my dog is called Rex"),
        ('"I hate children," he said. "I live in Munich."', "I live in Munich"),
        ('"I hate children. I live in Munich," my boss says.', "I hate children"),
        ('She said "I live in Munich" and left', "I live in Munich"),
        ("Well, I have bred yaks for years, said the mayor.", "I have bred yaks for years"),
        ("My boss, who said: I live in Munich, left.", "I live in Munich"),
        ("I met Tom and he said: yes, I live in Munich", "I live in Munich"),
        ("They wrote: Sorry, we moved to Munich", "we moved to Munich"),
        ("Tom's brother said: I live in Munich", "I live in Munich"),
        ("I live in Munich, Anna told me. Odd!", "I live in Munich"),
        ("Er sagte mir: Ich wohne in München.", "Ich wohne in München"),
        ("Meine Chefin hat geschrieben: „Ich wohne in München.“", "Ich wohne in München"),
        ("„Ich wohne in München“, sagte er.", "Ich wohne in München"),
        ("Il m'a dit : « J'habite à Munich. »", "J'habite à Munich"),
        ("J'habite à Munich, a-t-il dit.", "J'habite à Munich"),
        ("Mi jefe me dijo: vivo en Múnich.", "vivo en Múnich"),
        ("Yo vivo en Múnich, dijo Ana.", "Yo vivo en Múnich"),
        ("Hij zei tegen mij: ik woon in München", "ik woon in München"),
        ("Ela me disse: eu moro em Munique", "eu moro em Munique"),
        ("Eu moro em Munique, disse ele.", "Eu moro em Munique"),
    ],
)  # fmt: skip
def test_what_another_says_of_themselves_is_no_fact_of_the_person(text: str, quote: str) -> None:
    assert why(text, quote) == SPOKEN


@pytest.mark.parametrize(
    ("text", "quote"),
    [
        # told of, not spoken
        ("My doctor said I am allergic to nuts", "I am allergic to nuts"),
        ("She told me I should rest", "I should rest"),
        ("My doctor said: I should eat less salt", "I should eat less salt"),
        ("My doctor said, I need to eat less salt", "I need to eat less salt"),
        ("I need more iron, my doctor said.", "I need more iron"),
        ("I am too loud, as she said.", "I am too loud"),
        ("As my mother said: I am stubborn", "I am stubborn"),
        ("Like Anna Lee says: I am stubborn", "I am stubborn"),
        ("Er sagte, ich arbeite zu viel", "ich arbeite zu viel"),
        ("Ela disse que eu moro longe", "eu moro longe"),
        # the person speaks
        ("I told him: I live in Munich", "I live in Munich"),
        ('I always say: "I hate mornings"', "I hate mornings"),
        ('"I hate mornings", I said to him, and he said "ok".', "I hate mornings"),
        ("I called my boss and said: I live in Munich", "I live in Munich"),
        ("My wife and I said: we live in Munich", "we live in Munich"),
        ("He asked what I do and I wrote: I teach maths", "I teach maths"),
        ("Told him: I live in Munich. Never said: I hate it.", "I hate it"),
        ("Eu disse: eu moro em Munique", "eu moro em Munique"),
        ("Ich sagte ihm: Ich wohne in München", "Ich wohne in München"),
        ("Le dije: vivo en Múnich", "vivo en Múnich"),
        # about the person, or written by them
        ("My profile says: I live in Munich", "I live in Munich"),
        ('The note on my door said: "I work nights"', "I work nights"),
        ("She wrote: I know you love tea", "I know you love tea"),
        ("She said: you live in Munich", "you live in Munich"),
        # beside another's speech
        ('He said "no". I live in Munich.', "I live in Munich"),
        ("He told me: I hate children. I live in Munich.", "I live in Munich"),
        ("He said: no way, so I moved to Munich", "I moved to Munich"),
        ("He said: I hate it, so I moved to Munich", "I moved to Munich"),
        ("I asked her to marry me, she said yes!", "I asked her to marry me"),
        ("I live in Munich. He lives here, he said.", "I live in Munich"),
        ("The day she asked, I said yes", "I said yes"),
        ("When Anna wrote, I moved to Munich", "I moved to Munich"),
        ("Every time my boss texted, I hated my job", "I hated my job"),
        ("He told me: I live in Munich. So do I: I live in Munich!", "I live in Munich"),
        ('"Go away," he said. I live in Munich. "Why," she asked.', "I live in Munich"),
        ('He said: "I left. And I live in Munich, by the way', "I live in Munich"),  # never closed
        ("What he told me: nothing. My name is Ada", "My name is Ada"),
    ],
)
def test_what_the_person_says_of_themselves_stays(text: str, quote: str) -> None:
    assert why(text, quote) is None


def test_saved_notes_and_instructions_are_the_persons_own() -> None:
    for role in ("memory", "instructions"):
        assert why("He told me: I live in Munich", "I live in Munich", role=role) is None


@pytest.mark.parametrize(
    "text",
    ["he said: I ", "he said ", '"', "my a b c d ", "Ada Bea ", ", he said", "and, I ", "I, "],
)
def test_hostile_speech_takes_linear_time(text: str) -> None:
    started = perf_counter()
    for quote in ("I", (text * 500).strip(), "I live in Munich"):
        why(f"{text * 20_000} I live in Munich {text * 20_000}", quote)
    # A generous deadline: it takes a fraction of a second.
    assert perf_counter() - started < 5
