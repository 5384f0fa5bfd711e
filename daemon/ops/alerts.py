"""Alerts for whoever is on call (ALERT_WEBHOOK): what each says, and those that cannot wait.

The wording of every alert is here; that alike ones are told once an hour, and no more than twenty,
is the outbox's rule (`fullpass.worth_telling`). `Alarm` takes in what stops a whole worker: it goes
through the outbox like the rest, or, when the database itself is the trouble, straight out, until
it is heard once. Alerts name jobs by id and carry errors; no secret, address or word of a
conversation (promise 11).
"""

from __future__ import annotations

import asyncio
import json
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from daemon.errors import NotTold
from daemon.logs import get_logger, masked
from daemon.ops.discreet import calling_nobody, without_addresses
from daemon.ops.webhooks import post

if TYPE_CHECKING:
    from collections.abc import Callable
    from uuid import UUID

    from daemon.ops.outbox import Message, Outbox

_log = get_logger()
_LONGEST_TEXT = 1500
_ONCE_IN_SECONDS = 3600.0
_DATABASE = "the database"
OUT_OF_REACH_SECONDS = 60.0
"""A database that is away for less is being restarted."""


class AlertWebhook:
    """Posts `{"text": …}`, which chat programs take."""

    name = "alert"
    events = ("failed", "quarantined", "stalled")

    def __init__(self, url: str) -> None:
        self.address = url

    async def tell(self, message: Message) -> None:
        """Send one alert."""
        await self.say(wording(message.event, message.data, job_id=message.job_id, at=message.at))

    async def say(self, text: str) -> None:
        """Send a text. Raises NotTold."""
        told = calling_nobody(without_addresses(masked(text)))
        body = json.dumps({"text": told[:_LONGEST_TEXT]})
        await post(self.address, body.encode())


def wording(
    event: str,
    data: dict[str, Any],
    *,
    job_id: UUID | None = None,
    at: datetime | None = None,
) -> str:
    """Return an alert's text: what happened, and what to do."""
    job = data.get("job_id") or job_id
    error = data.get("error") or "no reason noted"
    trouble = data.get("trouble")
    match event:
        case "failed":
            text = (
                f"job {job} failed: {error}\nIt is not tried again by itself: `fullpass status "
                f"{job}` tells its story, `fullpass retry {job}` goes on from what it saved."
            )
        case "quarantined":
            text = f"job {job} is quarantined: {error}"
        case "stalled":
            text = (
                f"job {job} made no progress at {data.get('step', 'its start')} and was given "
                f"back; it is tried again by itself. If it recurs: `fullpass status {job}`."
            )
        case "stuck":
            others = int(data.get("jobs", 1)) - 1
            more = f" ({others} more: select * from fullpass.ops_stuck)" if others else ""
            text = (
                f"job {job} is stuck since {_span(data.get('seconds', 0))}{more}: "
                f"{data.get('reason')}. What to do: {data.get('remedy')}."
            )
        case "stopped":
            text = (
                f"work has stopped, since every job would meet this: {trouble}\nNo job loses an "
                f"attempt; it goes on by itself when that is mended. (worker {data.get('worker')})"
            )
        case "resumed":
            text = f"work goes on. It had stopped for: {trouble}"
        case "unreachable":
            text = (
                f"the database is out of reach for {_span(data.get('seconds', 0))}: {trouble}\nNo "
                f"job is lost; work goes on when it answers. (worker {data.get('worker')})"
            )
        case "reached":
            text = f"the database answers again, after {_span(data.get('seconds', 0))}."
        case "gone":
            text = (
                f"{_SETTING[data['channel']]} answered 410 Gone: nothing more is sent there until "
                "its address changes."
            )
        case "not_told":
            text = (
                f"{_SETTING[data['channel']]} was not reached in {data.get('attempts')} attempts "
                f"over three days, and a message was given up: {data.get('reason')}. All of them: "
                "select * from fullpass.outbox where outcome = 'given up'."
            )
        case "more":
            since = "" if at is None else f" since {_clock(at)}"
            text = f"and {data.get('alerts')} more alerts{since}: `fullpass status` shows all."
        case _:
            text = event
    if data.get("last"):
        text += "\n(20 alerts within an hour: further ones are summed up in one.)"
    return f"fullpass: {text}"


_SETTING = {"notify": "NOTIFY_WEBHOOK", "email": "SMTP_URL", "alert": "ALERT_WEBHOOK"}


def _span(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.0f} h"


