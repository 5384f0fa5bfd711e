"""The dashboard over HTTP: who may look, what they see, and that nothing there acts on anything."""

from __future__ import annotations

import asyncio
import contextlib
import re
import select
import signal
import socket
import subprocess
import sys
import time
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import httpx
import pytest

from daemon import migrations
from daemon.cli.dashboard import serve
from daemon.cli.dashboard import site as site_module
from daemon.cli.dashboard.serve import bound, require_safety
from daemon.database import connect
from daemon.errors import UsageError
from tests.support import postgres
from tests.support.cli import ROOT, Cli, ask
from tests.support.dashboard import dashboard, dashboard_process, quickest_ms
from tests.support.history import a_year_of_jobs
from tests.support.pages_read import HOSTILE, Reader
from tests.support.scene import FAILED, READING, two_days
from tests.support.supabase import login_in

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# One database and one dashboard for the tests that only look.
pytestmark = pytest.mark.xdist_group("dashboard")

TOKEN = "a-token-of-good-length-7391"
PAGES = ("/", "/past", f"/jobs/{READING}", f"/jobs/{FAILED}")


def fill(url: str, *, jobs: int = 0) -> None:
    async def scene() -> None:
        db = await connect(url, command_timeout_seconds=300)
        try:
            if jobs:
                await a_year_of_jobs(db, jobs)
            await two_days(db)
        finally:
            await db.close()

    asyncio.run(scene())


@pytest.fixture(scope="module")
def scene_url(postgres_server: postgres.Server) -> Iterator[str]:
    url = postgres.create_database(postgres_server.url, migrated=True)
    try:
        fill(url)
        yield url
    finally:
        postgres.drop_database(url)


@pytest.fixture(scope="module")
def site(scene_url: str) -> Iterator[str]:
    with dashboard(scene_url) as at:
        yield at


@pytest.fixture(scope="module")
def web() -> Iterator[httpx.Client]:
    with httpx.Client(verify=False) as client:  # no TLS here; to load the roots takes longest
        yield client


@pytest.fixture(scope="module")
def locked(scene_url: str) -> Iterator[str]:
    """A dashboard behind its token, under a name of its own."""
    with dashboard(scene_url, token=TOKEN, names=("jobs.example.org",)) as at:
        yield at


def words(text: str) -> str:
    return " ".join(" ".join(Reader(text).words).split())


def test_the_first_page_answers_what_is_asked_at_night(web: httpx.Client, site: str) -> None:
    told = words(web.get(f"{site}/").text)
    for part in (
        r"LOOK 5c1e0000-0000-4000-8000-000000000004 is stuck: its worker is gone and no other has "
        r"taken it up; start a worker",
        r"4 running 6 due, oldest for \d+ min",
        r"280 of 612 chunks · .* left",
        r"extract_facts \d+ min \d\d s so far still to come about",  # the waterfall
        r"its worker is lost; the next claim takes it up",
        r"163 MB of 512 3 of 3",
        r"1 of 2, held by memory",
        r"silent for \d+ min",
        r"it is encrypted; export it again",
        r"spent in 24 hours",
        r"failed 11 min 00 s 0\.2\.0",  # what ended last, and how
        r"\d{3} complete and \d+ failed",
    ):
        assert re.search(part, told), f"{part}: {told}"


def test_the_past_days_show_hours_releases_durations_errors_and_costs(
    web: httpx.Client, site: str
) -> None:
    told = words(web.get(f"{site}/past").text)
    for part in (
        "Mean time of a complete pass",
        "0.2.0 99.6%",
        "Completed passes of 7 days, release 0.1.0",
        "extract_facts: N of N chunks could not be read",
        "claude-haiku-5-5 extract",
    ):
        assert part in told, f"{part}: {told}"


