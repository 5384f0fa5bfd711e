"""What people watch: the ops views, the sums they rest on, and the status screen made of them."""

from __future__ import annotations

import asyncio
import os
import pty
import re
import select
import signal
import subprocess
import sys
import termios
import time
from decimal import Decimal
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

import pytest
from rich.console import Console

from daemon.cli.screen import counted, job_screen, overview_screen
from daemon.database import connect
from daemon.ops.overview import overview
from daemon.ops.status import job_account
from tests.support.cli import ROOT, Cli, ask
from tests.support.history import VIEWS, views_are_quick
from tests.support.scene import two_days

if TYPE_CHECKING:
    from pathlib import Path


async def test_every_view_and_the_status_screen_stay_quick_with_many_ended_jobs(
    database_url: str,
) -> None:
    await views_are_quick(database_url, jobs=30_000)


async def test_sums_of_cost_never_differ_from_the_ledger(database_url: str) -> None:
    job, other, user = uuid4(), uuid4(), uuid4()
    record = (
        "select fullpass.tend_ledger(jsonb_build_array(jsonb_build_object('user_id', $1::uuid, "
        "'job_id', $2::uuid, 'purpose', $3::text, 'provider', 'anthropic', 'model', $4::text, "
        "'prompt_version', 'v1', 'input_tokens', $5::int, 'output_tokens', 20, "
        "'cache_read_tokens', 3, 'cost_usd', $6::numeric, 'usable', $7::boolean, 'age_ms', 20, "
        "'batch', false)), null)"
    )

    async def pay(which: UUID, purpose: str, model: str, cost: str | None) -> None:
        db = await connect(database_url)
        try:
            for n in range(10):
                price = None if cost is None else Decimal(cost)
                await db.execute(record, user, which, purpose, model, n, price, n % 3 > 0)
        finally:
            await db.close()

    await asyncio.gather(
        pay(job, "extract", "m1", "0.25"), pay(job, "extract", "m1", "0.5"),
        pay(job, "memory", "m2", None), pay(other, "extract", "m1", "0.125"),
    )  # fmt: skip
    sums = """
        select sum(calls)::int as calls, sum(input_tokens)::int as tokens,
               sum(cost_usd) as cost_usd, sum(unpriced_calls)::int as unpriced,
               sum(useless_calls)::int as useless from
    """
    ledger = ask(
        database_url,
        """
        select count(*)::int as calls, sum(input_tokens)::int as tokens, sum(cost_usd) as cost_usd,
               (count(*) filter (where cost_usd is null))::int as unpriced,
               (count(*) filter (where not usable))::int as useless from fullpass.llm_calls
        """,
    )
    assert ledger[0]["calls"] == 40
    for table in ("job_costs", "hourly_costs", "ops_costs"):
        assert ask(database_url, f"{sums} fullpass.{table}") == ledger
    # An erasure takes the words and leaves what was paid.
    ask(database_url, "select fullpass.forget($1)", user)
    assert ask(database_url, f"{sums} fullpass.ops_costs") == ledger


async def test_receipts_older_than_the_sums_are_summed_once(database_url: str) -> None:
    sql = (ROOT / "sql/migrations/0030_ops_views.sql").read_text()
    db = await connect(database_url)
    try:
        await db.execute("alter table fullpass.llm_calls disable trigger user")
        await db.execute(
            "insert into fullpass.llm_calls (user_id, job_id, purpose, provider, model, "
            "prompt_version, input_tokens, cost_usd, usable) "
            "select gen_random_uuid(), null, 'extract', 'p', 'm', 'v', 5, 0.5, true "
            "from generate_series(1, 8)"
        )
        await db.execute("alter table fullpass.llm_calls enable trigger user")
        for _ in range(2):
            await db.execute(sql)
            assert await db.fetchval("select sum(cost_usd) from fullpass.job_costs") == 4
            assert await db.fetchval("select sum(calls) from fullpass.ops_costs") == 8
    finally:
        await db.close()


