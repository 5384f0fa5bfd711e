"""What every page has: its head, its way around, its foot; and the pages that say no.

`Section` is the unit that live.js renews: it has an id, a heading and a body of finished HTML.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from daemon import __version__
from daemon.cli.markup import plain_text, said
from daemon.cli.screen import clock

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_PLACES = (("/", "Now"), ("/past", "Past days"))
LONGEST_TOLD = 300
"""Characters of an error or a reason that a list shows; the job's own page shows more."""


@dataclass(frozen=True, slots=True)
class Section:
    """A part of a page. The opening one has no title to be seen, and is named by its name."""

    name: str
    title: str
    body: str

    @property
    def html(self) -> str:
        """The section as HTML, named by its heading."""
        if not self.title:
            name = self.name.capitalize()
            return f'<section id="{self.name}" aria-label="{name}">{self.body}</section>\n'
        return (
            f'<section id="{self.name}" aria-labelledby="{self.name}-title">'
            f'<h2 id="{self.name}-title">{self.title}</h2>{self.body}</section>\n'
        )


def page(title: str, heading: str, sections: Iterable[Section], *, at: str) -> str:
    """Return a whole page; `at` is the place it has in the way around."""
    links = "".join(
        f'<a href="{path}"{" aria-current=page" if path == at else ""}>{name}</a>'
        for path, name in _PLACES
    )
    return _whole(
        title,
        f'<header><h1>{heading}</h1><nav aria-label="Pages">{links}'
        '<form action="/find" role="search"><label for="find">Job or person</label>'
        '<input id="find" name="id" required pattern="[0-9a-fA-F\\-]{32,36}" maxlength="36" '
        'autocomplete="off" spellcheck="false" placeholder="id"><button>Find</button></form>'
        "</nav></header>\n"
        f'<main id="main">\n{"".join(section.html for section in sections)}</main>\n'
        f'<footer><p id="as-of">As of {datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC. '
        '<a href="">Look again</a> <label id="live" hidden><input type="checkbox" checked> '
        f"Keep looking</label></p><p>fullpass {__version__}, read only.</p></footer>\n"
        '<script src="/live.js" defer></script>\n',
    )


def login(*, wrong: bool) -> str:
    """Return the page that asks for the token."""
    told = '<p role="alert">That is not the token.</p>' if wrong else ""
    return _whole(
        "Log in",
        '<main id="main"><h1>fullpass dashboard</h1>'
        f'{told}<form method="post" action="/login" class="login">'
        '<label for="token">Token</label><input id="token" name="token" type="password" required '
        'autocomplete="current-password"><button>Log in</button></form>'
        "<p>It is the one that <code>fullpass dashboard</code> was started with.</p></main>\n",
    )


def trouble(title: str, told: str) -> str:
    """Return a page that says why there is none."""
    return page(title, title, [Section("trouble", "", f"<p>{said(told)}</p>")], at="")


def _whole(title: str, body: str) -> str:
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{plain_text(title)} – fullpass</title>\n"
        '<link rel="icon" href="data:,">\n<link rel="stylesheet" href="/style.css">\n'
        '</head>\n<body>\n<a class="skip" href="#main">Skip to the content</a>\n'
        f"{body}</body>\n</html>\n"
    )


def job_link(job_id: object) -> str:
    """Return a link to a job's page."""
    shown = plain_text(job_id)
    return f'<a href="/jobs/{shown}"><code>{shown}</code></a>'


def moment(at: str | None) -> str:
    """Return a time as an element that names itself."""
    if at is None:
        return "?"
    return f'<time datetime="{plain_text(at)}">{plain_text(clock(at))}</time>'


def table(
    caption: str, columns: Sequence[str], rows: Iterable[Sequence[str]], *, figures: str = ""
) -> str:
    """Return a table whose first column heads its rows; on a phone each row is a card.

    `figures` holds a letter a column: `n` where figures stand, which are set to the right. Roles
    are named because a table that is laid out as cards is else none to those who hear it.
    """
    kinds = [' class="n"' if kind == "n" else "" for kind in figures.ljust(len(columns))]
    head = "".join(
        f'<th scope="col" role="columnheader"{kind}>{name}</th>'
        for name, kind in zip(columns, kinds, strict=True)
    )
    labels = [f' data-name="{name}"' if name else "" for name in columns]
    opened = [f'<td role="cell"{kind}{name}>' for kind, name in zip(kinds, labels, strict=True)]
    body = "".join(
        f'<tr role="row"><th scope="row" role="rowheader">{cells[0]}</th>'
        + "".join(f"{td}{cell}</td>" for td, cell in zip(opened[1:], cells[1:], strict=True))
        + "</tr>\n"
        for cells in rows
    )
    return (
        f'<table role="table"><caption>{caption}</caption>'
        f'<thead role="rowgroup"><tr role="row">{head}</tr></thead>'
        f'<tbody role="rowgroup">{body}</tbody></table>'
    )


def figures(cards: Iterable[tuple[str, str]]) -> str:
    """Return figures with what they count."""
    shown = "".join(f"<div><dd>{value}</dd><dt>{name}</dt></div>" for value, name in cards)
    return f'<dl class="figures">{shown}</dl>'
