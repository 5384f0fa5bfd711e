"""What the beginning of a conversation looks like in the bytes of an export.

Owns four beginnings that are known beforehand, and the one that is learnt from an object that was
read well (until there is one, suspected of a broken one): its first keys, as they are written
there. Leaves to the scanner what a beginning means.
"""

from __future__ import annotations

import re

OVERLAP_BYTES = 4096
"""A beginning that is longer is none: so much of a stretch must be looked at again with more."""

STRING = rb'"(?:[^"\\]++|\\.)*+"'
SCALAR = rb"(?:" + STRING + rb"|[-+.\w]++)"
_KEY = rb'("[^"\\]{1,64}")\s*+:\s*+'
_NEXT = SCALAR + rb"\s*+,\s*+" + _KEY
_KEYS = re.compile(rb"\{\s*+" + _KEY + _NEXT + rb"(?:" + _NEXT + rb")?+", re.DOTALL)
_BEFORE_BYTES = 64


def _with_keys(*keys: bytes) -> bytes:
    between = rb"\s*+:\s*+" + SCALAR + rb"\s*+,\s*+"
    return rb"\{\s*+" + between.join(map(re.escape, keys))


_KNOWN = [
    _with_keys(b'"title"', b'"create_time"'),
    _with_keys(b'"id"', b'"title"'),
    _with_keys(b'"uuid"', b'"name"'),
    _with_keys(b'"header"', b'"title"'),
]


class Starts:
    """Finds beginnings in a window; places are offsets in it, -1 where there is none."""

    def __init__(self) -> None:
        self._any = re.compile(b"|".join(_KNOWN), re.DOTALL)
        self._own: re.Pattern[bytes] | None = None
        self._mark = b""
        self._asked = False

    @property
    def learnt(self) -> bool:
        """Whether the beginnings of this very text are known."""
        return self._own is not None

    def learn(self, window: bytearray, at: int) -> None:
        """Take the first keys of the first object that was read well for the mark of them all."""
        if self._asked:
            return
        self._asked = True
        found = self._believe(window, at)
        if found is not None:
            own = _with_keys(*(key for key in found.groups() if key is not None))
            self._own = re.compile(own, re.DOTALL)
            # As it is written there: a plain search is many times quicker than an expression.
            self._mark = bytes(window[found.start() : found.end(1)])

    def suspect(self, window: bytearray, at: int) -> None:
        """Where nothing was read well yet, look also for what begins as this broken object does."""
        if not self._asked:
            self._believe(window, at)

    def _believe(self, window: bytearray, at: int) -> re.Match[bytes] | None:
        found = _KEYS.match(window, at)
        if found is not None:
            two = _with_keys(found.group(1), found.group(2))
            self._any = re.compile(b"|".join([two, *_KNOWN]), re.DOTALL)
        return found

    def find(self, window: bytearray, begin: int, end: int) -> int:
        """Return where anything in [begin, end) looks like a conversation's beginning."""
        found = self._any.search(window, begin, end)
        return -1 if found is None else found.start()

    def find_beside(self, window: bytearray, begin: int, end: int) -> int:
        """Do the same for one that is no part of another object: not after a colon or a bracket.

        Of a text that was learnt from, only what begins as its conversations do.
        """
        for found in (self._own or self._any).finditer(window, begin, end):
            before = window[max(0, found.start() - _BEFORE_BYTES) : found.start()].rstrip()
            if not before.endswith((b":", b"[")):
                return found.start()
        return -1

    def find_alike(self, window: bytearray, at: int) -> int:
        """Return where, from `at` on, something begins as the learnt object does."""
        if self._own is None:
            return -1
        at = window.find(self._mark, at)
        while at >= 0 and self._own.match(window, at) is None:
            at = window.find(self._mark, at + 1)
        return at
