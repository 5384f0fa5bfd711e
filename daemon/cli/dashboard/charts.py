"""Charts as inline SVG: attributes only, so that a page needs no inline style and no script.

A chart is a picture of figures that stand beside it in words or in a table; it is named for those
who hear the page, and shape, not colour alone, tells good from bad.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from daemon.cli.markup import plain_text

if TYPE_CHECKING:
    from collections.abc import Sequence

_SLOT, _GAP = 10, 2
_HEIGHT = 60
_BELOW = 20


def bars(label: str, values: Sequence[float | None], *, kind: str = "done") -> str:
    """Draw a bar for each value, the highest as high as there is room."""
    most = max((value or 0 for value in values), default=0) or 1
    drawn = "".join(
        _bar(n, _HEIGHT - _HEIGHT * value / most, _HEIGHT * value / most, kind)
        for n, value in enumerate(values)
        if value
    )
    return _chart(label, len(values), _HEIGHT, drawn + _line(len(values), _HEIGHT - 0.5))


def mirrored(label: str, above: Sequence[float], below: Sequence[float]) -> str:
    """Draw what is well above a line and what is not below it, both to one scale.

    Below the line even one of thousands is a visible bar.
    """
    most = max((*above, 1))
    drawn = []
    for n, (good, bad) in enumerate(zip(above, below, strict=True)):
        if good:
            height = _HEIGHT * good / most
            drawn.append(_bar(n, _HEIGHT - height, height, "done"))
        if bad:
            drawn.append(_bar(n, _HEIGHT, min(_BELOW, max(4, _HEIGHT * bad / most)), "bad"))
    return _chart(label, len(above), _HEIGHT + _BELOW, "".join(drawn) + _line(len(above), _HEIGHT))


def lane(start: float, width: float, total: float, *, kind: str) -> str:
    """Draw one step of a waterfall: from `start`, `width` long, of `total`; words stand beside."""
    scale = 100 / total if total > 0 else 0
    left = min(99.0, max(0.0, start * scale))
    wide = min(100 - left, max(1.0, width * scale))
    return (
        '<svg class="lane" viewBox="0 0 100 10" preserveAspectRatio="none" aria-hidden="true">'
        f'<rect class="{kind}" x="{left:.1f}" y="1" width="{wide:.1f}" height="8"/></svg>'
    )


def share(value: float, most: float) -> str:
    """Draw a bar beside a figure of a table, `most` being its full width."""
    return lane(0, value, most or 1, kind="done") if value else ""


def _bar(place: int, top: float, height: float, kind: str) -> str:
    return (
        f'<rect class="{kind}" x="{place * _SLOT + _GAP / 2:g}" y="{top:.1f}" '
        f'width="{_SLOT - _GAP}" height="{max(1.0, height):.1f}"/>'
    )


def _line(places: int, at: float) -> str:
    return f'<path class="axis" d="M0 {at:g}H{places * _SLOT}"/>'


def _chart(label: str, places: int, height: int, drawn: str) -> str:
    return (
        f'<svg class="chart" role="img" aria-label="{plain_text(label)}" '
        f'viewBox="0 0 {max(1, places) * _SLOT} {height}" preserveAspectRatio="none">{drawn}</svg>'
    )
