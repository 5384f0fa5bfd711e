"""Workers of the curve: the daemon as it is, its pass replaced by one that only waits and writes.

    DATABASE_URL=… python bench/scale_worker.py CALLS MILLISECONDS CLAIMS_FILE…

A process for each file, forked when everything is imported, since importing is not what is measured.
A simulated pass makes CALLS model calls of MILLISECONDS each: after each a receipt, by the
ledger itself, and a fenced transaction that reports progress. How long each claim took stands in
its file, a line each in milliseconds, once the worker has ended by SIGTERM.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from daemon.llm.request import Bill, Reply, Request, Usage
from daemon.logs import configure_logs
from daemon.queue import jobs
from daemon.settings import load_settings
from daemon.worker import Worker

if TYPE_CHECKING:
    from daemon.fullpass.context import Pass

_CALL = Request("extract", "v1", "simulated", "", "", {}, 1000, 60.0)
_REPLY = Reply(
    '{"facts": []}' * 150,  # about 2 kB, as a reply of an extraction has
    "end_turn",
    Usage(8000, 900),
    "simulated",
    latency_ms=10,
    bill=Bill(Decimal("0.00125")),
)


async def work(calls: int, milliseconds: float, claims: Path) -> None:
    """Work until SIGTERM."""
    settings = load_settings()
    assert settings.database_url is not None
    took: list[float] = []
    claim = jobs.claim

    async def timed(*arguments: Any, **options: Any) -> list[jobs.Job]:
        started = time.perf_counter()
        found = await claim(*arguments, **options)
        if found:
            took.append(1000 * (time.perf_counter() - started))
        return found

    async def simulated(work: Pass) -> tuple[dict[str, Any], dict[str, Any]]:
        work.step = "extract_facts"
        for call in range(calls):
            await asyncio.sleep(milliseconds / 1000)
            await work.caller.ledger.record(
                _CALL, _REPLY, key=f"{work.job.id} {call}", user_id=work.job.user_id,
                job_id=work.job.id, provider="bench", usable=True,
            )  # fmt: skip
            async with work.lease.fenced() as connection:
                await connection.execute(
                    "select fullpass.progress($1, 'extract_facts', $2, 'reading')",
                    work.job.id,
                    20 + 60 * (call + 1) // calls,
                )
        return {}, {"cost_usd": 0.0, "calls": calls}

    jobs.claim = timed
    await Worker(settings, settings.database_url, run_pass=simulated).run()
    claims.write_text("".join(f"{ms:.3f}\n" for ms in took), encoding="utf-8")


def main(calls: int, milliseconds: float, files: list[Path]) -> None:
    """Fork the workers, pass SIGTERM on to them and wait for them."""
    workers = []
    for file in files:
        if pid := os.fork():
            workers.append(pid)
            continue
        asyncio.run(work(calls, milliseconds, file))
        os._exit(0)

    def pass_on(number: int, _frame: object) -> None:
        for pid in workers:
            os.kill(pid, number)

    signal.signal(signal.SIGTERM, pass_on)
    sys.exit(any(os.waitpid(pid, 0)[1] for pid in workers))


if __name__ == "__main__":
    configure_logs(log_format="json", level="ERROR")
    main(int(sys.argv[1]), float(sys.argv[2]), [Path(name) for name in sys.argv[3:]])
