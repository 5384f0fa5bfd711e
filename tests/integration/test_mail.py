"""Mail to a person whose pass completed: one each, in two forms, to an address that nothing keeps."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest

from daemon.database import open_pool
from daemon.errors import UsageError
from daemon.ops.mail import Mail, Templates
from tests.support.cli import EXAMPLE
from tests.support.mail_server import MailServer, certificate, mail_server
from tests.support.queue_checks import until
from tests.support.supabase import login_in
from tests.support.telling import a_job, all_ended, ended_job, telling
from tests.support.worker_process import worker_process

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from uuid import UUID

    from daemon.database import Pool
    from tests.support.telling import Db

ADDRESS = "anna.b@example.org"
PEOPLE = "create schema auth; create table auth.users (id uuid primary key, email text)"


@pytest.fixture
def post_office() -> Iterator[MailServer]:
    with mail_server() as server:
        yield server


def settings_for(server: MailServer, **more: Any) -> dict[str, Any]:
    return {"smtp_url": server.url, "email_from": "The app <hello@app.example>", **more}


async def everybody_is_known(db: Db, address: str | None = ADDRESS) -> None:
    """Let each person with a job, now or later, have an address."""
    await db.execute(PEOPLE)
    await db.execute(
        "create function public.known() returns trigger language plpgsql security definer as "
        f"$$ begin insert into auth.users values (new.user_id, {'null' if address is None else repr(address)}) "
        "on conflict do nothing; return new; end $$;"
        "create trigger known before insert on processing_jobs for each row "
        "execute function public.known()"
    )


async def not_told(db: Db, job: UUID) -> dict[str, Any] | None:
    data = await db.fetchval(
        "select data from fullpass.job_events where job_id = $1 and event = 'not_told'", job
    )
    return None if data is None else json.loads(data)


async def test_a_person_gets_one_mail_in_two_forms_when_their_pass_completes(
    db: Db, pool: Pool, database_url: str, post_office: MailServer, tmp_path: Path
) -> None:
    await everybody_is_known(db)
    await a_job(db, f"file://{EXAMPLE}")
    await a_job(db, f"file://{tmp_path}/nothing.json")  # fails: its person is told by the app
    with worker_process(
        database_url, None, "--once", llm_provider="offline", log_level="DEBUG",
        **settings_for(post_office),
    ) as worker:  # fmt: skip
        said = (await asyncio.to_thread(worker.communicate))[1].decode()
    async with telling(pool, **settings_for(post_office)) as teller:
        teller.wake()
        await asyncio.sleep(0.1)  # the deadline of a second mail
    (mail,) = post_office.mails
    assert (mail["To"], mail["From"]) == (ADDRESS, "The app <hello@app.example>")
    assert mail["Subject"] == "Your conversations have been read"
    assert mail["Auto-Submitted"] == "auto-generated"
    message_id = await db.fetchval("select id from fullpass.outbox")
    assert mail["Message-ID"] == f"<{message_id.hex}@app.example>"
    text, html = mail.get_body(("plain",)), mail.get_body(("html",))
    assert text is not None
    assert html is not None
    assert "42 conversations with 169 messages" in text.get_content()
    assert "<strong>42</strong> conversations" in html.get_content()
    assert "http" not in html.get_content().replace("<!doctype html>", ""), "nothing is loaded"
    # The address is in nothing that stays: no log, no table of ours.
    assert '"event": "told"' in said
    tables = await db.fetch(
        "select format('%I.%I', schemaname, tablename) as name from pg_tables "
        "where schemaname in ('fullpass', 'public')"
    )
    assert len(tables) > 20
    for row in tables:
        said += str(await db.fetch(f"select t::text from {row['name']} t"))
    assert ADDRESS not in said
    assert "anna.b" not in said


@pytest.mark.parametrize(
    ("people", "reason"),
    [
        (None, "auth.users (id, email) may not be read"),
        (PEOPLE, "no address is known of this person"),
        ("create schema auth; create table auth.users (id uuid)", "auth.users (id, email) may not"),
    ],
    ids=["no schema auth", "not there", "no such column"],
)
async def test_without_an_address_none_is_sent_and_the_timeline_says_so(
    db: Db, pool: Pool, post_office: MailServer, people: str | None, reason: str
) -> None:
    if people is not None:
        await db.execute(people)
    async with telling(pool, **settings_for(post_office)):
        job = await ended_job(db, "completed")
        await all_ended(db)
    event = await not_told(db, job)
    assert event is not None
    assert event["reason"].startswith(reason)
    assert await db.fetchval("select outcome from fullpass.outbox") == "dropped"
    assert post_office.recipients == []


async def test_the_workers_role_needs_the_grant_of_the_security_page(
    db: Db, database_url: str, post_office: MailServer
) -> None:
    await everybody_is_known(db)
    with login_in(database_url, "fullpass_worker") as url:
        pool = await open_pool(url)
        async with telling(pool, **settings_for(post_office)):
            job = await ended_job(db, "completed")
            await all_ended(db)
            event = await not_told(db, job)
            assert event is not None
            assert "docs/security.md has the grant" in event["reason"]
            await db.execute("grant usage on schema auth to fullpass_worker")
            await db.execute("grant select (id, email) on auth.users to fullpass_worker")
            await ended_job(db, "completed")
            await all_ended(db)
        await pool.close()
    assert len(post_office.mails) == 1


async def test_a_refusal_for_now_is_tried_again_and_one_for_good_is_not(
    db: Db, pool: Pool, post_office: MailServer
) -> None:
    await everybody_is_known(db)
    post_office.replies = [
        "451 4.7.1 <anna.b@example.org>: greylisted", "550 5.1.1 <anna.b@example.org> unknown",
    ]  # fmt: skip
    async with telling(pool, **settings_for(post_office)):
        job = await ended_job(db, "completed")
        await until(lambda: db.fetchval("select error from fullpass.outbox"), seconds=10)
        row = await db.fetchrow("select * from fullpass.outbox")
        assert row is not None
        assert row["error"] == "the mail server refused it: 451 4.7.1 (SMTPRecipientRefused)"
        assert (row["ended_at"], row["attempts"]) == (None, 1)
        await db.execute("update fullpass.outbox set due_at = now()")
        await all_ended(db)
    event = await not_told(db, job)
    assert event == {
        "channel": "email", "of": "completed", "attempts": 2,
        "reason": "the mail server refused it: 550 5.1.1 (SMTPRecipientRefused)",
    }  # fmt: skip
    assert post_office.mails == []


async def test_a_mail_server_that_hangs_or_is_not_there_costs_an_attempt(
    db: Db, pool: Pool, post_office: MailServer
) -> None:
    await everybody_is_known(db)
    post_office.hangs = True
    async with telling(pool, **settings_for(post_office)) as teller:
        channel = teller._channels["email"]
        assert isinstance(channel, Mail)
        channel._attempt_seconds = 0.4
        await ended_job(db, "completed")
        await until(lambda: db.fetchval("select error from fullpass.outbox"), seconds=5)
    async with telling(pool, smtp_url="smtp://127.0.0.1:1", email_from="a@app.example"):
        await db.execute("update fullpass.outbox set due_at = now(), error = null")
        error = await until(lambda: db.fetchval("select error from fullpass.outbox"), seconds=5)
    assert error == "the mail server: SMTPConnectError"
    assert await db.fetchval("select ended_at from fullpass.outbox") is None


async def test_the_password_goes_out_under_tls_or_not_at_all(
    db: Db, pool: Pool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await everybody_is_known(db)
    # 127.0.0.2 is no address that is taken for this machine.
    pem = certificate(tmp_path / "mail.pem", host="127.0.0.2")
    monkeypatch.setenv("SSL_CERT_FILE", str(pem))
    with mail_server(host="127.0.0.2", tls=pem) as secure, mail_server(host="127.0.0.2") as plain:
        for server in (secure, plain):
            url = urlsplit(server.url)._replace(netloc=f"app:s%40fe@{urlsplit(server.url).netloc}")
            async with telling(pool, **settings_for(server, smtp_url=url.geturl())):
                await ended_job(db, "completed")
                await until(
                    lambda: db.fetchval(
                        "select bool_and(ended_at is not null or error is not null) "
                        "from fullpass.outbox"
                    ),
                    seconds=10,
                )
        assert secure.logins == [(b"app", b"s@fe")]
        assert secure.secured == [True]
        assert (plain.logins, plain.mails) == ([], [])
    assert await db.fetchval("select error from fullpass.outbox where ended_at is null") == (
        "the mail server offers no TLS, so no password is sent to it"
    )


async def test_smtps_is_tls_from_the_first_byte(
    db: Db, pool: Pool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await everybody_is_known(db)
    pem = certificate(tmp_path / "mail.pem", host="127.0.0.1")
    monkeypatch.setenv("SSL_CERT_FILE", str(pem))
    with mail_server(tls=pem, implicit=True) as server:
        async with telling(pool, **settings_for(server)):
            await ended_job(db, "completed")
            await all_ended(db)
        assert len(server.mails) == 1


async def test_a_certificate_that_is_not_trusted_stops_the_mail(
    db: Db, pool: Pool, tmp_path: Path
) -> None:
    await everybody_is_known(db)
    pem = certificate(tmp_path / "mail.pem", host="127.0.0.1")
    with mail_server(tls=pem) as server:
        async with telling(pool, **settings_for(server)):
            await ended_job(db, "completed")
            await until(lambda: db.fetchval("select error from fullpass.outbox"), seconds=10)
        assert server.mails == []


async def test_nobody_is_written_to_about_a_pass_they_did_not_ask_for(
    db: Db, pool: Pool, post_office: MailServer
) -> None:
    await everybody_is_known(db)
    async with telling(pool, **settings_for(post_office)):
        job = await a_job(db, "exports/a.zip")
        await db.execute(
            "select fullpass.note_event(j, 'backfilled') from processing_jobs j where id = $1", job
        )
        await db.execute(
            "select fullpass.end_job(j, 'complete', 'completed', null) from processing_jobs j "
            "where id = $1",
            job,
        )
        await all_ended(db)
    event = await not_told(db, job)
    assert event is not None
    assert "queued by backfill" in event["reason"]
    assert post_office.recipients == []


@pytest.mark.parametrize(
    "address", ["anna@example.org\nBcc: all@example.org", "no address", "a@b, c@d", "@"]
)
async def test_an_address_that_is_none_is_never_put_into_a_mail(
    db: Db, pool: Pool, post_office: MailServer, address: str
) -> None:
    await db.execute(PEOPLE)
    async with telling(pool, **settings_for(post_office)):
        job = await a_job(db, "exports/a.zip")
        user = await db.fetchval("select user_id from processing_jobs")
        await db.execute("insert into auth.users values ($1, $2)", user, address)
        await db.execute(
            "select fullpass.end_job(j, 'complete', 'completed', null) from processing_jobs j"
        )
        await all_ended(db)
    event = await not_told(db, job)
    assert event is not None
    assert event["reason"] == "the person's address is not one that mail can be sent to"
    assert post_office.recipients == []


def test_the_apps_own_words_are_checked_before_anything_is_claimed(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="EMAIL_TEMPLATES: must be a folder with"):
        Templates(tmp_path)
    (tmp_path / "completed.html").write_text("<p>$conversations read</p>")
    (tmp_path / "completed.txt").write_text("Hello!\n")
    with pytest.raises(UsageError, match="must begin with `Subject:"):
        Templates(tmp_path)
    (tmp_path / "completed.txt").write_text("Subject: $name, it is done\n\nHello!\n")
    with pytest.raises(UsageError, match="unknown placeholder 'name'"):
        Templates(tmp_path)
    (tmp_path / "completed.txt").write_text("Subject: $conversations lus\n\nLe $date.\n")
    filled = Templates(tmp_path).filled(conversations=1234, messages=2, date="2026-11-22")
    assert filled == ("1,234 lus", "Le 2026-11-22.\n", "<p>1,234 read</p>")


async def test_a_mail_is_not_sent_by_a_worker_that_has_no_mail_server(
    db: Db, pool: Pool, post_office: MailServer
) -> None:
    await everybody_is_known(db)
    async with telling(pool, **settings_for(post_office)):
        pass  # some worker has it, and is away just now
    await ended_job(db, "completed")
    async with telling(pool):
        await asyncio.sleep(0.2)  # the deadline of a worker that could not
    row = await db.fetchrow("select * from fullpass.outbox")
    assert row is not None
    assert (row["attempts"], row["ended_at"]) == (0, None)
    async with telling(pool, **settings_for(post_office)):
        await all_ended(db)
    assert len(post_office.mails) == 1


async def test_a_domain_in_other_letters_is_written_to_in_ascii(
    db: Db, pool: Pool, post_office: MailServer
) -> None:
    await everybody_is_known(db, "anna@exämple.org")
    async with telling(pool, **settings_for(post_office)):
        await ended_job(db, "completed")
        await all_ended(db)
    assert post_office.recipients == ["anna@xn--exmple-cua.org"]


async def test_the_look_for_the_address_counts_as_part_of_the_attempt(
    db: Db, pool: Pool, post_office: MailServer
) -> None:
    await everybody_is_known(db)
    mail = Mail(
        post_office.url, "The app <hello@app.example>", Templates(), pool, attempt_seconds=0.3
    )
    async with telling(pool, **settings_for(post_office)) as teller:
        teller._channels["email"] = mail
        job = await ended_job(db, "completed")
        async with db.transaction():
            await db.execute("lock table auth.users")
            teller.wake()
            await until(
                lambda: pool.fetchval(
                    "select error is not null from fullpass.outbox where job_id = $1", job
                ),
                seconds=10,
            )
    assert post_office.mails == []
