"""Pages as a strict reader meets them, and the text that tries to be more than text."""

from __future__ import annotations

from html.parser import HTMLParser

HOSTILE = (
    "</bdi></h3><script>document.title='taken'</script><img src=x onerror=\"document.title='taken'\">"
    "<a href='javascript:alert(1)'>x</a>\u202egnp.exe <style>*{display:none}</style>"
)
VOID = {"meta", "img", "br", "link", "input"}


class Reader(HTMLParser):
    """Reads a page strictly: every tag closed in order, every id once."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    def values(self, name: str) -> list[str]:
        return [attrs[name] or "" for _, attrs in self.tags if name in attrs]
