"""A reading process that misbehaves as its order's name says: what a poisoned export could make it."""

from __future__ import annotations

import ctypes
import os
import sys
import time

import msgspec

from daemon.fullpass.handover import FRAME, Broken, Order
from daemon.fullpass.reading import confine


def main() -> None:
    """Misbehave."""
    order = msgspec.msgpack.decode(sys.stdin.buffer.read(), type=Order)
    confine(order)
    out = sys.stdout.buffer
    match order.name:
        case "segfault":
            ctypes.string_at(0)
        case "garbage":
            out.write(FRAME.pack(9) + b"cposix\nsy")
        case "too much":
            out.write(FRAME.pack(2**31))
        case "half":
            out.write(FRAME.pack(1000) + b"x" * 10)
        case "code":
            sys.exit(3)
        case "silence":
            out.flush()
            time.sleep(60)  # says nothing until it is killed: that is the fault
        case "endless":
            while True:
                pass
        case "growth":
            # Beyond the soft limit it took upon itself: shared pages are not counted there.
            import mmap

            shared = mmap.mmap(-1, 600 * 2**20)
            for at in range(0, len(shared), 4096):
                shared[at] = 1
            time.sleep(60)  # holds it all until it is killed: that is the fault
        case "environment":
            told = msgspec.msgpack.encode(Broken("export", ",".join(os.environ)))
            out.write(FRAME.pack(len(told)) + told)
    out.flush()


if __name__ == "__main__":
    main()
