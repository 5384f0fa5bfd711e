"""The heartbeat: an OS thread with its own event loop and its own connection.

It renews every lease of this worker in one statement, reports the worker's vitals, and passes on
what the database answers. A busy event loop or a slow pool in the rest of the process cannot delay
it (promise 6). When the database cannot be reached it keeps trying with jittered back-off; the
leases notice by themselves that no renewal came (`Lease.check`).
"""

from __future__ import annotations

import asyncio
import json
import random
import threading
from typing import TYPE_CHECKING, Any

from daemon.database import connect, database_errors
from daemon.errors import FullpassError
from daemon.logs import get_logger
from daemon.queue.lease import clock

if TYPE_CHECKING:
    from collections.abc import Callable
    from uuid import UUID

    from daemon.database import Connection
    from daemon.queue.lease import Lease

_log = get_logger()


class Heartbeat:
    """Beats for all leases of one worker from `start()` to `stop()`.

    `vitals` is called on the beat's own thread and must be quick and thread-safe; its keys are the
    columns of fullpass.workers.
    """

    def __init__(
        self,
        url: str,
        *,
        worker_id: str,
        beat_seconds: float,
        lease_seconds: float,
        vitals: Callable[[], dict[str, Any]],
    ) -> None:
        self._url = url
        self._worker_id = worker_id
        self._beat_seconds = beat_seconds
        self._lease_seconds = lease_seconds
        self._vitals = vitals
        self._leases: dict[UUID, Lease] = {}
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)
        self.last_acknowledged: float | None = None

    def start(self) -> None:
        """Start beating."""
        self._thread.start()

    def stop(self) -> None:
        """Stop beating and wait for the thread, at most a command's time-out."""
        self._stopped.set()
        self._thread.join(timeout=5)

    def add(self, lease: Lease) -> None:
        """Renew this lease from the next beat on."""
        with self._lock:
            self._leases[lease.job_id] = lease

    def remove(self, lease: Lease) -> None:
        """Stop renewing this lease."""
        with self._lock:
            if self._leases.get(lease.job_id) is lease:
                del self._leases[lease.job_id]

    def _run(self) -> None:
        asyncio.run(self._beat_until_stopped())

    async def _beat_until_stopped(self) -> None:
        connection: Connection | None = None
        failures = 0
        while not self._stopped.is_set():
            try:
                if connection is None:
                    connection = await connect(
                        self._url, command_timeout_seconds=max(1.0, self._lease_seconds / 4)
                    )
                await self._beat(connection)
                failures = 0
                pause = self._beat_seconds
            except FullpassError as error:
                failures += 1
                if connection is not None:
                    connection.terminate()
                    connection = None
                pause = min(self._beat_seconds, 0.2 * 2**failures) * random.uniform(0.75, 1.25)
                _log.warning("beat.failed", error=str(error), failures=failures)
            await asyncio.to_thread(self._stopped.wait, pause)
        if connection is not None:
            connection.terminate()

    async def _beat(self, connection: Connection) -> None:
        with self._lock:
            leases = dict(self._leases)
        sent_at = clock()
        with database_errors():
            rows = await connection.fetch(
                "select job_id, verdict from fullpass.beat($1, $2, $3, $4, $5)",
                self._worker_id,
                list(leases),
                [lease.epoch for lease in leases.values()],
                self._lease_seconds,
                json.dumps(self._vitals()),
            )
        self.last_acknowledged = clock()
        for row in rows:
            lease = leases[row["job_id"]]
            if row["verdict"] == "lost":
                lease.lost()
            else:
                lease.renewed(sent_at)
                if row["verdict"] == "cancel":
                    lease.cancel()