def test_a_jobs_page_says_why_it_is_where_it_is_and_what_it_cost(
    web: httpx.Client, site: str
) -> None:
    told = words(web.get(f"{site}/jobs/{READING}").text)
    for part in (
        "processing worker-7d9f-1-a1b2c3 is at extract_facts (46%) with 280 of 612 chunks read",
        "consolidate_facts comes next.",
        "save_chunks 14 s",
        "salvaged 7 1.1%",
        "extract 84 2 680,400",
        "claimed attempt 1 by worker-7d9f-1-a1b2c3",
    ):
        assert part in told, f"{part}: {told}"
    failed = words(web.get(f"{site}/jobs/{FAILED}").text)
    assert "fullpass retry" in failed


def test_a_job_is_found_by_its_id_and_by_its_person(
    web: httpx.Client, site: str, scene_url: str
) -> None:
    (row,) = ask(scene_url, "select user_id from processing_jobs where id = $1", READING)
    for asked in (READING, row["user_id"]):
        answer = web.get(f"{site}/find", params={"id": str(asked)})
        assert (answer.status_code, answer.headers["location"]) == (303, f"/jobs/{READING}")
    assert web.get(f"{site}/find", params={"id": "0b9d"}).status_code == 400
    nobody = "00000000-0000-4000-8000-00000000dead"
    assert web.get(f"{site}/find", params={"id": nobody}).status_code == 404
    assert web.get(f"{site}/jobs/{nobody}").status_code == 404
    for nowhere in ("jobs/1 or 1=1", "nothing"):
        answer = web.get(f"{site}/{nowhere}")
        assert answer.status_code == 404
        assert '<a href="/">Now</a>' in answer.text, "a page with a way back"


def test_no_word_of_a_conversation_is_shown(web: httpx.Client, site: str, scene_url: str) -> None:
    (held,) = ask(scene_url, "select count(*) from conversation_chunks where content ~ 'SECRET'")
    assert held["count"] > 0
    for page in PAGES:
        assert "SECRET" not in web.get(f"{site}{page}").text


def test_every_answer_forbids_what_a_page_could_be_made_to_do(web: httpx.Client, site: str) -> None:
    answers = [
        *(web.get(f"{site}{path}") for path in (*PAGES, "/style.css", "/live.js", "/nowhere")),
        web.get(f"{site}/", headers={"Host": "evil.example"}),
        web.post(f"{site}/"),
    ]
    for answer in answers:
        policy = answer.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; ")
        assert "unsafe" not in policy
        assert "frame-ancestors 'none'" in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["cache-control"] == "no-store"
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert "server" not in answer.headers
    for page in PAGES:
        read = Reader(web.get(f"{site}{page}").text)
        assert not any(name == "style" or name.startswith("on") for _, a in read.tags for name in a)
        assert all(re.match(r"/|#|$|data:,$", link) for link in read.values("href"))


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH"])
def test_nothing_can_be_changed_there(web: httpx.Client, site: str, method: str) -> None:
    for page in PAGES:
        assert web.request(method, f"{site}{page}").status_code == 405


def test_a_name_that_a_hostile_page_points_here_is_refused(web: httpx.Client, site: str) -> None:
    port = urlsplit(site).port
    for host, status in {
        f"127.0.0.1:{port}": 200,
        f"localhost:{port}": 200,
        f"[::1]:{port}": 200,
        "evil.example": 421,
        f"evil.example:{port}": 421,
        f"127.0.0.1.evil.example:{port}": 421,
        f"localhost.evil.example:{port}": 421,
        "[::1": 421,
        "": 421,
    }.items():
        assert web.get(f"{site}/", headers={"Host": host}).status_code == status, host