SCENES = """
insert into fullpass.workers (worker_id, version, rss_bytes, memory_limit_bytes, llm_in_flight,
                              llm_limit, last_beat_at)
values ('alive-1-aa', '0.1.0', 120000000, 536870912, 2, 3, now()),
       ('silent-1-bb', '0.1.0', 90000000, 536870912, 0, 3, now() - interval '5 minutes');
insert into processing_jobs (id, user_id, storage_path, status, lease_epoch, lease_expires_at,
                             worker_id, started_at, current_step, progress, run_at, attempts,
                             error_message, completed_at, pipeline_version)
values
 ('00000000-0000-0000-0000-000000000001', '{u}1', 'e/reads.zip', 'processing', 1,
  now() + interval '1 minute', 'alive-1-aa', now() - interval '5 minutes', 'extract_facts', 41,
  now(), 1, null, null, '0.1.0'),
 ('00000000-0000-0000-0000-000000000002', '{u}2', 'e/lost.zip', 'processing', 3,
  now() - interval '4 minutes', 'silent-1-bb', now() - interval '1 hour', 'save_chunks', 10,
  now(), 1, null, null, '0.1.0'),
 ('00000000-0000-0000-0000-000000000003', '{u}3', 'e/old.zip', 'processing', 0, null, null, null,
  null, 0, now(), 0, null, null, null),
 ('00000000-0000-0000-0000-000000000004', '{u}4', 'e/due.zip', 'pending', 0, null, null, null,
  null, 0, now() - interval '1 hour', 0, null, null, null),
 ('00000000-0000-0000-0000-000000000005', '{u}5', 'e/waits.zip', 'pending', 2, null, null,
  now() - interval '3 hours', 'extract_facts', 30, now() + interval '1 minute', 0, null, null,
  '0.1.0'),
 ('00000000-0000-0000-0000-000000000006', '{u}6', 'e/failed.zip', 'failed', 2, null, null,
  now() - interval '3 hours', 'save_chunks', 10, now(), 1, 'save_chunks: failed.zip: it is empty',
  now() - interval '2 hours', '0.1.0');
alter table processing_jobs disable trigger user;
update processing_jobs set updated_at = now() - interval '1 day' where status = 'processing';
alter table processing_jobs enable trigger user;
insert into fullpass.passes (job_id, user_id, source, claimed_at, last_progress_at, waiting_since,
                             waiting_for, expected_end)
values ('00000000-0000-0000-0000-000000000001', '{u}1', 'chatgpt', now() - interval '5 minutes',
        now(), null, null, now() + interval '6 minutes'),
       ('00000000-0000-0000-0000-000000000005', '{u}5', 'chatgpt', now() - interval '3 hours', null,
        now() - interval '2 hours', 'the LLM server answered 401: check ANTHROPIC_API_KEY', null);
insert into fullpass.job_events (job_id, at, event, step, data)
values ('00000000-0000-0000-0000-000000000001', now() - interval '4 minutes', 'step.started',
        'extract_facts', null),
       ('00000000-0000-0000-0000-000000000006', now() - interval '2 hours', 'failed',
        'save_chunks', '{{"error": "save_chunks: failed.zip: 17 bytes: it is empty"}}');
insert into fullpass.chunk_outcomes (user_id, content_hash, job_id, chunk_id, source, extractor,
                                     outcome)
select '{u}1', 'h' || n, '00000000-0000-0000-0000-000000000001', gen_random_uuid(), 'chatgpt',
       'llm', 'ok' from generate_series(1, 40) as n;
insert into fullpass.windows (user_id, source, content_hashes, token_count)
values ('{u}1', 'chatgpt', (select array_agg('x' || n) from generate_series(1, 60) as n), 10);
insert into fullpass.llm_calls (user_id, job_id, purpose, provider, model, prompt_version,
                                input_tokens, cost_usd, usable)
select '{u}1', '00000000-0000-0000-0000-000000000001', 'extract', 'anthropic', 'claude', 'v', 10,
       0.01, true from generate_series(1, 12);
"""


def scenes(url: str) -> None:
    sql = SCENES.format(u="10000000-0000-0000-0000-00000000000")
    ask(url, f"do $do$ begin {sql} end $do$")


def test_running_says_how_far_how_fast_and_how_dear(database_url: str) -> None:
    scenes(database_url)
    rows = ask(database_url, "select * from fullpass.ops_running order by job_id")
    reads = rows[0]
    assert (reads["chunks_read"], reads["chunks_unread"], reads["coverage"]) == (40, 60, 0.4)
    assert (reads["calls"], reads["calls_per_minute"]) == (12, 12)
    assert reads["cost_usd"] == pytest.approx(0.12)
    assert reads["seconds_left"] == pytest.approx(360, rel=0.05)
    assert rows[1]["seconds_left"] is None
    assert rows[1]["lease_left_seconds"] < 0
    assert rows[1]["beat_age_seconds"] > 290


def test_stuck_names_each_job_that_ought_to_be_further_and_what_to_do(database_url: str) -> None:
    scenes(database_url)
    stuck = {
        str(r["job_id"])[-1]: (r["reason"], r["remedy"])
        for r in ask(database_url, "select * from fullpass.ops_stuck")
    }
    assert stuck.keys() == {"2", "3", "4", "5"}
    assert "its worker is gone" in stuck["2"][0]
    assert "earlier system" in stuck["3"][0]
    assert "all workers are busy" in stuck["4"][0]
    assert "check ANTHROPIC_API_KEY" in stuck["5"][0]
    ask(database_url, "delete from fullpass.workers where worker_id = 'alive-1-aa'")
    (due,) = ask(database_url, "select * from fullpass.ops_stuck where status = 'pending' "
                 "and reason like 'it is due%'")  # fmt: skip
    assert due["remedy"] == "start a worker"


