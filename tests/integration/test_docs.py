"""Every command that a page shows is run, and shows what the page says it shows.

A ```console block holds commands after `$ ` and their output; a line `…` stands for output left
out. ```sql, ```python and ```js blocks are run too, in the order of the page. Numbers of seconds,
ids and times may differ, nothing else (`tests.support.pages`, `tests.support.stage`).
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from daemon.cli.commands import fullpass
from tests.support.cli import EXAMPLE, ROOT, Cli, ask
from tests.support.pages import Shown, missing_line, shown_in
from tests.support.stage import a_checkout, truth_of_the_example

if TYPE_CHECKING:
    from tests.support.anthropic_server import AnthropicServer
    from tests.support.storage_server import StorageServer

README = (ROOT / "README.md").read_text(encoding="utf-8")
SERVICE = "## As a service for your app"


def run_in(cli: Cli, shown: Shown, **settings: object) -> None:
    done = subprocess.run(
        ["bash", "-c", shown.text],
        cwd=cli.folder,
        env=cli.environment(**settings),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    missing = missing_line(shown, done.stdout)
    assert missing is None, f"{shown.text}: {missing!r} is not shown (again):\n{done.stdout}"


def test_the_first_screen_and_a_run_show_what_the_readme_shows(tmp_path: Path) -> None:
    a_checkout(tmp_path)
    cli = Cli(tmp_path)
    commands = list(shown_in(README.split(SERVICE)[0]))
    assert [c.text for c in commands][:2] == ["make install", "make demo"]
    for shown in commands:
        run_in(cli, shown)


def test_the_service_commands_and_their_sql_work_as_shown(
    tmp_path: Path,
    empty_database_url: str,
    anthropic_server: AnthropicServer,
    storage_server: StorageServer,
) -> None:
    storage_server.put("exports/6f1c2a9e/export.zip", EXAMPLE.read_bytes())
    cli = Cli(
        tmp_path, DATABASE_URL=empty_database_url, ANTHROPIC_API_KEY="test-key",
        ANTHROPIC_BASE_URL=anthropic_server.url, SUPABASE_URL=storage_server.url,
        SUPABASE_SERVICE_KEY=storage_server.key,
    )  # fmt: skip
    anthropic_server.truth = truth_of_the_example()
    path = f"{Path(sys.executable).parent}:{cli.environment()['PATH']}"
    commands = [s for s in shown_in(README.split(SERVICE)[1]) if s.kind != "ini"]
    assert {c.kind for c in commands} == {"console", "sql"}
    for shown in commands:
        if shown.kind == "sql":
            rows = ask(empty_database_url, shown.text)
            assert rows or shown.text.startswith("INSERT"), shown.text
        else:
            run_in(cli, shown, PATH=path)
    (job,) = ask(empty_database_url, "select status from processing_jobs")
    assert job["status"] == "complete"


def test_every_command_of_the_readme_exists_and_the_other_way_round() -> None:
    named = set(re.findall(r"`fullpass ([a-z]+)", README))
    assert named - {"COMMAND"} == set(fullpass.commands)


def test_links_and_files_that_the_readme_names_exist() -> None:
    for name in ("docs/reference/settings.md", "docs/decisions", "Dockerfile", "render.yaml"):
        assert name in README
        assert (ROOT / name).exists()
