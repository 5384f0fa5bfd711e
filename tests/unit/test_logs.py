"""Logs: one event a line, named by its job, without secrets and without conversations."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import re
import threading
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID

import pytest
import structlog
from pydantic import SecretStr

from daemon import logs
from daemon.errors import UsageError
from daemon.logs import bind_job, bind_step, configure_logs, get_logger, mask_secrets, masked
from daemon.settings import load_settings

JOB = UUID("11111111-1111-1111-1111-111111111111")
USER = UUID("22222222-2222-2222-2222-222222222222")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def _restore(monkeypatch):
    root = logging.getLogger()
    before = root.level, list(root.handlers)
    monkeypatch.setattr(logs, "_registered", frozenset())
    monkeypatch.setattr(logs, "_registered_pattern", None)
    yield
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()
    logging.captureWarnings(capture=False)
    root.setLevel(before[0])
    root.handlers[:] = before[1]


@pytest.fixture
def stream() -> io.StringIO:
    stream = io.StringIO()
    configure_logs(level="INFO", stream=stream)
    return stream


def lines(stream: io.StringIO) -> list[dict[str, object]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_log_that_is_no_terminal_is_one_json_object_a_line(stream) -> None:
    get_logger().info("step.finished", chunks=12, seconds=1.5, who="Ünï\ncode \ud83d")
    (line,) = lines(stream)
    assert list(line)[:3] == ["timestamp", "level", "event"]
    assert datetime.fromisoformat(str(line.pop("timestamp"))).utcoffset() is not None
    assert line == {
        "level": "info",
        "event": "step.finished",
        "chunks": 12,
        "seconds": 1.5,
        "who": "Ünï\ncode \ud83d",
    }


def test_a_terminal_gets_a_readable_line_unless_json_is_asked_for() -> None:
    terminal = Terminal()
    configure_logs(stream=terminal)
    get_logger().info("worker.started", jobs=2)
    assert "worker.started" in terminal.getvalue()
    assert not terminal.getvalue().startswith("{")
    configure_logs(log_format="json", stream=(again := Terminal()))
    get_logger().info("worker.started")
    assert lines(again)[0]["event"] == "worker.started"


def test_a_terminal_is_commanded_by_nothing_that_others_wrote() -> None:
    terminal = Terminal()
    configure_logs(log_format="console", stream=terminal)
    get_logger().warning("one\ntwo", path="a\x1b]0;title\x07", blank="a \x1b[2J", turned="\u202eb")
    logging.getLogger("theirs").warning("said\x9b2J")
    shown = re.sub(r"\x1b\[[\d;]*m", "", terminal.getvalue())  # the renderer's own colours
    assert not set(shown) & set("\x1b\x07\x9b\u202e")
    assert len(shown.splitlines()) == 2
    assert r"path=a\x1b]0;title\x07" in shown


def test_lines_below_the_level_are_not_written(stream) -> None:
    get_logger().debug("quiet")
    assert stream.getvalue() == ""
    configure_logs(level="debug", stream=stream)
    get_logger().debug("heard")
    assert [line["event"] for line in lines(stream)] == ["heard"]


async def test_every_line_of_a_job_and_of_its_tasks_names_it_and_no_other_does(stream) -> None:
    log = get_logger()

    async def work(epoch: int) -> None:
        with bind_job(job_id=JOB, user_id=USER, attempt=1, lease_epoch=epoch, worker_id="w"):
            with bind_step("extract_facts"):
                async with asyncio.TaskGroup() as group:
                    group.create_task(asyncio.to_thread(log.info, "call.finished", n=epoch))
            log.info("job.finished", n=epoch)

    await asyncio.gather(work(7), work(8))
    log.info("idle")
    found = lines(stream)
    assert len(found) == 5
    for line in found[:4]:
        assert line["job_id"] == str(JOB)
        assert line["user_id"] == str(USER)
        assert line["attempt"] == 1
        assert line["worker_id"] == "w"
        assert line["lease_epoch"] == line["n"]
        assert line.get("step") == ("extract_facts" if line["event"] == "call.finished" else None)
    assert "job_id" not in found[4]


def test_an_error_says_its_type_its_text_and_our_innermost_line(stream) -> None:
    log = get_logger()
    try:
        load_settings(rollout_percent=101)
    except UsageError as error:
        log.exception("settings.refused")
        log.error("settings.refused", exc_info=error)
        log.error("settings.refused", error=error)
    found = lines(stream)
    assert len(found) == 3
    for line in found:
        assert line["error_type"] == "UsageError"
        assert line["error"] == "ROLLOUT_PERCENT: must be at most 100"
        assert str(line["at"]).startswith("daemon/settings.py:")
        assert str(line["at"]).endswith(" load_settings")
        assert "Traceback" not in json.dumps(line)


async def test_a_task_group_with_one_failure_is_reported_as_that_failure(stream) -> None:
    async def fail() -> None:
        raise ValueError("the cause")

    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(fail())
    except ExceptionGroup:
        get_logger().exception("step.failed")
    assert (lines(stream)[0]["error_type"], lines(stream)[0]["error"]) == (
        "ValueError",
        "the cause",
    )


@pytest.mark.parametrize(
    "name",
    [
        "password",
        "PGPASSWORD",
        "api_key",
        "x-api-key",
        "supabase_service_key",
        "aws_secret_access_key",
        "Authorization",
        "access_token",
        "token",
        "Set-Cookie",
    ],
)
def test_a_value_under_a_secret_looking_name_is_masked_however_deep(stream, name) -> None:
    get_logger().info(
        "e", **{name: "open sesame", "nested": [{"headers": {name: ["open sesame"]}}]}
    )
    assert "open sesame" not in stream.getvalue()
    assert lines(stream)[0][name] == "***"


def test_counts_of_tokens_are_no_secrets(stream) -> None:
    get_logger().info("e", input_tokens=12, token_count=3, max_tokens=4, content_key="abc")
    line = lines(stream)[0]
    assert (line["input_tokens"], line["token_count"], line["max_tokens"]) == (12, 3, 4)
    assert line["content_key"] == "abc"


def test_a_registered_secret_is_masked_wherever_it_stands(stream) -> None:
    mask_secrets("correct horse", "horse/battery", "x")
    log = get_logger()
    log.info(
        "said correct horse",
        text="<correct horse>",
        quoted="horse%2Fbattery",
        deep={"list": [("correct horse", {"correct horse": b"correct horse"})]},
        thing=SecretStr("correct horse"),
        path=Path("/tmp/horse/battery"),
        several={"correct horse", "plain"},
    )
    try:
        raise ValueError("bad value: correct horse")
    except ValueError:
        log.exception("failed")
    logging.getLogger("elsewhere").error("dsn %s", "correct horse")
    assert "correct horse" not in stream.getvalue()
    assert "horse/battery" not in stream.getvalue()
    assert "horse%2Fbattery" not in stream.getvalue()
    assert lines(stream)[0]["text"] == "<***>"
    # A one-letter password is not searched for: every x would vanish and the log with it.
    assert masked("extra") == "extra"


def test_a_secret_that_holds_another_vanishes_whole() -> None:
    mask_secrets("abcd", "abcdefgh")
    assert masked("[abcdefgh]") == "[***]"


def test_what_the_settings_hold_secret_is_masked(stream, monkeypatch) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql://u:p%40ssw0rd@h/d")
    monkeypatch.setenv("ANTHROPIC_API_KEY", "local-server-key")
    mask_secrets(*load_settings().secret_values())
    get_logger().info("e", a="p@ssw0rd", b="p%40ssw0rd", c="key local-server-key refused")
    assert [lines(stream)[0][name] for name in "abc"] == ["***", "***", "key *** refused"]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("key sk-ant-api03-AbC_d-9 refused", "key *** refused"),
        ("sb_secret_abc123", "***"),
        ("jwt eyJhbGciOiJIUzI1NiJ9.eyJyb2xlIjoi.sig-1_x!", "jwt ***!"),
        ("postgres://user:pass@host/db", "postgres://user:***@host/db"),
        ("redis://:p@ss@host", "redis://:***@host"),
        ("Authorization: Bearer abcdefgh1234", "Authorization: Bearer ***"),
        ("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "***"),
        ("AKIAIOSFODNN7EXAMPLE", "***"),
        ("host=h password=swordfish user=u", "host=h password=*** user=u"),
        ('{"api_key": "swordfish"}', '{"api_key": "***"}'),
        ("https://host:8080/path?mail=a@b.c", "https://host:8080/path?mail=a@b.c"),
        ("task-scheduler ran", "task-scheduler ran"),
    ],
)
def test_well_known_shapes_are_masked_without_being_registered(text, shown) -> None:
    assert masked(text) == shown


def test_a_long_hostile_value_is_masked_in_linear_time() -> None:
    started = datetime.now(UTC)
    for piece in ("a", "://", "eyJ", "sk-", "password", "bearer ", "://a:"):
        masked(piece * 30_000)
    assert (datetime.now(UTC) - started).total_seconds() < 5


def test_no_value_is_long_enough_to_carry_a_conversation(stream) -> None:
    text = "I told nobody that " * 1_000
    get_logger().info("e", text=text, nested=[{"turns": [text] * 40}] * 40, many=list(range(9_999)))
    line = lines(stream)[0]
    assert len(str(line["text"])) == logs.LONGEST_VALUE_CHARACTERS
    assert str(line["text"]).endswith("(19000 characters)")
    assert len(stream.getvalue()) < 3_000


def test_a_cut_never_leaves_half_a_secret(stream) -> None:
    key = "sk-ant-" + "k" * 60
    get_logger().info("e", text="." * 460 + " " + key + " " + "." * 500)
    assert "sk-ant" not in stream.getvalue()


@pytest.mark.parametrize("dots", range(1_900, 2_001, 20))
def test_a_secret_torn_by_the_end_of_what_is_searched_is_not_shown(stream, dots) -> None:
    mask_secrets("." * 100)
    get_logger().info("e", text="." * dots + "postgres://user:swordfish@host/db" + "." * 9_000)
    assert "sword" not in stream.getvalue()
    assert str(lines(stream)[0]["text"]).endswith("characters)")


def test_any_value_can_be_logged(stream) -> None:
    class Broken:
        def __repr__(self) -> str:
            raise RuntimeError("no")

    loop: list[object] = []
    loop.append(loop)
    get_logger().info(
        "e",
        broken=Broken(),
        loop=loop,
        nan=float("nan"),
        when=datetime(2026, 1, 2, tzinfo=UTC),
        raw=b"12",
        uuid=JOB,
        error=ValueError("x"),
    )
    line = lines(stream)[0]
    assert line["broken"] == "<Broken>"
    assert line["nan"] == "nan"
    assert line["when"] == "2026-01-02T00:00:00+00:00"
    assert line["raw"] == "<2 bytes>"
    assert line["uuid"] == str(JOB)


def test_third_parties_log_through_the_same_door_from_warning_up(stream) -> None:
    foreign = logging.getLogger("httpx")
    foreign.setLevel(logging.DEBUG)
    try:
        foreign.info("GET https://host/every/request")
        with bind_job(job_id=JOB, user_id=USER, attempt=1, lease_epoch=1, worker_id="w"):
            foreign.warning("retrying %s", "postgres://user:pass@host/db")
    finally:
        foreign.setLevel(logging.NOTSET)
    misfit = logging.makeLogRecord({"levelno": 40, "msg": "%d pieces", "args": ("many",)})
    for handler in logging.getLogger().handlers:
        if type(handler).__module__ == "daemon.logs":
            handler.handle(misfit)
    found = lines(stream)
    assert [line["level"] for line in found] == ["warning", "error"]
    assert found[0]["event"] == "retrying postgres://user:***@host/db"
    assert found[0]["logger"] == "httpx"
    assert found[0]["job_id"] == str(JOB)
    assert found[1]["event"] == "%d pieces"


def test_configuring_twice_does_not_say_things_twice(stream) -> None:
    configure_logs(stream=stream)
    logging.getLogger("asyncpg").error("once")
    get_logger().info("once")
    assert len(lines(stream)) == 2


def test_a_log_that_cannot_be_written_does_not_end_the_work(stream) -> None:
    stream.close()
    get_logger().info("nobody hears")


def test_threads_never_tear_a_line(stream) -> None:
    log = get_logger()
    threads = [
        threading.Thread(target=lambda: [log.info("e", text="t" * 300) for _ in range(100)])
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(lines(stream)) == 400