def test_the_other_views_tell_the_same_story(database_url: str) -> None:
    scenes(database_url)
    by_version = {
        r["pipeline_version"]: r for r in ask(database_url, "select * from fullpass.ops_overview")
    }
    release = by_version["0.1.0"]
    assert (release["failed"], release["processing"], release["pending"]) == (1, 2, 1)
    assert (release["success_rate"], release["stuck"]) == (0, 2)
    assert release["cost_usd"] == pytest.approx(0.12)
    assert by_version["not begun"]["stuck"] == 2
    (error,) = ask(database_url, "select * from fullpass.ops_errors")
    assert error["message"] == "save_chunks: failed.zip: N bytes: it is empty"
    assert (error["times"], error["final"], error["last_step"]) == (1, 1, "save_chunks")
    hours = ask(database_url, "select * from fullpass.ops_hourly")
    assert len(hours) == 48
    assert sum(h["failed"] for h in hours) == 1
    assert sum(h["calls"] for h in hours) == 12
    workers = {r["worker_id"]: r for r in ask(database_url, "select * from fullpass.ops_workers")}
    alive, silent = workers["alive-1-aa"], workers["silent-1-bb"]
    assert (alive["alive"], alive["jobs"], alive["calls_per_minute"]) == (True, 1, 12)
    assert (silent["alive"], silent["jobs"]) == (False, 1)
    ask(database_url, "update processing_jobs set status = 'complete', completed_at = now(), "
        "started_at = now() - interval '75 seconds' where storage_path = 'e/reads.zip'")  # fmt: skip
    (bar,) = ask(database_url, "select * from fullpass.ops_durations")
    assert (bar["from_seconds"], bar["to_seconds"], bar["jobs"], bar["share"]) == (60, 120, 1, 1)


def test_each_view_says_when_to_look_and_what_to_do(database_url: str) -> None:
    views = ask(
        database_url,
        "select relname, obj_description(oid) as told from pg_class "
        "where relnamespace = 'fullpass'::regnamespace and relkind = 'v'",
    )
    assert {"ops_" + v for v in VIEWS} <= {row["relname"] for row in views}
    for row in views:
        assert "When to look: " in row["told"], row["relname"]
        assert "What to do: " in row["told"], row["relname"]


async def screen_of(url: str, *, width: int, colour: bool, job: UUID | None = None) -> str:
    db = await connect(url)
    try:
        console = Console(
            width=width, highlight=False, force_terminal=colour, legacy_windows=False,
            color_system="standard" if colour else None,
        )  # fmt: skip
        with console.capture() as shown:
            if job is None:
                overview_screen(console, await overview(db))
            else:
                account = await job_account(db, job)
                assert account is not None
                job_screen(console, account)
        return shown.get()
    finally:
        await db.close()


async def test_the_screen_answers_the_three_questions_at_80_columns_without_colour(
    database_url: str,
) -> None:
    scenes(database_url)
    shown = await screen_of(database_url, width=80, colour=False)
    assert [line for line in shown.splitlines() if len(line) > 80] == []
    assert "\x1b" not in shown
    words = " ".join(shown.split())
    assert words.startswith("LOOK ")  # healthy?
    assert "is stuck: " in words  # why is this one stuck?
    assert "40 of 100 chunks" in words
    assert " left" in words
    assert "114 MB of 512" in words
    assert "calls 2 of 3 · 12 a minute" in words
    assert "1 failed" in words
    assert "$0.1200 for 12 calls" in words  # what did it cost?
    # Colour adds nothing that the words do not say.
    coloured = await screen_of(database_url, width=80, colour=True)
    assert "\x1b[" in coloured
    plain = [line.rstrip() for line in re.sub(r"\x1b\[[0-9;]*m", "", coloured).splitlines()]
    assert len(plain) == len(shown.splitlines())
    job = await screen_of(database_url, width=80, colour=False, job=UUID(int=1))
    assert " left" in job


def test_one_of_something_is_told_as_one() -> None:
    told = [counted(1, "job"), counted(2, "job"), counted(1, "crash"), counted(0, "crash")]
    assert told == ["1 job", "2 jobs", "1 crash", "0 crashes"]