def test_who_has_no_token_sees_nothing(web: httpx.Client, locked: str) -> None:
    for path in (*PAGES, "/live.js", "/find?id=x", "/nowhere"):
        answer = web.get(f"{locked}{path}")
        assert (answer.status_code, len(answer.text) < 100) == (401, True)
        assert answer.headers["content-security-policy"]
        person = web.get(f"{locked}{path}", headers={"Accept": "text/html"})
        assert (person.status_code, person.headers["location"]) == (303, "/login")
    for wrong in ("", TOKEN[:-1], f"{TOKEN}x", "ü" * 20):
        header = {"Authorization": f"Bearer {wrong}".strip().encode()}
        assert web.get(f"{locked}/", headers=header).status_code == 401
        assert web.post(f"{locked}/login", data={"token": wrong}).status_code == 401
    for cookie in (TOKEN, "", "a b; c", 'fullpass_dashboard="'):
        header = {"Cookie": f"fullpass_dashboard={cookie}"}
        assert web.get(f"{locked}/", headers=header).status_code == 401
    overlong = web.post(f"{locked}/login", content=f"token={TOKEN}&x={'x' * 100_000}")
    assert overlong.status_code == 401


def test_visitors_that_sit_on_every_place_are_seen_off(
    web: httpx.Client, scene_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serve, "_ASKING_SECONDS", 1.5)

    def until_answered(status: int) -> None:
        deadline = time.monotonic() + 8
        while web.get(f"{at}/login", headers={"connection": "close"}).status_code != status:
            assert time.monotonic() < deadline
            time.sleep(0.05)  # polled until the deadline

    with dashboard(scene_url, token=TOKEN) as at, contextlib.ExitStack() as sitting:
        until_answered(200)
        host, port = at.removeprefix("http://").split(":")
        for _ in range(80):
            visitor = sitting.enter_context(socket.create_connection((host, int(port))))
            visitor.sendall(b"GET / HTTP/1.1\r\nHost: loc")
        until_answered(503)
        until_answered(200)


