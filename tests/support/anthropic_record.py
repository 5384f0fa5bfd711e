"""The record of every call a loopback Anthropic server met: the truth that ledgers are held to.

One line of JSON a call is appended and flushed when its reply is ready and again when it is sent
or the client has gone; of the lines with one `seq` the last counts. A call that was never
completely sent has `complete` false. Tokens are those the reply billed.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, replace
from typing import IO, TYPE_CHECKING, Any

import msgspec

from tests.support.anthropic_behaviour import SOUND

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True, slots=True)
class Call:
    """One POST /v1/messages. Times are seconds since the epoch, 0 while not reached."""

    seq: int
    key: str
    """sha256 of the canonical JSON of the body."""
    occurrence: int
    """How many calls with this body came before."""
    purpose: str
    model: str
    started_at: float
    in_flight: int
    """Calls in flight when this one arrived, itself included."""
    messages: int = 0
    facts: int = 0
    """How many of each the prompt shows."""
    answered: int = 0
    """Facts, groups or lines in the reply."""
    fault: str = "ok"
    latency_seconds: float = 0.0
    """Drawn latency, before any hold or stall."""
    status: int = 0
    """HTTP status of the reply; 0 when none was sent."""
    stop_reason: str = ""
    input_tokens: int = 0
    output_tokens: int = 0
    cache_read_tokens: int = 0
    cache_write_tokens: int = 0
    input_bytes: int = 0
    output_bytes: int = 0
    request_id: str = ""
    complete: bool = False
    finished_at: float = 0.0
    batch: str = ""
    """The batch it came in; then it is paid at half price, whether its result was fetched or not."""

    @property
    def paid(self) -> bool:
        """Answered 200, every byte sent."""
        return self.status == 200 and self.complete

    @property
    def sound(self) -> bool:
        """Paid, and the reply held the whole answer."""
        return self.paid and self.fault in SOUND and self.stop_reason in {"end_turn", "tool_use"}


class Record:
    """Calls in order of arrival. Written on the server's loop, read from any thread."""

    def __init__(self, path: Path | None = None) -> None:
        self._calls: dict[int, Call] = {}
        self._seen: Counter[str] = Counter()
        self._next_seq = 1
        self._file: IO[bytes] | None = None if path is None else path.open("ab")

    @classmethod
    def read(cls, path: Path) -> Record:
        """Load a record file, a torn last line aside."""
        record = cls()
        for line in path.read_bytes().split(b"\n")[:-1]:
            call = msgspec.json.decode(line, type=Call)
            record._calls[call.seq] = call
        return record

    @property
    def calls(self) -> list[Call]:
        """Every call so far."""
        return list(self._calls.values())

    def completed(self) -> list[Call]:
        """Calls answered 200 to the last byte, whatever the reply was worth."""
        return [call for call in self.calls if call.paid]

    def duplicates(self) -> dict[str, int]:
        """Bodies completed more than once, with how often."""
        return _repeated(call.key for call in self.completed())

    def paid_again(self) -> dict[str, int]:
        """Bodies whose whole answer was sent more than once: what promise 3 forbids."""
        return _repeated(call.key for call in self.calls if call.sound)

    def totals(self) -> dict[str, Any]:
        """Counts and billed tokens, over all and by purpose, status and fault."""
        calls = self.calls
        paid = [call for call in calls if call.paid]
        return {
            "calls": len(calls),
            "completed": len(paid),
            "by_batch": sum(bool(call.batch) for call in calls),
            "duplicates": len(self.duplicates()),
            "paid_again": len(self.paid_again()),
            "input_tokens": sum(call.input_tokens for call in paid),
            "output_tokens": sum(call.output_tokens for call in paid),
            "cache_read_tokens": sum(call.cache_read_tokens for call in paid),
            "cache_write_tokens": sum(call.cache_write_tokens for call in paid),
            "most_in_flight": max((call.in_flight for call in calls), default=0),
            "by_purpose": dict(Counter(call.purpose for call in calls)),
            "by_status": {str(k): n for k, n in Counter(call.status for call in calls).items()},
            "by_fault": dict(Counter(call.fault for call in calls)),
        }

    def as_json(self) -> dict[str, Any]:
        """Give calls and totals as one document."""
        return {"totals": self.totals(), "calls": [asdict(call) for call in self.calls]}

    # Writing

    def begin(
        self, *, key: str, purpose: str, model: str, started_at: float, in_flight: int, size: int
    ) -> Call:
        """Open the account of a call that just arrived."""
        call = Call(
            seq=self._next_seq,
            key=key,
            occurrence=self._seen[key],
            purpose=purpose,
            model=model,
            started_at=started_at,
            in_flight=in_flight,
            input_bytes=size,
        )
        self._next_seq += 1
        self._seen[key] += 1
        self._calls[call.seq] = call
        return call

    def update(self, call: Call, *, flush: bool = True, **changes: Any) -> Call:
        """Replace a call by what is known now, and make it survive us."""
        call = replace(call, **changes)
        if call.seq in self._calls:  # not cleared meanwhile
            self._calls[call.seq] = call
        if flush and self._file is not None:
            self._file.write(msgspec.json.encode(call) + b"\n")
            self._file.flush()
        return call

    def clear(self) -> None:
        """Forget the calls so far; the file keeps them."""
        self._calls.clear()
        self._seen.clear()

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None


def _repeated(keys: Any) -> dict[str, int]:
    return {key: times for key, times in Counter(keys).items() if times > 1}
