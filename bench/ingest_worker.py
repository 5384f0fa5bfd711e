"""The worker that bench_ingest.py measures: the real one, ending a pass when its rows are saved.

    python bench/ingest_worker.py --once

Settings come from the environment, as for `fullpass worker`. All that a worker imports is imported,
the model's SDK too, so that its memory is a real worker's.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from daemon.fullpass import ingest
from daemon.fullpass.reader_process import ReaderProcess
from daemon.logs import configure_logs
from daemon.settings import load_settings
from daemon.worker import Worker

if TYPE_CHECKING:
    from daemon.fullpass.context import Pass


async def ingest_only(work: Pass) -> tuple[dict[str, Any], dict[str, Any]]:
    """Do the first three steps of a pass."""
    with tempfile.TemporaryDirectory(prefix="fullpass-") as name:
        async with ReaderProcess(check=work.lease.check) as reader:
            work.step = "download_conversations"
            fetched = await ingest.download(work, Path(name), reader)
            work.step = "save_chunks"
            await ingest.save_conversations(work, fetched, Path(name), reader)
    return {}, {"cost_usd": 0.0, "calls": 0}


def main() -> int:
    """Work until nothing is due (--once) or until stopped."""
    settings = load_settings()
    configure_logs(log_format="json", level="ERROR")
    assert settings.database_url is not None
    worker = Worker(settings, settings.database_url, run_pass=ingest_only)
    tally = asyncio.run(worker.run(once="--once" in sys.argv))
    for job_id, reason in {**tally.failed, **tally.left}.items():
        print(f"{job_id}: {reason}", file=sys.stderr)
    return 1 if tally.failed or tally.left else 0


if __name__ == "__main__":
    sys.exit(main())