def test_a_form_that_comes_drop_by_drop_loses_its_place_and_an_overlong_one_is_not_read(
    web: httpx.Client, scene_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(site_module, "_FORM_SECONDS", 0.6)
    head = (
        b"POST /login HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n"
        b"Content-Type: application/x-www-form-urlencoded\r\n\r\n"
    )
    with dashboard(scene_url, token=TOKEN) as at, contextlib.ExitStack() as dripping:
        host, port = at.removeprefix("http://").split(":")
        visitors = [
            dripping.enter_context(socket.create_connection((host, int(port)), timeout=8))
            for _ in range(60)
        ]
        for visitor in visitors:
            visitor.sendall(head % 3000 + b"token=")
        started = time.monotonic()
        answers = dict.fromkeys(visitors, b"")
        while not all(answers.values()):
            assert time.monotonic() < started + 8  # the deadline
            ready, _, _ = select.select([v for v in visitors if not answers[v]], [], [], 0.2)
            for visitor in ready:
                answers[visitor] = visitor.recv(4096)
            for visitor in (v for v in visitors if not answers[v]):
                with contextlib.suppress(OSError):
                    visitor.sendall(b"x")  # it never falls silent
        assert {answer.split(b" ")[1] for answer in answers.values()} == {b"408"}
        assert web.get(f"{at}/login").status_code == 200
        overlong = web.post(f"{at}/login", content=b"token=" + TOKEN.encode() + b"x" * 100_000)
        assert overlong.status_code == 401


def test_a_login_ends_by_the_servers_clock_and_cannot_be_drawn_out(
    web: httpx.Client, scene_url: str
) -> None:
    now = [1_800_000_000.0]
    with dashboard(scene_url, token=TOKEN, clock=lambda: now[0]) as at:
        entered = web.post(f"{at}/login", data={"token": TOKEN})
        cookie = entered.cookies["fullpass_dashboard"]
        web.cookies.clear()

        def admitted(value: str) -> bool:
            header = {"Cookie": f"fullpass_dashboard={value}".encode()}
            status = web.get(f"{at}/past", headers=header).status_code
            assert status in {200, 401}
            return status == 200

        assert admitted(cookie)
        now[0] += 12 * 3600 - 1
        assert admitted(cookie)
        issued, _, seal = cookie.partition(".")
        for forged in (
            seal,
            f".{seal}",
            f"{int(issued) + 3600}.{seal}",
            f"{issued}.{seal[:-1]}x",
            f"{issued}.",
            "9" * 400 + "." + seal,
            "\u00b2." + seal.replace("a", "b"),
        ):
            assert not admitted(forged)  # fmt: skip
        now[0] += 1
        assert not admitted(cookie)  # the browser kept it: the server does not
        now[0] = 1_700_000_000.0
        assert not admitted(cookie)  # of a future that a clock set back has not reached


def test_the_token_opens_as_a_header_and_as_a_cookie_that_does_not_hold_it(
    web: httpx.Client, locked: str
) -> None:
    bearer = {"Authorization": f"Bearer {TOKEN}"}
    assert "Running (4)" in web.get(f"{locked}/", headers=bearer).text
    with httpx.Client(base_url=locked, verify=False) as person:
        entered = person.post("/login", data={"token": TOKEN})
        assert (entered.status_code, entered.headers["location"]) == (303, "/")
        cookie = entered.headers["set-cookie"].lower()
        assert TOKEN not in cookie
        assert "httponly" in cookie
        assert "samesite=strict" in cookie
        assert "secure" not in cookie
        assert "Running (4)" in person.get("/").text
    # Behind a proxy that speaks TLS the cookie keeps to TLS.
    tls = web.post(f"{locked}/login", data={"token": TOKEN}, headers={"X-Forwarded-Proto": "https"})
    assert "secure" in tls.headers["set-cookie"].lower()
    named = web.get(f"{locked}/", headers={**bearer, "Host": "jobs.example.org"})
    assert named.status_code == 200
    assert web.get(f"{locked}/", headers={**bearer, "Host": "evil.example"}).status_code == 421


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.7", "localhost.example.org"])
def test_it_refuses_to_be_open_to_strangers(host: str) -> None:
    with pytest.raises(UsageError, match="can be reached by others: set DASHBOARD_TOKEN"):
        require_safety(host, None)
    with pytest.raises(UsageError, match="at least 16 characters"):
        require_safety(host, "short")
    require_safety(host, TOKEN)


def test_without_its_extra_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    require_safety("127.0.0.1", None)
    monkeypatch.setitem(sys.modules, "starlette", None)
    with pytest.raises(UsageError, match=r"pip install 'fullpass\[dashboard\]'"):
        require_safety("127.0.0.1", None)


def test_a_port_that_is_taken_is_named() -> None:
    with bound("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UsageError, match=f"--port {port}: .*in use"), bound("127.0.0.1", port):
            pass


def test_the_command_starts_says_where_keeps_the_token_to_itself_and_ends_with_ctrl_c(
    web: httpx.Client, scene_url: str, tmp_path: Path
) -> None:
    refused = Cli(tmp_path, DATABASE_URL=scene_url).run("dashboard", "--host", "0.0.0.0")
    assert refused.returncode == 2
    assert "set DASHBOARD_TOKEN" in refused.stderr
    cli = Cli(tmp_path, DATABASE_URL=scene_url, DASHBOARD_TOKEN=TOKEN, LOG_LEVEL="DEBUG")
    output = tmp_path / "output.txt"
    with dashboard_process(cli, "--host", "0.0.0.0") as (at, process):
        bearer = {"Authorization": f"Bearer {TOKEN}"}
        assert web.get(f"{at}/", headers=bearer).status_code == 200
        assert web.post(f"{at}/login", data={"token": "wrong"}).status_code == 401
        assert web.get(f"{at}/login?token={TOKEN}").status_code == 200
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0
    told = output.read_text()
    assert "(behind its token)" in told
    assert "dashboard.refused" in told
    assert TOKEN not in told
    assert "Traceback" not in told


def test_a_worker_never_imports_the_web_library() -> None:
    code = (
        "import sys, daemon.worker, daemon.cli.worker, daemon.cli.commands, daemon.cli.dashboard.site\n"
        "print({'starlette', 'uvicorn'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "set()"


def test_hostile_text_in_the_database_comes_out_as_text(
    web: httpx.Client, database_url: str
) -> None:
    fill(database_url)
    ask(
        database_url,
        "do $do$ declare h text := $h$" + HOSTILE + "$h$; begin "
        "update fullpass.workers set worker_id = h || worker_id, version = h, waiting_for = h; "
        "update processing_jobs set error_message = h || repeat('x', 500), storage_path = h || id, "
        "current_step = h, worker_id = h || worker_id, pipeline_version = h where completed_at is null "
        "or status = 'failed'; "
        "update fullpass.job_events set step = h, event = left(h, 40) || event, "
        "data = jsonb_build_object(h, h, 'error', h) where event not in ('failed', 'step.started'); "
        "update fullpass.job_events set step = h, data = jsonb_build_object('error', h) "
        "where event in ('failed', 'step.started'); "
        "update fullpass.hourly_costs set model = h || hour, purpose = purpose || h; "
        "update fullpass.llm_calls set purpose = h; end $do$",
    )  # fmt: skip
    with dashboard(database_url) as at:
        for page in PAGES:
            answer = web.get(f"{at}{page}")
            assert answer.status_code == 200, answer.text
            assert "<script>document" in words(answer.text)
            read = Reader(answer.text)
            assert {"img", "iframe", "object", "style"}.isdisjoint(tag for tag, _ in read.tags)
            assert [a for tag, a in read.tags if tag == "script"] == [
                {"src": "/live.js", "defer": None}
            ]
            assert not any(name.startswith("on") for _, a in read.tags for name in a)
            assert not any("javascript:" in link for link in read.values("href"))
            assert "\u202e" not in answer.text


def test_the_first_page_is_quick_and_small_with_much_history_and_everything_wrong_at_once(
    web: httpx.Client,
    database_url: str,
) -> None:
    fill(database_url, jobs=30_000)
    ask(
        database_url,
        """
        do $do$ begin
        alter table processing_jobs disable trigger user;
        with running as (
            insert into processing_jobs (user_id, storage_path, status, lease_epoch, worker_id,
                lease_expires_at, current_step, progress, started_at)
            select gen_random_uuid(), repeat('p', 400), 'processing', 1, 'worker-7d9f-1-a1b2c3',
                   now() - interval '20 minutes', 'extract_facts', 50, now() - interval '1 hour'
            from generate_series(1, 60) returning id, user_id
        ), passes as (
            insert into fullpass.passes (job_id, user_id, source, claimed_at)
            select id, user_id, 'chatgpt', now() - interval '1 hour' from running
        )
        insert into fullpass.job_events (job_id, at, event, step)
        select id, now() - make_interval(mins => 60 - n), 'step.started', 'step_number_' || n
        from running, generate_series(1, 9) as n;
        insert into processing_jobs (user_id, storage_path, status, lease_epoch, error_message,
            completed_at) select gen_random_uuid(), 'e/f', 'failed', 1, repeat('long words ', 2000),
            now() from generate_series(1, 40);
        with waiting as (
            insert into processing_jobs (user_id, storage_path, run_at) select gen_random_uuid(),
                'e/w', now() + interval '1 hour' from generate_series(1, 40) returning id, user_id
        )
        insert into fullpass.passes (job_id, user_id, waiting_since, waiting_for)
        select id, user_id, now() - interval '2 hours', repeat('what it waits for ', 100) from waiting;
        insert into fullpass.workers (worker_id, waiting_for, last_beat_at, version)
        select repeat('w', 60) || n, repeat('paused because ', 200), now(), repeat('v', 300)
        from generate_series(1, 50) as n;
        alter table processing_jobs enable trigger user;
        end $do$
        """,
    )
    with dashboard(database_url) as at:
        ms, size = quickest_ms(f"{at}/", limit_ms=100)
        assert size <= 100_000
        assert ms <= 100
        assert "And 44 more, begun later." in web.get(f"{at}/").text


def test_the_database_is_only_read_and_each_question_has_its_time(
    web: httpx.Client,
    database_url: str,
) -> None:
    # A view that tells how it is asked, in the words of an error.
    ask(
        database_url,
        "create function public.told() returns timestamptz language plpgsql as $$ begin "
        "raise exception using errcode = '57014', message = format('read only %s, at most %s, %s', "
        "current_setting('transaction_read_only'), current_setting('statement_timeout'), "
        "current_setting('transaction_isolation')); end $$",
    )
    ask(
        database_url,
        "create or replace view fullpass.ops_waiting as select null::uuid as job_id, "
        "null::text as storage_path, null::text as waiting_for, public.told() as waiting_since, "
        "null::timestamptz as run_at",
    )
    with dashboard(database_url) as at:
        answer = web.get(f"{at}/")
        assert answer.status_code == 503
        assert "read only on, at most 5s, repeatable read" in words(answer.text)
        assert web.get(f"{at}/past").status_code == 200


def test_an_outage_is_a_page_and_passes(web: httpx.Client, database_url: str) -> None:
    admin = postgres.url_of(database_url, "postgres")
    name = urlsplit(database_url).path.lstrip("/")
    with dashboard(database_url) as at:
        assert web.get(f"{at}/").status_code == 200
        ask(admin, f"alter database {name} allow_connections false")
        ask(
            admin, "select pg_terminate_backend(pid) from pg_stat_activity where datname = $1", name
        )
        gone = web.get(f"{at}/")
        assert (gone.status_code, "does not answer" in gone.text) == (503, True)
        ask(admin, f"alter database {name} allow_connections true")
        deadline = time.monotonic() + 20
        while web.get(f"{at}/").status_code != 200:
            assert time.monotonic() < deadline
            time.sleep(0.05)  # polled until the deadline


def test_a_database_that_is_behind_is_told_what_to_do(
    web: httpx.Client,
    empty_database_url: str,
) -> None:
    with dashboard(empty_database_url) as at:
        answer = web.get(f"{at}/")
        assert (answer.status_code, "run `fullpass migrate`" in answer.text) == (503, True)
        asyncio.run(migrations.apply(empty_database_url))
        assert web.get(f"{at}/").status_code == 200


def test_the_readers_login_is_enough_for_the_queue_and_the_workers_for_a_job(
    web: httpx.Client,
    scene_url: str,
) -> None:
    for role, status in {"fullpass_reader": 403, "fullpass_worker": 200}.items():
        with login_in(scene_url, role) as url, dashboard(url) as at:
            assert web.get(f"{at}/").status_code == 200
            assert web.get(f"{at}/past").status_code == 200
            job = web.get(f"{at}/jobs/{READING}")
            assert job.status_code == status, job.text
            assert ("fullpass_worker" in job.text) == (status == 403)


def test_a_job_of_twenty_thousand_events_has_its_page_within_100_ms(
    scene_url: str, web: httpx.Client
) -> None:
    """A job that was given back ten thousand times is the one that somebody looks at."""

    async def long_story() -> str:
        db = await connect(scene_url)
        try:
            job = await db.fetchval(
                "insert into processing_jobs (user_id, storage_path, status, completed_at) "
                "values (gen_random_uuid(), 'b/long.zip', 'failed', now()) returning id"
            )
            await db.execute(
                """
                insert into fullpass.job_events (job_id, event, step, attempt, lease_epoch, data, at)
                select $1, (array['claimed', 'step.started', 'step.finished', 'waited'])[1 + n % 4],
                       'extract_facts', 1, n, jsonb_build_object('reason', 'wait ' || n),
                       now() - interval '1 day' + n * interval '1 second'
                from generate_series(0, 19999) as n
                """,
                job,
            )
            return str(job)
        finally:
            await db.close()

    job = asyncio.run(long_story())
    with dashboard(scene_url) as at:
        took_ms, _ = quickest_ms(f"{at}/jobs/{job}", limit_ms=100)
        told = web.get(f"{at}/jobs/{job}").text
    assert took_ms <= 100
    assert "And 19,800 earlier" in told
    assert "extract_facts" in told.partition('id="facts"')[0]
