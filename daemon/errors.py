"""Every error fullpass raises, in one tree that says what the caller should do.

    FullpassError
    ├── UsageError          fix the command or the setting; exit 2
    │   └── NotAllowed      the login of the database lacks a right
    ├── Sick                this very process cannot go on: end it, exit 1, start another
    ├── GiveUp              this job can never succeed as it is; fail it for good
    │   ├── BadExport       the file is no export, is empty, is hostile
    │   └── PoorCoverage    too little could be read to write an honest MEMORY
    ├── TryAgain            this job may succeed later; uses up one attempt
    ├── Wait                nobody's fault; release the job, no attempt used
    │   ├── Systemic        every job would meet it (bad key, outage); pause the worker
    │   │   └── OutOfReach  the database itself: nothing can be claimed meanwhile anyway
    │   │       └── SchemaMoved  its schema is another release's: wait for the one that fits
    │   ├── AwaitsBatch     replies come by batch: look again later
    │   ├── HeldByBatch     the money left is set aside for a batch: wait for it
    │   └── Draining        this worker is shutting down
    ├── Stop                the job is no longer ours to work on
    │   ├── LeaseLost       another worker may hold it: write nothing more
    │   └── Cancelled       the person asked to stop; keep what there is
    ├── CallError           one model call; handled where calls are made, never ends a job itself
    │   ├── CallFailed      it failed in passing: repeat it after a back-off
    │   │   └── Throttled   the server asks for fewer calls (llm/rate_limits.py: it carries limits)
    │   ├── BadCall         it cannot succeed with this input: change the input
    │   └── UselessReply    it was answered, and paid, but the reply cannot be used: ask again
    └── NotTold             a message to the outside did not arrive; the outbox sends it again
        ├── NeverTold       it cannot arrive: let it go and say so
        └── AddressGone     its receiver wants nothing more: send nothing there

Messages are one line, name the place and the remedy, and never hold a secret or conversation text
(promise 11).
"""

from __future__ import annotations


class FullpassError(Exception):
    """Base of every error raised on purpose."""


class UsageError(FullpassError):
    """A command or a setting is wrong; the message names it and the rule. Exit code 2."""


class NotAllowed(UsageError):
    """The database's login lacks a right; the message says which login to use."""


class Sick(FullpassError):
    """The worker itself is past remedy: its jobs go back, the process ends, another may start."""


class GiveUp(FullpassError):
    """The job cannot succeed as it is: fail it now, whatever attempts remain."""


class BadExport(GiveUp):
    """The file cannot be read as an export; the message names file, place and remedy."""


class PoorCoverage(GiveUp):
    """Less of the text was read than MIN_EXTRACTION_COVERAGE asks; no MEMORY is written from it."""


class TryAgain(FullpassError):
    """Something failed that may work next time: back off and retry, counting the attempt."""


class Wait(FullpassError):
    """Not the job's fault: release it with its attempt refunded and try after `seconds`."""

    def __init__(self, message: str, *, seconds: float = 5.0) -> None:
        super().__init__(message)
        self.seconds = seconds


class Systemic(Wait):
    """Every job would meet this (bad key, unknown model, spend limit, outage): pause the worker."""

    perhaps_of_input = False
    """Whether it may be the input alone that is barred: another call tells."""


class OutOfReach(Systemic):
    """The database is in trouble or away: go on as soon as it answers."""

    def __init__(self, message: str, *, seconds: float = 1.0) -> None:
        super().__init__(message, seconds=seconds)


class SchemaMoved(OutOfReach):
    """The database's schema is not this release's; nothing works before they fit again."""

    def __init__(self, message: str) -> None:
        super().__init__(message, seconds=15.0)


class AwaitsBatch(Wait):
    """Replies come by batch: release the job until the next look, whatever the longest wait.

    A batch has an end of its own (24 hours), so MAX_WAIT_HOURS does not count. `stage` is what the
    person's profile says meanwhile.
    """

    def __init__(self, message: str, *, seconds: float, stage: str) -> None:
        super().__init__(message, seconds=seconds)
        self.stage = stage


class HeldByBatch(Wait):
    """The job's money is set aside for what a batch may yet cost: wait until that is known."""


class Draining(Wait):
    """The worker is shutting down: release the job at once for the next worker."""

    def __init__(self, message: str = "the worker is shutting down") -> None:
        super().__init__(message, seconds=0.0)


class Stop(FullpassError):
    """The job is not this worker's any more: end its work, write nothing on its behalf."""


class LeaseLost(Stop):
    """The lease epoch moved on; another worker may hold the job (promise 1)."""


class Cancelled(Stop):
    """Cancellation was asked for: keep what is saved and say cancelled."""


class CallError(FullpassError):
    """Something about one model call; the caller of the model deals with it."""

    perhaps_paid = False
    """Whether the server answered all the same: what it billed leaves a receipt."""
    latency_ms = 0
    """How long the call took: whether its person was erased meanwhile is told by that."""


class CallFailed(CallError):
    """The call failed in passing (limit, overload, network): repeat it after a back-off."""

    def __init__(
        self,
        message: str,
        *,
        retry_after_seconds: float | None = None,
        perhaps_paid: bool = False,
    ) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds
        self.perhaps_paid = perhaps_paid


class BadCall(CallError):
    """The server refuses this very input (too large, malformed): send a different one."""


class UselessReply(CallError):
    """An answered and paid call whose reply cannot be used; the message says what was wrong."""

    perhaps_paid = True


class NotTold(FullpassError):
    """A webhook or mail did not arrive; says why without naming an address (promise 11)."""


class NeverTold(NotTold):
    """This message cannot arrive, however often it is sent."""


class AddressGone(NotTold):
    """The receiver answered that it is gone for good (410)."""
