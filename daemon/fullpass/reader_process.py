"""Starts the process that reads an export, takes its answers, and survives whatever it does.

Owns that process's life: it is started fresh (the worker has threads, so no fork), gets no secret
of the worker's environment, and is killed the moment the job is not to be worked on any more, when
it takes more memory than it was given, or makes no progress. However it ends, the worker goes on,
and the job gets an error with the evidence (promises 6 and 7). Leaves what the answers mean to
ingest.py.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Self

import msgspec

import daemon
from daemon.errors import BadExport, FullpassError, TryAgain, Wait
from daemon.fullpass.handover import FRAME, FRAME_BYTES, Answer, Batch, Broken, Finished, Order
from daemon.logs import get_logger
from daemon.memory_gauge import MIB, peak_rss_bytes_of
from daemon.queue.lease import clock

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from daemon.export.conversation import ReadReport

_log = get_logger()

PATIENCE_SECONDS = 120.0
"""Without an answer for so long, not even "some bytes were read", it hangs."""
_LOOK_SECONDS = 0.2
_PIPE_BYTES = 256 * 1024
_SAID_BYTES = 8192
_HOME = Path(daemon.__file__).resolve().parents[1]
# What an interpreter needs of its environment; everything else may be a secret.
_ENVIRONMENT = ("PATH", "LANG", "LC_ALL", "TMPDIR", "SYSTEMROOT", "LD_LIBRARY_PATH")


class ReaderDied(TryAgain):
    """The reading process ended without a last word: killed, crashed, hung or too large."""


class ReaderProcess:
    """One reading of one export; an async context manager. Iterate over it once, for its batches.

    An order that is not known yet is given by `begin`. `check` raises what ends the work (a lost
    lease, a drain) and is asked several times a second. After the iteration `report` is the
    reader's account.
    """

    def __init__(
        self,
        order: Order | None = None,
        *,
        check: Callable[[], None],
        patience_seconds: float = PATIENCE_SECONDS,
        module: str = "daemon.fullpass.reading",
    ) -> None:
        self._given_order = order
        self._check = check
        self._patience_seconds = patience_seconds
        self._module = module
        self._starting: asyncio.Task[asyncio.subprocess.Process] | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._said = b""
        self._listening: asyncio.Task[None] | None = None
        self._coming: asyncio.Task[Answer] | None = None
        self._decoder: msgspec.msgpack.Decoder[Answer] = msgspec.msgpack.Decoder(Answer)
        self.peak_rss_bytes = 0
        self.report: ReadReport | None = None

    async def __aenter__(self) -> Self:
        if self._given_order is not None:
            await self.begin(self._given_order)
        return self

    def warm_up(self) -> None:
        """Start the process before there is an order: it takes a tenth of a second to be ready."""
        if self._starting is None:
            self._starting = asyncio.create_task(self._start())

    async def begin(self, order: Order) -> None:
        """Have it read what is ordered."""
        self._given_order = order
        self.warm_up()
        process = await self._begun()
        if process.returncode is not None:  # ended by whoever ends processes, while it waited
            process = await self._start()
        self._process = process
        self._listening = asyncio.create_task(self._listen())
        if process.stdin is not None:
            process.stdin.write(msgspec.msgpack.encode(order))
            process.stdin.close()

    async def _start(self) -> asyncio.subprocess.Process:
        environment = {
            name: value
            for name, value in os.environ.items()
            if name in _ENVIRONMENT or name.startswith("PYTHON")
        }
        return await asyncio.create_subprocess_exec(
            sys.executable, "-X", "faulthandler", "-m", self._module,
            cwd=_HOME, env=environment, limit=_PIPE_BYTES,
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,  # a Ctrl-C is for the worker, which then ends it
        )  # fmt: skip

    async def _begun(self) -> asyncio.subprocess.Process:
        """Wait for the start; one that is cancelled meanwhile is ended all the same."""
        if self._starting is None:
            raise RuntimeError("the reading process was not started")
        return await asyncio.shield(self._starting)

    async def __aexit__(self, *_: object) -> None:
        """End the process, whatever it is doing, and reap it."""
        if self._starting is None:
            return
        await asyncio.wait({self._starting})
        if self._starting.exception() is not None:
            return  # told where it was awaited, or nobody has come to need it
        process = self._process or self._starting.result()
        if process.returncode is None:
            with suppress(ProcessLookupError):
                process.kill()
        if self._coming is not None:
            self._coming.cancel()
            await asyncio.wait({self._coming})
            if not self._coming.cancelled():
                self._coming.exception()  # whatever it was, the iteration told of it or is over
        # What is left in its pipes is nobody's any more; unread, it would keep them open.
        for pipe in (process.stdout, process.stderr if self._listening is None else None):
            while pipe is not None and await pipe.read(_PIPE_BYTES):
                continue
        await process.wait()
        if self._listening is not None:
            await self._listening

    async def __aiter__(self) -> AsyncIterator[Batch]:
        """Yield batches; raises BadExport, Wait, or ReaderDied with what is known.

        One answer is taken from the pipe while the one before is dealt with.
        """
        self._coming = asyncio.create_task(self._answer())
        while True:
            answer = await self._watched(self._coming)
            if not isinstance(answer, Batch):
                self.report = self._ended(answer)
                return
            self._coming = asyncio.create_task(self._answer())
            yield answer

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._started.pid

    @property
    def _started(self) -> asyncio.subprocess.Process:
        if self._process is None:
            raise RuntimeError("the reading process was not started")
        return self._process

    @property
    def _order(self) -> Order:
        if self._given_order is None:
            raise RuntimeError("the reading process has no order")
        return self._given_order

    # --- answers

    async def _answer(self) -> Answer:
        """Take one frame; raises ReaderDied where none comes any more, or none that can be read."""
        stdout = self._started.stdout
        if stdout is None:
            raise RuntimeError("the reading process has no pipe")
        try:
            (size,) = FRAME.unpack(await stdout.readexactly(FRAME.size))
            if size > FRAME_BYTES:
                raise self._died("sent more at once than it may")
            return self._decoder.decode(await stdout.readexactly(size))
        except asyncio.IncompleteReadError:
            await self._started.wait()
            raise self._died(_ending(self._started.returncode or 0)) from None
        except msgspec.DecodeError:
            raise self._died("sent what is no answer") from None

    async def _watched(self, coming: asyncio.Task[Answer]) -> Answer:
        """Wait for an answer, looking up now and then; raises what ends the reading."""
        since = clock()
        while True:
            await asyncio.wait({coming}, timeout=_LOOK_SECONDS)
            self._check()
            if coming.done():
                self._look_at_memory()
                return coming.result()
            if self._look_at_memory() > self._order.memory_bytes + 64 * MIB:
                raise self._died(f"took more memory than the {self._given} MB it may")
            if clock() - since > self._patience_seconds:
                raise self._died(f"made no progress for {clock() - since:.0f} s")

    def _ended(self, answer: Finished | Broken) -> ReadReport:
        if isinstance(answer, Finished):
            return answer.report
        match answer.kind:
            case "export":
                raise BadExport(answer.told)
            case "memory":
                raise self._died(f"needs more memory than the {self._given} MB it may")
            case "release":
                raise Wait(
                    f"release {answer.told} was installed over the running {self._order.release}; "
                    "restart the worker",
                    seconds=30.0,
                )
            case "disk":
                raise Wait(
                    f"{self._order.name}: reading met trouble on this machine's disk "
                    f"({answer.told}); make room there",
                    seconds=60.0,
                )
            case "defect":
                raise TryAgain(f"{self._order.name}: unexpected {answer.told} while reading")

    # --- evidence

    @property
    def _given(self) -> int:
        return self._order.memory_bytes // MIB

    def _look_at_memory(self) -> int:
        self.peak_rss_bytes = max(self.peak_rss_bytes, peak_rss_bytes_of(self.pid))
        return self.peak_rss_bytes

    def _died(self, how: str) -> FullpassError:
        """Make the error of a reader that gave no last word."""
        peak = f"peak RSS {self.peak_rss_bytes // MIB} MB"
        _log.error("reader.died", how=how, peak_rss=peak, frames=_frames(self._said))
        return ReaderDied(f"{self._order.name}: the reader of this export {how}, {peak}")

    async def _listen(self) -> None:
        """Keep the end of what it says on stderr: a crashing interpreter names its frames."""
        stderr = self._started.stderr
        while stderr is not None and (piece := await stderr.read(_SAID_BYTES)):
            self._said = (self._said + piece)[-_SAID_BYTES:]


def _ending(code: int) -> str:
    if code >= 0:
        return f"ended with code {code}"
    with suppress(ValueError):
        if code == -signal.SIGKILL:
            return "was killed, signal 9 (out of memory, if nobody did it by hand)"
        return f"was killed, signal {-code} ({signal.Signals(-code).name})"
    return f"was killed, signal {-code}"


def _frames(said: bytes) -> list[str]:
    """Keep the lines that name files and errors; no other line of a crash is free of text."""
    lines = said.decode("utf-8", "replace").splitlines()
    kept = ("  File ", "Fatal Python error", "ModuleNotFoundError", "ImportError", "MemoryError")
    return [line.strip()[:200] for line in lines if line.startswith(kept)][-8:]
