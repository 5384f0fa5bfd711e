"""A loopback server that speaks the Messages API to the real SDK, answers by schema, and records.

    with AnthropicServer(truth=Truth([...])) as server:
        server.behave(latency_seconds=0.05, faults={"overloaded": 0.05})
        ...                                   # ANTHROPIC_BASE_URL=server.url, key "test-key"
        assert not server.record.paid_again()

    python -m tests.support.anthropic_server --port 0 --record calls.jsonl --truth truth.json

It serves POST /v1/messages and /v1/messages/count_tokens, GET /v1/models[/ID], message batches
(anthropic_batches.py), and for tests POST /control, POST /control/wait, GET /control and
GET /control/record. What the model says is model_answers.py, every switch is
anthropic_behaviour.py, the shapes are anthropic_wire.py.
"""

from __future__ import annotations

import argparse
import asyncio
import secrets
import time
from collections import deque
from dataclasses import asdict, dataclass, replace
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from tests.support.anthropic_batches import Batches
from tests.support.anthropic_behaviour import Behaviour, Fault, Scripted
from tests.support.anthropic_record import Call, Record
from tests.support.anthropic_replies import PromptCache, Spoken, failure
from tests.support.anthropic_wire import (
    ERRORS,
    Refused,
    check_key,
    check_messages_body,
    count_input,
    error_reply,
    forced_tool,
    invalid,
    model_info,
    schema_of_output,
    user_text,
)
from tests.support.loopback import (
    LoopbackServer,
    Reply,
    Request,
    json_reply,
)
from tests.support.model_answers import Question, answer, purpose_of
from tests.support.planted_truth import Planted, Truth, planted_from
from tests.support.rate_limits import Allowances, retry_after
from tests.support.server_process import serve_until_signalled

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


