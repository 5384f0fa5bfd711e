"""Asking a model: looked up before it is paid, recorded whatever comes, retried by us.

`Caller.ask` is the only way the pass reaches a model. The order is: ledger, right to go on, money,
a place under the limit, the call, the receipt. Promise 3 rests on that order; promise 2 on the
receipt being written before anything looks at the lease again. How long a failing call is repeated,
and when all jobs stop calling, is `patience.py`.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar
from uuid import uuid4
from weakref import WeakValueDictionary

from daemon.errors import BadCall, CallError, CallFailed, Systemic, UselessReply, Wait
from daemon.llm.budget import Budget
from daemon.llm.patience import Gate, Patience
from daemon.llm.request import Reply, Request
from daemon.llm.speed import Speeds
from daemon.logs import get_logger

if TYPE_CHECKING:
    from collections.abc import Callable
    from uuid import UUID

    from daemon.llm.ledger import Ledger
    from daemon.llm.limiter import CallLimiter
    from daemon.llm.patience import Begun
    from daemon.llm.providers import Provider

_log = get_logger()
T = TypeVar("T")

_ASKS = 3
"""How often the same input is put to the model when its replies are useless."""
_ASKED_AGAIN = (
    "\n\n(Try {number}: the reply before this one could not be read. Answer with exactly one JSON "
    "object of the given schema, complete, and nothing around it.)"
)
_PROBE = "This only checks that the server answers."
_NOTHING_ASKED = "There is nothing to report."
_PROBE_SECONDS = 10.0
_UNUSABLE = "unusable: "
"""Before the reason, in the stop reason of a receipt whose reply was no message at all."""


class Holder(Protocol):
    """What a caller must know of the lease: whether a new call may start."""

    def check(self) -> None:
        """Raise the reason not to."""
        ...


@dataclass(frozen=True, slots=True)
class Scope:
    """On whose behalf a call is made."""

    job_id: UUID
    user_id: UUID
    holder: Holder
    max_cost_usd: float | None = None


@dataclass(frozen=True, slots=True)
class Answer(Generic[T]):
    """A reply and what was read from it."""

    value: T
    reply: Reply


class Caller:
    """Makes the model calls of all jobs of one process.

    `alarm` is told at once of what every job would meet (a wrong key, a spend limit).
    """

    def __init__(
        self,
        provider: Provider,
        ledger: Ledger,
        limiter: CallLimiter,
        *,
        patience: Patience | None = None,
        alarm: Callable[[Systemic], None] | None = None,
    ) -> None:
        self.provider = provider
        self.ledger = ledger
        self.limiter = limiter
        self.speeds = Speeds()
        self._budget = Budget()
        self._gate = Gate(patience or Patience(), alarm=alarm)
        # Held while a key is looked up, asked and recorded: two windows with the same text must
        # not both find no receipt and both pay.
        self._asking: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    @property
    def offline(self) -> bool:
        """Whether no model is behind this: nothing is paid, so nothing is recorded."""
        return self.provider.name == "offline"

    async def ask(self, scope: Scope, request: Request, read: Callable[[Reply], T]) -> Answer[T]:
        """Return what `read` makes of the model's reply.

        `read` raises UselessReply for a reply it can do nothing with; the same input is then put
        again, as a different call, at most three times in all. Raises UselessReply when none of
        them was of use, BadCall when the server refuses the input, Wait (or Systemic) when the job
        should be given back for now, and whatever `scope.holder.check` raises.
        """
        if self.offline:
            scope.holder.check()
            reply = await self.provider.call(request)
            return Answer(read(reply), reply)
        useless: UselessReply | None = None
        for again in range(request.tries or _ASKS):
            ask = request.ask + again
            asked = request
            if again:
                # Says what was wrong, and never sends the very same bytes twice.
                text = request.text + _ASKED_AGAIN.format(number=again + 1)
                asked = replace(request, ask=ask, text=text)
            try:
                return await self._ask_once(scope, asked, read)
            except UselessReply as error:
                useless = error
                _log.warning("llm.useless", purpose=request.purpose, ask=ask, error=str(error))
        raise useless or UselessReply("no usable reply")

    async def asked(
        self, scope: Scope, key: str | None, request: Request, read: Callable[[Reply], T]
    ) -> Answer[T] | None:
        """Return a reply that was paid under another key than the request has by now.

        A batch is out for a day, in which a release may word the question anew or a setting name
        another model: what it brings is not paid a second time. None where there is no use in it.
        """
        if key is None or key == request.content_key(str(scope.user_id)):
            return None
        scope.holder.check()
        receipt = await self.ledger.find(key, job_id=scope.job_id)
        if receipt is None or receipt.reply is None:
            return None
        try:
            return Answer(read(receipt.reply), receipt.reply)
        except UselessReply:
            return None

    async def _ask_once(
        self, scope: Scope, request: Request, read: Callable[[Reply], T]
    ) -> Answer[T]:
        key = request.content_key(str(scope.user_id))
        async with self._asking.setdefault(key, asyncio.Lock()):
            return await self._ask_by_key(key, scope, request, read)

    async def _ask_by_key(
        self, key: str, scope: Scope, request: Request, read: Callable[[Reply], T]
    ) -> Answer[T]:
        # While another call already waits for its place, nothing hangs on this answer yet.
        receipt = await self.ledger.find(key, job_id=scope.job_id, patient=self.limiter.crowded)
        if receipt is not None:
            if receipt.reply is None:
                raise UselessReply("this very call was paid before in this job, to no use")
            return Answer(read(receipt.reply), receipt.reply)
        scope.holder.check()
        if scope.max_cost_usd is None:
            return await self._pay(key, scope, request, read)
        async with self._budget.reserve(
            scope.job_id,
            self.provider.most_it_costs(request),
            ceiling_usd=scope.max_cost_usd,
            spent=lambda: self.ledger.spent(scope.job_id),
        ):
            return await self._pay(key, scope, request, read)

    async def _pay(
        self, key: str, scope: Scope, request: Request, read: Callable[[Reply], T]
    ) -> Answer[T]:
        useless: UselessReply | None = None
        value: T | None = None
        # The place is kept until the receipt is durable, also when this is cancelled: a kill never
        # leaves more calls unknown than may be in flight, however slow the database is.
        with ExitStack() as place:
            reply = await self._call(scope, request, place)
            self.limiter.seen(len(request.text) + len(request.system) + len(reply.text))
            if reply.text:
                self.speeds.seen(
                    request.model,
                    len(reply.text),
                    reply.latency_ms / 1000,
                    output_tokens=reply.usage.output_tokens if reply.usage else None,
                )
            try:
                value = read(_message(reply))
            except UselessReply as error:
                useless = error
            await self._record(key, scope, request, reply, place, usable=useless is None)
        if useless is not None:
            raise useless
        return Answer(value, reply)  # type: ignore[arg-type]

    async def _call(self, scope: Scope, request: Request, place: ExitStack) -> Reply:
        """Call the provider, repeating what fails in passing with jittered back-off.

        What was answered leaves its place under the limit in `place`, for the caller to give back.
        """
        attempt, failed, begun = 0, 0, self._gate.begin()
        while True:
            attempt += 1
            try:
                return await self._call_once(scope, request, place)
            except UselessReply as error:
                # Answered, and so perhaps paid, with nothing in it: leave a receipt of that too.
                self._gate.answered(scope.holder)
                return _unusable(request, error)
            except BadCall:
                self._gate.answered(scope.holder)
                raise
            except Systemic as error:
                if error.perhaps_of_input and await self._answers_a_probe(scope, request):
                    raise BadCall(f"this input is barred, and no other: {error}") from error
                self.limiter.restart()
                raise self._gate.closed_by(error) from error
            except CallFailed as error:
                if error.perhaps_paid:
                    await self._record_unread(scope, request, error, place)
                # A server that says when to come back is only busy.
                failed += error.retry_after_seconds is None
                if failed == request.tries:
                    raise Wait(f"the LLM server does not answer: {error}", seconds=1.0) from error
                probes = 0
                if not request.tries:
                    probes = await self._probe(scope, request, error, attempt, begun)
                try:
                    pause = self._gate.pause_after(error, attempt, scope.holder, begun, probes)
                finally:
                    if self._gate.shut:
                        self.limiter.restart()
                _log.warning(
                    "llm.retrying",
                    purpose=request.purpose,
                    attempt=attempt,
                    error=str(error),
                    pause_seconds=round(pause, 1),
                )
                await self._pause(scope, pause)

    async def _probe(
        self, scope: Scope, request: Request, error: CallFailed, attempt: int, begun: Begun
    ) -> int:
        """Where other calls do not tell whether input or server is in trouble, make some.

        Returns how many were answered in a row. The first that fails says that it is the server;
        what follows is the gate's to say.
        """
        answered = 0
        while self._gate.doubts(error, attempt, begun, answered):
            if not await self._answers_a_probe(scope, request):
                return 0
            answered += 1
        return answered

    async def _answers_a_probe(self, scope: Scope, request: Request) -> bool:
        """Whether the server answers another input.

        That costs a few tokens, far below what is set aside for the call that failed, and leaves a
        receipt.
        """
        key = f"probe {uuid4()}"
        probe = Request(
            request.purpose, "probe", request.model, _PROBE, f"{_NOTHING_ASKED} ({key})",
            request.schema, 64, min(_PROBE_SECONDS, request.timeout_seconds),
        )  # fmt: skip
        with ExitStack() as place:
            try:
                reply = await self._call_once(scope, probe, place)
            except (CallError, Systemic) as failed:
                _log.info("llm.probe_failed", error=str(failed))
                if isinstance(failed, CallError) and failed.perhaps_paid:
                    await self._record_unread(scope, probe, failed, place)
                return False
            await self._record(key, scope, probe, reply, place, usable=True)
        return True

    async def _record_unread(
        self, scope: Scope, request: Request, error: CallError, place: ExitStack
    ) -> None:
        """Leave a receipt, under no key that is ever asked, of what may have been paid for."""
        await self._record(
            f"unread {uuid4()}", scope, request, _unusable(request, error), place, usable=False
        )

    async def _record(
        self, key: str, scope: Scope, request: Request, reply: Reply, place: ExitStack,
        *, usable: bool,
    ) -> None:  # fmt: skip
        await self.ledger.record(
            request, reply, key=key, user_id=scope.user_id, job_id=scope.job_id,
            provider=self.provider.name, usable=usable, settled=place.pop_all().close,
        )  # fmt: skip

    async def _call_once(self, scope: Scope, request: Request, answered: ExitStack) -> Reply:
        """Call the provider. Whatever may be paid leaves its place in `answered`."""

        def check() -> None:
            self._gate.check()
            scope.holder.check()

        check()
        size = len(request.text) + len(request.system)
        async with self.limiter.slot(scope.job_id, request.model, size, check) as place:
            check()  # the wait for a place may have been long
            began = time.monotonic()
            try:
                # The SDK's own time-outs are for each read; a reply that trickles would never end.
                async with asyncio.timeout(request.timeout_seconds):
                    reply = await self.provider.call(request)
            except TimeoutError as error:
                raise CallFailed(
                    f"the LLM server did not answer within {request.timeout_seconds:g} s"
                ) from error
            except CallFailed as error:
                place.failed(error)
                error.latency_ms = round((time.monotonic() - began) * 1000)
                if error.perhaps_paid:
                    answered.callback(place.hand_over())
                raise
            except UselessReply as error:
                error.latency_ms = round((time.monotonic() - began) * 1000)
                answered.callback(place.hand_over())
                raise
            place.landed(reply)
            answered.callback(place.hand_over())
        self._gate.answered(scope.holder)
        return reply

    async def _pause(self, scope: Scope, seconds: float) -> None:
        """Sleep, but notice within half a second that the job must stop, or that all must."""
        deadline = asyncio.get_running_loop().time() + seconds
        while (left := deadline - asyncio.get_running_loop().time()) > 0:
            self._gate.check()
            scope.holder.check()
            await asyncio.sleep(min(0.5, left))


def _unusable(request: Request, error: CallError) -> Reply:
    """Return what a receipt holds of a reply that nothing can be read from."""
    return Reply("", f"{_UNUSABLE}{error}", None, request.model, latency_ms=error.latency_ms)


def _message(reply: Reply) -> Reply:
    """Return the reply if it is a message at all, or raise why not."""
    if reply.stop_reason.startswith(_UNUSABLE):
        raise UselessReply(reply.stop_reason.removeprefix(_UNUSABLE))
    return reply
