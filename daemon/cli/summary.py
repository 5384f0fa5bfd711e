"""What a run ends with: the pass in ten seconds of reading, fit for 80 columns without colour."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Any

from daemon.ops.costs import savings, tokens
from daemon.ops.status import CATEGORIES

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

_WIDTH = 80
_INDENT = 12
_TIED = "\u00a0"
"""A space at which no line is broken."""


def summary(report: dict[str, Any], *, folder: Path, html: bool = False) -> str:
    """Render the report of a completed run (`results.Results.report`); `html`: a page is there."""
    lines = [_headline(report), ""]
    lines += entry("Facts", _facts(report))
    if report["why_no_facts"]:
        lines += entry("Why none", [report["why_no_facts"]])
    lines += entry("Read", _read(report))
    if skipped := left_out(report):
        lines += entry("Left out", skipped)
    lines += entry("Cost", list(filter(None, [_cost(report), savings(report["cost"])])))
    page = ", report.html" if html else ""
    lines += entry("Files", [f"{folder}/MEMORY.md, sections.json, facts.jsonl, report.json{page}"])
    notes = _notes(report)
    if notes:
        lines += ["", *notes]
    return "\n".join(lines)


def _headline(report: dict[str, Any]) -> str:
    conversations = count(report["conversations"] or 0, "conversation")
    messages = count(report["messages"] or 0, "message")
    return (
        f"MEMORY from {conversations} and {messages} ({report['source'] or 'no source'}), "
        f"in {_duration(report['seconds'])}"
    )


def _facts(report: dict[str, Any]) -> list[str]:
    facts = report["facts"]
    by_category = [
        f"{name}{_TIED}{n['current']}" + (f"{_TIED}(+{n['superseded']})" if n["superseded"] else "")
        for name in CATEGORIES
        for n in [facts["by_category"][name]]
        if n["current"] or n["superseded"]
    ]
    head = f"{facts['current']:,} current (+{facts['superseded']:,} superseded by later ones)"
    lines = [head, " · ".join(by_category)] if by_category else ["none"]
    if facts["unverified"]:
        lines.append(f"{facts['unverified']:,} more were reported but not believed (report.json)")
    return lines


def _read(report: dict[str, Any]) -> list[str]:
    coverage, outcomes = report["coverage"], report["outcomes"]
    if not coverage["chunks"]:
        return ["no text to read"]
    kinds = ", ".join(f"{n:,} {outcome}" for outcome, n in outcomes.items())
    share = int(coverage["share"] * 1000) / 10  # cut, not rounded: 99.97% is not all of it
    return [f"{coverage['read']:,} of {coverage['chunks']:,} chunks ({share:g}%): {kinds}"]


def left_out(report: dict[str, Any]) -> list[str]:
    """Say what of the export was not read, and why."""
    export = report["export"] or {}
    lines = []
    kinds = [
        (export.get("forgotten", 0), "marked as not to be remembered"),
        (export.get("empty", 0), "without visible text"),
        (export.get("duplicates", 0), "held twice"),
    ]
    counted = [f"{n} {what}" for n, what in kinds if n]
    if counted:
        lines.append(f"conversations: {', '.join(counted)}")
    ignored = export.get("ignored") or {}
    if ignored:
        lines.append(", ".join(f"{n} {kind}" for kind, n in ignored.items()))
    if export.get("redacted"):
        lines.append(f"{count(export['redacted'], 'credential')} replaced by a marker")
    damages = export.get("damages") or []
    if export.get("damaged"):
        lines.append(f"{export['damaged']} damaged, the rest was kept:")
        lines += [f"  {damage}" for damage in damages[:5]]
        if export["damaged"] > len(damages[:5]):
            lines.append(f"  and {export['damaged'] - len(damages[:5])} more (report.json)")
    return lines


def _cost(report: dict[str, Any]) -> str:
    cost = report["cost"]
    if report["provider"] == "offline":
        return "nothing: no model was used"
    if not cost["calls"]:
        return "$0.0000: nothing new to read, no call was made"
    told = f"${cost['cost_usd']:.4f} for {count(cost['calls'], 'call')}, {tokens(cost)}"
    if cost["calls_of_unknown_price"]:
        told += f"; {count(cost['calls_of_unknown_price'], 'call')} of unknown price not included"
    return told


def _notes(report: dict[str, Any]) -> list[str]:
    notes = []
    earlier = report["earlier"]
    kept = []
    if earlier["facts_of_other_sources"]:
        number = count(earlier["facts_of_other_sources"], "fact")
        kept.append(f"{number} from {', '.join(earlier['other_sources'])}")
    if earlier["conversations_of_this_source"]:
        number = count(earlier["conversations_of_this_source"], "conversation")
        kept.append(f"{number} that an earlier export held and this one does not")
    if kept:
        notes.append(f"MEMORY also rests on earlier exports of the same person: {'; '.join(kept)}.")
    memory, sections = report["memory"] or {}, report["sections"] or {}
    if memory.get("writer") == "rendering":
        notes.append(
            "The model's MEMORY was not usable; MEMORY.md lists the facts as they were found."
        )
    if memory.get("applied") is False:
        notes.append(
            "MEMORY.md is the one a model wrote earlier: an offline one never replaces it."
        )
    if sections.get("saved") is False:
        notes.append(
            f"The sections were not renewed: {sections.get('detail') or 'no reason noted'}."
        )
    if report["provider"] == "offline":
        notes.append(
            "No model was used: these facts come from plain English statements only. For a full "
            "reading set ANTHROPIC_API_KEY and run the same command again."
        )
    return [line for note in notes for line in textwrap.wrap(note, _WIDTH)]


def entry(label: str, texts: Sequence[str]) -> list[str]:
    """Put a label beside its texts, wrapped."""
    lines: list[str] = []
    for text in texts:
        inner = len(text) - len(text.lstrip())
        lines += textwrap.wrap(
            text.strip(),
            _WIDTH - _INDENT,
            initial_indent=" " * inner,
            subsequent_indent=" " * inner,
            break_long_words=False,
            break_on_hyphens=False,
        )
    lines = [line.replace(_TIED, " ") for line in lines]
    labels = [label] + [""] * len(lines)
    return [
        f"  {name:<{_INDENT - 2}}{line}".rstrip() for name, line in zip(labels, lines, strict=False)
    ]


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s"


def count(number: int, noun: str) -> str:
    """Put a number before its noun."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
