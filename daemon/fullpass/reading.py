"""The process that reads one export: bytes in, rows ready to be stored out. Run as a module.

It exists so that hostile or huge input can harm nothing but its own job (promises 6 and 7): it has
a limit of memory of its own, is the first that the kernel takes when memory runs out, holds no
secret and no connection, yields the processor to the worker, and ends with it. Imports as little
as it can, for its size adds to the worker's.

Reads an Order on stdin, writes frames to stdout: see handover.py. Writing waits for the reader of
the pipe, so it is never more than a slice ahead of the database.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
import time
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import msgspec

from daemon import __version__
from daemon.errors import BadExport
from daemon.export.conversation import EVIDENCE_ROLES
from daemon.export.reader import ExportReader
from daemon.fullpass.chunks import conversation_hash, cut
from daemon.fullpass.handover import (
    FRAME,
    SLICE_CHARACTERS,
    Answer,
    Batch,
    Broken,
    Finished,
    Order,
    Part,
    Row,
)
from daemon.fullpass.tokens import estimate_tokens
from daemon.fullpass.turns import Tier

if TYPE_CHECKING:
    from collections.abc import Iterator

    from daemon.export.conversation import Conversation
    from daemon.fullpass.chunks import Chunk

_BATCH_CONVERSATIONS = 200
_SIGN_OF_LIFE_SECONDS = 1.0
_NICENESS = 1
"""Enough to let the worker go first; more would starve it on a busy machine."""
_PIPE_BYTES = 1 << 20
"""As much as anybody may have without asking."""
_OUT_OF_MEMORY_SCORE = 900
_PR_SET_PDEATHSIG = 1
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MEASURES = {"tokens": estimate_tokens, "characters": len}


def main() -> None:
    """Carry out the order on stdin."""
    ordered = sys.stdin.buffer.read()
    if not ordered:  # whoever started it has ended, or has nothing to be read
        return
    order = msgspec.msgpack.decode(ordered, type=Order)
    confine(order)
    # What is decoded is soon let go of and holds no cycles: looking for some at every 700 objects
    # takes a twentieth of the time.
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)
    _widen(sys.stdout.buffer)
    reading = Reading(order, sys.stdout.buffer)
    try:
        answer = reading.run()
    except BadExport as error:
        answer = Broken("export", str(error))
    except BrokenPipeError:
        return
    except MemoryError:
        answer = Broken("memory", f"needs more than {order.memory_bytes >> 20} MB")
    except OSError as error:
        answer = Broken("disk", f"{type(error).__name__}: {error.strerror}")
    except Exception as error:  # noqa: BLE001 - told to whoever ordered, in a word: no text of anybody's
        answer = Broken("defect", f"{type(error).__name__} at {_place(error)}")
    with suppress(BrokenPipeError):
        reading.send(answer)


def confine(order: Order) -> None:
    """Take this process's own limits upon it."""
    if order.release != __version__:
        sys.stdout.buffer.write(_framed(Broken("release", __version__)))
        sys.stdout.buffer.flush()
        sys.exit()
    # A service manager may tell the whole group to stop: the worker decides when this ends.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with suppress(OSError):
        os.nice(_NICENESS)
    if sys.platform != "linux":
        return
    import ctypes  # noqa: PLC0415 - for Linux only
    import resource  # noqa: PLC0415

    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != order.parent_pid:  # it ended before that was in force
        sys.exit()
    with suppress(OSError), open("/proc/self/oom_score_adj", "w", encoding="ascii") as score:  # noqa: PTH123 - pathlib would be one import more
        score.write(str(_OUT_OF_MEMORY_SCORE))
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_DATA, (order.memory_bytes, hard))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _widen(out: BinaryIO) -> None:
    """Let the pipe hold a whole batch, so that this process goes on while the worker is busy."""
    if sys.platform == "linux":
        import fcntl  # noqa: PLC0415

        with suppress(OSError):  # where pipes may not be so large, each write waits
            fcntl.fcntl(out, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)


class _UncutError(Exception):
    """There is not the memory to cut a conversation; what was sent is in order."""


@contextmanager
def _costing_only_itself() -> Iterator[None]:
    try:
        yield
    except MemoryError:
        raise _UncutError from None


