"""What keeps a worker alive, awake and watched while it serves: made together, from its settings.

The heartbeat renews its leases from a thread of its own (promise 6); the echo and the pulse let
that thread see whether the event loop and the claiming loop still move; the wake-up ends a wait
when there is work (promise 8). Leaves starting and ending them to the worker.
"""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from daemon.database import is_transaction_pooler
from daemon.queue.heartbeat import Heartbeat
from daemon.queue.liveness import LoopEcho, Pulse
from daemon.queue.wakeup import Wakeup

if TYPE_CHECKING:
    from collections.abc import Callable

    from daemon.database import Pool
    from daemon.settings import Settings

_STUCK_COMMANDS = 5
"""A round of the claiming loop is a few commands; this many times the longest, and it is stuck."""


@dataclass(frozen=True, slots=True)
class Lifelines:
    """Those of one worker."""

    heartbeat: Heartbeat
    pulse: Pulse
    echo: LoopEcho
    wakeup: Wakeup


def lifelines(
    pool: Pool,
    settings: Settings,
    *,
    url: str,
    worker_id: str,
    command_seconds: float,
    vitals: Callable[[], dict[str, Any]],
    once: bool,
) -> Lifelines:
    """Make those of a worker whose event loop is the running one, and start none of them.

    `command_seconds` is what a command of its pool may take; `vitals` is asked on the heartbeat's
    thread. With `once` nothing listens: such a worker polls until nothing is due.
    """
    listen_url = settings.database_listen_url or (None if is_transaction_pooler(url) else url)
    pulse = Pulse(patience_seconds=_STUCK_COMMANDS * command_seconds)
    echo = LoopEcho(asyncio.get_running_loop())
    heartbeat = Heartbeat(
        url,
        worker_id=worker_id,
        beat_seconds=settings.heartbeat_seconds,
        lease_seconds=settings.lease_seconds,
        vitals=vitals,
        max_wait_hours=settings.max_wait_hours,
        echo=echo,
        pulse=pulse,
        end_process=lambda: os._exit(1),
    )
    wakeup = Wakeup(
        None if once else listen_url,
        poll_seconds=settings.poll_interval_seconds,
        pool=pool,
        shares_url=not settings.database_listen_url,
    )
    return Lifelines(heartbeat, pulse, echo, wakeup)
