"""The second page: how the past days went. Hours, releases, durations, errors, costs."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any

from daemon.cli.dashboard.charts import bars, share
from daemon.cli.dashboard.frame import LONGEST_TOLD, Section, job_link, moment, page, table
from daemon.cli.dashboard.now import hours_charts
from daemon.cli.markup import plain_text, said
from daemon.cli.screen import span

if TYPE_CHECKING:
    from daemon.ops.trends import Rows

_RELEASES = 20
_PURPOSES = 40


def past_page(told: dict[str, Rows]) -> str:
    """Return the page."""
    sections = [
        Section(
            "hours", "The last 48 hours", hours_charts(told["hourly"]) + _hours(told["hourly"])
        ),
        Section("releases", "Releases", _releases(told["overview"])),
        Section("durations", "How long passes take", _durations(told["durations"])),
        Section("errors", "Errors", _errors(told["errors"])),
        Section("costs", "Costs", _costs(told["costs"])),
    ]
    return page("Past days", "Past days", sections, at="/past")


def _hours(hourly: Rows) -> str:
    rows = [
        (
            moment(h["hour"]), f"{h['complete']:,}", f"{h['failed']:,}", f"{h['cancelled']:,}",
            span(h["mean_seconds"]) if h["mean_seconds"] is not None else "",
            f"{h['calls']:,}", f"${h['cost_usd']:.4f}",
        )
        for h in reversed(hourly)
        if h["complete"] or h["failed"] or h["cancelled"] or h["calls"]
    ]  # fmt: skip
    columns = ("Hour (UTC)", "Complete", "Failed", "Cancelled", "Mean time", "Calls", "Cost")
    inner = table("Hours in which anything happened", columns, rows, figures=" nnnnnn")
    return f"<details><summary>As a table</summary>{inner}</details>"


def _releases(overview: Rows) -> str:
    if not overview:
        return "<p>Nothing ran or waited in the last 24 hours.</p>"
    rows = [
        (
            plain_text(r["pipeline_version"], most=40),
            "" if r["success_rate"] is None else f"{100 * r['success_rate']:.1f}%",
            f"{r['complete']:,}", f"{r['failed']:,}", f"{r['processing']:,}", f"{r['pending']:,}",
            f"{r['stuck']:,}",
            span(r["median_seconds"]) if r["median_seconds"] is not None else "",
            f"${r['cost_usd']:.4f}",
        )
        for r in overview[:_RELEASES]
    ]  # fmt: skip
    columns = (
        "Release", "Success", "Complete", "Failed", "Running", "Pending", "Stuck", "Median", "Cost",
    )  # fmt: skip
    return table("The last 24 hours by release", columns, rows, figures=" nnnnnnnn")


def _durations(durations: Rows) -> str:
    if not durations:
        return "<p>No pass was completed in the last 7 days.</p>"
    by_release: dict[str, Rows] = defaultdict(list)
    for row in durations:
        by_release[row["pipeline_version"]].append(row)
    tables = []
    for release, rows in list(by_release.items())[:_RELEASES]:
        most = max(row["share"] for row in rows)
        tables.append(
            table(
                f"Completed passes of 7 days, release {plain_text(release, most=40)}",
                ("From first claim to end", "Passes", "Share", ""),
                [
                    (_bounds(row), f"{row['jobs']:,}", f"{100 * row['share']:.1f}%",
                     share(row["share"], most))
                    for row in rows
                ],
                figures=" nn",
            )
        )  # fmt: skip
    return "".join(tables)


def _bounds(row: dict[str, Any]) -> str:
    if row["to_seconds"] is None:
        return f"over {span(row['from_seconds'])}"
    return f"{span(row['from_seconds'])} to {span(row['to_seconds'])}"


def _errors(errors: Rows) -> str:
    if not errors:
        return "<p>Nothing went wrong in the last 7 days.</p>"
    rows = [
        (
            said(e["message"], most=LONGEST_TOLD), f"{e['times']:,}", f"{e['jobs']:,}",
            f"{e['final']:,}", moment(e["last_at"]), job_link(e["last_job_id"]),
        )
        for e in errors
    ]  # fmt: skip
    columns = ("Message", "Times", "Jobs", "Final", "Last (UTC)", "Last job")
    return table("The last 7 days, alike messages together", columns, rows, figures=" nnn")


def _costs(costs: Rows) -> str:
    if not costs:
        return "<p>No call was made in the last 30 days.</p>"
    days: dict[str, float] = defaultdict(float)
    sums: dict[tuple[str, str], list[float]] = defaultdict(lambda: [0.0] * 6)
    keys = ("calls", "useless_calls", "input_tokens", "output_tokens", "cost_usd", "unpriced_calls")
    for row in costs:
        days[row["day"]] += row["cost_usd"]
        sums[row["model"], row["purpose"]] = [
            sum(pair)
            for pair in zip(sums[row["model"], row["purpose"]], (row[k] for k in keys), strict=True)
        ]
    spent, dearest = sum(days.values()), max(days.values())
    unpriced = sum(row["unpriced_calls"] for row in costs)
    more = f" and {unpriced:,.0f} calls of unknown price" if unpriced else ""
    caption = f"Days on which calls were made: ${spent:,.2f}{more}; the dearest ${dearest:,.2f}"
    first, last = min(days), max(days)
    ranked = sorted(sums.items(), key=lambda item: item[1][4], reverse=True)
    rows = [
        (
            plain_text(model, most=80), plain_text(purpose, most=40),
            *(f"{n:,.0f}" for n in numbers[:4]), f"${numbers[4]:,.4f}",
        )
        for (model, purpose), numbers in ranked[:_PURPOSES]
    ]  # fmt: skip
    columns = ("Model", "For", "Calls", "Useless", "Tokens in", "Tokens out", "Cost")
    return (
        f"<figure><figcaption>{caption}.</figcaption>"
        f"{bars(caption, [days[day] for day in sorted(days)])}"
        f'<p class="axis"><span>{plain_text(first)}</span><span>{plain_text(last)}</span></p>'
        f"</figure>{table('30 days by model and purpose', columns, rows, figures='  nnnnn')}"
    )
