"""The prompts: one text file each.

A prompt's version is its name and a hash of its text, so a changed prompt can never be served the
receipts of the old one (promise 3).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from importlib.resources import files


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt's text and its version, e.g. `extract@1f0c2a9b`."""

    version: str
    text: str


@cache
def prompt(name: str) -> Prompt:
    """Return the prompt of this name."""
    text = files(__name__).joinpath(f"{name}.txt").read_text(encoding="utf-8").strip()
    return Prompt(version=f"{name}@{sha256(text.encode()).hexdigest()[:8]}", text=text)
