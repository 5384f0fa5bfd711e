"""Signing webhooks: the scheme's own published example, and its reference implementation."""

from __future__ import annotations

import datetime as dt
import json
import time
import uuid

import pytest
from standardwebhooks.webhooks import Webhook

from daemon.ops.alerts import wording
from daemon.ops.discreet import without_addresses
from daemon.ops.outbox import Message
from daemon.ops.webhooks import payload, signature


def test_the_published_example_is_signed_as_published() -> None:
    # https://github.com/standard-webhooks/standard-webhooks, the example of its specification
    assert (
        signature(
            "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
            message_id="msg_p5jXN8AQM9LWM0D4loKWxJek",
            timestamp=1614265330,
            body=b'{"test": 2432232314}',
        )
        == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
    )


@pytest.mark.parametrize("secret", ["whsec_" + "QUJD" * 8, "whsec_" + "QUJD" * 8 + "QQ"])
def test_signatures_equal_those_of_the_reference_implementation(secret: str) -> None:
    at, body = 1_700_000_000, json.dumps({"name": "Zoë", "n": 1}, ensure_ascii=False)
    theirs = Webhook(secret).sign("msg_1", dt.datetime.fromtimestamp(at, dt.UTC), body)
    assert signature(secret, message_id="msg_1", timestamp=at, body=body.encode()) == theirs


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("exports/anna.b@example.org/x.zip: gone", "exports/…@…/x.zip: gone"),
        ("<zoë@münchen.example> and a@b", "<…@…> and …@…"),
        ("nothing @ all, 50% @once", "nothing @ all, 50% @once"),
    ],
)
def test_addresses_leave_no_trace_in_what_is_told(text: str, told: str) -> None:
    assert without_addresses(text) == told


def test_a_hostile_text_costs_no_time() -> None:
    began = time.process_time()
    for hostile in ("a" * 50_000 + "@" * 50_000, "a@" * 50_000, "@a" * 50_000):
        without_addresses(hostile)
    assert time.process_time() - began < 2


def test_what_a_row_holds_beside_what_is_documented_is_not_told() -> None:
    message = Message(
        id=uuid.UUID(int=1), channel="notify", event="completed", job_id=uuid.UUID(int=2),
        user_id=uuid.UUID(int=3), at=dt.datetime(2026, 11, 22, tzinfo=dt.UTC), attempts=1,
        taken_at=dt.datetime(2026, 11, 23, tzinfo=dt.UTC), put_off_seconds=30.0, data={"step": "x", "conversations": 3, "secret": "words"},
    )  # fmt: skip
    told = payload(message)
    assert told["timestamp"] == "2026-11-22T00:00:00Z"
    assert set(told["data"]) == {"job_id", "user_id", "status", "conversations", "messages"}
    assert "words" not in wording("failed", message.data, job_id=message.job_id)
