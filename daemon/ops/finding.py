"""What an examination finds: one check, its state, what was seen and what to do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

State = Literal["ok", "note", "unknown", "mend"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of an examination.

    `mend` must be mended before a worker can do its work; `note` is worth knowing and works;
    `unknown` could not be found out, which is no finding against anything.
    """

    check: str
    state: State
    told: str
    remedy: str | None = None


def ok(check: str, told: str) -> Finding:
    """Say that all is well."""
    return Finding(check, "ok", told)


def note(check: str, told: str, remedy: str) -> Finding:
    """Say that it works, and could be better."""
    return Finding(check, "note", told, remedy)


def unknown(check: str, told: str) -> Finding:
    """Say that it could not be found out."""
    return Finding(check, "unknown", told)


def mend(check: str, told: str, remedy: str) -> Finding:
    """Say that it does not work before the remedy is applied."""
    return Finding(check, "mend", told, remedy)
