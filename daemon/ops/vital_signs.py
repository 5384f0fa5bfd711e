"""Whether a worker lives and is ready, from signs that any thread may read at any moment.

Owns what the signs mean; asks neither the database nor the worker's loop, so the answer comes while
both are stuck. Leaves ending a worker that is past remedy to the worker and its heartbeat: these
only say so, in words that hold no id, no address and no error's text, since whoever can reach the
port may read them (promise 11).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from daemon.database import Pool
    from daemon.queue.heartbeat import Heartbeat
    from daemon.queue.liveness import LoopEcho, Pulse
    from daemon.queue.wakeup import Wakeup
    from daemon.settings import Settings

_BEATS = 3
"""So many beats without an answer are no accident; `fullpass health` counts the same."""


@dataclass(frozen=True, slots=True)
class Sign:
    """One thing that was looked at."""

    name: str
    well: bool
    said: str


@dataclass(frozen=True, slots=True)
class Attended:
    """What a worker that serves is made of, as far as it shows."""

    heartbeat: Heartbeat
    pulse: Pulse
    echo: LoopEcho
    wakeup: Wakeup
    pool: Pool


class VitalSigns:
    """The signs of one worker; `attend` is called when it begins to serve.

    `vitals` is what its heartbeat reports of it.
    """

    def __init__(self, settings: Settings, *, vitals: Callable[[], dict[str, Any]]) -> None:
        self._settings = settings
        self.vitals = vitals
        self.attended: Attended | None = None
        self.draining = False

    def attend(self, attended: Attended) -> None:
        """Look at these from now on."""
        self.attended = attended

    def alive(self) -> list[Sign]:
        """Return whether the process does its work at all; if not, it ought to be restarted.

        A database that is away is no reason: a worker that waits for it is well.
        """
        seen = self.attended
        if seen is None:
            return [Sign("process", well=True, said="starting")]
        silent, most = seen.echo.silent_seconds, self._settings.lease_seconds / 2
        late = seen.pulse.late_seconds
        return [
            Sign("loop", silent < most, f"answered within {silent:.1f} s"
                 if silent < most else f"silent for {silent:.0f} s"),
            Sign("claiming", not seen.pulse.stuck, f"late by {late:.0f} s" if late else "on time"),
            Sign("heartbeat", seen.heartbeat.beating,
                 "going round" if seen.heartbeat.beating else "stopped"),
        ]  # fmt: skip

    def ready(self) -> list[Sign]:
        """Return whether a job that came due now would be taken up and its lease kept."""
        seen = self.attended
        if seen is None:
            return [Sign("worker", well=False, said="starting: waits for the database")]
        age = self.beat_age_seconds
        most = _BEATS * self._settings.heartbeat_seconds
        beat = "never" if age is None else f"{age:.1f} s ago"
        signs = self.alive()
        signs.append(Sign("beat", age is not None and age <= most, f"acknowledged {beat}"))
        # Polling is always underneath (promise 8): a deaf listener costs seconds, not readiness.
        heard = "notices are heard, and polling" if seen.wakeup.echoing else "polling"
        signs.append(Sign("wakeup", well=True, said=heard))
        if self.draining:
            signs.append(Sign("worker", well=False, said="draining"))
        return signs

    @property
    def beat_age_seconds(self) -> float | None:
        """How long ago the database last acknowledged a beat; None: never yet."""
        return None if self.attended is None else self.attended.heartbeat.acknowledged_age_seconds