def _clock(at: datetime) -> str:
    return at.astimezone(UTC).strftime("%H:%M UTC")


class Alarm:
    """What stops this worker, on its way to the outbox or, without a database, straight out."""

    def __init__(
        self,
        webhook: AlertWebhook | None,
        *,
        worker_id: str,
        out_of_reach_seconds: float = OUT_OF_REACH_SECONDS,
    ) -> None:
        self._webhook = webhook
        self._worker_id = worker_id
        self._patience_seconds = out_of_reach_seconds
        self._written: list[tuple[str, str, dict[str, Any]]] = []
        self._stops_told: list[tuple[float, dict[str, Any]]] = []
        """Straight out, and when: the outbox has to know, or nobody hears that work goes on."""
        self._lost_at: float | None = None
        self._cried: dict[str, float] = {}
        self._crying: set[asyncio.Task[None]] = set()
        self.wake: Callable[[], None] = lambda: None

    def stopped(self, trouble: str) -> None:
        """Every job would meet this."""
        self._write("stopped", "work", {"trouble": trouble, "worker": self._worker_id})

    def worked(self) -> None:
        """Take the next stop for a new one: a job went through."""
        self._cried = {k: at for k, at in self._cried.items() if k == _DATABASE}

    def out_of_reach(self, trouble: str) -> None:
        """Tell, once, that the database does not answer, when it has not for a while."""
        now = time.monotonic()
        if self._lost_at is None:
            self._lost_at = now
        seconds = now - self._lost_at
        if seconds >= self._patience_seconds:
            self._cry(
                "unreachable",
                {"trouble": trouble, "worker": self._worker_id, "seconds": seconds},
                once_for=_DATABASE,
            )

    def reached(self) -> None:
        """Note that the database answers, and tell so where it was told that it did not."""
        if self._lost_at is None:
            return
        seconds, self._lost_at = time.monotonic() - self._lost_at, None
        if self._stops_told:
            self.wake()
        if self._cried.pop(_DATABASE, None) is not None:
            self._write("reached", "database", {"seconds": round(seconds)})

    async def write_to(self, outbox: Outbox) -> None:
        """Pass on what happened since; what the outbox does not take stays, and it raises."""
        while self._stops_told:
            told_at, data = self._stops_told[0]
            await outbox.note_told_stop(data, seconds_ago=time.monotonic() - told_at)
            self._stops_told.pop(0)
        while self._written:
            event, about, data = self._written[0]
            await outbox.alert(event, about, data)
            self._written.pop(0)
        # A stop that went straight out is muted here for an hour; work that another worker has done
        # since makes the next one a new one.
        for stop, at in list(self._cried.items()):
            if stop != _DATABASE and await outbox.went_on(within_seconds=time.monotonic() - at):
                self._cried.pop(stop, None)

    def cry_out(self) -> None:
        """Send straight what stopped the worker and the database does not take."""
        for event, _, data in self._written:
            if event == "stopped":
                self._cry(event, data, once_for=str(data["trouble"]))
        self._written = [written for written in self._written if written[0] != "stopped"]

    async def hush(self, *, seconds: float) -> None:
        """Let what is on its way arrive, for so long."""
        if self._crying:
            await asyncio.wait(self._crying, timeout=seconds)
        for task in self._crying:
            task.cancel()

    def _write(self, event: str, about: str, data: dict[str, Any]) -> None:
        if self._webhook is not None:
            self._written.append((event, about, data))
            self.wake()

    def _cry(self, event: str, data: dict[str, Any], *, once_for: str) -> None:
        now = time.monotonic()
        self._cried = {k: at for k, at in self._cried.items() if at > now - _ONCE_IN_SECONDS}
        if self._webhook is None or once_for in self._cried:
            return
        self._cried[once_for] = now
        task = asyncio.create_task(self._say(self._webhook, event, data, once_for))
        self._crying.add(task)
        task.add_done_callback(self._crying.discard)

    async def _say(
        self, webhook: AlertWebhook, event: str, data: dict[str, Any], once_for: str
    ) -> None:
        at = time.monotonic()
        try:
            await webhook.say(wording(event, data))
        except NotTold as error:
            _log.warning("telling.failed", channel="alert", error=str(error))
            self._cried.pop(once_for, None)  # nobody heard it: the next look tells it again
            if event == "stopped":
                self._written.append((event, "work", data))
            return
        if event == "stopped":
            self._stops_told.append((at, data))
            self.wake()
