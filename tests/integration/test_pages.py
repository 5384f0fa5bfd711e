"""Pages of docs/ are played from top to bottom: what they show is what happens."""

from __future__ import annotations

import contextlib
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.cli import ROOT, ask
from tests.support.pages import RUN, TOLD, Shown, missing_line, settings_in, shown_in
from tests.support.stage import CannotPlay, PageIsWrong, Stage, stage

if TYPE_CHECKING:
    from collections.abc import Iterator

DOCS = ROOT / "docs"


@contextlib.contextmanager
def played(folder: Path, page: str) -> Iterator[Stage]:
    """Give the stage after a page was played on it."""
    with stage(folder) as built:
        try:
            built.play(DOCS / page)
        except CannotPlay as error:
            pytest.skip(str(error))
        yield built


def statuses(built: Stage) -> list[str]:
    return [row["status"] for row in ask(built.database_url, "select status from processing_jobs")]


def count(built: Stage, table: str) -> int:
    (row,) = ask(built.database_url, f"select count(*) as n from {table}")
    number: int = row["n"]
    return number


def test_the_tutorial_ends_with_a_memory(tmp_path: Path) -> None:
    with played(tmp_path, "tutorial.md") as built:
        assert statuses(built) == ["complete"]
        assert "## Preferences" in built.said[-1][1]
        assert (tmp_path / "my-memory/report.html").exists()
        # What the how-to page warns of: a deleted account takes the app's rows with it, no more.
        facts = count(built, "fullpass.facts")
        ask(built.database_url, "delete from auth.users")
        assert (count(built, "user_profiles"), count(built, "processing_jobs")) == (0, 0)
        assert count(built, "fullpass.facts") == facts > 0


def test_a_deploy_by_the_page_works_an_export_as_a_login_without_power(tmp_path: Path) -> None:
    with played(tmp_path, "deploy.md") as built:
        assert statuses(built) == ["complete"]
        assert "//fullpass_login:PASSWORD@" in built.settings["DATABASE_URL"]
        assert built.project.requests, "the export came from Storage"
        (doctor, *_) = [said for shown, said in built.said if shown.text == "fullpass doctor"]
        assert not re.findall(r"^(?:mend|note|unknown) .*$", doctor, re.MULTILINE)


def test_every_recipe_of_the_how_to_page_does_what_it_says(tmp_path: Path) -> None:
    with played(tmp_path, "how-to.md") as built:
        said = [text for _, text in built.said]
        snippets = [json.loads(text) for shown, text in built.said if shown.kind == "js"]
        enqueued, progress, memory = snippets
        # Next.js, HTTP, SQL, Python and the terminal all gave the one job that the path has.
        assert len({enqueued["job"], *(row["id"] for row in jobs_of(built))}) == 1
        assert sum(enqueued["job"] in text for text in said) >= 5
        assert progress == {
            "full_pass_status": "complete", "progress_percent": 100, "import_stage": "complete",
            "full_pass_error": None,
        }  # fmt: skip
        assert "## Preferences" in memory["memory_md"]
        assert set(memory["user"]) >= {"name", "interests"}
        # And afterwards nothing of the person is left.
        (forgotten,) = [text for text in said if "'forget'" in text]
        assert '"conversation_chunks": 0' not in forgotten
        assert count(built, "conversation_chunks") == count(built, "fullpass.facts") == 0


def jobs_of(built: Stage) -> list[dict[str, str]]:
    return [dict(r) for r in ask(built.database_url, "select id::text from processing_jobs")]


@pytest.mark.parametrize(
    ("block", "told"),
    [
        ("```console\n$ echo one\ntwo\n```\n", "'two' is not shown"),
        ("```console\n$ false\n```\n", "exit code 1"),
        ("```sql\nSELECT nonsense;\n```\n", "does not exist"),
        ("```python\nraise SystemExit(3)\n```\n", "exit code 3"),
        ("```haskell\nmain = pure ()\n```\n", "nobody knows what to do"),
    ],
)
def test_an_untrue_block_is_found_with_its_line(
    tmp_path: Path, database_url: str, block: str, told: str
) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"# A page\n\n{block}", encoding="utf-8")
    built = Stage(tmp_path, database_url, None, _NoProject())  # type: ignore[arg-type]
    with pytest.raises(PageIsWrong, match=rf"^page\.md:4: (?s:.*){told}"):
        built.play(page)


class _NoProject:
    def token_of(self, _user: str) -> str:
        return ""


def test_what_a_page_shows_is_read_as_people_read_it() -> None:
    page = "```console\n$ one \\\n    two\nsaid\n$ three\n```\n```ini\nA=b # c\n# no\n```\n"
    one, three, ini = shown_in(page)
    assert (one.text, one.output) == ("one \\\n    two", ("said",))
    assert (three.text, three.output) == ("three", ())
    assert settings_in(ini) == {"A": "b"}
    assert missing_line(Shown("console", "x", ("b", "a"), 1), "a\nb") == "a"
    assert missing_line(Shown("console", "x", ("a", "…", "b"), 1), "a\nx\nb") is None


def test_every_block_of_every_page_is_of_a_kind_that_says_whether_it_is_run() -> None:
    for page in sorted(DOCS.rglob("*.md")):
        if "decisions" in page.parts:
            continue
        kinds = {shown.kind for shown in shown_in(page.read_text(encoding="utf-8"))}
        assert kinds <= {*RUN, *TOLD}, f"{page.name}: {kinds}"


def test_every_link_between_pages_leads_somewhere() -> None:
    for page in [ROOT / "README.md", *DOCS.rglob("*.md")]:
        for target in re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name} leads to {target}"


def test_the_map_leads_to_every_page() -> None:
    told = (DOCS / "index.md").read_text(encoding="utf-8")
    named = set(re.findall(r"\]\(([^)#:\s]+)", told))
    pages = {
        str(page.relative_to(DOCS))
        for page in DOCS.rglob("*.md")
        if "decisions" not in page.parts and page.name != "index.md"
    }
    assert pages <= named, pages - named
