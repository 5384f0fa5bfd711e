"""Where a JSON value ends: brackets counted outside strings, block by block, at the speed of C.

A block is split at its quotes, which leaves the text outside strings in every second part; what is
no bracket is deleted from that in one call, and only the few brackets left are counted one by one.
A block must not end inside an escape. Knows nothing of where blocks come from.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import accumulate


@dataclass(frozen=True, slots=True)
class Brackets:
    """Which brackets are counted."""

    others: bytes
    """Every other byte, for translate()."""
    any: re.Pattern[bytes]
    closing: bytes


def _brackets(opening: bytes, closing: bytes) -> Brackets:
    both = opening + closing
    others = bytes(code for code in range(256) if code not in both)
    return Brackets(others, re.compile(b"[" + re.escape(both) + b"]"), closing)


BRACES = _brackets(b"{", b"}")
"""Enough for where an object ends: one with a wrong square bracket fails in its decoding."""
ALL = _brackets(b"{[", b"}]")

_STEP = [0] * 256
for _code in b"{[":
    _STEP[_code] = 1
for _code in b"}]":
    _STEP[_code] = -1


def close(
    block: bytes, depth: int, *, in_string: bool, brackets: Brackets = BRACES
) -> tuple[int, int, bool]:
    """Count brackets; (offset after the one that closes the value or 0, new depth and state)."""
    if b"\\" in block:
        block = block.replace(b"\\\\", b"__").replace(b'\\"', b"__")
    parts = block.split(b'"')
    first_outside = 1 if in_string else 0
    if len(parts) % 2 == 0:
        in_string = not in_string
    found = b"".join(parts[first_outside::2]).translate(None, brackets.others)
    closing = sum(map(found.count, brackets.closing))
    if closing < depth or not closing:
        return 0, depth + len(found) - 2 * closing, in_string
    depths = list(accumulate(map(_STEP.__getitem__, found), initial=depth))
    try:
        wanted = depths.index(0, 1)
    except ValueError:
        return 0, depths[-1], in_string
    offset = 0
    for index, part in enumerate(parts):
        if index % 2 == first_outside:
            here = len(part.translate(None, brackets.others))
            if wanted <= here:
                for bracket in brackets.any.finditer(part):
                    wanted -= 1
                    if not wanted:
                        return offset + bracket.end(), 0, False
            wanted -= here
        offset += len(part) + 1
    raise AssertionError("a bracket that was counted was not found")


def block_at(window: bytearray, at: int, size: int) -> bytes | None:
    """Return about `size` bytes from `at` on that do not end inside an escape.

    None where the byte that belongs to a last backslash is yet to be read.
    """
    end = min(at + size, len(window))
    block = bytes(window[at:end])
    if block.endswith(b"\\"):
        trailing = len(block) - len(block.rstrip(b"\\"))
        if trailing % 2:
            if end == len(window):
                return None
            block += window[end : end + 1]
    return block
