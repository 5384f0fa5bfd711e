"""Plays pages of documentation from top to bottom against local stand-ins.

    python -m tests.support.stage docs/tutorial.md docs/deploy.md

Each page gets an empty folder that looks like an installed checkout, an embedded Postgres of its own
with the look of Supabase, a Supabase project and a Messages server on loopback. Settings that a page
shows hold for what follows on it, with the stand-ins' addresses and keys in place of the page's.
What a page shows must happen, in its order; the first thing that does not is an error with its line.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

import msgspec

from tests.support import postgres
from tests.support.anthropic_server import AnthropicServer
from tests.support.cli import EXAMPLE, Cli, ask
from tests.support.pages import ROOT, RUN, TOLD, Shown, missing_line, settings_in, shown_in
from tests.support.planted_truth import Truth, planted_from
from tests.support.supabase import look_of_supabase
from tests.support.supabase_project import PUBLISHABLE_KEY, SupabaseProject, behind

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

PERSON = "6f1c2a9e-7c1d-4e5b-9a43-0d2f7c6b1a10"
"""The user of every page."""
EXPORT = f"exports/{PERSON}/export.zip"
"""Their export, in Storage from the start: the app has uploaded it."""

_CLIENT = Path(__file__).with_name("supabase_js")
# Calls what a snippet exports, as the app's framework would: a route handler with a request of the
# logged-in person, any other function with a client of theirs.
_CALLS = """
import * as snippet from './snippet.mjs'
import { createClient } from '@supabase/supabase-js'
const { SUPABASE_URL, SUPABASE_PUBLISHABLE_KEY, USER_TOKEN, BODY } = process.env
const headers = { authorization: `Bearer ${USER_TOKEN}` }
for (const [name, call] of Object.entries(snippet)) {
  if (name === 'POST' || name === 'GET') {
    const asked = name === 'POST' ? { method: name, headers, body: BODY } : { headers }
    const answer = await call(new Request('http://app.test/api', asked))
    const text = await answer.text()
    if (!answer.ok) throw new Error(`${name}: ${answer.status} ${text}`)
    const stranger = await call(new Request('http://app.test/api', { ...asked, headers: {} }))
    if (stranger.status !== 401) throw new Error(`${name} lets strangers in: ${stranger.status}`)
    console.log(text)
  } else {
    const client = createClient(SUPABASE_URL, SUPABASE_PUBLISHABLE_KEY, { global: { headers } })
    console.log(JSON.stringify(await call(client)))
  }
}
process.exit(0)
"""


class PageIsWrong(AssertionError):
    """A page shows what does not happen; the message names the page and the line."""


class CannotPlay(Exception):
    """A component that a snippet needs is not on this machine."""


@dataclass
class Stage:
    """Where one page plays. `said` holds what was run, and what it said, in order."""

    folder: Path
    database_url: str
    model: AnthropicServer
    project: SupabaseProject
    settings: dict[str, str] = field(default_factory=dict)
    said: list[tuple[Shown, str]] = field(default_factory=list)

    def play(self, page: Path) -> None:
        """Run everything that the page shows. Raises PageIsWrong at the first untruth."""
        for shown in shown_in(page.read_text(encoding="utf-8")):
            try:
                self._do(shown)
            except PageIsWrong as wrong:
                raise PageIsWrong(f"{page.name}:{shown.line}: {wrong}") from None

    def _do(self, shown: Shown) -> None:
        if shown.kind == "ini":
            self._set(settings_in(shown))
            return
        if shown.kind not in RUN:
            if shown.kind not in TOLD:
                raise PageIsWrong(f"nobody knows what to do with a block of {shown.kind!r}")
            return
        if shown.kind == "sql":
            said = self._query(shown.text)
        elif shown.kind == "console" and shown.text.startswith("export "):
            self._set(self._exported(shown))
            return
        else:
            said = self._run(shown)
        self.said.append((shown, said))
        missing = missing_line(shown, said)
        if missing is not None:
            raise PageIsWrong(f"{shown.text}: {missing!r} is not shown (again):\n{said}")

    # Settings

    def _set(self, given: dict[str, str]) -> None:
        """Let settings hold from now on, the stand-ins' in place of the page's."""
        for name, value in given.items():
            match name:
                case "DATABASE_URL" | "DATABASE_LISTEN_URL":
                    self.settings[name] = self._database(value)
                case "SUPABASE_URL" | "NEXT_PUBLIC_SUPABASE_URL":
                    self.settings[name] = self.project.url
                case "SUPABASE_SERVICE_KEY":
                    self.settings[name] = self.project.key
                case "ANTHROPIC_API_KEY":
                    self.settings |= {name: "test-key", "ANTHROPIC_BASE_URL": self.model.url}
                case "ALERT_WEBHOOK" | "NOTIFY_WEBHOOK" | "SMTP_URL":
                    pass  # it would lead out of this machine
                case _:
                    self.settings[name] = value

    def _database(self, url: str) -> str:
        """Give the stand-in's URL, for the page's login if the page has made it."""
        parts = urlsplit(url)
        login = (parts.username or "").partition(".")[0]  # Supabase's pooler: login.project
        made = ask(self.database_url, "select from pg_roles where rolname = $1", login)
        if not made or login == urlsplit(self.database_url).username:
            return self.database_url
        return behind(self.database_url, user=login, password=unquote(parts.password or ""))

    def _exported(self, shown: Shown) -> dict[str, str]:
        """Let the shell say what an `export` comes to."""
        names = settings_in(shown)
        said = self._bash(shown.text + "".join(f'\nprintf "%s\\0" "${name}"' for name in names))
        return dict(zip(names, said.split("\0"), strict=False))

    # Running

    def _query(self, text: str) -> str:
        try:
            rows = ask(self.database_url, text)
        except Exception as error:
            raise PageIsWrong(f"{text}: {error}") from error
        if not rows and text.lower().startswith("select"):
            raise PageIsWrong(f"{text}: no row")
        return "\n".join(str(dict(row)) for row in rows)

    def _run(self, shown: Shown) -> str:
        if shown.kind == "console":
            return self._bash(shown.text)
        if shown.kind == "python":
            (self.folder / "snippet.py").write_text(shown.text, encoding="utf-8")
            return self._process([sys.executable, "snippet.py"], shown.text)
        node = shutil.which("node")
        if node is None:
            raise CannotPlay("missing component: node")
        (self.folder / "snippet.mjs").write_text(shown.text, encoding="utf-8")
        (self.folder / "calls.mjs").write_text(_CALLS, encoding="utf-8")
        return self._process([node, "calls.mjs"], shown.text)

    def _bash(self, command: str) -> str:
        return self._process(["bash", "-c", command], command)

    def _process(self, arguments: Sequence[str], told: str) -> str:
        environment = Cli(self.folder).environment(
            USER_TOKEN=self.project.token_of(PERSON),
            SUPABASE_PUBLISHABLE_KEY=PUBLISHABLE_KEY,
            PATH=f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            BODY=msgspec.json.encode({"path": EXPORT}).decode(),
            PIP_DISABLE_PIP_VERSION_CHECK="1",
            NODE_OPTIONS=os.environ.get("NODE_OPTIONS", ""),
        )
        done = subprocess.run(
            arguments,
            cwd=self.folder,
            env=environment | self.settings,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=100,
            check=False,
        )
        if done.returncode:
            raise PageIsWrong(f"{told}: exit code {done.returncode}\n{done.stdout}")
        return done.stdout


@contextlib.contextmanager
def stage(folder: Path) -> Iterator[Stage]:
    """Build the stage in an empty folder, on an empty database."""
    a_checkout(folder)
    with contextlib.ExitStack() as cleanup:
        url = postgres.embedded(cleanup)
        look_of_supabase(url)
        # Everyone whose export a page queues has an account in the app.
        ask(url, "insert into auth.users (id, email) values ($1, 'person@example.com')", PERSON)
        model = cleanup.enter_context(AnthropicServer())
        model.truth = truth_of_the_example()
        project = cleanup.enter_context(SupabaseProject(url))
        project.put(EXPORT, EXAMPLE.read_bytes())
        yield Stage(folder, url, model, project)


def a_checkout(folder: Path) -> None:
    """Make a folder look like an installed checkout: links to this one and to this Python."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt", "examples", "render.yaml"):
        (folder / name).symlink_to(ROOT / name)
    (folder / ".venv").mkdir()
    (folder / ".venv" / "bin").symlink_to(Path(sys.executable).parent)
    (folder / ".venv" / ".installed").touch()  # newer than both: make has nothing to install
    modules = folder / "node_modules" / "@supabase"
    modules.mkdir(parents=True)
    # SUPABASE_JS names a folder with the real package, for who wants to see the snippets run on it.
    real = os.environ.get("SUPABASE_JS")
    (modules / "supabase-js").symlink_to(Path(real).absolute() if real else _CLIENT)


def truth_of_the_example() -> Truth:
    """What a model that reads the bundled example well would find."""
    return Truth(planted_from(msgspec.json.decode((ROOT / "examples/truth.json").read_bytes())))


def main(pages: Sequence[str]) -> int:
    """Play pages and say how it went."""
    wrong = 0
    for name in pages:
        with tempfile.TemporaryDirectory(prefix="fp-stage-") as folder:
            try:
                with stage(Path(folder)) as built:
                    built.play(Path(name))
                told = f"{len(built.said)} commands, statements and snippets as shown"
            except PageIsWrong as error:
                wrong += 1
                told = f"wrong: {error}"
            except CannotPlay as error:
                wrong += 1
                told = str(error)
        sys.stdout.write(f"{name}: {told}\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
