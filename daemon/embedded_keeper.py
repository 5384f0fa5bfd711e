"""The small process between fullpass and its embedded Postgres: when one ends, so does the other.

Run as a script, with the standard library alone. It starts the server and then waits for the first
of three things: the lifeline (a pipe whose other end only the parent holds) closes, the parent's
process id changes hands, or the server ends by itself. A pipe closes however the parent dies, even
by SIGKILL, and unlike the Linux parent-death signal it does not fire when merely the *thread* that
made the child exits. The death signal guards the other direction: the keeper has one thread, so if
somebody kills the keeper, the kernel tells the server.

Argument: one JSON object, see `daemon.embedded`.
"""

from __future__ import annotations

import ctypes
import json
import os
import select
import signal
import subprocess
import sys
from typing import Any

PR_SET_PDEATHSIG = 1
FAST_SHUTDOWN_SECONDS = 8
PARENT_POLL_SECONDS = 1.0


def keep(order: dict[str, Any]) -> int:
    """Run the server until the parent is gone or it ends; return its exit code."""
    server = subprocess.Popen(  # noqa: S603 - the parent's own order
        order["command"],
        cwd=order["cwd"],
        env=order["env"],
        stdin=subprocess.DEVNULL,
        pass_fds=[order["lock_fd"]],
        # Runs after the change of user, which would clear the signal; there is but one thread.
        preexec_fn=_die_with_keeper if sys.platform == "linux" else None,  # noqa: PLW1509
        **order["identity"],
    )
    asked = False

    def on_signal(_number: int, _frame: object) -> None:
        nonlocal asked
        asked = True

    signal.signal(signal.SIGTERM, on_signal)
    while server.poll() is None and not asked and os.getppid() == order["parent_pid"]:
        if select.select([order["lifeline_fd"]], [], [], PARENT_POLL_SECONDS)[0]:
            break
    return _stop(server)


def _die_with_keeper() -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGINT, 0, 0, 0)


def _stop(server: subprocess.Popen[bytes]) -> int:
    """Fast shutdown; if it hangs, immediate; then by force. Data is safe in each case (WAL)."""
    for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGKILL):
        if server.poll() is not None:
            break
        server.send_signal(number)
        try:
            return server.wait(FAST_SHUTDOWN_SECONDS)
        except subprocess.TimeoutExpired:
            continue
    return server.wait()


if __name__ == "__main__":
    sys.exit(keep(json.loads(sys.argv[1])))
