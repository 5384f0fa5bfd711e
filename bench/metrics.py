"""Measured values, what they must keep to, and how they are printed: for people, then for machines."""

from __future__ import annotations

import json
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Metric:
    """One measured value and what it must keep to; `limit` None only informs."""

    name: str
    value: float
    unit: str = ""
    limit: float | None = None
    at_least: bool = False
    note: str = ""
    """Where a limit that was measured itself comes from."""

    @property
    def ok(self) -> bool:
        """Whether the value keeps to its limit."""
        if self.limit is None:
            return True
        return self.value >= self.limit if self.at_least else self.value <= self.limit

    @property
    def row(self) -> str:
        """One line of the table."""
        limit = "" if self.limit is None else f"{'≥' if self.at_least else '≤'} {self.limit:.4g}"
        verdict = "" if self.limit is None else "ok" if self.ok else "MISSED"
        note = f"({self.note})" if self.note else ""
        told = f"{self.name:40} {self.value:12.4f} {self.unit:8} {limit:9} {verdict:7} {note}"
        return told.rstrip()

    @property
    def line(self) -> str:
        """One line of JSON."""
        return json.dumps(
            {
                "metric": self.name,
                "value": round(self.value, 4),
                "limit": None if self.limit is None else round(self.limit, 4),
                "ok": self.ok,
            }
        )


def percentile(values: list[float], share: float) -> float:
    """Return the value below which that share of the values lies."""
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]
