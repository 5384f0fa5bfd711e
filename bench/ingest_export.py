"""Writes exports of any size for benchmarks: seeded, streamed, shaped as ChatGPT's own are.

What is realistic about them: sizes with a long tail (most conversations are short, some run to
megabytes), a dozen languages, code blocks, tool traffic and hidden messages, node metadata as long
as in real files, non-ASCII escaped as the vendor does, pasted credentials, and a few damaged
conversations. Code and licence-like prose come from the Python installation that runs this; the
rest is put together from the sentences below. The same seed on the same Python gives the same file.
"""

# ruff: noqa: RUF001, SIM905 - letters of many alphabets; a list of words is read as one

from __future__ import annotations

import gzip
import json
import random
import string
import sysconfig
import zipfile
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Iterator

Container = Literal["plain", "gz", "zip"]

_START = 1_640_000_000.0
_LONGEST_CONVERSATION_MESSAGES = 4_000
_DAMAGED_IN_A_THOUSAND = 2
_SECRETS_IN_A_THOUSAND = 3
_CODE_SHARE = 0.25

# Share of conversations, and sentences with gaps, by language.
_LANGUAGES: dict[str, tuple[int, list[str]]] = {
    "english": (62, [
        "I have been thinking about the {a} for a while, and the {b} still does not feel right.",
        "Could you look at the {a} again and tell me whether the {b} should come first?",
        "That makes sense, but my sister says the {b} broke {n} times last year.",
        "Here are {n} ways to look at it:\n\n1. **The {a}** is cheap and quick.\n2. **The {b}** lasts.",
        "The key point is that a {a} needs {n} days, while a {b} takes longer (see above).",
        "We moved the {a} to the new place in {n} steps; it's fine, don't worry about it!",
        'If the {a} fails, check the log first: "no such {b}" usually means a typo in the path.',
        "Every token of the {a} is counted, so the {b} should stay under {n} lines.",
    ]),
    "german": (6, [
        "Ich überlege seit {n} Wochen, ob ich die {a} gegen eine {b} tauschen soll.",
        "Könntest du mir bitte erklären, wie man die {a} an die {b} anschließt?",
        "Das Passwort für die {a} habe ich längst vergessen, und die {b} hilft auch nicht weiter.",
    ]),
    "spanish": (6, [
        "Llevo {n} días buscando una {a} que funcione con la {b} de mi hermano.",
        "¿Me puedes explicar por qué la {a} tarda tanto si la {b} está vacía?",
    ]),
    "french": (5, [
        "Je cherche depuis {n} jours une {a} qui aille avec la {b} de ma sœur.",
        "Est-ce que tu peux m'expliquer à quoi sert la {a} quand la {b} est fermée ?",
    ]),
    "portuguese": (4, ["Há {n} dias que procuro uma {a} que funcione com a {b} da minha irmã."]),
    "russian": (5, [
        "Я уже {n} дней пытаюсь понять, как работает {a} и зачем нужна {b}.",
        "Подскажи, пожалуйста, что лучше сделать сначала: {a} или {b}?",
    ]),
    "chinese": (4, ["我已经花了{n}天研究{a}，但是{b}还是有问题，请帮我看看应该怎么办。"]),
    "japanese": (3, ["{a}を{n}日使ってみましたが、{b}との相性が良くないようです。どうすればいいですか。"]),
    "korean": (3, ["{a}를 {n}일 동안 사용해 봤는데 {b}와 잘 맞지 않아요. 어떻게 하면 좋을까요?"]),
    "arabic": (2, ["أحاول منذ {n} أيام أن أفهم كيف يعمل {a} ولماذا نحتاج إلى {b}."]),
}  # fmt: skip
_THINGS = (
    "bicycle lantern garden budget kitchen server novel lesson violin harbour contract balcony oven "
    "recipe tenant backpack schedule compiler carpet invoice puzzle ladder camera database proposal"
).split()
_METADATA: dict[str, Any] = {
    "citations": [], "gizmo_id": None, "request_id": "8a1f-4410-fra", "message_type": "next",
    "model_slug": "gpt-4o", "default_model_slug": "gpt-4o", "timestamp_": "absolute",
    "finish_details": {"type": "stop", "stop_tokens": [200002]}, "is_complete": True,
    "content_references": [], "serialization_metadata": {"custom_symbol_offsets": []},
}  # fmt: skip
_NODE_TAIL = (
    '"status": "finished_successfully", "end_turn": true, "weight": {weight}, "metadata": '
    + json.dumps(_METADATA).replace("{", "{{").replace("}", "}}")
    + ', "recipient": "{recipient}", "channel": null}}, "parent": "{parent}", "children": [{child}]}}'
)
_NODE = (
    '"{key}": {{"id": "{key}", "message": {{"id": "{key}", "author": {{"role": "{role}", "name": '
    'null, "metadata": {{}}}}, "create_time": {at:.6f}, "update_time": null, "content": '
    '{{"content_type": "{kind}", {payload}}}, ' + _NODE_TAIL
)


