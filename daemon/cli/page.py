"""The report of a pass as one HTML page: `fullpass run --html`, `fullpass status JOB --html FILE`.

A file that opens anywhere: no network, no script, light and dark, readable by ear and by keyboard.
All that comes from an export or a model is text here (`markup.said`), and the page's own policy
forbids scripts and loading besides. What is said comes from `results.Results`.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from importlib.resources import files
from typing import TYPE_CHECKING, Any, Protocol

from daemon.cli.markup import plain_text, said
from daemon.ops.status import CATEGORIES

if TYPE_CHECKING:
    from collections.abc import Iterable

Fact = dict[str, Any]

TITLES = {
    "preferences": "Preferences", "projects": "Projects", "dates": "Important dates",
    "beliefs": "Beliefs and values", "decisions": "Decisions",
}  # fmt: skip
_MOST_FACTS = 2_000
"""Facts shown of a category; a page of more is read by nobody, and facts.jsonl has them all."""
_MOST_QUOTES = 5
_MOST_EARLIER = 50
_MOST_CHANGES = 500


class Told(Protocol):
    """What the page tells: see `daemon.cli.results.Results`."""

    @property
    def memory(self) -> str: ...  # noqa: D102
    @property
    def facts(self) -> list[Fact]: ...  # noqa: D102
    @property
    def report(self) -> dict[str, Any]: ...  # noqa: D102


def page(results: Told) -> str:
    """Return the whole page."""
    report, facts = results.report, results.facts
    by_id = {fact["id"]: fact for fact in facts}
    older = _history(facts)
    sections = [
        ("memory", "MEMORY", _memory(results.memory, by_id)),
        *(
            (category, TITLES[category], _category(facts, category, older))
            for category in CATEGORIES
        ),
        ("changes", "What changed", _changes(facts, by_id)),
        ("timeline", "When it was said", _timeline(facts)),
        ("coverage", "What was read", _coverage(report)),
        ("cost", "What it cost", _cost(report["cost"])),
    ]
    nav = "".join(f'<a href="#{name}">{title}</a>' for name, title, _ in sections)
    body = "".join(
        f'<section id="{name}" aria-labelledby="{name}-title">'
        f'<h2 id="{name}-title">{title}</h2>{inner}</section>\n'
        for name, title, inner in sections
    )
    style = files(__package__).joinpath("page.css").read_text(encoding="utf-8")
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta http-equiv="Content-Security-Policy" '
        "content=\"default-src 'none'; style-src 'unsafe-inline'\">\n"
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="referrer" content="no-referrer">\n'
        f"<title>What fullpass knows</title>\n<style>\n{style}</style>\n</head>\n<body>\n"
        '<a class="skip" href="#main">Skip to the content</a>\n'
        f"<header><h1>What fullpass knows</h1>{_headline(report)}</header>\n"
        f'<nav aria-label="Parts of this page">{nav}</nav>\n'
        f'<main id="main">\n{body}</main>\n'
        f"<footer><p>fullpass {said(report['versions']['fullpass'])}, job "
        f"{said(report['job_id'])}. Every fact quotes the message it comes from.</p></footer>\n"
        "</body>\n</html>\n"
    )


def _anchor(fact_id: str) -> str:
    return f"f-{fact_id.replace('-', '')[:8]}"


def _day(at: str | None) -> str:
    return (
        f'<time datetime="{plain_text(at[:10])}">{plain_text(at[:10])}</time>' if at else "undated"
    )


def _headline(report: dict[str, Any]) -> str:
    facts, coverage, cost = report["facts"], report["coverage"], report["cost"]
    share = f"{int((coverage['share'] or 0) * 1000) / 10:g}%" if coverage["chunks"] else "nothing"
    figures = [
        (f"{report['conversations'] or 0:,}", "conversations"),
        (f"{report['messages'] or 0:,}", "messages"),
        (f"{facts['current']:,}", "facts that hold now"),
        (f"{facts['superseded']:,}", "replaced by newer ones"),
        (share, "of the text read"),
        (_usd(cost), f"for {cost['calls']:,} calls"),
    ]
    cards = "".join(f"<div><dd>{value}</dd><dt>{name}</dt></div>" for value, name in figures)
    why = f"<p>{said(report['why'])}</p>" if report["status"] != "complete" else ""
    none = f"<p>{said(report['why_no_facts'])}</p>" if report["why_no_facts"] else ""
    return f'<dl class="figures">{cards}</dl>{why}{none}'


_CITED = re.compile(r" \[((?:f:[0-9a-f]{8}(?:, )?)+)\]$")


def _memory(markdown: str, by_id: dict[str, Fact]) -> str:
    """Render MEMORY with each citation as a link to its fact."""
    known = {_anchor(fact_id) for fact_id in by_id}
    out: list[str] = []
    listed = False
    for line in markdown.splitlines():
        item = line.startswith("- ")
        if listed and not item:
            out.append("</ul>")
        if item and not listed:
            out.append("<ul>")
        listed = item
        if item:
            cited = _CITED.search(line)
            ids = re.findall(r"[0-9a-f]{8}", cited[1]) if cited else []
            links = " ".join(
                f'<a class="cite" href="#f-{i}" aria-label="Evidence {n}">{n}</a>'
                for n, i in enumerate(ids, start=1)
                if f"f-{i}" in known
            )
            out.append(f"<li>{said(_CITED.sub('', line[2:]))} {links}</li>")
        elif line.startswith("## "):
            out.append(f"<h3>{said(line[3:])}</h3>")
        elif line.strip():
            out.append(f"<p>{said(line)}</p>")
    return "".join([*out, "</ul>" if listed else ""]) or "<p>There is no MEMORY yet.</p>"


def _history(facts: Iterable[Fact]) -> dict[str, list[Fact]]:
    """Return the facts that each fact directly replaced."""
    older: dict[str, list[Fact]] = defaultdict(list)
    for fact in facts:
        if fact["superseded_by"] is not None:
            older[fact["superseded_by"]].append(fact)
    return older


def _category(facts: list[Fact], category: str, older: dict[str, list[Fact]]) -> str:
    current = [f for f in facts if f["category"] == category and f["superseded_by"] is None]
    if not current:
        return "<p>No data yet.</p>"
    shown = "".join(_fact(fact, _earlier(fact, older)) for fact in current[:_MOST_FACTS])
    return shown + _more(len(current) - _MOST_FACTS, "facts")


def _earlier(fact: Fact, older: dict[str, list[Fact]]) -> list[Fact]:
    """Return all that a fact replaced, directly or not, newest first."""
    found: dict[str, Fact] = {}
    waiting = [fact]
    while waiting:
        for before in older.get(waiting.pop()["id"], ()):
            if before["id"] not in found:
                found[before["id"]] = before
                waiting.append(before)
    return sorted(found.values(), key=lambda f: f["observed_at"] or "", reverse=True)


def _fact(fact: Fact, earlier: list[Fact]) -> str:
    history = ""
    if earlier:
        rows = "".join(
            f'<li id="{_anchor(f["id"])}"><s>{said(f["statement"])}</s> '
            f"<small>{_day(f['observed_at'])}</small>{_evidence(f)}</li>"
            for f in earlier[:_MOST_EARLIER]
        )
        rows += _more(len(earlier) - _MOST_EARLIER, "earlier answers", "li")
        history = f"<p class='before'>Before:</p><ul class='before'>{rows}</ul>"
    sure = "" if fact["confidence"] == "high" else f", {plain_text(fact['confidence'])} confidence"
    return (
        f'<article id="{_anchor(fact["id"])}"><h3>{said(fact["statement"])}</h3>'
        f"<small>{_day(fact['observed_at'])}, {plain_text(fact['source'])}{sure}</small>"
        f"{_evidence(fact)}{history}</article>\n"
    )


def _evidence(fact: Fact) -> str:
    pieces = fact["evidence"] or []
    if not pieces:
        return ""
    newest = pieces[-_MOST_QUOTES:][::-1]
    quotes = "".join(
        f"<li><q>{said(' '.join(str(e.get('quote', '')).split()))}</q> "
        f"<small>{_day(e.get('at'))}, conversation {said(e.get('conversation_id'))}, "
        f"message {said(e.get('message_id'))}</small></li>"
        for e in newest
    )
    quotes += _more(len(pieces) - len(newest), "quotes", "li")
    name = "1 quote" if len(pieces) == 1 else f"{len(pieces)} quotes"
    return f"<details><summary>{name}</summary><ul>{quotes}</ul></details>"


def _changes(facts: list[Fact], by_id: dict[str, Fact]) -> str:
    """List what was replaced by what, newest change first."""
    changed = [(by_id[f["superseded_by"]], f) for f in facts if f["superseded_by"] in by_id]
    if not changed:
        return "<p>Nothing that was said has been replaced by something newer.</p>"
    changed.sort(key=lambda pair: pair[0]["observed_at"] or "", reverse=True)
    rows = "".join(
        f"<tr><td>{_day(new['observed_at'])}</td><td><s>{said(old['statement'])}</s></td>"
        f'<td><a href="#{_anchor(new["id"])}">{said(new["statement"])}</a></td></tr>'
        for new, old in changed[:_MOST_CHANGES]
    )
    return (
        '<table><caption>Newest wins, nothing is deleted.</caption><thead><tr><th scope="col">Since'
        '</th><th scope="col">Before</th><th scope="col">Now</th></tr></thead>'
        f"<tbody>{rows}</tbody></table>" + _more(len(changed) - _MOST_CHANGES, "changes")
    )


def _timeline(facts: list[Fact]) -> str:
    """Show in which months facts were first said, and how many of them still hold."""
    first: Counter[str] = Counter()
    holding: Counter[str] = Counter()
    for fact in facts:
        said = [e["at"] for e in fact["evidence"] or [] if e.get("at")]
        month = min(said, default=fact["observed_at"] or "")[:7] or "undated"
        first[month] += 1
        holding[month] += fact["superseded_by"] is None
    if not first:
        return "<p>There are no facts yet.</p>"
    most = max(first.values())
    rows = "".join(
        f'<tr><th scope="row">{plain_text(month)}</th><td>{count}</td><td>{holding[month]}</td>'
        f'<td aria-hidden="true"><i style="width:{100 * count / most:.0f}%">'
        f'<b style="width:{100 * holding[month] / count:.0f}%"></b></i></td></tr>'
        for month, count in sorted(first.items())
    )
    return (
        '<table class="bars"><caption>Facts by the month they were first said in.</caption><thead>'
        '<tr><th scope="col">Month</th><th scope="col">Said</th><th scope="col">Hold now</th>'
        f'<td aria-hidden="true"></td></tr></thead><tbody>{rows}</tbody></table>'
    )


def _coverage(report: dict[str, Any]) -> str:
    coverage, export = report["coverage"], report["export"] or {}
    rows = [
        ("Pieces of text read", f"{coverage['read']:,} of {coverage['chunks']:,}"),
        *((f"… {outcome}", f"{count:,}") for outcome, count in report["outcomes"].items()),
        *(
            (f"Conversations {name}", f"{export[key]:,}")
            for key, name in (("forgotten", "marked as not to be remembered"),
                              ("empty", "without visible text"), ("duplicates", "held twice"))
            if export.get(key)
        ),
        *(
            (f"Left out: {kind}", f"{count:,}")
            for kind, count in (export.get("ignored") or {}).items()
        ),
    ]  # fmt: skip
    if export.get("redacted"):
        rows.append(("Credentials replaced by a marker", f"{export['redacted']:,}"))
    rows += [("Damaged", damage) for damage in report["damages"]]
    rows += [
        (f"Reported by the model, not believed: {reason}", f"{count:,}")
        for reason, count in report["rejected"].items()
    ]
    memory, sections = report["memory"] or {}, report["sections"] or {}
    if memory:
        rows.append(("MEMORY written by", str(memory.get("writer"))))
        rows.append(("Facts ranked out of MEMORY", f"{memory.get('lines_over_budget', 0):,}"))
    if sections and not sections.get("saved"):
        rows.append(("Sections not renewed", str(sections.get("detail") or "no reason noted")))
    cells = "".join(
        f'<tr><th scope="row">{said(name)}</th><td>{said(value)}</td></tr>' for name, value in rows
    )
    return f"<table><caption>Every piece is accounted for.</caption><tbody>{cells}</tbody></table>"


def _cost(cost: dict[str, Any]) -> str:
    if not cost["calls"]:
        return "<p>No model was called.</p>"
    rows = "".join(
        f'<tr><th scope="row">{said(purpose)}</th><td>{n["calls"]:,}</td>'
        f"<td>{n['input_tokens']:,}</td><td>{n['output_tokens']:,}</td><td>{_usd(n)}</td></tr>"
        for purpose, n in [*cost["by_purpose"].items(), ("in all", cost)]
    )
    return (
        "<table><caption>Calls that this pass paid for.</caption><thead><tr>"
        '<th scope="col">For</th><th scope="col">Calls</th>'
        '<th scope="col">Tokens in</th><th scope="col">Tokens out</th>'
        f'<th scope="col">Price</th></tr></thead><tbody>{rows}</tbody></table>'
    )


def _usd(cost: dict[str, Any]) -> str:
    unknown = " and some of unknown price" if cost["calls_of_unknown_price"] else ""
    return f"${float(cost['cost_usd']):.4f}{unknown}"


def _more(count: int, what: str, tag: str = "p") -> str:
    return f"<{tag}>And {count:,} more {what}: see facts.jsonl.</{tag}>" if count > 0 else ""
