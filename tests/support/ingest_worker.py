"""A real worker that only ingests: for what is measured of reading and storing alone.

`python -m tests.support.ingest_worker`, with a worker's settings in the environment: works until
nothing is due; exit code 1 if a job did not complete.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from daemon.fullpass.ingest import download, save_conversations
from daemon.fullpass.reader_process import ReaderProcess
from daemon.settings import load_settings
from daemon.worker import Worker

if TYPE_CHECKING:
    from daemon.fullpass.context import Pass


async def ingest(work: Pass) -> tuple[dict[str, Any], dict[str, Any]]:
    """The first three steps of a pass."""
    with tempfile.TemporaryDirectory(prefix="fullpass-") as folder:
        async with ReaderProcess(check=work.lease.check) as reader:
            fetched = await download(work, Path(folder), reader)
            work.step = "save_chunks"
            await save_conversations(work, fetched, Path(folder), reader)
    return {}, {}


def main() -> None:
    """Work off what is due."""
    settings = load_settings()
    worker = Worker(settings, settings.database_url or "", run_pass=ingest)
    tally = asyncio.run(worker.run(once=True))
    sys.exit(bool(tally.failed or tally.left))


if __name__ == "__main__":
    main()
