"""Every command that the README shows is run, and shows what the README says it shows.

A ```console block holds commands after `$ ` and their output; a line `…` stands for output left
out. ```sql blocks are run too, in the order of the page. Numbers of seconds, ids and times may
differ, nothing else.
"""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from daemon.cli.commands import fullpass
from tests.support.cli import EXAMPLE, ROOT, Cli, ask
from tests.support.planted_truth import Truth, planted_from

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.anthropic_server import AnthropicServer
    from tests.support.storage_server import StorageServer

README = (ROOT / "README.md").read_text(encoding="utf-8")
SERVICE = "## As a service for your app"
_BLOCK = re.compile(r"^```(console|sql)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_VARIABLE = (
    (re.compile(r"f:[0-9a-f]{8}"), "f:ID"),
    (re.compile(r"\bin \d+\.\d s\b"), "in N s"),
    (re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"), "UUID"),
)


@dataclass(frozen=True)
class Shown:
    """One command of the page, or one SQL text, and the output shown below it."""

    kind: str
    command: str
    output: list[str]


def shown_in(page: str) -> Iterator[Shown]:
    for kind, body in _BLOCK.findall(page):
        if kind == "sql":
            yield from (Shown("sql", part, []) for part in body.split(";\n") if part.strip())
            continue
        for part in re.split(r"^\$ ", body, flags=re.MULTILINE)[1:]:
            command, *output = part.rstrip("\n").split("\n")
            yield Shown("console", command, output)


def run_in(cli: Cli, shown: Shown, **settings: object) -> None:
    done = subprocess.run(
        ["bash", "-c", shown.command],
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
    real = [same(line) for line in done.stdout.splitlines()]
    at = 0
    for line in (same(line) for line in shown.output if line not in {"…", ""}):
        assert line in real[at:], f"{shown.command}: {line!r} is not shown (again):\n{done.stdout}"
        at = real.index(line, at) + 1


def same(line: str) -> str:
    """Give the line without what differs from run to run."""
    for pattern, name in _VARIABLE:
        line = pattern.sub(name, line)
    return line.rstrip()


def a_checkout(folder: Path) -> Cli:
    """A folder that looks like an installed checkout: links to this one and to this Python."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt", "examples"):
        (folder / name).symlink_to(ROOT / name)
    (folder / ".venv").mkdir()
    (folder / ".venv" / "bin").symlink_to(Path(sys.executable).parent)
    (folder / ".venv" / ".installed").touch()  # newer than both: make has nothing to install
    return Cli(folder)


def test_the_first_screen_and_a_run_show_what_the_readme_shows(tmp_path: Path) -> None:
    cli = a_checkout(tmp_path)
    commands = list(shown_in(README.split(SERVICE)[0]))
    assert [c.command for c in commands][:2] == ["make install", "make demo"]
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
    commands = list(shown_in(README.split(SERVICE)[1]))
    assert {c.kind for c in commands} == {"console", "sql"}
    for shown in commands:
        if shown.kind == "sql":
            rows = ask(empty_database_url, shown.command)
            assert rows or shown.command.startswith("INSERT"), shown.command
        else:
            run_in(cli, shown, PATH=path)
    (job,) = ask(empty_database_url, "select status from processing_jobs")
    assert job["status"] == "complete"


def truth_of_the_example() -> Truth:
    """What a model that reads the example well would find."""
    return Truth(planted_from(msgspec.json.decode((ROOT / "examples/truth.json").read_bytes())))


def test_every_command_of_the_readme_exists_and_the_other_way_round() -> None:
    named = set(re.findall(r"`fullpass ([a-z]+)", README))
    assert named - {"COMMAND"} == set(fullpass.commands)


def test_links_and_files_that_the_readme_names_exist() -> None:
    for name in ("daemon/settings.py", "docs/decisions", "Dockerfile", "render.yaml"):
        assert name in README
        assert (ROOT / name).exists()
