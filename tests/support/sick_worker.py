"""A real worker process with an organ that fails: what is past remedy must end by itself.

    python -m tests.support.sick_worker claiming|beats|heartbeat

`claiming`: the claiming loop waits for something that never comes, its event loop being well.
`beats`: no beat can be made, whatever the database answers. `heartbeat`: its thread is just gone.
Time-outs are scaled to a test's.
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import daemon.queue.lifelines
import daemon.worker
from daemon.logs import configure_logs
from daemon.settings import load_settings
from tests.support.queue_worker import short_pass


class SickWorker(daemon.worker.Worker):
    """Well until its first beat; then the organ named on the command line fails."""

    ill: str
    reports = 0

    async def _claim_all(self, serving: Any) -> None:
        await super()._claim_all(serving)
        if self.ill == "claiming":
            await asyncio.Event().wait()

    def _vitals(self) -> dict[str, Any]:
        self.reports += 1
        if self.ill == "beats" and self.reports > 1:
            raise AttributeError("a defect of ours")
        if self.ill == "heartbeat" and self.reports > 1:
            raise SystemExit  # ends a thread without a word
        return super()._vitals()


def main() -> None:
    daemon.queue.lifelines._STUCK_COMMANDS = 0.1  # type: ignore[assignment]
    settings = load_settings()
    configure_logs(log_format="json")
    assert settings.database_url is not None
    worker = SickWorker(settings, settings.database_url, run_pass=short_pass)
    worker.ill = sys.argv[1]
    asyncio.run(worker.run())


if __name__ == "__main__":
    main()
