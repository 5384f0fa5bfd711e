"""Telling people: whatever is due in the outbox goes to its channel, by whichever worker is there.

Runs beside the work and never in its way: it holds no lease, sends a few messages of each channel
at a time, each within a time limit, and looks into the outbox when one of this worker's jobs has
ended and every half minute besides. A worker with no channel asks nothing. A message is delivered
at least once, under one id; what is due when a worker stops, another sends.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from contextlib import suppress
from typing import TYPE_CHECKING

from daemon.errors import AddressGone, NeverTold, NotTold, OutOfReach
from daemon.logs import get_logger, masked
from daemon.ops.alerts import Alarm, AlertWebhook
from daemon.ops.outbox import Outbox
from daemon.ops.webhooks import NotifyWebhook

if TYPE_CHECKING:
    from daemon.database import Pool
    from daemon.ops.mail import Templates
    from daemon.ops.outbox import Channel, Message
    from daemon.settings import Settings

_log = get_logger()
_LOOK_SECONDS = 30.0
_STUCK_SECONDS = 300.0
_LIVE_SECONDS = 3600.0
_AT_ONCE = 4
"""Messages of a channel under way: a receiver that hangs delays its own channel only."""


class Teller:
    """Sends what is due for the channels that these settings name: `open`, `start`, `finish`."""

    def __init__(
        self,
        settings: Settings,
        *,
        worker_id: str,
        silent: bool = False,
        look_seconds: float = _LOOK_SECONDS,
    ) -> None:
        self._settings = settings
        self._silent = silent
        self._look_seconds = look_seconds
        alert = None
        if settings.alert_webhook is not None and not silent:
            alert = AlertWebhook(settings.alert_webhook)
        self.alarm = Alarm(alert, worker_id=worker_id)
        self.alarm.wake = self.wake
        # Read here, so that templates that cannot be used end the command before any claim.
        self._templates = templates_of(settings)
        self._outbox: Outbox | None = None
        self._channels: dict[str, Channel] = {}
        self._live: set[str] = set()
        self._live_until = 0.0
        self._stuck_at = 0.0
        self._woken = asyncio.Event()
        self._telling: asyncio.Task[None] | None = None
        self._finishing = False
        self._sending: dict[asyncio.Task[None], str] = {}
        self._retry_at = float("inf")

    def wake(self) -> None:
        """Look into the outbox now: something has ended."""
        self._woken.set()

    async def open(self, pool: Pool) -> bool:
        """Have the channels live, so that whatever ends from now on is told. Raises OutOfReach."""
        self._outbox = Outbox(pool)
        if not self._silent:
            self._channels = {c.name: c for c in channels_of(self._settings, self._templates, pool)}
        await self._keep_live(self._outbox)
        return True

    def start(self) -> None:
        """Tell until `finish`."""
        self._telling = asyncio.create_task(self._keep_telling())

    async def _keep_telling(self) -> None:
        while self._channels and not self._finishing:
            self._woken.clear()
            pause = self._look_seconds * random.uniform(0.8, 1.0)
            if await self._looked():
                pause = min(pause, max(0.0, self._retry_at - time.monotonic()))
            with suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._woken.wait()

    async def finish(self, *, seconds: float) -> None:
        """Tell what is due, for so long at most; what is left, another worker tells."""
        self._finishing = True
        self.wake()
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                # A look is not cut short: what it took would wait for half a minute.
                if self._telling is not None:
                    await self._telling
                while self._channels and await self._looked() and self._sending:
                    await asyncio.wait(self._sending, return_when=asyncio.FIRST_COMPLETED)
        await self.alarm.hush(seconds=seconds)
        for task in self._sending:
            task.cancel()
        await asyncio.gather(*self._sending, return_exceptions=True)

    async def _keep_live(self, outbox: Outbox) -> None:
        self._live = {name for name, c in self._channels.items() if await outbox.keep_live(c)}
        self._live_until = time.monotonic() + _LIVE_SECONDS * random.uniform(0.8, 1.0)

    async def _looked(self) -> bool:
        """Look; whatever that meets, the work beside it goes on."""
        try:
            if self._outbox is not None:
                await self._look(self._outbox)
        except OutOfReach as error:
            _log.warning("telling.waits", error=masked(str(error)))
            self.alarm.cry_out()
        except Exception as error:  # noqa: BLE001 - telling harms no job; it is tried again
            _log.error("telling.broken", exc_info=error)
        else:
            return True
        return False

    async def _look(self, outbox: Outbox) -> None:
        """Pass on what stopped this worker, and start sending what is due."""
        now = time.monotonic()
        if now >= self._live_until:
            await self._keep_live(outbox)
        await self.alarm.write_to(outbox)
        if "alert" in self._live and now >= self._stuck_at:
            await outbox.look_for_stuck()
            self._stuck_at = now + _STUCK_SECONDS * random.uniform(0.8, 1.2)
        if now >= self._retry_at:
            self._retry_at = float("inf")
        under_way = Counter(self._sending.values())
        free = [name for name in sorted(self._live) if under_way[name] < _AT_ONCE]
        if not free:
            return  # the first that ends wakes
        for message in await outbox.take(free, limit=_AT_ONCE):
            task = asyncio.create_task(self._send(outbox, message))
            self._sending[task] = message.channel
            task.add_done_callback(self._sent)

    def _sent(self, task: asyncio.Task[None]) -> None:
        busy = Counter(self._sending.values())[self._sending.pop(task)] >= _AT_ONCE
        if busy:  # there may be more
            self.wake()
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("telling.broken", exc_info=error)

    async def _send(self, outbox: Outbox, message: Message) -> None:
        """Make one attempt and note what came of it."""
        channel = self._channels[message.channel]
        try:
            why = await self._attempt(channel, message)
            if why is None:
                await outbox.told(message)
                _log.info("told", **_named(message))
                return
            if isinstance(why, AddressGone):
                self._live.discard(channel.name)
                await outbox.gone(channel)
            let_go = await outbox.not_told(message, str(why), final=isinstance(why, NeverTold))
        except OutOfReach as error:
            # Not marked: it is sent again, under the same id.
            _log.warning("telling.unmarked", error=masked(str(error)), **_named(message))
            return
        if not let_go:
            self._retry_at = min(self._retry_at, time.monotonic() + message.put_off_seconds)
        _log.warning("telling.failed", error=str(why), let_go=let_go, **_named(message))

    async def _attempt(self, channel: Channel, message: Message) -> NotTold | None:
        try:
            await channel.tell(message)
        except NotTold as error:
            return error
        except OutOfReach:
            raise
        except Exception as error:  # noqa: BLE001 - a defect of one channel is tried again
            _log.error("telling.broken", exc_info=error, **_named(message))
            return NotTold(f"a defect: {type(error).__name__}")
        return None


def channels_of(settings: Settings, templates: Templates | None, pool: Pool) -> list[Channel]:
    """Return the channels that the settings name."""
    channels: list[Channel] = []
    if settings.alert_webhook is not None:
        channels.append(AlertWebhook(settings.alert_webhook))
    if settings.notify_webhook is not None and settings.notify_webhook_secret is not None:
        secret = settings.notify_webhook_secret.get_secret_value()
        channels.append(NotifyWebhook(settings.notify_webhook, secret))
    if settings.smtp_url is not None and settings.email_from is not None and templates is not None:
        from daemon.ops.mail import Mail  # noqa: PLC0415 - a megabyte of rules for addresses

        channels.append(Mail(settings.smtp_url, settings.email_from, templates, pool))
    return channels


def templates_of(settings: Settings) -> Templates | None:
    """Return the words of the mails, where mail is set up. Raises UsageError."""
    if settings.smtp_url is None:
        return None
    from daemon.ops.mail import Templates  # noqa: PLC0415 - a megabyte of rules for addresses

    return Templates(settings.email_templates)


def _named(message: Message) -> dict[str, object]:
    return {
        "channel": message.channel, "of": message.event, "message_id": message.id,
        "job_id": message.job_id, "attempts": message.attempts,
    }  # fmt: skip
