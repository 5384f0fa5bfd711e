"""Byte streams that end where they break, and the limits they keep.

Every stream reads forward in bounded pieces. Damage never raises: the stream gives what came
before, then ends, and `problem` says why. Only a bomb raises, for nothing in it is worth keeping.
"""

from __future__ import annotations

import zlib
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from daemon.errors import BadExport

if TYPE_CHECKING:
    from typing import BinaryIO

_PIECE_BYTES = 64 * 1024
_OUTPUT_BYTES = 256 * 1024
_WRONG_CHECKSUM = "its checksum does not match: some of it is damaged"


@dataclass(frozen=True, slots=True)
class Limits:
    """How much one export may ask for. All are far above any real export met so far."""

    held_bytes: int = 8 * 2**20
    """A larger conversation waits on disk, message by message: decoding a held one takes about
    three times its size."""
    message_bytes: int = 64 * 2**20
    """A conversation with a larger message is skipped, and said so."""
    decompressed_bytes: int = 16 * 2**30
    ratio: int = 500
    """Decompressed to compressed; text reaches 30, deflate cannot pass 1,032."""
    ratio_from_bytes: int = 64 * 2**20
    members: int = 50_000


class ByteStream(Protocol):
    """Bytes of one text, front to back."""

    problem: str

    @property
    def raw_bytes(self) -> int:
        """Bytes taken from the file so far."""

    def read(self, size: int, /) -> bytes:
        """Return up to about `size` bytes, or b"" at the end."""


class PlainStream:
    """A stretch of a file as it is; `length` None reads to the end of the file."""

    def __init__(self, file: BinaryIO, length: int | None, *, checksum: int | None = None) -> None:
        self._file = file
        self._left = length
        self._checksum = checksum
        self._running_checksum = 0
        self.problem = ""
        self.raw_bytes = 0

    def read(self, size: int, /) -> bytes:
        """Return the next bytes."""
        if self._left is not None:
            size = min(size, self._left)
        try:
            piece = self._file.read(size)
        except OSError as error:
            self.problem = f"the file could not be read further ({error.strerror})"
            return b""
        self.raw_bytes += len(piece)
        if self._left is not None:
            self._left -= len(piece)
            if not piece and self._left:
                self.problem = "the file is cut short"
        if self._checksum is not None:
            self._running_checksum = zlib.crc32(piece, self._running_checksum)
            if self._left == 0 and self._running_checksum != self._checksum:
                self.problem = _WRONG_CHECKSUM
        return piece


class ZlibStream:
    """Gzip (several members in a row allowed) or a zip member's raw deflate.

    `checksum` and `size`, where known, are compared at the end. Raises BadExport on a bomb.
    """

    def __init__(
        self,
        source: PlainStream,
        limits: Limits,
        *,
        gzip: bool,
        checksum: int | None = None,
        size: int | None = None,
    ) -> None:
        self._source = source
        self._limits = limits
        self._gzip = gzip
        self._inflate = self._fresh()
        self._input = b""
        self._ended = False
        self._checksum = checksum
        self._size = size
        self._running_checksum = 0
        self._output_bytes = 0
        self.problem = ""

    @property
    def raw_bytes(self) -> int:
        """Bytes taken from the file so far."""
        return self._source.raw_bytes

    @property
    def unused(self) -> bytes:
        """Bytes read from the file beyond the end of the compressed data."""
        return self._inflate.unused_data

    def read(self, size: int, /) -> bytes:
        """Return the next decompressed bytes."""
        while not self._ended:
            if not self._input:
                self._input = self._source.read(_PIECE_BYTES)
                if not self._input:
                    self._finish("its compressed data is cut short")
                    return b""
            before = self._inflate.copy()
            try:
                piece = self._inflate.decompress(self._input, min(size, _OUTPUT_BYTES))
            except zlib.error:
                piece = _up_to_damage(before, self._input)
                self._finish("its compressed data is damaged")
            else:
                self._input = self._inflate.unconsumed_tail
                if self._inflate.eof:
                    self._next_gzip_member()
            self._account(piece)
            if piece:
                return piece
        return b""

    def _fresh(self) -> zlib._Decompress:
        return zlib.decompressobj(31 if self._gzip else -15)

    def _next_gzip_member(self) -> None:
        """Go on at the next gzip member, if that is what follows; padding is no damage."""
        rest = self._inflate.unused_data
        if self._gzip:
            while len(rest) < 2 and (more := self._source.read(_PIECE_BYTES)):
                rest += more
            if rest.startswith(b"\x1f\x8b"):
                self._input = rest
                self._inflate = self._fresh()
                return
            if rest.strip(b"\x00"):
                self.problem = "other bytes follow its compressed data"
        self._ended = True

    def _account(self, piece: bytes) -> None:
        self._output_bytes += len(piece)
        if self._checksum is not None:
            self._running_checksum = zlib.crc32(piece, self._running_checksum)
        limits = self._limits
        if self._output_bytes > limits.decompressed_bytes:
            raise BadExport(
                f"unpacks to more than the {limits.decompressed_bytes / 2**30:.1f} GB allowed"
            )
        if self._output_bytes > limits.ratio_from_bytes and self._output_bytes > limits.ratio * max(
            1, self.raw_bytes
        ):
            raise BadExport(f"unpacks to more than {limits.ratio} times its size: a zip bomb")
        if self._ended and self._checksum is not None and not self.problem:
            intact = self._running_checksum == self._checksum and self._size == self._output_bytes
            self.problem = "" if intact else _WRONG_CHECKSUM

    def _finish(self, problem: str) -> None:
        self._ended = True
        self.problem = self._source.problem or problem


def _up_to_damage(inflate: zlib._Decompress, compressed: bytes) -> bytes:
    """Unpack what comes before the damage: asked for all at once, zlib gives nothing.

    Of a small file that is everything, where only its checksum is wrong.
    """
    pieces = []
    with suppress(zlib.error):
        for at in range(len(compressed)):
            pieces.append(inflate.decompress(compressed[at : at + 1]))  # noqa: PERF401 - some come before it raises
    return b"".join(pieces)
