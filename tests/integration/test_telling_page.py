"""The page on telling says what the code does: its snippets run, its tables name what there is."""

from __future__ import annotations

import datetime as dt
import json
import re
import subprocess
import uuid
from typing import TYPE_CHECKING, Any

import pytest
from standardwebhooks.webhooks import WebhookVerificationError

from daemon.ops.alerts import wording
from daemon.ops.outbox import Message
from daemon.ops.webhooks import NotifyWebhook, payload, signature
from daemon.settings import Settings, load_settings
from tests.support.cli import ROOT

if TYPE_CHECKING:
    from tests.support.telling import Db

PAGE = (ROOT / "docs/telling.md").read_text(encoding="utf-8")


def block(kind: str) -> str:
    (found,) = re.findall(rf"^```{kind}\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
    return str(found)


def column(heading: str) -> list[str]:
    """Give the first column of the table with this first heading."""
    rows = PAGE.split(f"| {heading} |", 1)[1].split("\n\n", 1)[0].splitlines()[2:]
    return [row.split("|")[1].strip() for row in rows]


def message(event: str, **data: Any) -> Message:
    return Message(
        id=uuid.uuid4(), channel="notify", event=event, job_id=uuid.uuid4(), user_id=uuid.uuid4(),
        at=dt.datetime.now(dt.UTC), attempts=1, taken_at=dt.datetime.now(dt.UTC),
        put_off_seconds=30, data=data,
    )  # fmt: skip


def test_the_secret_the_page_makes_is_accepted_and_its_receiver_takes_what_is_signed_by_it() -> (
    None
):
    made = subprocess.run(["bash", "-c", block("bash")], capture_output=True, text=True, check=True)
    secret = load_settings(notify_webhook_secret=made.stdout.strip()).notify_webhook_secret
    assert secret is not None
    told: dict[str, Any] = {"NOTIFY_WEBHOOK_SECRET": secret.get_secret_value()}
    exec(block("python"), told)  # the snippet of the page
    body = json.dumps(payload(message("completed", conversations=42, messages=169))).encode()
    at = int(dt.datetime.now(dt.UTC).timestamp())
    signed = signature(secret.get_secret_value(), message_id="msg_1", timestamp=at, body=body)
    headers = {
        "webhook-id": "msg_1", "webhook-timestamp": str(at), "webhook-signature": signed,
    }  # fmt: skip
    seen: set[str] = set()
    assert told["receive"](body, headers, seen)["data"]["conversations"] == 42
    assert told["receive"](body, headers, seen) is None
    with pytest.raises(WebhookVerificationError):
        told["receive"](body + b" ", headers, seen)


def test_the_example_has_the_keys_and_the_table_the_types_that_are_sent() -> None:
    shown = json.loads(block("json"))
    sent = json.loads(json.dumps(payload(message("completed", conversations=42, messages=169))))
    assert list(shown) == list(sent)
    assert list(shown["data"]) == list(sent["data"])
    types = {payload(message(event))["type"] for event in NotifyWebhook.events}
    assert set(column("`type`")) == {f"`{t}`" for t in types}
    failed = payload(message("failed", error="x: y"))["data"]
    assert set(failed) - set(sent["data"]) == {"error", "quarantined"}


def test_the_settings_of_the_page_exist() -> None:
    named = set(re.findall(r"`([A-Z]+_[A-Z_]+)`", PAGE))
    assert named == {
        "NOTIFY_WEBHOOK", "NOTIFY_WEBHOOK_SECRET", "ALERT_WEBHOOK", "SMTP_URL", "EMAIL_FROM",
        "EMAIL_TEMPLATES",
    }  # fmt: skip
    assert {name.lower() for name in named} <= set(Settings.model_fields)


def test_every_alert_of_the_page_begins_as_the_page_says() -> None:
    job = uuid.uuid4()
    data = {
        "error": "x", "step": "extract_facts", "jobs": 1, "seconds": 90, "reason": "r",
        "remedy": "m", "trouble": "t", "worker": "w", "channel": "notify", "alerts": 3,
        "attempts": 2,
    }  # fmt: skip
    events = (
        "failed", "quarantined", "stalled", "stuck", "stopped", "resumed", "unreachable",
        "reached", "gone", "not_told", "more",
    )  # fmt: skip
    texts = [wording(event, data, job_id=job) for event in events]
    shown = [part for cell in column("alert") for part in re.findall(r"`([^`]+)`", cell)]
    assert len(shown) == len(events)
    for part in shown:
        pattern = re.escape(part).replace("…", ".+")
        assert any(re.match(rf"fullpass: {pattern}", text) for text in texts), part


async def test_the_sql_of_the_page_runs(db: Db) -> None:
    await db.fetch(block("sql"))
    (update,) = re.findall(r"`(UPDATE [^`]+)`", PAGE)
    await db.execute(update)