class Reading:
    """One export on its way; `run` sends batches and returns what to send last."""

    def __init__(self, order: Order, out: BinaryIO) -> None:
        self._order = order
        self._out = out
        self._tiers = tuple(Tier(t.name, t.size, t.overlap, _MEASURES[t.unit]) for t in order.tiers)
        self._reader = ExportReader(
            Path(order.path),
            file_type=order.file_type,
            name=order.name,
            limits=order.limits,
            folder=Path(order.folder),
            on_read=self._show_life,
            tell_forgotten=True,
        )
        self._batch: dict[str, Part] = {}
        self._size = 0
        self._sent_at = time.monotonic()
        self._begun: Part | None = None
        """What was sent last of a conversation whose other slices are to follow."""

    def run(self) -> Answer:
        """Read to the end; raises what the reader raises."""
        try:
            for conversation in self._reader:
                self._take(conversation)
        except BadExport:
            self._flush()  # nothing was read, but some may have been asked to be forgotten
            raise
        self._flush()
        return Finished(self._reader.report)

    def send(self, answer: Answer) -> None:
        """Write one frame; waits for room in the pipe."""
        self._out.write(_framed(answer))
        self._out.flush()
        self._sent_at = time.monotonic()

    # --- batches

    def _take(self, conversation: Conversation) -> None:
        """Cut one conversation; put it into the batch, or send it in slices if it is large.

        One that cannot be cut in the memory there is costs only itself.
        """
        try:
            self._cut(conversation)
        except _UncutError:
            self._reader.report.lose(conversation, "needs more memory than there is")
            begun, self._begun = self._begun, None
            if begun is not None:
                self._send([msgspec.structs.replace(begun, chunk_count=0, last=True)])

    def _cut(self, conversation: Conversation) -> None:
        with _costing_only_itself():
            described = _described(conversation, self._tiers, self._order.last_modified)
        rows: list[Row] = []
        size = count = 0
        first = True
        for row in self._rows(conversation):
            rows.append(row)
            count += 1
            size += len(row.content) + len(row.messages)
            if size > SLICE_CHARACTERS:
                self._flush()
                self._send([Part(*described, rows, count, first, False)])
                rows, size, first = [], 0, False
                self._begun = Part(*described, [], count, first, False)
        part = Part(*described, rows, count, first, True)
        if not first:
            self._send([part])
            self._begun = None
            return
        # One conversation appears in a batch once: a later shard's copy starts the next.
        again = conversation.id in self._batch
        full = self._size + size > SLICE_CHARACTERS or len(self._batch) >= _BATCH_CONVERSATIONS
        if again or full:
            self._flush()
        self._batch[conversation.id] = part
        self._size += size

    def _rows(self, conversation: Conversation) -> Iterator[Row]:
        with _costing_only_itself():
            for tier in self._tiers:
                for chunk in cut(conversation, tier):
                    yield _row(chunk)

    def _flush(self) -> None:
        if self._batch:
            batch, self._batch, self._size = self._batch, {}, 0
            self._send(list(batch.values()))

    def _send(self, parts: list[Part]) -> None:
        report = self._reader.report
        share = report.bytes_read / max(1, report.bytes_total)
        self.send(
            Batch(report.source, parts, report.conversations, report.messages, min(1.0, share))
        )

    def _show_life(self) -> None:
        """Tell that bytes are being read, also where nothing comes of them for a while."""
        if time.monotonic() - self._sent_at > _SIGN_OF_LIFE_SECONDS:
            self._send([])


_encode = msgspec.msgpack.Encoder().encode


def _framed(answer: Answer) -> bytes:
    body = _encode(answer)
    return FRAME.pack(len(body)) + body


def _described(
    conversation: Conversation, tiers: tuple[Tier, ...], last_modified: datetime | None
) -> tuple[str, str, str, int, int, bool, datetime, datetime | None]:
    """Return a part's fields that are known before its rows."""
    count = own_characters = 0
    earliest: datetime | None = None
    for message in conversation.messages:
        count += 1
        if message.role in EVIDENCE_ROLES:
            own_characters += len(message.text)
        if message.at is not None and (earliest is None or message.at < earliest):
            earliest = message.at
    # Dated by the contract's order; never by the present.
    created_at = (
        conversation.created_at or earliest or conversation.updated_at or last_modified or _EPOCH
    )
    return (
        conversation.id, conversation.title, conversation_hash(conversation, tiers), count,
        own_characters, conversation.created_at is not None, created_at, conversation.updated_at,
    )  # fmt: skip


def _row(chunk: Chunk) -> Row:
    return Row(
        chunk.tier, chunk.index, chunk.total, chunk.content,
        len({s.message_id for s in chunk.spans}), chunk.token_count, chunk.content_hash,
        chunk.messages,
    )  # fmt: skip


def _place(error: Exception) -> str:
    """Return file and line of the innermost frame; a message could hold anybody's words."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None:
        return "?"
    return f"{os.path.basename(trace.tb_frame.f_code.co_filename)}:{trace.tb_lineno}"  # noqa: PTH119


if __name__ == "__main__":
    main()