@dataclass(frozen=True, slots=True)
class Made:
    """A written export and what a sound reader finds in it."""

    path: Path
    json_bytes: int
    conversations: int
    messages: int
    damaged: int
    secrets: int


@dataclass(slots=True)
class _Tally:
    conversations: int = 0
    messages: int = 0
    damaged: int = 0
    secrets: int = 0


class _Author:
    """Writes one conversation after the other."""

    def __init__(self, seed: int) -> None:
        self._dice = random.Random(seed)
        self._languages = list(_LANGUAGES)
        self._weights = [share for share, _ in _LANGUAGES.values()]
        self._sentences = {
            name: [self._escaped(self._filled(s)) for s in sentences for _ in range(400)]
            for name, (_, sentences) in _LANGUAGES.items()
        }
        self._code = _code_lines()
        self._number = 0
        self.tally = _Tally()

    def _escaped(self, text: str) -> str:
        return json.dumps(text)[1:-1]

    def _filled(self, sentence: str) -> str:
        dice = self._dice
        return sentence.format(
            a=dice.choice(_THINGS), b=dice.choice(_THINGS), n=dice.randrange(2, 400)
        )

    def conversation(self, *, messages: int | None = None, characters: int | None = None) -> str:
        """Write the next conversation; `messages` and their `characters` are drawn if not given."""
        dice, tally = self._dice, self.tally
        self._number += 1
        count = messages or min(
            _LONGEST_CONVERSATION_MESSAGES, 2 + int(dice.lognormvariate(1.7, 1.1))
        )
        language = dice.choices(self._languages, self._weights)[0]
        begun = _START + self._number * 3_600.0
        key = f"{self._number:08x}-5e1d-4c0f-9a77-{dice.getrandbits(48):012x}"
        root = f'"{key}-root": {{"id": "{key}-root", "message": null, "parent": null, '
        nodes = [root + f'"children": ["{key}-0"]}}']
        shown = secrets = 0
        for n in range(count):
            role = "assistant" if n % 2 else "user"
            kind, payload, weight, recipient = "text", "", "1.0", "all"
            if role == "assistant" and dice.random() < 0.06:
                kind, recipient = "code", "python"
                payload = f'"language": "python", "text": "{self._some_code(800)}"'
            elif dice.random() < 0.02:
                weight, payload = "0.0", '"parts": [""]'
            else:
                shown += 1
                text = self._text(language, role, characters)
                if dice.random() * 1000 < _SECRETS_IN_A_THOUSAND:
                    secrets += 1
                    text += f" My key is {_secret(dice)} by the way."
                payload = f'"parts": ["{text}"]'
            nodes.append(
                _NODE.format(
                    key=f"{key}-{n}", role=role, at=begun + 20 * n, kind=kind, payload=payload,
                    weight=weight, recipient=recipient,
                    parent=f"{key}-{n - 1}" if n else f"{key}-root",
                    child=f'"{key}-{n + 1}"' if n + 1 < count else "",
                )
            )  # fmt: skip
        written = (
            f'{{"title": "{dice.choice(_THINGS).title()} {self._number}", "create_time": {begun}, '
            f'"update_time": {begun + 20 * count}, "mapping": {{{", ".join(nodes)}}}, '
            f'"moderation_results": [], "current_node": "{key}-{count - 1}", "plugin_ids": null, '
            f'"conversation_id": "{key}", "conversation_template_id": null, "gizmo_id": null, '
            f'"is_archived": false, "safe_urls": [], "default_model_slug": "gpt-4o", "id": "{key}"}}'
        )
        if shown and messages is None and dice.random() * 1000 < _DAMAGED_IN_A_THOUSAND:
            tally.damaged += 1
            return written.replace('"mapping": {', '"mapping": {]', 1)
        if shown:
            tally.conversations += 1
            tally.messages += shown
            tally.secrets += secrets
        return written

    def _text(self, language: str, role: str, characters: int | None) -> str:
        dice = self._dice
        mean = 4.3 if role == "user" else 6.8
        length = characters or min(60_000, 20 + int(dice.lognormvariate(mean, 1.0)))
        code = role == "assistant" and dice.random() < _CODE_SHARE
        parts: list[str] = []
        size = 0
        while size < length:
            if code and parts and dice.random() < 0.4:
                part = "```python\\n" + self._some_code(min(4_000, length)) + "\\n```\\n"
            else:
                part = dice.choice(self._sentences[language]) + (
                    "\\n\\n" if dice.random() < 0.2 else " "
                )
            parts.append(part)
            size += len(part)
        return "".join(parts)

    def _some_code(self, length: int) -> str:
        lines = max(4, length // 45)
        start = self._dice.randrange(max(1, len(self._code) - lines))
        return "\\n".join(self._code[start : start + lines])


def _code_lines() -> list[str]:
    """Take the source of the Python that runs this, escaped line by line."""
    folder = Path(sysconfig.get_paths()["stdlib"])
    lines: list[str] = []
    for path in sorted(folder.glob("*.py"))[:120]:
        lines += path.read_text("utf-8", "replace").splitlines()
    return [json.dumps(line)[1:-1] for line in lines]


def _secret(dice: random.Random) -> str:
    """Make up a key of a known shape, so that no scanner takes this file for a leak."""
    alphabet = string.ascii_letters + string.digits
    return "sk-" + "proj-" + "a1B2" + "".join(dice.choices(alphabet, k=44))


@contextmanager
def _opened(path: Path, container: Container) -> Iterator[IO[bytes]]:
    if container == "plain":
        with path.open("wb") as file:
            yield file
    elif container == "gz":
        with gzip.open(path, "wb", compresslevel=1) as zipped:
            yield zipped  # type: ignore[misc]
    else:
        with (
            zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
            archive.open("conversations.json", "w", force_zip64=True) as member,
        ):
            yield member


def write_export(
    path: Path, *, megabytes: float, seed: int = 7, container: Container = "plain"
) -> Made:
    """Write an export of at least this many megabytes (10^6 bytes) of JSON, a piece at a time."""
    author = _Author(seed)
    size = 0
    with _opened(path, container) as file:
        piece = "["
        while size < megabytes * 1e6:
            data = (piece + author.conversation()).encode()
            file.write(data)
            size += len(data)
            piece = ",\n"
        file.write(b"]")
    tally = author.tally
    return Made(
        path, size + 1, tally.conversations, tally.messages, tally.damaged, tally.secrets
    )  # fmt: skip


def write_single(path: Path, *, megabytes: float, seed: int = 7) -> Made:
    """Write an export of one conversation of about this size."""
    author = _Author(seed)
    messages = max(2, int(megabytes * 1e6 / 2_900))
    data = f"[{author.conversation(messages=messages, characters=2_000)}]".encode()
    path.write_bytes(data)
    tally = author.tally
    return Made(path, len(data), tally.conversations, tally.messages, tally.damaged, tally.secrets)
