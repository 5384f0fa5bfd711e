"""The dashboard in a real browser: loads nothing foreign, reads well on a phone, by ear and in the dark.

`make pictures` (FULLPASS_PICTURES=folder) also writes the pictures that docs/ shows.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from daemon.database import connect
from tests.support import postgres
from tests.support.browser import BROWSER, Tab, browser
from tests.support.cli import ask
from tests.support.dashboard import dashboard
from tests.support.pages_read import HOSTILE
from tests.support.scene import READING, two_days

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.browser import Browser

pytestmark = [
    pytest.mark.xdist_group("dashboard_browser"),
    pytest.mark.skipif(
        BROWSER is None, reason="missing component: Chromium (CHROMIUM, or on the path)"
    ),
]

PAGES = ("/", "/past", f"/jobs/{READING}")
PICTURES = os.environ.get("FULLPASS_PICTURES")

# Every visible text against what is painted behind it, by WCAG's formula; the worst ones below 4.5.
CONTRAST = """(() => {
  const rgb = (text) => text.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b]
    .map((v) => v / 255).map((v) => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (e) => {
    for (; e; e = e.parentElement) {
      const c = rgb(getComputedStyle(e).backgroundColor);
      if (c.length < 4 || c[3] > 0) return c;
    }
    return [255, 255, 255];
  };
  const poor = [];
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (texts.nextNode()) {
    const e = texts.currentNode.parentElement;
    if (!texts.currentNode.data.trim() || !e.checkVisibility()) continue;
    const [a, b] = [light(rgb(getComputedStyle(e).color)), light(behind(e))];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) poor.push(`${ratio.toFixed(2)}: ${texts.currentNode.data.trim()}`);
  }
  return poor;
})()"""
# What sticks out of the window, or is cut off by what it stands in.
STICKS_OUT = """[...document.querySelectorAll('main *, header *, footer *')]
  .filter((e) => e.getBoundingClientRect().right > innerWidth + 1
                 && e.getBoundingClientRect().left >= 0)
  .map((e) => e.outerHTML.slice(0, 120))"""


@pytest.fixture(scope="module")
def scene_url(postgres_server: postgres.Server) -> Iterator[str]:
    url = postgres.create_database(postgres_server.url, migrated=True)

    async def fill() -> None:
        db = await connect(url)
        await two_days(db)
        await db.close()

    try:
        asyncio.run(fill())
        yield url
    finally:
        postgres.drop_database(url)


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser(tmp_path_factory.mktemp("profile")) as started:
        yield started


@pytest.fixture(scope="module")
def site(scene_url: str) -> Iterator[str]:
    with dashboard(scene_url) as at:
        yield at


@pytest.mark.parametrize(("width", "dark"), [(390, True), (700, False), (1280, True)])
def test_every_page_fits_is_legible_and_loads_only_its_own(
    chromium: Browser, site: str, width: int, *, dark: bool
) -> None:
    tab = Tab(chromium, width=width, dark=dark)
    for page in PAGES:
        tab.open(site + page)
        tab.evaluate("document.querySelectorAll('details').forEach((d) => { d.open = true })")
        assert tab.evaluate("document.documentElement.scrollWidth") <= width
        assert tab.evaluate(STICKS_OUT) == []
        assert tab.evaluate(CONTRAST) == []
    assert tab.complaints() == []
    assert all(url.startswith((site, "data:")) for url in tab.asked_for())


def test_a_page_can_be_heard(chromium: Browser, site: str) -> None:
    tab = Tab(chromium, width=390)  # where tables are laid out as cards
    for page in PAGES:
        tab.open(site + page)
        heard = tab.heard()
        roles = [role for role, _ in heard]
        for landmark in ("banner", "navigation", "search", "main", "contentinfo"):
            assert roles.count(landmark) == 1, (page, landmark)
        assert tab.evaluate("document.querySelectorAll('h1').length") == 1
        levels = tab.evaluate(
            "[...document.querySelectorAll('h1,h2,h3')].map((h) => Number(h.tagName[1]))"
        )
        assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
        nameless = [
            role for role, name in heard
            if role in {"image", "region", "table", "heading", "link", "button", "textbox",
                        "progressbar", "progress", "checkbox", "searchbox"} and not name.strip()
        ]  # fmt: skip
        assert nameless == [], page
        assert {"table", "rowheader", "columnheader", "cell"} <= set(roles), page
    tab.open(f"{site}/")
    names = [name for _, name in tab.heard()]
    assert any(re.search(r"\d{3} complete and \d+ failed", name) for name in names)


def test_what_is_in_the_database_runs_nowhere(chromium: Browser, database_url: str) -> None:
    async def fill() -> None:
        db = await connect(database_url)
        await two_days(db)
        await db.execute("alter table processing_jobs disable trigger user")
        await db.execute("update fullpass.workers set worker_id = $1 || worker_id", HOSTILE)
        await db.execute(
            "update processing_jobs set error_message = $1, current_step = $1, storage_path = $1 || id, "
            "worker_id = $1",
            HOSTILE,
        )
        await db.execute("update fullpass.job_events set step = $1", HOSTILE)
        await db.close()

    asyncio.run(fill())
    with dashboard(database_url) as at:
        tab = Tab(chromium)
        for page in PAGES:
            tab.open(at + page)
            assert "taken" not in tab.evaluate("document.title")
            assert tab.evaluate("document.querySelectorAll('img, main script').length") == 0
        assert tab.complaints() == []


def test_it_stays_fresh_by_itself_and_leaves_alone_what_is_being_read(
    chromium: Browser, site: str, scene_url: str
) -> None:
    tab = Tab(chromium)
    tab.open(f"{site}/past")
    tab.evaluate("document.querySelector('details').open = true")
    tab.evaluate("window.stays = document.querySelector('details')")
    ask(
        scene_url,
        "insert into processing_jobs (user_id, storage_path, status, lease_epoch, started_at, "
        "completed_at, pipeline_version) select gen_random_uuid(), 'e/fresh', 'complete', 1, "
        "now() - interval '10 seconds', now(), '0.3.0-fresh'",
    )
    # As when a person comes back to the tab.
    tab.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
    tab.until("document.getElementById('releases').textContent.includes('0.3.0-fresh')")
    assert tab.evaluate("window.stays.isConnected && window.stays.open")
    assert tab.complaints() == []


def test_a_person_finds_a_job_by_typing_its_id(chromium: Browser, site: str) -> None:
    tab = Tab(chromium)
    tab.open(f"{site}/")
    submit = "document.getElementById('find').value = '{}'; document.querySelector('form').requestSubmit()"
    tab.evaluate(submit.format("no such id"))
    assert tab.evaluate("document.getElementById('find').validity.patternMismatch")
    tab.evaluate(submit.format(READING))
    tab.until(f"location.pathname === '/jobs/{READING}'")
    assert tab.complaints() == []


def test_without_script_all_of_it_is_there(chromium: Browser, site: str) -> None:
    tab = Tab(chromium, script=False)
    tab.open(f"{site}/")
    assert "280 of 612 chunks" in tab.evaluate("document.body.innerText")
    assert tab.evaluate("document.getElementById('live').checkVisibility()") is False


def test_a_person_logs_in_with_the_token(chromium: Browser, scene_url: str) -> None:
    token = "a-token-of-good-length-7391"
    with dashboard(scene_url, token=token) as at:
        tab = Tab(chromium, width=390)
        tab.open(f"{at}/past")
        assert tab.evaluate("location.pathname") == "/login"
        for given, seen in (("wrong", "That is not the token."), (token, "Running")):
            tab.evaluate(
                f"document.getElementById('token').value = '{given}'; "
                "document.querySelector('form').submit()"
            )
            tab.until(f"(document.body?.innerText ?? '').includes('{seen}')")
        assert tab.evaluate("document.cookie") == ""  # out of any script's reach


@pytest.mark.skipif(PICTURES is None, reason="only where pictures are asked for: make pictures")
def test_pictures(chromium: Browser, site: str) -> None:
    folder = Path(PICTURES or "")
    folder.mkdir(parents=True, exist_ok=True)
    for name, page, width, height, dark in (
        ("dashboard", "/", 1000, 980, False),
        ("dashboard-phone", "/", 390, 844, True),
        ("dashboard-job", f"/jobs/{READING}", 1000, 900, False),
    ):
        tab = Tab(chromium, width=width, height=height, dark=dark)
        tab.open(site + page)
        picture = tab.picture(height=height)
        assert len(picture) < 150_000
        (folder / f"{name}.png").write_bytes(picture)
