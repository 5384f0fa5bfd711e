"""The command line as people meet it: a process of its own, an environment of its own."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import asyncpg

if TYPE_CHECKING:
    from collections.abc import Sequence

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "examples" / "conversations.json"

# Nothing that a developer has set may change what a test sees.
_KEPT = ("PATH", "HOME", "LANG", "TMPDIR", "SSL_CERT_FILE")


class Cli:
    """Runs `fullpass` in `folder`, with FULLPASS_HOME inside it and no other setting than given."""

    def __init__(self, folder: Path, **settings: object) -> None:
        self.folder = folder
        self.home = folder / "home"
        self._settings = {name: str(value) for name, value in settings.items()}

    def environment(self, **more: object) -> dict[str, str]:
        kept = {name: os.environ[name] for name in _KEPT if name in os.environ}
        return {
            **kept,
            "FULLPASS_HOME": str(self.home),
            "PYTHONPATH": str(ROOT),
            "COLUMNS": "80",
            **self._settings,
            **{name: str(value) for name, value in more.items()},
        }

    def run(
        self, *arguments: object, timeout_seconds: float = 60.0, **settings: object
    ) -> subprocess.CompletedProcess[str]:
        """Run to the end."""
        return subprocess.run(
            self._command(arguments),
            cwd=self.folder,
            env=self.environment(**settings),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout_seconds,
            check=False,
        )

    def start(self, *arguments: object, **settings: object) -> subprocess.Popen[str]:
        """Start and let the test go on; its output goes into a file, which never blocks."""
        with (self.folder / "output.txt").open("ab") as output:
            return subprocess.Popen(
                self._command(arguments),
                cwd=self.folder,
                env=self.environment(**settings),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                text=True,
            )

    def json(self, *arguments: object) -> Any:
        """Run a command that must succeed and print one JSON document and nothing else."""
        done = self.run(*arguments)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    @staticmethod
    def _command(arguments: Sequence[object]) -> list[str]:
        return [sys.executable, "-m", "daemon", *map(str, arguments)]


def ask(url: str, query: str, *arguments: object) -> list[asyncpg.Record]:
    """Run one query on a loop of its own."""

    async def fetch() -> list[asyncpg.Record]:
        connection = await asyncpg.connect(url, statement_cache_size=0)
        try:
            rows: list[asyncpg.Record] = await connection.fetch(query, *arguments)
            return rows
        finally:
            await connection.close()

    with ThreadPoolExecutor(max_workers=1) as thread:
        return thread.submit(lambda: asyncio.run(fetch())).result()
