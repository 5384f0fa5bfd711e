"""Gemini's prompts and answers out of Google Takeout's activity, as JSON and as HTML.

Takeout has no conversations: each entry is one prompt with its answer, mixed with the activity of
every other Google product. So each entry becomes a conversation of its own, and what belongs to
other products is counted by name and left out.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from daemon.export.conversation import Conversation, Message
from daemon.export.html_text import html_to_text
from daemon.export.page_dates import date_of, is_date
from daemon.export.values import (
    DecodeError,
    clean,
    decode,
    list_of,
    mapping_of,
    short_hash,
    time_of,
    title_of,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from datetime import datetime

    from daemon.export.conversation import ReadReport

_PRODUCT = re.compile(r"gemini|\bbard\b", re.IGNORECASE)
_VERB = re.compile(
    r"(?:Prompted|Asked|Said|Answered|Branched)\b(?: with)?(?: (?:Gemini|Bard)(?= ?:))?\s*:?"
    r"(?:\s+|$)"  # of a picture alone, nothing follows
)
_OTHER_DEEDS = re.compile(
    r"(?:Created|Used|Added|Gave|Selected|Viewed|Opened|Deleted|Visited|Uploaded|Searched|Turned"
    r"|Received|Shared|Started|Generated|Canvas|Feedback)\b"
)
# The page writes the names of the files below, the JSON beside the title.
_ATTACHED = re.compile(r"\s*Attached \d+ (?:image|file)s?\.?(?:\n\s*+-[^\n]*+)*+\s*$")

_CELL = b'class="outer-cell'
_BLOCK = re.compile(r"<(?:p|h[1-6]|ul|ol|pre|table|blockquote|div|hr)\b", re.IGNORECASE)
_INNER_CELL = re.compile(r'<div class="(header-cell|content-cell)([^"]*)"[^<>]*>', re.IGNORECASE)


def is_gemini(value: dict[str, Any]) -> bool:
    """Say whether a decoded object is an entry of Takeout's activity, of whatever product."""
    return "title" in value and "time" in value and ("header" in value or "products" in value)


class GeminiReader:
    """Turns activity entries into conversations; counts what belongs to other products."""

    def __init__(self, report: ReadReport) -> None:
        self._report = report
        self.other_products: dict[str, int] = {}
        """Entries of other products by name, for the message when there is nothing else."""

    def read_object(
        self, raw: memoryview, place: str, *, strict: bool = False
    ) -> Iterator[Conversation]:
        """Yield the conversation that one JSON entry holds; raises DecodeError."""
        value = decode(raw, strict=strict)
        if not isinstance(value, dict):
            raise DecodeError("not an object")
        products = [clean(value.get("header")), *map(clean, list_of(value.get("products")))]
        if not self._is_wanted([name for name in products if name]):
            return
        answers = (
            html_to_text(clean(mapping_of(item).get("html")))
            for item in list_of(value.get("safeHtmlItem"))
        )
        answer = "\n\n".join(text for text in answers if text)
        yield from self._entry(clean(value.get("title")), answer, time_of(value.get("time")), place)

    def read_cell(self, raw: bytes, place: str) -> Iterator[Conversation]:
        """Yield the conversation that one cell of the HTML page holds."""
        markup = raw.decode("utf-8", "replace")
        header, content = "", ""
        cells = list(_INNER_CELL.finditer(markup))
        for index, cell in enumerate(cells):
            end = cells[index + 1].start() if index + 1 < len(cells) else len(markup)
            inner = markup[cell.end() : end]
            if cell.group(1).lower() == "header-cell":
                header = header or html_to_text(inner)
            elif "body-1" in cell.group(2) and "text-right" not in cell.group(2):
                content = content or inner
        if not self._is_wanted([header] if header else []):
            return
        lines = html_to_text(content).split("\n")
        dated = _dated(lines, content)
        if dated is None:
            title, answer, at = lines[0], "\n".join(lines[1:]), None
        else:
            title, answer = "\n".join(lines[:dated]), "\n".join(lines[dated + 1 :])
            at = date_of(lines[dated].strip())
        yield from self._entry(clean(title), clean(answer), at, place)

    def _is_wanted(self, products: list[str]) -> bool:
        if any(_PRODUCT.search(name) for name in products):
            return True
        name = title_of(products[0])[:40] if products else "unnamed"
        if name not in self.other_products and len(self.other_products) >= 50:
            name = "other"
        self.other_products[name] = self.other_products.get(name, 0) + 1
        self._report.ignore(f"{name} activity")
        return False

    def _entry(
        self, title: str, answer: str, at: datetime | None, place: str
    ) -> Iterator[Conversation]:
        title = title.strip()
        verb = _VERB.match(title)
        deed = _OTHER_DEEDS.match(title)
        if verb is None and not answer and (deed is not None or _PRODUCT.search(title)):
            # In other languages a deed is told by the product's name in it ("Gemini … verwendet").
            self._report.ignore(f"Gemini activity: {deed.group() if deed is not None else 'other'}")
            return
        prompt = _ATTACHED.sub("", title[verb.end() :] if verb is not None else title).strip()
        answer = answer.strip()
        if not prompt and not answer:
            self._report.empty += 1
            return
        # Without a date, only the answer tells two equal prompts ("go on") apart.
        own_id = short_hash("gemini", at.isoformat() if at is not None else answer, prompt)
        messages = []
        if prompt:
            messages.append(Message(f"{own_id}:prompt", "user", prompt, at))
        if answer:
            messages.append(Message(f"{own_id}:answer", "assistant", answer, at))
        yield Conversation(
            source="gemini",
            id=own_id,
            title=title_of(prompt)[:80],
            messages=tuple(messages),
            created_at=at,
            updated_at=at,
            place=place,
        )


def _dated(lines: list[str], markup: str) -> int | None:
    """Find the line with the entry's date, between the prompt and the answer.

    Both may hold lines like it, of a log say. A prompt has no block in it, and an answer is blocks.
    """
    dates = [index for index, line in enumerate(lines) if is_date(line.strip())]
    block = _BLOCK.search(markup)
    before = html_to_text(markup[: block.start()]).count("\n") if block is not None else 0
    return max((index for index in dates if index <= before), default=next(iter(dates), None))


def cells(read: Callable[[int], bytes], *, cell_bytes: int) -> Iterator[tuple[bytes, str]]:
    """Split the page into its activity cells, in bounded memory: `(bytes, problem)` each.

    The last is ("", "cut short") where the page does not come to its end.
    """
    window = b""
    begun = False
    search_from = 0
    while True:
        at = window.find(_CELL, search_from)
        if at >= 0:
            if begun:
                yield window[:at], ""
            begun = True
            window, search_from = window[at:], len(_CELL)
            continue
        if len(window) > cell_bytes:
            if begun:
                yield b"", f"an entry larger than {cell_bytes / 2**20:.0f} MB"
            begun, window = False, window[-len(_CELL) :]
        search_from = max(len(_CELL) if begun else 0, len(window) - len(_CELL))
        piece = read(256 * 1024)
        if not piece:
            break
        window += piece
    ended = b"</html>" in window[-200:].lower() or b"</body>" in window[-200:].lower()
    # Of a page that was cut, the last cell may be half an answer, which must replace no whole one.
    if begun and (ended or window.count(b"<div") <= window.count(b"</div>")):
        yield window, ""
    if not ended:
        yield b"", "cut short"
