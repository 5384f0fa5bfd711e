"""One conversation too large to be held, member by member: the second level of the scanner.

Owns the walk through one JSON object whose bytes come in pieces: its plain members, and one by one
the members (or elements) of the containers asked for, each of bounded size. Everything else nested
is passed over unheld. Knows JSON's shape and nothing of conversations; any damage is a DecodeError,
for half a conversation must never replace a whole one (promise 10).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

from daemon.export.brackets import ALL, BRACES, block_at, close
from daemon.export.values import DecodeError, decode

if TYPE_CHECKING:
    from collections.abc import Iterator

_FIRST_BLOCK_BYTES = 1024
_BLOCK_BYTES = 64 * 1024
_SCALAR_BYTES = 4 * 2**20
"""No key, id or title is larger."""
_SPACE = re.compile(rb"[ \t\r\n]*+")
_STRING = re.compile(rb'"(?:[^"\\]++|\\.)*+"', re.DOTALL)
_WORD = re.compile(rb"[-+.\w]++")
_NOT_JSON = "not valid JSON"


class Member(NamedTuple):
    """`within` is "" for the object's own members; `key` is "" for an element of an array.

    `raw` is the value's JSON, empty where the value is passed over or is a container that begins.
    """

    within: str
    key: str
    raw: bytes


class MemberScanner:
    """Iterate over it once. Raises DecodeError where the bytes are damaged or one value too large.

    `pieces` begin at the object's `{`; `containers` are the keys whose value is entered.
    """

    def __init__(
        self, pieces: Iterator[bytes], *, containers: frozenset[str], member_bytes: int
    ) -> None:
        self._pieces = pieces
        self._containers = containers
        self._member_bytes = member_bytes
        self._window = bytearray()
        self._at = 0

    def __iter__(self) -> Iterator[Member]:
        """Yield members in the order of the file."""
        self._take(b"{")
        yield from self._members("")

    def _members(self, within: str) -> Iterator[Member]:
        """Walk `key: value` pairs up to the closing brace."""
        if self._next() == ord("}"):
            self._at += 1
            return
        while True:
            key = self._key()
            self._take(b":")
            first = self._next()
            if not within and key in self._containers and first in b"{[":
                yield Member("", key, b"")
                self._at += 1
                yield from self._members(key) if first == ord("{") else self._elements(key)
            else:
                yield Member(within, key, self._value(held=bool(within)))
            if self._separator(b"}"):
                return

    def _elements(self, within: str) -> Iterator[Member]:
        """Walk the elements of an array up to its closing bracket."""
        if self._next() == ord("]"):
            self._at += 1
            return
        while True:
            yield Member(within, "", self._value(held=True))
            if self._separator(b"]"):
                return

    # --- values

    def _value(self, *, held: bool) -> bytes:
        """Step over the value that begins here; give its bytes if it is `held` or a plain one."""
        first = self._next()
        if first not in b"{[":
            return self._scalar(_STRING if first == ord('"') else _WORD)
        brackets = BRACES if first == ord("{") else ALL
        at, depth, in_string = self._at, 0, False
        block_bytes = _FIRST_BLOCK_BYTES  # most messages are short
        while True:
            block = block_at(self._window, at, block_bytes)
            block_bytes = min(2 * block_bytes, _BLOCK_BYTES)
            if not block:
                at -= self._at
                self._more()
                continue
            end, depth, in_string = close(block, depth, in_string=in_string, brackets=brackets)
            at += end or len(block)
            if end:
                raw = bytes(self._window[self._at : at]) if held else b""
                self._at = at
                return raw
            if not held:
                del self._window[:at]
                self._at = at = 0
            elif at - self._at > self._member_bytes:
                size = f"{self._member_bytes / 2**20:.3g} MB"
                raise DecodeError(f"holds a message larger than {size}")

    def _scalar(self, pattern: re.Pattern[bytes]) -> bytes:
        while True:
            found = pattern.match(self._window, self._at)
            # What ends with the window may go on after it.
            if found is not None and found.end() < len(self._window):
                self._at = found.end()
                return found[0]
            if found is None and (pattern is _WORD or len(self._window) > _SCALAR_BYTES):
                raise DecodeError(_NOT_JSON)
            self._more()

    def _key(self) -> str:
        if self._next() != ord('"'):
            raise DecodeError(_NOT_JSON)
        key = decode(self._scalar(_STRING))
        return key if isinstance(key, str) else ""

    # --- between values

    def _separator(self, closing: bytes) -> bool:
        """Step over a comma (False) or the closing bracket (True)."""
        if self._next() == closing[0]:
            self._at += 1
            return True
        self._take(b",")
        return False

    def _take(self, expected: bytes) -> None:
        if self._next() != expected[0]:
            raise DecodeError(_NOT_JSON)
        self._at += 1

    def _next(self) -> int:
        """Return the next byte that is no white space, and stand at it."""
        while True:
            space = _SPACE.match(self._window, self._at)
            if space is not None:
                self._at = space.end()
            if self._at < len(self._window):
                return self._window[self._at]
            self._more()

    def _more(self) -> None:
        """Read one more piece; raises DecodeError at the end, for the object was not closed."""
        if self._at:
            del self._window[: self._at]
            self._at = 0
        piece = next(self._pieces, b"")
        if not piece:
            raise DecodeError("cut short")
        self._window += piece