def test_a_quiet_queue_is_healthy_and_a_deserted_one_is_not(
    tmp_path: Path, database_url: str
) -> None:
    cli = Cli(tmp_path, DATABASE_URL=database_url)
    quiet = cli.json("status", "--json")
    assert (quiet["healthy"], quiet["verdict"]) == (True, "Nothing is due; no worker is alive.")
    ask(
        database_url,
        "insert into processing_jobs (user_id, storage_path) values ($1, 'e/a')",
        uuid4(),
    )
    deserted = cli.json("status", "--json")
    assert not deserted["healthy"]
    assert deserted["verdict"] == "No worker is alive and 1 job waits: start `fullpass worker`."


def test_watching_shows_changes_and_ends_with_ctrl_c(tmp_path: Path, database_url: str) -> None:
    cli = Cli(tmp_path, DATABASE_URL=database_url)
    watching = cli.start("status", "--watch")
    output = tmp_path / "output.txt"

    def wait_for(text: str) -> None:
        deadline = time.monotonic() + 30
        while text not in output.read_text():
            assert time.monotonic() < deadline, output.read_text()
            assert watching.poll() is None, output.read_text()
            time.sleep(0.05)  # polled until the deadline

    try:
        wait_for("0 due")
        ask(database_url, "select fullpass.enqueue($1, 'exports/a.zip')", uuid4())
        wait_for("1 due")
        watching.send_signal(signal.SIGINT)
        assert watching.wait(20) == 0
    finally:
        if watching.poll() is None:
            watching.kill()
        watching.wait()
    assert "Traceback" not in output.read_text()


def paths_of(value: Any, at: str = "") -> set[str]:
    if isinstance(value, list):
        return set().union(*(paths_of(inner, f"{at}[]") for inner in value))
    if isinstance(value, dict):
        return set().union(*(paths_of(v, f"{at}.{k}".lstrip(".")) for k, v in value.items()))
    return {at}


def documented(section: str) -> set[str]:
    page = (ROOT / "docs/operating.md").read_text()
    body = page.split(f"## {section}\n")[1].split("\n## ")[0]
    cells = re.findall(r"^\| (`[^|]+`) \|", body, re.MULTILINE)
    return {name for cell in cells for name in re.findall(r"`([^`]+)`", cell)}


def test_the_json_of_status_is_what_the_page_says(tmp_path: Path, database_url: str) -> None:
    scenes(database_url)
    real = paths_of(Cli(tmp_path, DATABASE_URL=database_url).json("status", "--json"))
    assert real == documented("The JSON of `fullpass status`")


async def test_the_json_of_a_job_is_what_the_page_says(database_url: str) -> None:
    scenes(database_url)
    db = await connect(database_url)
    try:
        account = await job_account(db, UUID(int=1))
    finally:
        await db.close()
    assert account is not None
    assert set(account) == documented("The JSON of `fullpass status JOB`")


def test_every_view_and_column_is_on_the_page(database_url: str) -> None:
    page = (ROOT / "docs/operating.md").read_text()
    rows = ask(
        database_url,
        "select table_name, array_agg(column_name::text) as columns "
        "from information_schema.columns "
        "where table_schema = 'fullpass' and table_name like 'ops\\_%' group by 1",
    )
    for row in rows:
        line = re.search(rf"^\| `{row['table_name']}` \|(.*)$", page, re.MULTILINE)
        assert line is not None, f"docs/operating.md does not name {row['table_name']}"
        assert set(re.findall(r"`([a-z0-9_]+)`", line[1])) >= set(row["columns"]), row["table_name"]


def test_watching_a_small_terminal_keeps_the_first_line_in_sight(
    tmp_path: Path, database_url: str
) -> None:
    """The screen ran through 24 rows, and OK or LOOK out at their top."""

    async def fill() -> None:
        db = await connect(database_url)
        await two_days(db)
        await db.close()

    asyncio.run(fill())
    rows, shown = 24, b""
    terminal, side = pty.openpty()
    termios.tcsetwinsize(side, (rows, 80))
    watching = subprocess.Popen(
        [sys.executable, "-m", "daemon", "status", "--watch"],
        env=Cli(tmp_path, DATABASE_URL=database_url).environment(TERM="xterm"),
        stdin=subprocess.DEVNULL, stdout=side, stderr=side,
    )  # fmt: skip
    os.close(side)
    try:
        deadline = time.monotonic() + 30
        while shown.count(b"again every") < 2:  # a whole screen, and the next one's first line
            assert select.select([terminal], [], [], deadline - time.monotonic())[0], shown
            shown += os.read(terminal, 65536)
    finally:
        watching.kill()
        watching.wait()
        os.close(terminal)
    screen = shown.decode().split("\x1b[2J")[1].splitlines()
    assert len(screen) < rows
    assert "LOOK" in screen[2]
    assert "more lines" in "".join(screen[-2:])