class Order(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What POST /control takes; every part is optional."""

    behaviour: dict[str, Any] = {}
    script: list[Scripted | Fault] = []
    truth: Any = None
    hold: bool | None = None
    hold_after_calls: int = 0
    hold_purpose: str = ""
    clear: bool = False


class Awaited(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What POST /control/wait takes: counts that must be reached."""

    in_flight: int = 0
    calls: int = 0
    completed: int = 0
    timeout_seconds: float = 10.0


@dataclass(slots=True)
class Gate:
    """Holds calls back: of one purpose, or after so many have passed."""

    open: asyncio.Event
    passes: int
    purpose: str

    def lets_pass(self, purpose: str) -> bool:
        if self.open.is_set() or (self.purpose and purpose != self.purpose):
            return True
        self.passes -= 1
        return self.passes >= 0


class AnthropicServer(LoopbackServer):
    """The server; a context manager. `record` has the calls, `behaviour` the switches in force."""

    def __init__(
        self,
        *,
        port: int = 0,
        truth: Truth | Iterable[Planted] = (),
        behaviour: Behaviour | None = None,
        record_path: Path | None = None,
    ) -> None:
        super().__init__(port=port)
        self.behaviour = behaviour or Behaviour()
        self.truth = truth if isinstance(truth, Truth) else Truth(truth)
        self.record = Record(record_path)
        self._flying: set[int] = set()
        self._visits = 0
        self._script: deque[Scripted] = deque()
        self._gate = Gate(asyncio.Event(), 0, "")
        self._gate.open.set()
        self._allowances = Allowances()
        self._cache = PromptCache()
        self.batches = Batches(self)

    def close(self) -> None:
        """Stop serving and close the record."""
        super().close()
        self.record.close()

    @property
    def in_flight(self) -> int:
        """Calls that came and are neither answered nor given up by their client."""
        return len(self._flying)

    # Steering, from any thread

    def behave(self, **changes: object) -> None:
        """Change switches by name; raises ValueError naming an unknown one."""
        self.behaviour = self.behaviour.changed(changes)

    def script(self, *steps: Scripted | Fault) -> None:
        """Decide the next calls, one step each, before any probability is drawn."""
        self._script.extend(
            step if isinstance(step, Scripted) else Scripted(fault=step) for step in steps
        )

    def hold(self, *, after_calls: int = 0, purpose: str = "") -> None:
        """Let so many more calls (of the purpose) pass, then keep each unanswered."""
        # What an earlier hold still keeps waits on the same event, so one release frees all.
        waiting = asyncio.Event() if self._gate.open.is_set() else self._gate.open
        self._gate = Gate(waiting, after_calls, purpose)

    def release(self) -> None:
        """Answer all that is held and hold no more."""
        assert self._loop is not None
        self._loop.call_soon_threadsafe(self._gate.open.set)

    def wait_until(
        self,
        *,
        in_flight: int = 0,
        calls: int = 0,
        completed: int = 0,
        timeout_seconds: float = 10.0,
    ) -> None:
        """Block until each count is reached; raises TimeoutError saying what was reached."""
        awaited = Awaited(
            in_flight=in_flight, calls=calls, completed=completed, timeout_seconds=timeout_seconds
        )
        if not self.on_loop(self._reached(awaited), timeout_seconds=timeout_seconds + 5):
            raise TimeoutError(f"{awaited}: {self.in_flight} in flight, {self.record.totals()}")

    async def until(self, **counts: Any) -> None:
        """Wait as `wait_until` does, without blocking the caller's loop."""
        await asyncio.to_thread(self.wait_until, **counts)

    async def _reached(self, awaited: Awaited) -> bool:
        return await self.until_true(
            lambda: (
                self.in_flight >= awaited.in_flight
                and len(self.record.calls) >= awaited.calls
                and (not awaited.completed or len(self.record.completed()) >= awaited.completed)
            ),
            awaited.timeout_seconds,
        )

    # Routes

    async def handle(self, request: Request) -> Reply:
        """Answer one request."""
        if request.path.startswith("/control"):
            return await self._control(request)
        request_id = f"req_{secrets.token_hex(12)}"
        route = (request.method, request.path.rstrip("/"))
        try:
            if route == ("POST", "/v1/messages"):
                return await self._messages(request, request_id)
            if route[1].startswith("/v1/models") and not self.behaviour.models_endpoint:
                return Reply(404, b"Not Found", {"content-type": "text/plain"})
            if route[1].startswith("/v1/messages/batches"):
                return await self._batches(request, request_id)
            check_key(request.headers, self.behaviour)
            if route == ("POST", "/v1/messages/count_tokens"):
                body = check_messages_body(_parsed(request), self.behaviour, counting=True)
                return json_reply({"input_tokens": count_input(body).tokens})
            if request.method == "GET" and route[1].startswith("/v1/models"):
                return self._models(route[1].removeprefix("/v1/models").strip("/"), request_id)
        except Refused as refusal:
            return error_reply(refusal.status, refusal.kind, str(refusal), request_id)
        return error_reply(404, "not_found_error", f"{request.path}: not found", request_id)

    async def _batches(self, request: Request, request_id: str) -> Reply:
        if not self.behaviour.batches_endpoint:
            return Reply(404, b"Not Found", {"content-type": "text/plain"})
        check_key(request.headers, self.behaviour)
        self._visits += 1
        visit = -self._visits  # in flight like a call, and told apart from one
        self._flying.add(visit)
        self.changed()
        try:
            return await self.batches.handle(request, request_id)
        finally:
            self._flying.discard(visit)
            self.changed()

    def holds(self, purpose: str) -> bool:
        """Whether calls of this very purpose are held."""
        return self._gate.purpose == purpose and not self._gate.open.is_set()

    async def passed(self, purpose: str) -> None:
        """Wait while calls of this very purpose are held."""
        if self.holds(purpose):
            await self._gate.open.wait()

    def scripted(self, purpose: str) -> Scripted | None:
        """Take the next step that was scripted for this very purpose."""
        for step in self._script:
            if step.purpose == purpose:
                self._script.remove(step)
                return step
        return None

    def answer_in_batch(self, body: dict[str, Any], batch_id: str) -> dict[str, Any]:
        """Answer one request of a batch, record it as paid, and give the message."""
        canonical = msgspec.json.encode(body, order="sorted")
        tool = forced_tool(body)
        call = self.record.begin(
            key=sha256(canonical).hexdigest(),
            purpose=purpose_of(schema_of_output(body) or (tool[1] if tool else None)),
            model=str(body.get("model", "")),
            started_at=time.time(),
            in_flight=self.in_flight,
            size=len(canonical),
        )
        how = self.behaviour
        dice = how.draw(call.key, call.occurrence)
        step = self.scripted(call.purpose)
        fault = how.fault(dice, call.purpose) if step is None else step.fault
        answered = answer(
            Question(
                purpose=call.purpose,
                schema=_schema(body),
                prompt=user_text(body),
                behaviour=how,
                truth=self.truth,
                dice=dice,
            )
        )
        usage = self._cache.usage(count_input(body), call.model)
        reply, accounted = Spoken(body, answered, how, fault, usage, {}).reply()
        self.record.update(
            call, batch=batch_id, status=200, complete=True, finished_at=time.time(), fault=fault,
            messages=answered.messages, facts=answered.facts, answered=answered.answered,
            **accounted,
        )  # fmt: skip
        assert isinstance(reply.body, bytes)
        message: dict[str, Any] = msgspec.json.decode(reply.body)
        return message

    def _models(self, name: str, request_id: str) -> Reply:
        headers = {"request-id": request_id}
        known = self.behaviour.models
        if not name:
            page = {
                "data": [model_info(model) for model in known],
                "has_more": False,
                "first_id": known[0] if known else None,
                "last_id": known[-1] if known else None,
            }
            return json_reply(page, headers=headers)
        if name not in known:
            raise Refused(404, "not_found_error", f"model: {name}")
        return json_reply(model_info(name), headers=headers)

    async def _control(self, request: Request) -> Reply:
        try:
            match request.method, request.path:
                case "POST", "/control":
                    self._obey(msgspec.json.decode(request.body, type=Order))
                case "POST", "/control/wait":
                    if not await self._reached(msgspec.json.decode(request.body, type=Awaited)):
                        return json_reply(self._state(), status=408)
                case "GET", "/control/record":
                    return json_reply(self.record.as_json())
                case _:
                    pass
        except ValueError as error:  # msgspec's errors are ValueErrors too
            return json_reply({"error": str(error)}, status=400)
        return json_reply(self._state())

    def _obey(self, order: Order) -> None:
        self.behave(**order.behaviour)
        if order.clear:
            self.record.clear()
            self._script.clear()
        self.script(*order.script)
        if order.truth is not None:
            self.truth = Truth(planted_from(order.truth))
        if order.hold is True:
            self.hold(after_calls=order.hold_after_calls, purpose=order.hold_purpose)
        elif order.hold is False:
            self._gate.open.set()

    def _state(self) -> dict[str, Any]:
        return {
            "behaviour": asdict(self.behaviour),
            "in_flight": self.in_flight,
            "scripted": len(self._script),
            "planted": len(self.truth),
            "totals": self.record.totals(),
        }

    # One call

    async def _messages(self, request: Request, request_id: str) -> Reply:
        body = _parsed(request)
        canonical = msgspec.json.encode(body, order="sorted")
        tool = forced_tool(body)
        schema = schema_of_output(body) or (tool[1] if tool else None)
        call = self.record.begin(
            key=sha256(canonical).hexdigest(),
            purpose=purpose_of(schema),
            model=str(body.get("model", "")),
            started_at=time.time(),
            in_flight=self.in_flight + 1,
            size=len(request.body),
        )
        self._flying.add(call.seq)
        self.changed()
        try:
            reply, call = await self._reply(request, body, call, request_id)
        except BaseException:
            # The client left while we waited, or we are stopping: in flight, never answered.
            self._finished(call, complete=False)
            raise
        call = self.record.update(
            call, status=0 if reply.reset else reply.status, request_id=request_id
        )
        return replace(reply, on_sent=lambda sent: self._finished(call, complete=sent))

    def _finished(self, call: Call, *, complete: bool) -> None:
        # A reply told sent may be told broken after all; it left the flight only once.
        self._flying.discard(call.seq)
        self.record.update(call, complete=complete, finished_at=time.time())
        self.changed()

    async def _reply(
        self, request: Request, raw: dict[str, Any], call: Call, request_id: str
    ) -> tuple[Reply, Call]:
        how = self.behaviour
        update = partial(self.record.update, flush=False)
        try:
            check_key(request.headers, how)
            body = check_messages_body(raw, how)
            if "anthropic-version" not in request.headers:
                raise invalid("anthropic-version: header is required")
            counted = count_input(body)
            if counted.tokens > how.context_tokens:
                raise invalid(
                    f"prompt is too long: {counted.tokens} tokens > {how.context_tokens} maximum"
                )
        except Refused as refusal:
            reply = error_reply(refusal.status, refusal.kind, str(refusal), request_id)
            return reply, update(call, fault="refused")
        dice = how.draw(call.key, call.occurrence)
        call = update(call, latency_seconds=how.latency(dice))
        gate = self._gate
        if not gate.lets_pass(call.purpose):
            await gate.open.wait()
        exceeded = self._allowances.refused(how, counted.tokens)
        limits = {"request-id": request_id, **self._allowances.headers(how)}
        if exceeded is not None:
            name, seconds = exceeded
            status, kind, _ = ERRORS["rate_limited"]
            message = f"This request would exceed your limit of {name} per minute."
            headers = {**limits, "retry-after": retry_after(seconds, how)}
            reply = error_reply(status, kind, message, request_id, headers=headers)
            return reply, update(call, fault="rate_limit_enforced")
        step = self._next_step(call.purpose) or Scripted(fault=how.fault(dice, call.purpose))
        if how.fails_on and how.fails_on in user_text(body):
            step = Scripted(fault=how.fails_with)
        call = update(call, fault=step.fault)
        # The latency of a model that begins to answer, and the fault of one that stalls.
        await asyncio.sleep(
            call.latency_seconds + (how.stall_seconds if step.fault == "stall" else 0.0)
        )
        failed = failure(step, how, limits)
        if failed is not None:
            return failed, call
        question = Question(
            purpose=call.purpose,
            schema=_schema(body),
            prompt=user_text(body),
            behaviour=how,
            truth=self.truth,
            dice=dice,
        )
        answered = answer(question)
        call = update(
            call, messages=answered.messages, facts=answered.facts, answered=answered.answered
        )
        usage = self._cache.usage(counted, call.model)
        spoken = Spoken(body, answered, how, step.fault, usage, limits)
        reply, accounted = spoken.reply()
        # A model writes token by token: a long reply takes its time.
        await asyncio.sleep(how.seconds_per_output_token * accounted["output_tokens"])
        self._allowances.spend_output(accounted["output_tokens"])
        return reply, update(call, **accounted)

    def _next_step(self, purpose: str) -> Scripted | None:
        for step in self._script:
            if step.purpose in {"", purpose}:
                self._script.remove(step)
                return step
        return None


def _parsed(request: Request) -> dict[str, Any]:
    try:
        body = request.json()
    except msgspec.DecodeError as error:
        raise invalid(f"The request body is not valid JSON: {error}") from None
    if not isinstance(body, dict):
        raise invalid("The request body is not valid JSON: expected an object")
    return body


def _schema(body: dict[str, Any]) -> dict[str, Any]:
    tool = forced_tool(body)
    return schema_of_output(body) or (tool[1] if tool else {})


def main(arguments: Sequence[str] | None = None) -> None:
    """Serve as a process of its own."""
    parser = argparse.ArgumentParser(prog="anthropic_server", description=__doc__)
    parser.add_argument("--port", type=int, default=0, help="0 picks a free one")
    parser.add_argument("--record", type=Path, help="append every call to this JSON-lines file")
    parser.add_argument("--truth", type=Path, help="planted sentences and their facts")
    parser.add_argument("--key", action="append", help="accept this key (default test-key)")
    parser.add_argument("--behaviour", default="{}", help="JSON object of switches")
    parser.add_argument("--with-parent", action="store_true", help="end when the parent does")
    options = parser.parse_args(arguments)
    behaviour = Behaviour().changed(msgspec.json.decode(options.behaviour))
    if options.key:
        behaviour = replace(behaviour, keys=tuple(options.key))
    server = AnthropicServer(
        port=options.port,
        truth=Truth.read(options.truth) if options.truth else (),
        behaviour=behaviour,
        record_path=options.record,
    )
    serve_until_signalled(server, with_parent=options.with_parent)


if __name__ == "__main__":
    main()
