"""An account of languages is right for what people write, and says so where it cannot tell."""

from __future__ import annotations

import pytest

from daemon.fullpass.languages import UNCLEAR, language_of
from tests.unit.test_tokens import MEASURED

KNOWN = {
    "english prose": "English", "english chat": "English", "german": "German",
    "portuguese": "Portuguese", "russian": "Russian", "ukrainian": "Ukrainian",
    "chinese": "Chinese", "traditional chinese": "Chinese", "japanese": "Japanese",
    "korean": "Korean", "arabic": "Arabic script",
}  # fmt: skip


@pytest.mark.parametrize("kind", KNOWN)
def test_a_paragraph_is_told_by_its_language(kind: str) -> None:
    assert language_of(MEASURED[kind][1]) == KNOWN[kind]


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("what about the blue one?", "English"),
        ("¿Cómo puedo arreglar la bicicleta de mi hermano?", "Spanish"),
        ("Je ne sais pas comment réparer le vélo de mon frère.", "French"),
        ("Come posso riparare la bicicletta di mio fratello? Non è nuova.", "Italian"),
        ("Kun je me helpen met de fiets van mijn broer?", "Dutch"),
        ("Czy możesz mi pomóc naprawić rower? Nie wiem, jak to zrobić.", "Polish"),
        ("Bu bisikleti nasıl tamir edebilirim? Benim için çok önemli.", "Turkish"),
        ("東京で働く妻のために、夕食を作りました。", "Japanese"),
        ("please fix: ```\nder die das und ist nicht\n``` for me, and the rest of it", "English"),
        ("ok", UNCLEAR),
        ("42 + 17 = ?", UNCLEAR),
        ("", UNCLEAR),
    ],
)
def test_what_people_type(text: str, language: str) -> None:
    assert language_of(text) == language
