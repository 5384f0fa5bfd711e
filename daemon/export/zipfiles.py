"""The directory of a zip file, and a member's bytes, also where the directory is missing.

The standard library reads the central directory; the bytes are inflated here, for two reasons: a
member with one damaged bit keeps what came before it, and a zip cut short in a download, which has
no central directory any more, still gives its members up to the cut by their local headers.
"""

from __future__ import annotations

import struct
import zipfile
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from daemon.errors import BadExport
from daemon.export.streams import Limits, PlainStream, ZlibStream

if TYPE_CHECKING:
    from typing import BinaryIO

    from daemon.export.streams import ByteStream

_LOCAL = struct.Struct("<4s5H3L2H")
_LOCAL_MAGIC = b"PK\x03\x04"
_END_MAGIC = b"PK\x05\x06"
_END_SEARCH_BYTES = 65_557
_DIRECTORY_BYTES_PER_MEMBER = 256
_ENCRYPTED, _STREAMED, _UTF8 = 0x1, 0x8, 0x800
_STORED, _DEFLATED = 0, 8
_UNKNOWN_SIZE = 0xFFFFFFFF
_BROKEN = "the zip is broken from its start; download the export and upload it again"


@dataclass(frozen=True, slots=True)
class Entry:
    """One member. `packed` and `size` are bytes as declared; `offset` is of its local header."""

    name: str
    offset: int
    packed: int
    size: int
    method: int
    checksum: int | None
    encrypted: bool
    mode: int = 0
    """The Unix mode, 0 where unknown."""

    @property
    def supported(self) -> bool:
        """Whether the packing method is one of those that exports use."""
        return self.method in {_STORED, _DEFLATED}


def entries(file: BinaryIO, name: str, limits: Limits) -> tuple[list[Entry], str]:
    """List the members and say what is wrong with the archive as a whole, if anything.

    Raises BadExport where it has too many members or none that can be found.
    """
    size = file.seek(0, 2)
    too_many = BadExport(f"{name}: the zip has more than {limits.members} members; it is no export")
    if _directory_bytes(file, size) > limits.members * _DIRECTORY_BYTES_PER_MEMBER:
        raise too_many
    try:
        with zipfile.ZipFile(file) as archive:
            infos = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError, OSError, struct.error):
        return _salvaged(file, size, name), "the zip is cut short or has lost its directory"
    if len(infos) > limits.members:
        raise too_many
    listed = [
        Entry(
            name=info.filename,
            offset=info.header_offset,
            packed=info.compress_size,
            size=info.file_size,
            method=info.compress_type,
            checksum=info.CRC,
            encrypted=bool(info.flag_bits & _ENCRYPTED),
            mode=info.external_attr >> 16,
        )
        for info in infos
    ]
    found = [entry for entry in listed if _has_header(file, entry)]
    if len(found) == len(listed):
        return listed, ""
    # Bytes were lost or added inside: take what stands where the directory says, and what a walk
    # from the front finds.
    names = {entry.name for entry in found}
    with suppress(BadExport):
        found += [entry for entry in _salvaged(file, size, name) if entry.name not in names]
    if not found:
        raise BadExport(f"{name}: {_BROKEN}")
    return found, "the zip's directory does not match its contents"


def _has_header(file: BinaryIO, entry: Entry) -> bool:
    if entry.offset < 0:
        return False
    file.seek(entry.offset)
    return file.read(4) == _LOCAL_MAGIC


def stream(file: BinaryIO, entry: Entry, limits: Limits) -> ByteStream:
    """Open a member's bytes; what is wrong with them is the stream's `problem`."""
    file.seek(entry.offset)
    header = file.read(_LOCAL.size)
    start = 0
    if len(header) == _LOCAL.size and header.startswith(_LOCAL_MAGIC):
        *_, name_bytes, extra_bytes = _LOCAL.unpack(header)
        start = entry.offset + _LOCAL.size + name_bytes + extra_bytes
    if not start:
        nothing = PlainStream(file, 0)
        nothing.problem = "its header in the zip is damaged"
        return nothing
    file.seek(start)
    if entry.method == _STORED:
        return PlainStream(file, entry.packed, checksum=entry.checksum)
    source = PlainStream(file, entry.packed)
    return ZlibStream(source, limits, gzip=False, checksum=entry.checksum, size=entry.size)


def _directory_bytes(file: BinaryIO, size: int) -> int:
    """Read how large the directory says it is, before any of it is parsed into memory."""
    file.seek(max(0, size - _END_SEARCH_BYTES))
    tail = file.read(_END_SEARCH_BYTES)
    at = tail.rfind(_END_MAGIC)
    if at < 0 or len(tail) < at + 16:
        return 0
    declared: int = struct.unpack_from("<L", tail, at + 12)[0]
    if declared == _UNKNOWN_SIZE:
        locator = tail.rfind(b"PK\x06\x06", 0, at)
        if locator < 0 or len(tail) < locator + 48:
            return 0
        declared = struct.unpack_from("<Q", tail, locator + 40)[0]
    return min(declared, size)


def _salvaged(file: BinaryIO, size: int, name: str) -> list[Entry]:
    """Walk the local headers from the front, as far as they go."""
    found: list[Entry] = []
    offset = 0
    while offset + _LOCAL.size <= size:
        file.seek(offset)
        header = file.read(_LOCAL.size)
        if len(header) < _LOCAL.size or not header.startswith(_LOCAL_MAGIC):
            break
        _, _, flags, method, _, _, checksum, packed, unpacked, name_bytes, extra_bytes = (
            _LOCAL.unpack(header)
        )
        raw_name = file.read(name_bytes)
        start = offset + _LOCAL.size + name_bytes + extra_bytes
        sized = not flags & _STREAMED and packed != _UNKNOWN_SIZE
        if not sized:
            end = _streamed_end(file, start, method)
            packed, unpacked, checksum = end - start, 0, None
        found.append(
            Entry(
                name=raw_name.decode("utf-8" if flags & _UTF8 else "cp437", "replace"),
                offset=offset,
                packed=packed,
                size=unpacked,
                method=method,
                checksum=checksum,
                encrypted=bool(flags & _ENCRYPTED),
            )
        )
        if len(found) > 1000:
            break
        offset = start + packed
        if not sized:
            offset = _after_descriptor(file, offset)
    if not found:
        raise BadExport(f"{name}: {_BROKEN}")
    return found


def _streamed_end(file: BinaryIO, start: int, method: int) -> int:
    """Where the data of a member of undeclared size ends; the end of the file if it was cut."""
    if method != _DEFLATED:
        return file.seek(0, 2)
    file.seek(start)
    source = PlainStream(file, None)
    inflated = ZlibStream(source, Limits(), gzip=False)
    while inflated.read(1 << 18):
        pass
    return start + source.raw_bytes - len(inflated.unused)


def _after_descriptor(file: BinaryIO, offset: int) -> int:
    """Step over the sizes that follow a member of undeclared size."""
    file.seek(offset)
    tail = file.read(24)
    signature = 4 if tail.startswith(b"PK\x07\x08") else 0
    for length in (12, 20):
        at = signature + length
        if tail[at : at + 4].startswith(b"PK") or offset + at >= file.seek(0, 2):
            return offset + at
        if len(tail) < at + 4:
            file.seek(offset + at)
            if file.read(2) == b"PK":
                return offset + at
    return offset + signature + 12
