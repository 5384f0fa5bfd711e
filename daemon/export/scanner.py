"""Finds each top-level object of a JSON text of any size, in bounded memory, and survives damage.

Owns one window over a byte stream and the question "where does this object end?". It knows JSON's
brackets and strings and nothing of conversations: the reader decodes each span, tells the scanner
what a good one looks like (`learn`) and which one was bad (`reject`). A bad span is left at the
next place that looks like the start of a conversation, so that one broken object costs only itself
(promise 4). The window never holds more than one object, and that one has a limit (promise 7): a
larger one is given out in pieces as it is read (`pieces`). How ends are found: brackets.py.

Counting brackets takes longer than decoding. So once a good object is known, the next one's end is
guessed: it stands before what looks like another's start. A guess is right if and only if what it
spans decodes, for no object's beginning is an object; if it does not, `measure` counts after all.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from daemon.export.brackets import block_at, close
from daemon.export.starts import OVERLAP_BYTES, SCALAR, STRING, Starts

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_READ_BYTES = 256 * 1024
_BLOCK_BYTES = 16 * 1024
_FIRST_BLOCK_BYTES = 1024
"""Objects may be tiny: none is worth a large block until it is known to be longer."""
_RESCAN_FACTOR = 4
_GUESSED_BYTES = 4 * 1024 * 1024
_BETWEEN_BYTES = 256

_BOM = b"\xef\xbb\xbf"
_SPACE = re.compile(rb"[ \t\r\n]*+")

_WRAPPER_KEYS = frozenset({b'"conversations"', b'"chats"', b'"items"', b'"data"'})
_KEY = re.compile(rb"\s*+,?\s*+(" + STRING + rb")\s*+:\s*+", re.DOTALL)
_SCALAR_VALUE = re.compile(SCALAR, re.DOTALL)
_NESTED_VALUE = re.compile(rb"(?:[^\"{}\[\]]++|" + STRING + rb")*+[{}\[\]]", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Span:
    """One top-level thing: its place in the stream (bytes) and why it cannot be decoded, if so.

    `problem` is empty for an object that closed; the reader may then ask for its `view`. One that
    is too `large` to be held has only begun: take its `pieces`.
    """

    ordinal: int
    start: int
    end: int
    problem: str = ""
    stray: bool = False
    """Whether it is no object at all."""
    large: bool = False
    guessed: bool = False
    """Whether its end is only likely: decode it strictly or `measure` it."""


class ObjectScanner:
    """Walks the top-level objects of one JSON text; `next_span` returns None at its end.

    The text may be an array, one object, objects one after the other, or an object that holds the
    array under a known key (`{"conversations": […]}`, other keys before it allowed).
    """

    def __init__(self, read: Callable[[int], bytes], *, object_bytes: int) -> None:
        self._read = read
        self._object_bytes = object_bytes
        self._window = bytearray()
        self._base = 0
        self._position = 0
        self._ended = False
        self._ordinal = 0
        self._rescanned_bytes = 0
        self._large: tuple[int, int, bool] | None = None
        self.problem = ""
        """What was wrong with the last large object, known once its pieces are taken."""
        self._starts = Starts()
        self._searched = 0
        self._wrapped = False
        self.closed = False
        """True once the text came to its proper end: the array's `]`, or the only object's `}`."""
        self._in_array = False
        self._open()

    # --- what the reader calls

    def next_span(self) -> Span | None:
        """Return the next top-level object, or a stretch that is none, or None at the end."""
        while True:
            self._drop_before(self._position)
            if self._wrapped and self.closed:
                return None
            if not self._skip_separators():
                return None
            if self._window[self._position] == ord("{"):
                self._ordinal += 1
                return self._guess() or self._object()
            stray = self._stray()
            if stray is not None:
                return stray

    def view(self, span: Span) -> memoryview:
        """Give the bytes of the last span, uncopied; release it before asking for the next one."""
        return memoryview(self._window)[span.start - self._base : span.end - self._base]

    def learn(self, span: Span) -> None:
        """Take a well-read object's first keys as the mark by which to find the next one."""
        self._starts.learn(self._window, span.start - self._base)

    def measure(self, span: Span) -> Span:
        """Find the true end of the last span, which was guessed and does not decode."""
        self._position = span.start - self._base
        return self._object()

    def reject(self, span: Span) -> int:
        """Give up the last span; go on at the next start inside it. Returns the bytes given up."""
        begin, end = span.start - self._base, span.end - self._base
        self._starts.suspect(self._window, begin)
        found = self._starts.find(self._window, begin + 1, end)
        if found < 0:
            return span.end - span.start
        self._rescanned_bytes += end - found
        self._position = found
        self.closed = False
        return found - begin

    @property
    def offset(self) -> int:
        """Bytes of the text dealt with so far."""
        return self._base + self._position

    # --- the window

    def _more(self) -> bool:
        """Read one more piece into the window; False at the end of the stream."""
        if self._ended:
            return False
        piece = self._read(_READ_BYTES)
        if not piece:
            self._ended = True
            return False
        self._window += piece
        return True

    def _drop_before(self, position: int) -> None:
        if position:
            del self._window[:position]
            self._base += position
            self._position -= position

    # --- the beginning

    def _open(self) -> None:
        """Step over a byte-order mark, an opening `[`, or a wrapper up to its array."""
        while len(self._window) < 4 and self._more():
            pass
        if self._window.startswith(_BOM):
            self._position = len(_BOM)
        if not self._skip_space():
            return
        first = self._window[self._position]
        if first == ord("["):
            self._position += 1
            self._in_array = True
        elif first == ord("{"):
            self._enter_wrapper()

    def _enter_wrapper(self) -> None:
        """If the first object holds the conversations under a key, stand at its array."""
        while len(self._window) < 2 * _READ_BYTES and self._more():
            pass
        at = self._position + 1
        while (key := _KEY.match(self._window, at)) is not None:
            at = key.end()
            if at >= len(self._window):
                return
            opening = self._window[at]
            if opening == ord("[") and key.group(1) in _WRAPPER_KEYS:
                self._position = at + 1
                self._in_array = self._wrapped = True
                return
            end = self._value_end(at)
            if end is None:
                return
            at = end

    def _value_end(self, at: int) -> int | None:
        """Where the value at `at` ends, looking only at what the window holds."""
        if self._window[at] not in b"[{":
            scalar = _SCALAR_VALUE.match(self._window, at)
            return None if scalar is None else scalar.end()
        depth = 0
        while (bracket := _NESTED_VALUE.match(self._window, at)) is not None:
            at = bracket.end()
            depth += 1 if self._window[at - 1] in b"[{" else -1
            if depth == 0:
                return at
        return None

    # --- between objects

    def _skip_space(self) -> bool:
        while True:
            found = _SPACE.match(self._window, self._position)
            if found is not None:
                self._position = found.end()
            if self._position < len(self._window):
                return True
            self._drop_before(self._position)
            if not self._more():
                return False

    def _skip_separators(self) -> bool:
        """Step over white space, commas and brackets; False at the end of the text."""
        while self._skip_space():
            byte = self._window[self._position]
            if byte == ord("]"):
                self.closed = self._in_array
                if self._wrapped:
                    return False
            elif byte == ord("["):
                self._in_array, self.closed = True, False
            elif byte != ord(","):
                return True
            self._position += 1
        return False

    def _stray(self) -> Span | None:
        """Something that is no object stands here: pass over it, to the next likely start.

        None when it was a `null`: nothing stands there, and nothing is lost.
        """
        start = self._base + self._position
        while len(self._window) - self._position < OVERLAP_BYTES and self._more():
            pass  # what the value is must not depend on where a piece of the file ended
        scalar = _SCALAR_VALUE.match(self._window, self._position)
        if scalar is not None and scalar.end() < len(self._window):
            after = _SPACE.match(self._window, scalar.end())
            at = scalar.end() if after is None else after.end()
            if at < len(self._window) and self._window[at] in b",]":
                self._position = scalar.end()
                self._ordinal += 1
                if scalar[0] == b"null":
                    return None
                return Span(
                    self._ordinal, start, self._base + at, "a bare value, no object", stray=True
                )
        self._position += 1
        while True:
            found = self._starts.find(self._window, self._position, len(self._window))
            if found >= 0:
                self._position = found
                break
            self._position = max(self._position, len(self._window) - OVERLAP_BYTES)
            self._drop_before(self._position)
            if not self._more():
                self._position = len(self._window)
                break
        end = self._base + self._position
        return Span(self._ordinal, start, end, "bytes after it belong to no object", stray=True)

    # --- one object

    def _guess(self) -> Span | None:
        """Take what stands before the next likely start for the object; None where none is near."""
        if not self._starts.learnt:
            return None
        begin = self._position
        while (at := self._likely_start(begin + 1)) < 0:
            if len(self._window) - begin > min(_GUESSED_BYTES, self._object_bytes):
                return None
            if not self._more():
                return None
        between = bytes(self._window[max(begin, at - _BETWEEN_BYTES) : at])
        end = at - len(between) + len(between.rstrip(b", \t\r\n"))
        self._position = end
        if not self._in_array:
            self.closed = True
        return Span(self._ordinal, self._base + begin, self._base + end, guessed=True)

    def _likely_start(self, at: int) -> int:
        """Return where, from `at` on, something begins as the learnt object does, else -1.

        No stretch is searched twice: objects may be tiny and the next likely start far away.
        """
        at = self._starts.find_alike(self._window, max(at, self._searched - self._base))
        kept = len(self._window) - OVERLAP_BYTES
        self._searched = self._base + (at if at >= 0 else max(0, kept))
        return at

    def _object(self) -> Span:
        """Find the closing brace of the object at the current position."""
        start = self._base + self._position
        at, depth, in_string = self._position, 0, False
        # After much rescanning the next likely start is a wall: a text in which every object lost
        # its brace would otherwise be scanned to the limit again and again.
        walled = self._rescanned_bytes > _RESCAN_FACTOR * self._object_bytes
        wall_from = at + 1
        size = min(_FIRST_BLOCK_BYTES, _BLOCK_BYTES)
        while True:
            block = self._block(at, size)
            if not block:
                if self._more():
                    continue
                return self._cut_short(start)
            size = _BLOCK_BYTES
            if walled and at + len(block) > wall_from:
                found = self._starts.find(self._window, wall_from, at + len(block))
                if found >= 0:
                    self._position = found
                    end = self._base + self._position
                    return Span(self._ordinal, start, end, "it has no end")
                wall_from = at + len(block)
            end_in_block, depth, in_string = close(block, depth, in_string=in_string)
            if end_in_block:
                self._position = at + end_in_block
                if not self._in_array:
                    self.closed = True
                return Span(self._ordinal, start, self._base + self._position)
            at += len(block)
            if self._base + at - start > self._object_bytes:
                return self._oversized(start, at, depth, in_string=in_string)

    def _cut_short(self, start: int) -> Span:
        """Account for an end inside an object: a cut, or one brace missing further up."""
        self._starts.suspect(self._window, self._position)
        found = self._starts.find(self._window, self._position + 1, len(self._window))
        if found < 0:
            self._position = len(self._window)
            return Span(self._ordinal, start, self.offset, "cut short")
        self._rescanned_bytes += len(self._window) - found
        self._position = found
        return Span(self._ordinal, start, self.offset, "it has no end")

    def _block(self, at: int, size: int) -> bytes:
        """Return the next stretch to count braces in; it never ends inside an escape."""
        while (block := block_at(self._window, at, size)) is None:
            if not self._more():
                return bytes(self._window[at:])
        return block

    def _oversized(self, start: int, at: int, depth: int, *, in_string: bool) -> Span:
        """Begin an object beyond the limit, unless another begins where it should have ended."""
        self._starts.suspect(self._window, self._position)
        found = self._starts.find_beside(self._window, self._position + 1, at)
        if found >= 0:
            self._rescanned_bytes += at - found
            self._position = found
            return Span(self._ordinal, start, self._base + self._position, "it has no end")
        self._large = (at, depth, in_string)
        return Span(self._ordinal, start, self._base + at, large=True)

    def pieces(self) -> Iterator[bytes]:
        """Give out the large object that `next_span` met, to its end or the next likely start.

        Take them all before asking for the next span. `problem` then says what was wrong.
        """
        if self._large is None:
            return
        at, depth, in_string = self._large
        self._large, self.problem = None, ""
        search_from = self._position + 1  # its own start is no other's
        for begin in range(self._position, at, _READ_BYTES):
            yield bytes(self._window[begin : min(at, begin + _READ_BYTES)])
        while True:
            kept = max(0, at - OVERLAP_BYTES)
            self._drop_before(kept)
            self._position = at = at - kept
            search_from = max(0, search_from - kept)
            block = self._block(at, _BLOCK_BYTES)
            if not block:
                if self._more():
                    continue
                self._position = len(self._window)
                self.problem = "cut short"
                return
            end_in_block, depth, in_string = close(block, depth, in_string=in_string)
            if end_in_block:
                self._position = at + end_in_block
                if not self._in_array:
                    self.closed = True
                yield block[:end_in_block]
                return
            found = self._starts.find_beside(self._window, search_from, at + len(block))
            if found >= 0:
                self._position = found
                self.problem = "it has no end"
                return
            at += len(block)
            yield block
